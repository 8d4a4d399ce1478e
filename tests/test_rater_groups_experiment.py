"""The experiment about groups of raters: who compares what, whom policies please, all of it."""

import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import data

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "rater_groups.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("rater_groups_experiment", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["rater_groups_experiment"] = module
    specification.loader.exec_module(module)
    return module


def fabricated(items=300, raters=8):
    """Films whose raters err by half a point."""
    rng, words = np.random.default_rng(0), np.array(["awful", "bad", "so", "fine", "great"])
    of = rng.integers(0, 5, (items, 3))
    truth = (of - 2).sum(axis=1, keepdims=True) / 1.5
    found = np.clip(np.round(truth + rng.normal(0, 0.5, (items, raters))), -4, 4)
    domain = np.full(items, data.DOMAINS.index("movies"), np.int32)
    texts = tuple(f"{' '.join(row)} {n}" for n, row in enumerate(words[of]))
    mask, names = rng.random(found.shape) < 0.9, tuple(map(str, range(items)))
    batch = (np.arange(items) // 30).astype(np.int32)
    return data.Ratings(texts, domain, names, found.astype(np.int8), mask, batch, dropped=0)


def test_a_comparison_is_one_raters_within_a_batch(script):
    films, rows = fabricated(), np.arange(0, 300, 2)
    answers = script.by_one_rater(films, rows, 2000, seed=0)
    batch, column = np.divmod(answers.rater, films.ratings.shape[1])
    assert len(batch) > 1000 and len(np.unique(answers.rater)) == 10 * 8
    for side in (answers.better, answers.worse):
        assert np.isin(side, rows).all()
        np.testing.assert_array_equal(films.batch[side], batch)
        assert films.rating_mask[side, column].all()
    assert (films.ratings[answers.better, column] > films.ratings[answers.worse, column]).all()
    who = np.zeros(80, bool)
    who[answers.rater[0]] = True
    turned, his = answers.turned(who), answers.rater == answers.rater[0]
    np.testing.assert_array_equal(turned.better, np.where(his, answers.worse, answers.better))
    np.testing.assert_array_equal(turned.worse, np.where(his, answers.better, answers.worse))


def test_the_worst_off_are_better_off_with_maxmin(script):
    # Three sentences: one for either group, and one that is tolerable for both.
    scores = jnp.array([[3.0, 0.0, 2.0], [0.0, 3.0, 2.0]])
    found = script.Found(scores, jnp.array([0.8, 0.2]), second=None, gain=None)
    worth = script.policies(found, 2000)
    assert worth["mean of raters"][0] > worth["worst off (MaxMin)"].max()
    assert worth["mean of raters"].min() < worth["worst off (MaxMin)"].min()
    np.testing.assert_allclose(*worth["worst off (MaxMin)"], atol=0.02)


@pytest.mark.slow
def test_it_finds_those_who_were_turned_round(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.rj.data, "load_ratings", lambda _: fabricated())
    sizes = script.Sizes(64, 256, 50, 20_000, 512, 40, 40, 500, 50)
    monkeypatch.setitem(script.PRESETS, "tiny", sizes)
    config = script.Config(run_dir=tmp_path / "run", preset="tiny")
    script.main(config)
    result = json.loads((config.run_dir / "result.json").read_text())
    control = result["groups"]["control, from opposite"]
    assert control["finds_auroc"] > 0.95 and control["gain_nats"]["low"] > 0.05
    assert control["correlation"] < -0.8 and 0.1 < control["shares"][1] < 0.4
    # Where all think alike there is nothing to gain.
    assert result["groups"]["real, from noise"]["gain_nats"]["estimate"] < 0.02
    assert "worst off (MaxMin)" in (config.run_dir / "report.md").read_text()
    assert (config.run_dir / "plots/groups.png").stat().st_size > 10_000
    assert "control, from opposite" in capsys.readouterr().out
