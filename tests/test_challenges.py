"""The survey's open problems: the protocol by hand, the survey with made-up ones, each of them."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlhf_jax as rj
from rlhf_jax.measures import Interval

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS / "challenges"))
sys.path.insert(0, str(EXPERIMENTS))
protocol, survey = (importlib.import_module(name) for name in ("protocol", "survey"))


def test_verdicts_by_hand():
    def says(claim):
        return claim.verdict

    assert says(protocol.at_least("", Interval(0.5, 0.4, 0.6), 0.3)) == "PASS"
    assert says(protocol.at_least("", Interval(0.5, -0.1, 1.1), 0.3)) == "INCONCLUSIVE"
    assert says(protocol.at_least("", Interval(0.2, 0.1, 0.25), 0.3)) == "FAIL"
    assert says(protocol.at_most("", Interval(0.2, 0.1, 0.3), 0.25)) == "PASS"
    assert says(protocol.at_most("", Interval(0.3, 0.2, 0.4), 0.25)) == "INCONCLUSIVE"
    assert says(protocol.at_most("", Interval(0.3, 0.26, 0.4), 0.25)) == "FAIL"
    # With a null it is not enough to be below: what no effect would give must be excluded.
    assert says(protocol.at_most("", Interval(-0.1, -0.3, 0.1), 0, null=0)) == "INCONCLUSIVE"
    assert says(protocol.at_most("", Interval(-0.2, -0.3, -0.1), 0, null=0)) == "PASS"
    assert says(protocol.near("", Interval(1.1, 0.9, 1.3), 1, 0.25, null=0)) == "PASS"
    assert says(protocol.near("", Interval(1.1, -0.1, 2.3), 1, 0.25, null=0)) == "INCONCLUSIVE"
    assert says(protocol.near("", Interval(1.5, 1.3, 1.7), 1, 0.25)) == "FAIL"
    assert says(protocol.nothing("", Interval(0.01, -0.01, 0.03))) == "PASS"
    assert says(protocol.nothing("", Interval(0.02, 0.01, 0.03))) == "FAIL"
    assert says(protocol.nothing("", Interval(0.02, 0.01, 0.03), tolerance=0.05)) == "PASS"


def test_the_verdict_on_a_problem_is_that_of_its_worst_claim():
    def claims(*verdicts):
        return [protocol.Claim("", Interval(0, 0, 0), verdict) for verdict in verdicts]

    assert protocol.overall(claims("PASS", "PASS")) == "PASS"
    assert protocol.overall(claims("PASS", "INCONCLUSIVE")) == "INCONCLUSIVE"
    assert protocol.overall(claims("INCONCLUSIVE", "FAIL", "PASS")) == "FAIL"


def test_lines_by_hand():
    x, y = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 3.0, 5.0])
    assert protocol.slope(x, y) == 2
    assert protocol.r_squared(y, y) == 1
    assert protocol.r_squared(y, jnp.full(3, 3.0)) == 0
    assert protocol.line(x, y).tolist() == [2, 1]
    assert protocol.line(x, jnp.array([0.0, 2.0, 1.0])).tolist() == [0.5, 0.25]
    rows = np.array([[5.0, 1.0, 2.0], [1.0, 5.0, 2.0]])
    np.testing.assert_allclose(protocol.spearman(rows, np.array([7.0, 8.0, 9.0])), [-0.5, 0.5])


def test_of_several_arrays_the_same_seeds_are_drawn():
    values = np.array([1.0, 5.0, 2.0, 9.0])
    arms = {"one": values, "other": values - np.array([1.0, 2.0, 1.0, 2.0])}
    (found,) = protocol.intervals(
        arms, lambda rows: jnp.mean(rows["one"] - rows["other"], keepdims=True)
    )
    assert found.estimate == 1.5 and found.low >= 1 and found.high <= 2


def made_up(slug, fails=False):
    def measure(keys, fast):
        if fails:
            raise RuntimeError("broken")
        return jax.vmap(lambda key: 1 + 0.1 * jax.random.normal(key))(keys)

    return protocol.Challenge(
        slug=slug,
        section="0.0",
        fundamental=True,
        claim="A number is one.",
        measure=measure,
        judge=lambda found: [protocol.near("1 +- .1", protocol.interval(found), 1, 0.1, null=0)],
        plot=lambda axes, found: axes[0].plot(found),
    )


@pytest.fixture
def two(monkeypatch, tmp_path):
    """A survey of two problems, the second of which breaks; of a third there is no script."""
    for slug, fails in (("sound-one", False), ("broken-one", True)):
        module = type(sys)(slug.replace("-", "_"))
        module.CHALLENGE = made_up(slug, fails)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        (tmp_path / f"{module.__name__}.py").touch()
    monkeypatch.setattr(survey, "SLUGS", ("sound-one", "broken-one", "unwritten-one"))
    monkeypatch.setattr(survey, "CHALLENGES", tmp_path)
    monkeypatch.setattr(survey.rj.training, "compilation_cache", lambda: None)
    return survey.Config(run_dir=tmp_path / "run", seeds=5)


def test_one_that_breaks_does_not_cost_the_others(two, capsys):
    with pytest.raises(RuntimeError, match="not run: broken-one"):
        survey.main(two)
    result = json.loads((two.run_dir / "result.json").read_text())
    assert result["verdicts"] == {"PASS": 1, "FAIL": 0, "INCONCLUSIVE": 0}
    assert result["failed"] == {"broken-one": "RuntimeError: broken"}
    assert result["missing"] == ["unwritten-one"]
    page = (two.run_dir / "report.md").read_text()
    assert "1 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 not run, 1 missing" in page
    assert "| 0.0 | sound-one | fundamental | PASS | 1/1 | 1 +- .1 | " in page
    assert "broken-one |  | not run |" in page and "unwritten-one |  | missing |" in page
    for name in ("figures.png", "sound-one/figure.png"):
        assert (two.run_dir / name).stat().st_size > 5000


def test_what_is_there_is_not_run_again(two, monkeypatch):
    config = dataclasses.replace(two, names=("sound-one",))
    survey.main(config)
    began = (config.run_dir / "sound-one/result.json").stat().st_mtime_ns
    survey.main(dataclasses.replace(config, resume=True))
    assert (config.run_dir / "sound-one/result.json").stat().st_mtime_ns == began
    survey.main(dataclasses.replace(config, names=("unwritten-one",), resume=True))
    page = (config.run_dir / "report.md").read_text()
    assert "1 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 missing" in page and "broken-one" not in page
    with pytest.raises(ValueError, match="first_seed"):
        survey.main(dataclasses.replace(config, resume=True, first_seed=7))
    with pytest.raises(ValueError, match=r"no such problem: nonsense\. There are: sound-one"):
        survey.main(dataclasses.replace(config, names=("nonsense",), overwrite=True))


@pytest.mark.slow
def test_two_at_a_time(tmp_path):
    names = ("goal-misgeneralization", "power-seeking")
    survey.main(survey.Config(names, tmp_path, seeds=2, first_seed=77, fast=True, jobs=2))
    problems = json.loads((tmp_path / "result.json").read_text())["problems"]
    assert tuple(problem["slug"] for problem in problems) == names


@pytest.mark.slow
def test_stopped_it_waits_for_nobody(tmp_path):
    names = ("poisoned-feedback", "hard-tasks")
    command = [sys.executable, "-m", "experiments.survey", *names, "--fast", "--jobs=2"]
    root, where = EXPERIMENTS.parent, tmp_path / "run"
    run = subprocess.Popen(
        [*command, f"--run-dir={where}"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(600):
            if all((where / name / "config.json").is_file() for name in names):
                break
            time.sleep(0.2)
        run.send_signal(signal.SIGINT)  # to the one process, not to its workers
        said = run.communicate(timeout=20)[1]
    finally:
        run.kill()
    assert run.returncode == 1 and "stopped; --resume runs what is missing" in said
    assert not [name for name in names if (where / name / "result.json").exists()]


@pytest.mark.parametrize("slug", survey.there())
def test_each_says_what_it_is(slug):
    challenge = importlib.import_module(slug.replace("-", "_")).CHALLENGE
    assert challenge.slug == slug
    assert challenge.section.startswith("3.") and challenge.seeds > challenge.fast_seeds > 1
    assert challenge.claim.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("slug", survey.there())
def test_each_runs(slug, tmp_path):
    challenge = importlib.import_module(slug.replace("-", "_")).CHALLENGE
    config = protocol.Config(tmp_path / "run", seeds=4, first_seed=77, fast=True)
    result = protocol.run(challenge, config)
    assert result["claims"] and result["seeds"] == 4
    for claim in result["claims"]:
        assert np.isfinite(list(claim["measured"])).all(), claim
    assert (tmp_path / "run" / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_language_model_by_its_closed_form():
    """Claims on exact tilts of a policy that does not give all alike."""
    arm = importlib.import_module("mode_collapse_language_model")
    measures = importlib.import_module("mode_collapse_measures")
    start = jnp.log(jnp.array([[0.4, 0.3, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.2, 0.2]]))
    liked, rewards = jnp.array([True, False, True, False]), jnp.array([1, 0.95, 1, 0.95, 0.0])
    rewards = jnp.broadcast_to(rewards, start.shape)
    tilts = [rj.worlds.tilt(start, rewards, beta=0.05 * times) for times in (0.001, 2, 4)]
    rows = [measures.of_modes(log_probs[:, :4], liked) for log_probs in (start, *tilts)]
    found = {name: np.array([[row[name].mean() for row in rows]] * 3) for name in rows[0]}
    np.testing.assert_allclose(np.diff(found["log ratio"][0, [0, 2]]), 0.5, rtol=1e-5)
    assert found["good"][0, 2] > 0.999
    for name in ("ECE", *measures.TEXT):
        sign = -1 if name in ("distinct-2", "EAD") else 1
        found[name] = 0.5 + sign * np.array([[0, 0.3, 0, 0]] * 3)
    found |= {"tilt modes": found["modes"][:, 2:], "tilt ECE": found["ECE"][:, 2:]}
    claims = arm.judge(found)
    assert {claim.verdict for claim in claims[1:]} == {"PASS"}
    assert claims[1].measured.estimate == 1
    np.testing.assert_allclose([c.measured.estimate for c in claims[2:4]], 1, rtol=1e-5)


def test_the_answer_is_the_next_token_behind_the_question_that_its_number_names():
    arm = importlib.import_module("mode_collapse_language_model")
    hidden, unembedding = jax.random.normal(jax.random.key(0), (2, 3, 4)), jnp.eye(4, 5)
    log_probs_fn, sample_fn, trunk_fn = arm.next_answer(
        lambda params, hidden, mask: rj.types.FactoredLogits(hidden, params), hidden
    )
    prompts = rj.types.Prompts(np.array([[1, 1], [0, 0]]), np.ones((2, 2), bool))
    drawn = sample_fn(unembedding, prompts, jax.random.split(jax.random.key(1), 6))
    assert drawn.tokens[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    read = trunk_fn(unembedding, drawn.tokens, drawn.mask)
    logits = rj.types.FactoredLogits(read, unembedding)
    again = rj.sequences.token_log_probs(logits, drawn.tokens)
    np.testing.assert_allclose(drawn.log_probs[:, 2], again[:, 2], rtol=1e-5)
    known = log_probs_fn(unembedding, jnp.array([1, 1, 1, 0, 0, 0]))
    np.testing.assert_allclose(again[:, 2], known[np.arange(6), drawn.tokens[:, 2]], rtol=1e-5)


def test_a_language_model_that_cannot_be_had_is_said_to_be_left_out(monkeypatch):
    arm = importlib.import_module("mode_collapse_language_model")
    assert arm.attempt(None, True) == ({}, "SmolLM2-135M: not with --fast")

    def missing(keys):
        raise ImportError("install rlhf_jax[pretrained]")

    monkeypatch.setattr(arm, "measure", missing)
    said = arm.attempt(jax.vmap(jax.random.key)(np.arange(1)), False)
    assert said == ({}, "SmolLM2-135M: install rlhf_jax[pretrained]")


@pytest.mark.slow
def test_a_language_model_keeps_the_months_with_a_penalty(monkeypatch):
    arm = importlib.import_module("mode_collapse_language_model")
    monkeypatch.setattr(arm, "STEPS", 20)
    found, reason = arm.attempt(jax.vmap(jax.random.key)(np.array([77])), False)
    if reason:
        pytest.skip(reason)
    first, none, twice, _ = found["modes"][0]
    assert 9 < first < 12 and none < 0.6 * first and twice > 0.85 * found["tilt modes"][0, 0]
    assert all(np.isfinite(rows).all() for rows in found.values())
