"""The experiment about reward models: on a few fabricated sentences, and its parts by hand."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
study, script = map(importlib.import_module, ("rating_study", "reward_models"))


def fabricated(items=60, raters=16):
    """Four domains; what people think of a sentence is in its words, and some are controversial."""
    rng, words = np.random.default_rng(0), np.array(["awful", "bad", "so", "fine", "great"])
    of = rng.integers(0, 5, (4 * items, 3))
    truth = (of - 2).sum(axis=1, keepdims=True) / 1.5
    noise = np.where(np.arange(4 * items)[:, None] % 7 == 0, 3, 0.5)
    found = np.clip(np.round(truth + rng.normal(0, 1, (4 * items, raters)) * noise), -4, 4)
    domain = np.repeat(np.arange(4), items).astype(np.int32)
    films = domain == data.DOMAINS.index("movies")
    batch = np.where(films, np.cumsum(films) // 31, -1).astype(np.int32)
    names = tuple(map(str, range(4 * items)))
    texts = tuple(f"{' '.join(row)} {n}" for n, row in enumerate(words[of]))
    mask = np.ones(found.shape, bool)
    return data.Ratings(names, domain, texts, found.astype(np.int8), mask, batch, dropped=0)


@pytest.mark.slow
def test_it_writes_what_it_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.rj.data, "load_ratings", lambda _: fabricated())
    config = script.Config(run_dir=tmp_path / "run", preset="tiny", data=tmp_path)
    script.main(config)
    result = json.loads((config.run_dir / "result.json").read_text())
    assert result["sentences"] == {"learnt_from": 220, "judged": 20}
    assert result["models"]["one human, others' mean"]["accuracy_mean"]["estimate"] > 0.7
    assert set(result["claims"]) >= {"best", "ensemble", "transfer", "polarised"}
    assert {claim["verdict"] for claim in result["claims"].values()} <= {
        "PASS",
        "FAIL",
        "INCONCLUSIVE",
    }
    for name in ("comparisons", "comparisons, weak L2, ensemble", "DPL, categorical", "raters"):
        assert set(result["models"][name]) == {"accuracy_mean", "accuracy_one_rater", "ece"}
    assert np.shape(result["transfer"]["accuracy"]) == (4, 4)
    page = (config.run_dir / "report.md").read_text()
    assert "| comparisons, weak L2, ensemble |" in page and "{" not in page
    for name in ("reward_models", "calibration"):
        assert (config.run_dir / f"plots/{name}.png").stat().st_size > 10_000
    assert "two sides, others' comparisons" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--overwrite"):
        script.main(config)


def test_pairs_by_hand():
    order = script.signs(np.array([1.0, 3.0, 1.0]))
    np.testing.assert_array_equal(order, [[0.5, 0, 0.5], [1, 0.5, 1], [0.5, 0, 0.5]])
    # A tie of the people, or of the model, is half right; right and wrong count from both sides.
    said = script.right(np.array([0.2, 0.1, 0.2]), order)
    np.testing.assert_allclose(said, [[0.5, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0.5]])
    parts = script.by_bins(np.array([[0.5, 0.93], [0.07, 0.5]]), np.array([[0.5, 1.0], [0.0, 0.5]]))
    expected = np.zeros((script.BINS, 2, 2))
    expected[9, 0, 1], expected[0, 1, 0] = -0.07, 0.07
    np.testing.assert_allclose(parts, expected, atol=1e-6)


def test_nothing_that_is_judged_is_learnt_from():
    ratings = fabricated()
    twice = ratings.texts[:60] + ratings.texts[:60] + ratings.texts[120:]  # a text in two domains
    again = dataclasses.replace(ratings, texts=twice)
    parts = {
        judged_on: study.prepared(again, study.PRESETS["tiny"], None, judged_on=judged_on, seed=0)
        for judged_on in ("test", "validation")
    }
    texts = {name: {twice[row] for row in part.judged} for name, part in parts.items()}
    assert not texts["test"] & texts["validation"]
    for part in parts.values():
        assert not texts["test"] & {twice[row] for row in part.train}
    assert not texts["validation"] & {twice[row] for row in parts["validation"].train}
    # The tests' models learn from the validation sentences.
    assert texts["validation"] <= {twice[row] for row in parts["test"].train}
