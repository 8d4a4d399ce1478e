"""The main job, from end to end in its tiny preset, as its command line runs it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax import assets, runs

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "quickstart.py"
REQUIRED = {
    "reward_accuracy",
    "proxy_gain_sd",
    "gold_gain_sd",
    "sequence_kl_nats",
    "distinct_2",
    "distinct_2_reference",
    "seconds",
    "parameters_sha256",
}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The script as a module, with a cache of its own that holds the data and nothing else."""
    try:
        data = assets.fetch(assets.VADER_RATINGS)
    except assets.AssetError as error:
        pytest.skip(f"the human ratings are neither cached nor to be fetched: {error}")
    specification = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["quickstart"] = module
    specification.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(module.rj.training, "compilation_cache", lambda: None)

        def run(folder, **flags):
            settings = {"run_dir": folder, "preset": "tiny", "data": data, "iterations": 4} | flags
            module.main(module.Config(**settings))
            return json.loads((folder / "result.json").read_text())

        yield run


@pytest.fixture(scope="module")
def whole(quickstart, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, quickstart(folder)


def test_it_writes_what_it_promises(whole, capsys):
    folder, result = whole
    assert set(result) >= REQUIRED
    assert len(result["parameters_sha256"]) == 64
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert names >= {
        "config.json",
        "metrics.jsonl",
        "report.md",
        "result.json",
        "samples.md",
        "plots/overoptimisation.png",
        "plots/reward_model.png",
        "plots/diversity.png",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"proxy", "gold", "policy"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["proxy"] * 40 + ["gold"] * 40 + ["policy"] * 4
    assert rows[-1]["kl_coefficient"] == 0.25
    assert not list(folder.rglob("*pretrain*")), "the language model belongs into the cache"


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_with_the_same_bytes(quickstart, whole, tmp_path):
    folder, expected = whole
    quickstart(tmp_path / "run", iterations=2)
    result = quickstart(tmp_path / "run", iterations=4, resume=True)
    assert result["parameters_sha256"] == expected["parameters_sha256"]
    lines = [(f / "metrics.jsonl").read_bytes() for f in (folder, tmp_path / "run")]
    assert lines[0] == lines[1]
    changing = ("seconds",)
    assert {k: v for k, v in result.items() if k not in changing} == {
        k: v for k, v in expected.items() if k not in changing
    }


def test_an_existing_run_and_another_configuration_are_refused(quickstart, whole):
    folder, _ = whole
    before = (folder / "result.json").read_bytes()
    with pytest.raises(runs.RunError, match="--resume goes on with it, --overwrite deletes it"):
        quickstart(folder)
    with pytest.raises(runs.RunError, match="seed: 0 there, 1 now"):
        quickstart(folder, seed=1, resume=True)
    assert (folder / "result.json").read_bytes() == before
    with pytest.raises(runs.RunError, match="the run folder /proc/nowhere cannot be written"):
        quickstart(Path("/proc/nowhere"))


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--preset", "huge"], 2, "huge"),
        (["--data", "/nowhere/at/all"], 1, "/nowhere/at/all"),
    ],
)
def test_bad_command_lines_end_with_a_message_and_no_traceback(flags, status, message):
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
