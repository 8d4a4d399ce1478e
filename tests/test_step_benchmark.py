"""The benchmark of a step and the comparison with others: counts, turns and tables."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import pytest

import rlhf_jax as rj

sys.path.append(str(Path(__file__).resolve().parents[1]))  # As python -m has it, at the root.
step, compare, curve = (
    importlib.import_module(f"experiments.benchmarks.{name}")
    for name in ("step", "compare", "curve")
)

SMALL = rj.models.TransformerConfig(16, 8, 16, num_layers=1, num_heads=2, num_kv_heads=2)


def test_work_is_counted_as_for_the_peers():
    assert [round(step.weights(size) / 1e6, 2) for size in step.SHAPES] == [1.31, 7.34, 134.48]
    found = {
        f"{task}/{size}": round(step.flops(compare.case_of(f"{task}/{size}")) / 1e9, 1)
        for task, size in (case.split("/") for case in compare.CASES + compare.OTHERS)
        if task != "ppo"
    }
    assert found == {
        "grpo/toy": 10.1,
        "grpo/tiny": 56.4,
        "grpo/135m": 516.4,
        "rloo/toy": 12.1,
        "rloo/tiny": 67.6,
        "dpo/toy": 8.1,
        "dpo/tiny": 45.1,
        "dpo/135m": 413.1,
        "reward/toy": 4.8,
        "reward/tiny": 4.8,
    }


NAMES = (
    "task",
    "size",
    "median_step_s",
    "first_step_s",
    "steps",
    "tokens_per_step",
    "flops_per_step",
    "peak_rss_mb",
)


@pytest.mark.parametrize(
    ("task", "each_token"),
    [
        # 8 * 8 * 4 of attention, 3 * 8 * 16 of the gated layer; 16 * 8 of the vocabulary.
        ("reward", 3 * (256 + 384)),
        pytest.param("grpo", 5 * (256 + 384 + 128), marks=pytest.mark.slow),
        pytest.param("ppo", 5 * (256 + 384 + 128) + 4 * (256 + 384), marks=pytest.mark.slow),
    ],
)
def test_a_step_prints_one_object_last(task, each_token, monkeypatch, capsys):
    monkeypatch.setitem(step.SHAPES, "toy", SMALL)
    step.main(step.Config(task, prompts=2, group=2, prompt_len=2, response_len=3, steps=2))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(found) == NAMES
    assert (found["task"], found["size"], found["steps"]) == (task, "toy", 2)
    assert found["tokens_per_step"] == 20
    assert 0 < found["median_step_s"] < found["first_step_s"]
    assert found["flops_per_step"] == 2 * 20 * each_token


def test_parts_are_timed_and_compilations_counted(monkeypatch):
    monkeypatch.setitem(step.SHAPES, "toy", SMALL)
    stepper = step.Stepper(step.Config("dpo", prompts=1, group=2, prompt_len=2, response_len=2))
    assert list(stepper.work.parts) == ["reference"]
    assert set(stepper.part("reference")) == {"seconds", "cpu_seconds", "peak_rss_mb"}
    compiled = step.Compilations()
    stepper.part("reference")
    assert compiled.count == 0
    jax.jit(lambda x: x * stepper.length)(1.0)
    assert compiled.count == 1


@pytest.mark.slow
def test_the_parts_of_a_policy_step(monkeypatch):
    monkeypatch.setitem(step.SHAPES, "toy", SMALL)
    stepper = step.Stepper(step.Config(prompts=2, group=2, prompt_len=2, response_len=3))
    assert list(stepper.work.parts) == ["generate", "reference", "all but generate"]
    assert all(stepper.part(name)["seconds"] > 0 for name in stepper.work.parts)


def test_impossible_steps_are_named():
    with pytest.raises(ValueError, match="response_len must be at least 1, not 0"):
        step.Config(response_len=0)
    with pytest.raises(ValueError, match=r"prompts \* group \(3\) must be even"):
        step.Config("reward", prompts=3, group=1)
    with pytest.raises(ValueError, match="--devices 4096, but jax has"):
        step.Stepper(step.Config(devices=4096))
    with pytest.raises(ValueError, match="'grpo/huge' is not one of grpo/toy, "):
        compare.case_of("grpo/huge")


FAKE = """
import sys
sys.path.insert(0, {peers!r})
from turns import Clock, Turns
turns = Turns()
print("what a library prints")
turns.answer(ready=True)
while asked := turns.wait():
    if asked == "fail":
        raise SystemExit("no more")
    turns.answer(asked=asked, **Clock().read())
