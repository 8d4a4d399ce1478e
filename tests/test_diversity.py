"""Distinct n-grams, EAD and self-BLEU by hand and by counting in Python; effective modes."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import (
    distinct_n,
    effective_modes,
    entropy,
    expectation_adjusted_distinct,
    self_bleu,
)


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


def test_ead_of_random_text_is_one_at_any_length():
    tokens = jax.random.randint(jax.random.key(0), (40, 50), 0, 30)
    for n, length, within in ((1, 2, 0.1), (1, 50, 0.02), (2, 5, 0.1), (2, 50, 0.03)):
        text = tokens[:, :length]
        found = expectation_adjusted_distinct(text, jnp.ones(text.shape, bool), n, vocab_size=30)
        np.testing.assert_allclose(found, 1, atol=within)
        assert distinct_n(text, jnp.ones(text.shape, bool), n) < 0.95  # falls with length
    # By hand: 2 distinct of 3 among 4 possible; a huge vocabulary is distinct_n.
    tokens, mask = jnp.array([[1, 1, 2]]), jnp.ones((1, 3), bool)
    found = expectation_adjusted_distinct(tokens, mask, 1, vocab_size=4)
    np.testing.assert_allclose(found, 2 / (4 * (1 - 0.75**3)), rtol=1e-5)
    found = expectation_adjusted_distinct(tokens, mask, 2, vocab_size=50_000)
    np.testing.assert_allclose(found, 1, rtol=1e-5)
    assert expectation_adjusted_distinct(tokens, ~mask, 1, vocab_size=4) == 0
    with pytest.raises(ValueError, match="vocab_size must be at least 2, not 1"):
        expectation_adjusted_distinct(tokens, mask, 1, vocab_size=1)


def bleu(row, others, max_n, smoothing):
    """As Papineni et al. define it, by counting."""
    logs = []
    for n in range(1, max_n + 1):
        grams = [
            Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1)) for r in [row, *others]
        ]
        most = {gram: max(o[gram] for o in grams[1:]) for gram in grams[0]}
        shared = sum(min(count, most[gram]) for gram, count in grams[0].items()) or smoothing
        with np.errstate(divide="ignore"):
            logs.append(np.log(shared / max(sum(grams[0].values()), 1)))
    nearest = min((abs(len(o) - len(row)), len(o)) for o in others)[1]
    return np.exp(min(0, 1 - nearest / len(row)) + np.mean(logs))


@pytest.mark.parametrize(("max_n", "smoothing"), [(2, 0.0), (4, 0.1)])
def test_self_bleu_is_that_by_counting(max_n, smoothing):
    rng = np.random.default_rng(max_n)
    tokens, mask = rng.integers(0, 3, (7, 9)), rng.random((7, 9)) < 0.7
    mask[3] = False  # A row without a token is left out.
    mask[4, 2:] = False  # One too short for 4-grams.
    rows = [list(t[m]) for t, m in zip(tokens, mask, strict=True) if m.any()]
    each = [bleu(r, rows[:i] + rows[i + 1 :], max_n, smoothing) for i, r in enumerate(rows)]
    found = self_bleu(tokens, mask, max_n=max_n, smoothing=smoothing)
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)


def test_self_bleu_of_equals_is_one_and_of_strangers_zero():
    same, every = jnp.tile(jnp.arange(5), (3, 1)), jnp.ones((3, 5), bool)
    np.testing.assert_allclose(self_bleu(same, every), 1, rtol=1e-6)
    assert self_bleu(same + 10 * jnp.arange(3)[:, None], every) == 0
    assert self_bleu(same[:, :2], every[:, :2]) == 0, "rows without 4-grams share none"
    assert np.isnan(self_bleu(same[:1], every[:1]))
    with pytest.raises(ValueError, match="max_n must be at least 1"):
        self_bleu(same, every, max_n=0)
    with pytest.raises(ValueError, match="smoothing must not be negative"):
        self_bleu(same, every, smoothing=-1)


def test_effective_modes():
    log_probs = jnp.log(jnp.array([[0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0]])) + 3.0
    np.testing.assert_allclose(effective_modes(log_probs), [4, 2, 1], rtol=1e-5)
    np.testing.assert_allclose(entropy(log_probs[:2]), np.log([4, 2]), rtol=1e-5)
    gradient = jax.grad(lambda x: entropy(x))(jnp.array([0.0, -jnp.inf, 1.0]))
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match="must be floating"):
        entropy(jnp.arange(3))
