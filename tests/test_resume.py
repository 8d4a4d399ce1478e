"""A run killed at any moment and resumed ends with the bytes of one that was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys, time
from pathlib import Path
import jax
from rlhf_jax import callbacks, runs, training
from test_training import leaves_bytes, toy, toy_batches

folder, cache, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
training.compilation_cache(cache)
config = {"seed": 1, "steps": 30}
run = runs.start(folder, config, resume="--resume" in sys.argv)

def batches(step):
    time.sleep(pause)
    return toy_batches(step)

def train(stage, rate, params, seed):
    init = lambda: toy(rate).init(params, jax.random.key(seed), reference=params)
    show = callbacks.progress(config["steps"], stage)
    try:
        fitted = run.fit(
            stage, toy(rate), init, batches, steps=config["steps"], chunk=5, save_every=5,
            callbacks=[show],
        )
    except runs.Interrupted as stop:
        print("STOPPED", stop.fitted.stopped, int(stop.fitted.state.step), flush=True)
        raise
    run.write_json(f"{stage}.json", fitted.history)
    (folder / f"{stage}.state").write_bytes(repr(leaves_bytes(fitted.state)).encode())
    return fitted.state.params

reward = train("reward", 0.1, {"w": jax.numpy.zeros(4), "b": jax.numpy.zeros(())}, 0)
train("policy", 0.01, reward, 1)
print("DONE", flush=True)
"""
STAGES = ("reward", "policy")
OUTPUTS = ["config.json", "metrics.jsonl"] + [
    f"{s}.{kind}" for s in STAGES for kind in ("json", "state")
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the script, the cache of compiled programs and the uninterrupted run."""
    home = tmp_path_factory.mktemp("resume")
    (home / "script.py").write_text(SCRIPT)
    process = launch(home, home / "whole", pause=0.0)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "DONE" in output, errors
    assert len((home / "whole" / "metrics.jsonl").read_bytes().splitlines()) == 60
    return home


def launch(home: Path, run: Path, *flags: str, pause: float = 0.01) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "script.py", str(run), str(home / "cache"), str(pause), *flags],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: subprocess.Popen, run: Path, count: int) -> None:
    """Wait until a run has written so many lines, or has ended."""
    until = time.monotonic() + 60
    while process.poll() is None and lines(run) < count:
        assert time.monotonic() < until, "the run makes no progress"
        time.sleep(0.002)


def finish(home: Path, run: Path) -> None:
    process = launch(home, run, "--resume", pause=0.0)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "DONE" in output, errors


def assert_equal_runs(run: Path, whole: Path) -> None:
    for name in OUTPUTS:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def kill_and_resume(home: Path, run: Path, rng: random.Random, kills: int) -> list[int]:
    """Kill a run at random moments, each time further on, until it is left to end."""
    killed, flags = [], ()
    for _ in range(kills):
        process = launch(home, run, *flags)
        wait_for(process, run, lines(run) + rng.randrange(0, 40 // kills))
        # A save takes longer than a step, so that many of these moments fall inside one.
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.append(lines(run))
        flags = ("--resume",)
    finish(home, run)
    return killed


def test_killed_and_resumed_equals_uninterrupted(home, tmp_path):
    killed = kill_and_resume(home, tmp_path / "run", random.Random(0), kills=2)
    assert any(0 < count < 60 for count in killed), "no kill came while it trained"
    assert_equal_runs(tmp_path / "run", home / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_killed_many_times_and_resumed_equals_uninterrupted(home, tmp_path, seed):
    kill_and_resume(home, tmp_path / "run", random.Random(seed), kills=6)
    assert_equal_runs(tmp_path / "run", home / "whole")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_exits_and_the_run_goes_on(home, tmp_path, name):
    run = tmp_path / "run"
    process = launch(home, run)
    wait_for(process, run, 12)
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name), errors
    assert "--resume goes on" in errors
    assert "Traceback" not in errors
    *_, reason, step = output.split()
    assert f"interrupted by {name}" in output and reason == name
    # Every line written is of a step that is saved.
    assert lines(run) == int(step) < 60
    assert (run / "checkpoints" / "reward" / step).is_dir()
    if name == "SIGTERM":
        finish(home, run)
        assert_equal_runs(run, home / "whole")
