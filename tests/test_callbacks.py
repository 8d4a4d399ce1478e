import io
import json
import math
import sys
import types

import pytest
from rich.console import Console
from test_training import toy, toy_batches, toy_state

from rlhf_jax import callbacks, training


def rows(*steps, **metrics):
    return [{"step": step, **metrics} for step in steps]


def test_jsonl_writes_a_line_a_step_that_reads_back_exactly(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    write = callbacks.jsonl(path, "reward")
    fitted = training.fit(toy(), toy_state(), toy_batches, steps=8, chunk=4, callbacks=[write])
    lines = path.read_text().splitlines()
    assert len(lines) == 8 and json.loads(lines[2])["stage"] == "reward"
    assert list(json.loads(lines[0])) == ["stage", "step", "loss", "noise", "skipped"]
    assert callbacks.read_jsonl(path, "reward") == fitted.history
    assert callbacks.read_jsonl(path, "policy") == callbacks.read_jsonl(path) == []
    assert callbacks.read_jsonl(tmp_path / "absent") == []


def test_jsonl_is_on_disk_after_each_chunk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(callbacks.os, "fsync", lambda number: synced.append(number))
    write = callbacks.jsonl(tmp_path / "m.jsonl")
    write(None, rows(1, 2), False)
    assert len(synced) == 1 and len((tmp_path / "m.jsonl").read_bytes().splitlines()) == 2
    write(None, [], True)
    assert len((tmp_path / "m.jsonl").read_bytes().splitlines()) == 2


def test_jsonl_numbers_that_are_not_finite_are_valid_json(tmp_path):
    path = tmp_path / "m.jsonl"
    row = {"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1}
    callbacks.jsonl(path)(None, [row], True)

    def refuse(name):
        raise AssertionError(name)

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.1}
    (back,) = callbacks.read_jsonl(path)
    assert math.isnan(back.pop("a")) and math.isnan(row.pop("a"))
    assert back == row


def test_jsonl_drops_what_lies_beyond_the_step_that_a_run_resumes_from(tmp_path):
    path = tmp_path / "m.jsonl"
    callbacks.jsonl(path, "a")(None, rows(1, 2, 3), True)
    callbacks.jsonl(path, "b")(None, rows(1, 2, 3, 4), False)
    before = path.read_bytes().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"stage": "b", "step": 5, "lo')  # killed while it wrote
    inode = path.stat().st_ino
    callbacks.jsonl(path, "b", 2)
    assert path.read_bytes() == b"".join(before[:5])
    assert path.stat().st_ino != inode  # another file put in its place, not one cut in place
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]
    callbacks.jsonl(path, "b")  # no checkpoint of the stage at all
    assert path.read_bytes() == b"".join(before[:3])
    callbacks.jsonl(path, "a", 3)(None, rows(4), True)
    assert [row["step"] for row in callbacks.read_jsonl(path, "a")] == [1, 2, 3, 4]


@pytest.mark.parametrize("tail", [b'{"step": 3}', b"\0\0\0\0\n", b"17\n"])
def test_jsonl_recognises_a_torn_last_line(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    assert [row["step"] for row in callbacks.read_jsonl(path)] == [1, 2]
    callbacks.jsonl(path, None, 5)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_jsonl_leaves_a_file_alone_that_is_damaged_in_the_midst(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2, is damaged"):
        callbacks.jsonl(path)
    assert path.read_bytes() == b'{"step": 1}\n{"st\n{"step": 3}\n'


def test_jsonl_keeps_the_old_file_if_it_dies_while_replacing(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    callbacks.jsonl(path)(None, rows(1, 2, 3), True)

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        callbacks.jsonl(path, None, 1)
    assert [row["step"] for row in callbacks.read_jsonl(path)] == [1, 2, 3]


def run_progress(console, chunks=40, **options):
    show = callbacks.progress(400, "policy", ("loss", "absent"), console=console, **options)
    for chunk in range(chunks):
        steps = range(10 * chunk + 1, 10 * chunk + 11)
        show(None, rows(*steps, loss=0.5), chunk == chunks - 1)
    show.close()
    return console.file.getvalue()


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal():
    text = run_progress(Console(file=io.StringIO(), width=100))
    assert text.splitlines()[0] == "policy 10/400  loss 0.5"
    assert text.splitlines()[-1].startswith("policy 400/400  loss 0.5")
    assert len(text.splitlines()) == 2 and "steps/s" in text.splitlines()[-1]
    assert len(run_progress(Console(file=io.StringIO()), seconds=0.0).splitlines()) == 40


def test_progress_is_a_bar_in_a_terminal():
    console = Console(
        file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"}
    )
    text = run_progress(console)
    assert "400/400" in text and "loss 0.5" in text and "steps/s" in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_a_bar_is_closed_if_training_fails():
    console = Console(
        file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"}
    )
    show = callbacks.progress(10, "policy", console=console)
    with pytest.raises(ValueError, match="chunk is 0"):
        training.fit(toy(), toy_state(), toy_batches, steps=10, chunk=0, callbacks=[show])
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")


def test_stop_when():
    stop = callbacks.stop_when(lambda row: row["kl"] > 2, "too far")
    assert stop(None, rows(1, 2, kl=2.0), False) is None
    assert stop(None, [{"step": 3, "kl": 3.0}, {"step": 4, "kl": 1.0}], False) == "too far"
    assert stop(None, [], True) is None


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    write = callbacks.tensorboard(tmp_path, start_step=4)
    training.fit(toy(), toy_state(), toy_batches, steps=4, chunk=4, callbacks=[write])
    (file,) = tmp_path.glob("events.*")
    assert file.read_bytes().count(b"noise") == 4


def test_wandb(monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = types.SimpleNamespace(init=lambda **kwargs: calls.append(kwargs) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    write = callbacks.wandb(project="p")
    write(None, rows(1, 2, loss=0.5), True)
    write.close()
    assert calls == [{"project": "p"}, (1, {"loss": 0.5}), (2, {"loss": 0.5}), "end"]


@pytest.mark.parametrize(("module", "extra"), [("tensorboardX", "tensorboard"), ("wandb", "wandb")])
def test_an_absent_extra_is_named(tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    build = {"tensorboard": lambda: callbacks.tensorboard(tmp_path), "wandb": callbacks.wandb}
    with pytest.raises(ImportError, match=rf"pip install 'rlhf_jax\[{extra}\]'"):
        build[extra]()
