import dataclasses
import json
import logging
import os
import signal
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_training import Recorder, leaves_bytes, toy, toy_batches, toy_state

from rlhf_jax import callbacks, checkpoint, runs, training


@dataclasses.dataclass(frozen=True)
class Config:
    run_dir: Path = Path("runs/x")
    seed: int = 0
    iterations: int = 8
    optimizer: dict = dataclasses.field(default_factory=lambda: {"rate": 0.1})
    resume: bool = False


def fit(run, steps=8, stage="policy", **options):
    options = {"chunk": 4, "save_every": 4} | options
    return run.fit(stage, toy(), toy_state, toy_batches, steps=steps, **options)


def fail(*args, **kwargs):
    raise AssertionError("called")


def test_a_run_writes_its_files(tmp_path):
    run = runs.start(tmp_path / "a" / "run", Config())
    fitted = fit(run)
    assert not run.resumed and fitted.stopped is None
    config = json.loads((run.folder / "config.json").read_text())
    assert config == {
        "run_dir": "runs/x",
        "seed": 0,
        "iterations": 8,
        "optimizer": {"rate": 0.1},
        "resume": False,
    }
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("policy", s) for s in range(1, 9)]
    assert (run.folder / "checkpoints" / "policy" / "8").is_dir()
    alone = training.fit(toy(), toy_state(), toy_batches, steps=8, chunk=4)
    assert leaves_bytes(fitted.state) == leaves_bytes(alone.state)
    assert fitted.history == alone.history


@pytest.mark.parametrize("how", ["neither", "both", "config", "no run", "damaged"])
def test_what_cannot_start_is_refused_in_one_line_and_nothing_is_lost(tmp_path, how):
    fit(runs.start(tmp_path, Config()))
    flags, config, message = {
        "neither": ({}, Config(), "not empty: --resume .* --overwrite .* --run-dir"),
        "both": ({"resume": True, "overwrite": True}, Config(), "exclude each other"),
        "config": (
            {"resume": True},
            Config(seed=3, optimizer={"rate": 0.2}, run_dir=Path("y"), resume=True),
            "optimizer.rate: 0.1 there, 0.2 now; seed: 0 there, 3 now$",
        ),
        "no run": ({"resume": True}, Config(), "no config.json"),
        "damaged": ({"resume": True}, Config(), "config.json is damaged"),
    }[how]
    if how == "no run":
        (tmp_path / "config.json").unlink()
    if how == "damaged":
        (tmp_path / "config.json").write_text('{"seed"')
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(runs.RunError, match=message) as caught:
        runs.start(tmp_path, config, **flags)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/no/run")):
        with pytest.raises(runs.RunError, match=r"is a file|cannot be written"):
            runs.start(folder, Config())
    with pytest.raises(runs.RunError, match="cannot be kept"):
        runs.start(tmp_path / "run", {"x": object()})
    assert not (tmp_path / "run").exists()


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    fit(runs.start(run, Config()))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    (run / "link").symlink_to(tmp_path / "outside")
    again = runs.start(run, Config(seed=1), overwrite=True)
    assert sorted(p.name for p in run.iterdir()) == [".rlhf_jax", "config.json"]
    assert not again.resumed and (tmp_path / "outside" / "kept").exists()

    other = tmp_path / "model"  # as others lay out a model
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").touch()
    with pytest.raises(runs.RunError, match="is not the folder of a run"):
        runs.start(other, Config(), overwrite=True)
    assert (other / "model.safetensors").exists()
    # An empty folder, or none, needs no deleting.
    (tmp_path / "empty").mkdir()
    runs.start(tmp_path / "empty", Config(), overwrite=True)
    runs.start(tmp_path / "new", Config(), overwrite=True)


def test_overwriting_that_is_cut_short_can_be_taken_up(tmp_path, monkeypatch):
    fit(runs.start(tmp_path, Config()))
    with monkeypatch.context() as patch:
        patch.setattr(runs.shutil, "rmtree", lambda *a: (_ for _ in ()).throw(OSError("busy")))
        with pytest.raises(runs.RunError, match="busy"):
            runs.start(tmp_path, Config(), overwrite=True)
    assert not runs.start(tmp_path, Config(), overwrite=True).resumed
    assert not (tmp_path / "checkpoints").exists()


def test_resuming_nothing_begins_a_run_and_says_so(tmp_path, caplog):
    (tmp_path / ".config.json.tmp").write_text("{")  # killed before there was a configuration
    (tmp_path / ".rlhf_jax").touch()
    with caplog.at_level(logging.WARNING):
        run = runs.start(tmp_path, Config(), resume=True)
    assert "nothing to resume" in caplog.text and not run.resumed
    assert len(fit(run).history) == 8


def test_free_fields_may_change_and_a_longer_run_goes_on(tmp_path):
    free = ("run_dir", "resume", "iterations", "optimizer.rate")
    fit(runs.start(tmp_path, Config(), free=free))
    longer = Config(iterations=12, optimizer={"rate": 9})
    run = runs.start(tmp_path, longer, resume=True, free=free)
    assert run.resumed
    assert json.loads((tmp_path / "config.json").read_text())["iterations"] == 12
    fitted = fit(run, steps=12)
    alone = training.fit(toy(), toy_state(), toy_batches, steps=12, chunk=4)
    assert leaves_bytes(fitted.state) == leaves_bytes(alone.state)
    assert fitted.history == alone.history  # of the whole stage