"""


def test_a_contestant_takes_turns_and_says_why_it_ended(tmp_path):
    command = [sys.executable, "-c", FAKE.format(peers=str(compare.PEERS))]
    contestant = compare.Contestant("fake", command, tmp_path / "log.txt")
    assert contestant.about == {"ready": True}
    found = contestant.ask("step 2 fast")
    assert found["asked"] == "step 2 fast"
    assert found["others_cores"] >= 0
    with pytest.raises(RuntimeError, match="fake ended: no more"):
        contestant.ask("fail")
    contestant.close()
    assert "what a library prints" in (tmp_path / "log.txt").read_text()


def test_what_others_used_is_of_the_first_line():
    ticks = compare.os.sysconf("SC_CLK_TCK")
    stat = f"cpu  {2 * ticks} {ticks} 0 {90 * ticks} {5 * ticks} 0 0 {ticks} 7 7\ncpu0 9 9 9 9\n"
    assert compare.busy_seconds(stat) == 4


def steps(*seconds):
    rest = {"cpu_seconds": 1.0, "peak_rss_mb": 10.0, "others_cores": 0.0}
    return [{"seconds": s} | rest for s in seconds]


def test_a_table_of_ratios_shares_and_verdicts(tmp_path, monkeypatch):
    seen = {"rlhf_jax": steps(1.0, 2.0, 3.0), "trl": steps(7.0, 8.0, 9.0), "tunix": steps(4, 4, 4)}
    row = compare.summary(seen["trl"], seen["rlhf_jax"], least=1.0)
    assert row["times_as_long_as_ours"] == 4.0
    assert row["lowest_and_highest"] == [3.0, 7.0]
    assert row["share_of_limit"] == 0.125
    parts = {"generate": [0.5], "reference": [0.25], "all but generate": [1.25]}
    assert compare.parts_of(parts, seen["rlhf_jax"]) == {
        "generate": 0.5,
        "reference": 0.25,
        "update": 1.0,
        "parts together": 1.75,
        "step": 2.0,
    }
    found = compare.verdicts("grpo/tiny", seen, 1.0)
    assert [(v["what"], v["found"], v["met"]) for v in found] == [
        ("times as fast as trl", 4.0, True),
        ("times as fast as tunix", 2.0, False),
        ("share of the limit", 0.5, False),
    ]

    def play(config, name, log):
        if name == "dpo/toy":
            raise RuntimeError("tunix ended")
        rows = {
            who: compare.summary(times, seen["rlhf_jax"], 1.0)
            | {"asked": "step 2" if who == "trl" else "step", "first_step_s": 9.0}
            for who, times in seen.items()
        }
        return {
            "case": name,
            "rows": rows,
            "parts_s": {"update": 1.0},
            "wanted": compare.verdicts(name, seen, 1.0),
        }

    monkeypatch.setattr(compare, "play", play)
    with pytest.raises(RuntimeError, match="without dpo/toy, which failed"):
        compare.main(compare.Config(run_dir=tmp_path / "run", only=("dpo/toy", "grpo/tiny")))
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| grpo/tiny | trl, 2 threads | 8.000 | 1.00 | 4.00 (3.00-7.00) | 12% |" in report
    assert "| grpo/tiny | times as fast as tunix | 3.50 | 2.00 | missed |" in report
    assert len(json.loads((tmp_path / "run" / "result.json").read_text())["cases"]) == 1


@pytest.mark.slow
def test_the_curve_measures_every_point_by_itself(tmp_path, monkeypatch):
    asked = []

    def instead(command, env, **settings):
        asked.append((command, env["XLA_FLAGS"]))
        names = ("median_step_s", "peak_rss_mb", "flops_per_step")
        answer = json.dumps(dict.fromkeys(names, 1.0))
        return curve.subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(curve.subprocess, "run", instead)
    found = curve.measured(tmp_path)
    assert {name: len(points) for name, points in found.items()} == {
        name: len(points) for name, points in curve.SWEEPS.items()
    }
    assert (tmp_path / "curve.png").stat().st_size > 1000
    command, flags = asked[-1]
    assert flags.endswith("=4")
    assert command[-2:] == ["--devices", "4"]
    fields = {field.name for field in dataclasses.fields(step.Config)}
    assert all(word[2:].replace("-", "_") in fields for word in command[3::2])
