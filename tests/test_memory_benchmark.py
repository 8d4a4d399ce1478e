"""The benchmark of a step's memory, at a toy shape: its savings save, and its table is written."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["memory_benchmark"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_savings_save_and_change_no_loss(benchmark):
    variants = benchmark.Variant(), benchmark.Variant("blocks", 2)
    full, saved = (benchmark.measure("dpo", v, "toy", rows=8, length=32) for v in variants)
    assert saved["planned_temporary_mb"] < full["planned_temporary_mb"] / 2
    assert saved["loss"] == pytest.approx(full["loss"], rel=1e-5)


def test_a_table_of_all_tasks_and_variants(benchmark, tmp_path, monkeypatch, capsys):
    asked = []

    def instead(command, **settings):
        asked.append(json.loads(command[-1]))
        names = ("planned_arguments_mb", "planned_temporary_mb", "peak_rss_mb", "step_s", "loss")
        return subprocess.CompletedProcess(command, 0, json.dumps(dict.fromkeys(names, 1.0)), "")

    monkeypatch.setattr(benchmark.subprocess, "run", instead)
    benchmark.main(benchmark.Config(run_dir=tmp_path / "run", fast=True))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["steps"]) == len(asked) == 3 * len(benchmark.VARIANTS)
    assert asked[0] == [
        "supervised",
        benchmark.dataclasses.asdict(benchmark.Variant()),
        "toy",
        8,
        16,
    ]
    assert "policy-gradient" in capsys.readouterr().out
    with pytest.raises(ValueError, match="tasks must be of supervised, dpo, policy-gradient"):
        benchmark.main(benchmark.Config(run_dir=tmp_path / "other", tasks=("grpo",)))