def test_a_complete_stage_comes_back_at_once(tmp_path):
    first = fit(runs.start(tmp_path, Config()))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run = runs.start(tmp_path, Config(), resume=True)
    recorder = Recorder()
    again = run.fit(
        "policy", toy(), toy_state, fail, steps=8, callbacks=[recorder], compile=lambda run: fail
    )
    assert leaves_bytes(again.state) == leaves_bytes(first.state)
    assert again.history == first.history and again.stopped is None
    assert recorder.calls == [] and recorder.closed == 1
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("save_every", [4, 100])
def test_a_stage_that_a_callback_stopped_stays_complete(tmp_path, save_every):
    stop = callbacks.stop_when(lambda row: row["step"] == 7, "budget")
    first = fit(runs.start(tmp_path, Config()), 40, callbacks=[stop], save_every=save_every)
    assert first.stopped == "budget" and len(first.history) == 8
    again = fit(runs.start(tmp_path, Config(), resume=True), 40, compile=lambda run: fail)
    assert again.stopped == "budget" and not again.interrupted
    assert leaves_bytes(again.state) == leaves_bytes(first.state)
    assert again.history == first.history


def test_an_interrupted_stage_goes_on(tmp_path):
    def batches(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy_batches(step)

    run = runs.start(tmp_path, Config())
    with pytest.raises(runs.Interrupted) as stop:
        run.fit("policy", toy(), toy_state, batches, steps=20, chunk=4, save_every=100)
    assert stop.value.code == 128 + signal.SIGTERM
    assert len(stop.value.fitted.history) == 8
    again = fit(runs.start(tmp_path, Config(), resume=True), 20)
    whole = fit(runs.start(tmp_path / "whole", Config()), 20)
    assert leaves_bytes(again.state) == leaves_bytes(whole.state)
    assert again.history == whole.history and again.stopped is None
    paths = (tmp_path / "metrics.jsonl", tmp_path / "whole" / "metrics.jsonl")
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_non_finite_updates_leave_the_last_good_state_saved(tmp_path):
    def batches(step):
        batch = toy_batches(step)
        return batch | {"y": batch["y"] * np.nan} if step >= 6 else batch

    run = runs.start(tmp_path, Config())
    with pytest.raises(training.NonFiniteError, match="update was step 6"):
        run.fit("policy", toy(), toy_state, batches, steps=99, chunk=4, save_every=100)
    found, _ = checkpoint.restore(tmp_path / "checkpoints/policy", toy_state(), config=run.config)
    assert int(found.step) == 16 and jnp.isfinite(found.params["w"]).all()
    rows = callbacks.read_jsonl(tmp_path / "metrics.jsonl", "policy")
    assert len(rows) == 16 and np.isnan(rows[-1]["loss"])


def test_stages_share_the_metrics_and_resume_apart(tmp_path):
    run = runs.start(tmp_path, Config())
    fit(run, 8, "reward")
    fit(run, 4, "policy")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run = runs.start(tmp_path, Config(), resume=True)
    assert len(fit(run, 8, "reward").history) == 8
    assert len(fit(run, 8, "policy").history) == 8
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    assert lines.startswith(before) and len(lines.splitlines()) == 16
    for stage in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="name of a folder"):
            fit(run, 8, stage)


def test_the_lines_are_on_disk_before_the_checkpoint_is_written(tmp_path, monkeypatch):
    run = runs.start(tmp_path, Config())

    def die(folder, state, **kwargs):
        lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
        assert len(lines) == int(state.step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", die)
        with pytest.raises(KeyboardInterrupt):
            fit(run)
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 4
    assert len(fit(run).history) == 8
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 8


def test_checkpoints_that_do_not_fit_are_a_run_error(tmp_path):
    run = runs.start(tmp_path, Config())
    fit(run)
    state = toy_state().replace(params={"w": jnp.zeros(3)})
    recorder = Recorder()
    with pytest.raises(runs.RunError, match="state of another form"):
        run.fit("policy", toy(), lambda: state, toy_batches, steps=9, callbacks=[recorder])
    assert recorder.closed == 1
    for folder in (tmp_path / "checkpoints" / "policy").iterdir():
        (folder / "record" / "metadata").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(runs.RunError, match="every checkpoint"):
        fit(run)


def test_from_behind_a_damaged_checkpoint_the_run_ends_the_same(tmp_path):
    whole = fit(runs.start(tmp_path / "whole", Config()), 16)
    run = runs.start(tmp_path / "run", Config())
    fit(run, 12)
    record = tmp_path / "run" / "checkpoints" / "policy" / "12" / "record" / "metadata"
    record.write_bytes(record.read_bytes().replace(b"1", b"2"))
    with pytest.warns(UserWarning, match="step 12 .* is damaged"):
        again = fit(run, 16)
    assert leaves_bytes(again.state) == leaves_bytes(whole.state)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert lines[0] == lines[1]
    names = sorted(p.name for p in record.parents[2].iterdir())
    assert names == ["12", "12.damaged", "16", "8"]


def test_lost_lines_are_told(tmp_path):
    run = runs.start(tmp_path, Config())
    fit(run, 4)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match="has 0 of the 4 steps"):
        fit(run, 8)


def test_write_json_is_atomic(tmp_path, monkeypatch):
    run = runs.start(tmp_path, Config())
    values = {"gain": np.float32(0.5), "worst": float("-inf"), "who": "Ærøskøbing", "at": Path("a")}
    path = run.write_json("result.json", values)
    assert json.loads(path.read_text("utf-8")) == {
        "gain": 0.5,
        "worst": "-Infinity",
        "who": "Ærøskøbing",
        "at": "a",
    }
    before = path.read_bytes()

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        run.write_json("result.json", {})
    assert path.read_bytes() == before


def test_it_works_outside_the_main_thread(tmp_path):
    result = []
    run = runs.start(tmp_path, Config())
    thread = threading.Thread(target=lambda: result.append(fit(run)))
    thread.start()
    thread.join()
    assert len(result[0].history) == 8
