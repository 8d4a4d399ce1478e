"""Batches by number: every row once an epoch, nothing but seed and step matters."""

import jax
import numpy as np
import pytest

from rlhf_jax.data.batches import epochs
from rlhf_jax.types import Preferences, Prompts, Sequences


def _rows(batches, steps):
    return np.concatenate([batches(step) for step in steps])


def test_an_epoch_holds_every_row_once_even_when_batches_straddle():
    batches = epochs(np.arange(10), 4, seed=3)
    rows = _rows(batches, range(10))
    assert rows.shape == (40,)
    orders = rows.reshape(4, 10)
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    assert len({tuple(order) for order in orders}) == 4, "each epoch has its own order"


def test_a_batch_depends_on_seed_and_step_alone():
    one, two = (epochs(np.arange(100), 7, seed=5) for _ in "ab")
    forwards = [one(step) for step in range(40)]
    backwards = [two(step) for step in reversed(range(40))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(one(10**9), two(np.int64(10**9)))
    assert (one(0) != epochs(np.arange(100), 7, seed=6)(0)).any()


def test_the_order_never_changes_with_versions():
    assert epochs(np.arange(8), 8, seed=0)(0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_a_full_batch_and_a_single_row():
    assert sorted(epochs(np.arange(3), 3, seed=0)(4).tolist()) == [0, 1, 2]
    assert epochs(np.array([7]), 1, seed=0)(9).tolist() == [7]


def test_pytrees_keep_their_rows_together():
    tokens = np.arange(12, dtype=np.int32).reshape(6, 2)
    sequences = Sequences(tokens, tokens > 3, tokens > 5)
    pairs = Preferences(sequences, sequences.replace(tokens=tokens + 100))
    batch = epochs(pairs, 4, seed=1)(2)
    assert isinstance(batch, Preferences)
    assert batch.chosen.log_probs is None
    assert batch.chosen.tokens.dtype == np.int32
    np.testing.assert_array_equal(batch.rejected.tokens, batch.chosen.tokens + 100)
    np.testing.assert_array_equal(batch.chosen.mask, batch.chosen.tokens > 3)
    prompts = epochs(Prompts(tokens, tokens >= 0), 2, seed=1)(0)
    assert isinstance(prompts.tokens, np.ndarray)
    device = epochs({"x": jax.numpy.arange(4)}, 2, seed=1)(0)
    assert isinstance(device["x"], np.ndarray)


def test_rows_are_equally_often_in_each_place():
    firsts = np.array([epochs(np.arange(5), 5, seed=seed)(0)[0] for seed in range(2000)])
    np.testing.assert_allclose(np.bincount(firsts) / 2000, 0.2, atol=0.04)


def test_bad_input():
    with pytest.raises(ValueError, match="from 1 to the number of rows, 3: 4"):
        epochs(np.arange(3), 4, seed=0)
    with pytest.raises(ValueError, match="from 1 to"):
        epochs(np.arange(3), 0, seed=0)
    with pytest.raises(ValueError, match=r"differ in their number of rows.*\['b'\]"):
        epochs({"a": np.arange(3), "b": np.arange(4)}, 2, seed=0)
    with pytest.raises(ValueError, match="leading axis"):
        epochs({"a": np.arange(3), "b": 1.0}, 2, seed=0)
    with pytest.raises(ValueError, match="leading axis"):
        epochs({}, 2, seed=0)
    with pytest.raises(ValueError, match="seed must not be negative"):
        epochs(np.arange(3), 2, seed=-1)
    with pytest.raises(ValueError, match="step must not be negative"):
        epochs(np.arange(3), 2, seed=0)(-1)
