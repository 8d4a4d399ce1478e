"""Distinct n-grams, by hand and against a Python set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import distinct_n


def test_by_hand():
    tokens = jnp.array([[1, 2, 1, 2], [1, 2, 3, 9]])
    mask = jnp.array([[True] * 4, [True, True, True, False]])
    # Unigrams 1 2 1 2 1 2 3; bigrams 12 21 12 | 12 23; trigrams 121 212 | 123.
    np.testing.assert_allclose(distinct_n(tokens, mask, 1), 3 / 7)
    np.testing.assert_allclose(distinct_n(tokens, mask, 2), 3 / 5)
    np.testing.assert_allclose(distinct_n(tokens, mask, 3), 1.0)


def test_no_ngram_spans_two_rows_or_a_gap():
    tokens = jnp.array([[1, 2], [3, 4]])
    # Across the border of the rows there would be a third bigram, 2 3.
    assert distinct_n(tokens, jnp.ones((2, 2), bool), 2) == 1.0
    gap = jnp.array([[1, 2, 1, 2]])
    assert distinct_n(gap, jnp.array([[True, False, True, True]]), 2) == 1.0, "only 1 2 is left"
    # The rows 1 2 and 1 2 are one distinct bigram of two; a padding token does not count.
    padded = jnp.array([[1, 2, 0], [1, 2, 7]])
    assert distinct_n(padded, jnp.array([[True, True, False]] * 2), 2) == 0.5


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_equal_to_a_set(n):
    rng = np.random.default_rng(n)
    tokens, mask = rng.integers(0, 3, (20, 12)), rng.random((20, 12)) < 0.8
    grams = [
        tuple(row[i : i + n])
        for row, counts in zip(tokens, mask, strict=True)
        for i in range(12 - n + 1)
        if counts[i : i + n].all()
    ]
    expected = len(set(grams)) / len(grams)
    np.testing.assert_allclose(distinct_n(tokens, mask, n), expected, rtol=1e-6)
    compiled = jax.jit(distinct_n, static_argnums=2)
    np.testing.assert_allclose(compiled(tokens, mask, n), expected, rtol=1e-6)


def test_without_any_ngram_it_is_zero():
    assert distinct_n(jnp.ones((2, 3), int), jnp.zeros((2, 3), bool), 1) == 0.0
    assert distinct_n(jnp.ones((2, 3), int), jnp.ones((2, 3), bool), 4) == 0.0
    assert distinct_n(jnp.ones((0, 3), int), jnp.ones((0, 3), bool), 1) == 0.0


def test_bad_input():
    ones = jnp.ones((2, 3), int)
    with pytest.raises(ValueError):
        distinct_n(ones, jnp.ones((2, 2), bool), 1)
    with pytest.raises(ValueError):
        distinct_n(ones[0], jnp.ones(3, bool), 1)
    with pytest.raises(ValueError):
        distinct_n(ones, ones, 1)
    with pytest.raises(ValueError, match="n must be at least 1"):
        distinct_n(ones, ones.astype(bool), 0)
