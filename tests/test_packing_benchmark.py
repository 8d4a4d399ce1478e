"""The benchmark of packing, at a small shape: both programs take one step, and it is written."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks" / "packing.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("packing_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["packing_benchmark"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_packed_and_padded_are_one_step(benchmark, tmp_path, monkeypatch):
    shape = dataclasses.replace(
        benchmark.SHAPES["toy"], hidden_size=8, intermediate_size=8, num_layers=1
    )
    monkeypatch.setitem(benchmark.SHAPES, "toy", shape)
    config = benchmark.Config(tmp_path / "run", sequences=16, length=32, rounds=1)
    benchmark.main(config)
    tasks = json.loads((tmp_path / "run" / "result.json").read_text())["tasks"]
    assert list(tasks) == list(benchmark.TASKS)
    for found in tasks.values():
        assert found["losses"]["packed"] == pytest.approx(found["losses"]["padded"], rel=1e-5)
        assert found["full"] > 1.5 * found["full_before"]


def test_bad_settings(benchmark, tmp_path):
    for settings, message in (
        ({"tasks": ("grpo",)}, "tasks must be of supervised, dpo, reward, not grpo"),
        ({"sequences": 3}, "sequences must be even"),
        ({"length": 4}, "length must be at least 8 tokens, not 4"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmark.main(benchmark.Config(tmp_path, **settings))
