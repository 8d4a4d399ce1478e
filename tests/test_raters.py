"""Real raters: one column answers for both items, ties and gaps included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.feedback import Comparison, Pairs
from rlhf_jax.humans import real_raters, same_batch_pairs

# Column 0 likes item 0 best, column 1 item 1; column 2 did not rate item 1, nobody item 3.
RATINGS = np.array([[4, -2, 1], [0, 3, 0], [0, -2, 2], [0, 0, 0]], np.int8)
MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)


def test_one_column_answers_for_both_items():
    first, second = jnp.zeros(500, int), jnp.ones(500, int)
    answer = jax.jit(real_raters(RATINGS, MASK))(jax.random.key(0), Pairs(first, second))
    assert isinstance(answer, Comparison)
    rater = np.asarray(answer.rater)
    assert set(rater) == {0, 1}, "column 2 did not rate both"
    np.testing.assert_array_equal(answer.preference, np.where(rater == 0, 1.0, 0.0))
    assert 0.4 < rater.mean() < 0.6
    assert answer.preference.dtype == jnp.float32
    assert answer.rater.dtype == jnp.int32
    assert answer.answered.all()


def test_ties_are_half_and_the_order_of_a_pair_only_turns_the_answer():
    human = real_raters(RATINGS, MASK)
    first, second = jnp.zeros(300, int), jnp.full(300, 2)
    there = human(jax.random.key(1), Pairs(first, second))
    back = human(jax.random.key(1), Pairs(second, first))
    np.testing.assert_array_equal(there.rater, back.rater)
    np.testing.assert_array_equal(there.preference, 1.0 - back.preference)
    expected = np.array([1.0, 0.5, 0.0])[np.asarray(there.rater)]
    np.testing.assert_array_equal(there.preference, expected)
    assert set(np.asarray(there.rater)) == {0, 1, 2}


def test_extreme_ratings_do_not_overflow():
    human = real_raters(np.array([[127], [-128]], np.int8), np.ones((2, 1), bool))
    answer = human(jax.random.key(0), Pairs(jnp.array([0, 1]), jnp.array([1, 0])))
    assert answer.preference.tolist() == [1.0, 0.0]


def test_a_pair_that_nobody_rated_is_marked():
    pairs = Pairs(jnp.array([0]), jnp.array([3]))
    answer = real_raters(RATINGS, MASK)(jax.random.key(0), pairs)
    assert (answer.rater.tolist(), answer.preference.tolist()) == ([-1], [0.5])
    assert answer.answered.tolist() == [False]


def test_pure_and_vmappable():
    human = real_raters(RATINGS, MASK)
    pairs = Pairs(jnp.zeros(8, int), jnp.ones(8, int))
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(human, in_axes=(0, None))(keys, pairs)
    assert many.preference.shape == (3, 8)
    np.testing.assert_array_equal(many.rater[1], human(keys[1], pairs).rater)


def test_bad_shapes():
    with pytest.raises(ValueError):
        real_raters(RATINGS, MASK[:2])
    with pytest.raises(ValueError):
        real_raters(RATINGS[0], MASK[0])
    with pytest.raises(ValueError):
        real_raters(RATINGS, MASK.astype(int))
    with pytest.raises(ValueError):
        real_raters(RATINGS, MASK)(jax.random.key(0), Pairs(jnp.zeros(2, int), jnp.zeros(3, int)))


def test_same_batch_pairs_are_distinct_items_of_one_batch_drawn_uniformly():
    batch = np.array([5, -1, 2, 5, 2, 5, 9, -1])  # 9 has no company
    pairs = jax.jit(same_batch_pairs, static_argnums=2)(jax.random.key(0), batch, 6000)
    first, second = np.asarray(pairs.first), np.asarray(pairs.second)
    assert (batch[first] == batch[second]).all()
    assert (first != second).all()
    assert (batch[first] >= 0).all()
    np.testing.assert_allclose(
        np.bincount(first, minlength=8)[[0, 2, 3, 4, 5]] / 6000, 0.2, atol=0.02
    )
    of_zero = second[first == 0]
    np.testing.assert_allclose(np.mean(of_zero == 3), 0.5, atol=0.06)
    assert set(of_zero) == {3, 5}


def test_same_batch_pairs_refuses_when_there_is_none():
    with pytest.raises(ValueError, match="no batch has two items"):
        same_batch_pairs(jax.random.key(0), np.array([0, 1, -1, -1]), 4)
    with pytest.raises(ValueError, match="no batch has two items"):
        same_batch_pairs(jax.random.key(0), np.zeros(0, int), 4)
    with pytest.raises(ValueError):
        same_batch_pairs(jax.random.key(0), np.zeros((2, 2), int), 4)
    traced = jax.jit(lambda batch: same_batch_pairs(jax.random.key(0), batch, 2))
    assert (
        jax.tree.leaves(jax.tree.map(lambda x: x.tolist(), traced(jnp.array([0, -1])))) == [-1] * 4
    )
