"""Agreement about which is better, by the definition pair by pair; the same people asked again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import measures

preferences_of = jax.jit(measures.preference_agreement)


def preferences_by_the_definition(ratings, mask, pairs):
    """Every pair, every two columns, in Python: hits and cases of each measure."""
    hits, cases = np.zeros(3), np.zeros(3)
    ties = answers = 0.0

    def mean(item, without=()):
        return np.mean(
            [x for k, x in enumerate(ratings[item]) if mask[item, k] and k not in without]
        )

    for a, b in pairs:
        columns = np.flatnonzero(mask[a] & mask[b])
        signs = {k: np.sign(ratings[a, k] - ratings[b, k]) for k in columns}
        for k in columns:
            answers += 1 / len(columns)
            ties += (signs[k] == 0) / len(columns)
            others = [j for j in columns if j != k]
            for j in others:
                weight = 1 / (len(columns) * (len(columns) - 1))
                if signs[k] and signs[j]:
                    cases[0] += weight
                    hits[0] += weight * (signs[k] == signs[j])
            gaps = mean(a, [k]) - mean(b, [k]), mean(a) - mean(b)
            for n, gap in enumerate(gaps, start=1):
                if signs[k] and gap:
                    cases[n] += 1 / len(columns)
                    hits[n] += (signs[k] == np.sign(gap)) / len(columns)
    return [*(hits / cases), ties / answers]


def test_agreement_about_pairs_is_what_it_is_by_definition():
    rng = np.random.default_rng(4)
    ratings, mask = rng.integers(-2, 3, (7, 5)), rng.random((7, 5)) < 0.8
    mask[:, :2] = True
    first, second = np.array([(i, j) for i in range(7) for j in range(i)]).T
    found = preferences_of(
        np.where(mask, ratings, np.nan), mask, first, second, weights=np.ones(len(first))
    )
    expected = preferences_by_the_definition(ratings, mask, zip(first, second, strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Weighing a pair by two is asking about it twice.
    weights = rng.integers(0, 3, len(first))
    repeated = np.repeat(first, weights), np.repeat(second, weights)
    weighed = preferences_of(ratings, mask, first, second, weights=weights.astype(float))
    expected = preferences_by_the_definition(ratings, mask, zip(*repeated, strict=True))
    np.testing.assert_allclose(weighed, expected, atol=1e-6)


def test_two_raters_of_known_accuracy_agree_as_often_as_they_should():
    # Each is right with probability 0.75, so that two agree with .75^2 + .25^2 = .625.
    rng = np.random.default_rng(5)
    right = rng.random((20_000, 8)) < 0.75
    ratings = np.stack([right, ~right], axis=1).reshape(-1, 8).astype(float)
    pairs = jnp.arange(0, len(ratings), 2), jnp.arange(1, len(ratings), 2)
    found = preferences_of(ratings, np.ones(ratings.shape, bool), *pairs)
    np.testing.assert_allclose(found.two_raters, 0.625, atol=0.004)
    assert found.rater_rest < found.rater_mean
    assert found.ties == 0


def test_a_rater_who_is_alone_has_nobody_to_agree_with():
    ratings, mask = jnp.array([[3, 0], [1, 0]]), jnp.array([[True, False], [True, False]])
    found = preferences_of(ratings, mask, jnp.array([0]), jnp.array([1]))
    np.testing.assert_array_equal(found, [np.nan, np.nan, 1, 0])


def test_retest_by_hand():
    first = np.array([[1.0, 2, 3, 4, np.nan], [2, 2, 2, 2, 9]])
    second = np.array([[1.0, 3, 3, 5, 7], [3, 2, 3, 2, 9]])
    mask = np.array([[True] * 4 + [False]] * 2)
    found = measures.retest_agreement(first, second, mask)
    np.testing.assert_allclose(found.same, [0.5, 0.5])
    np.testing.assert_allclose(found.shift, [0.5, 0.5])
    expected = np.corrcoef(first[0, :4], second[0, :4])[0, 1]
    np.testing.assert_allclose(found.correlation, [expected, np.nan], rtol=1e-6)
    deviation = np.std([0, 1, 0, 1], ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(found.error, [deviation] * 2, rtol=1e-6)
    assert found.count.tolist() == [4, 4]
    nobody = measures.retest_agreement(first, second, np.array([[False] * 5, [True] + [False] * 4]))
    assert np.isnan([nobody.correlation, nobody.error]).all() and nobody.count.tolist() == [0, 1]
    np.testing.assert_array_equal([nobody.same, nobody.shift], [[np.nan, 0], [np.nan, 1]])
    # Rounding does not make a correlation out of answers that are all equal.
    assert np.isnan(measures.retest_agreement(np.full(3, 0.1), np.arange(3.0)).correlation)


def test_bad_arguments_about_pairs_are_refused():
    ratings, mask, index = jnp.ones([3, 2]), jnp.ones([3, 2], bool), jnp.array([0, 1])
    agreement = measures.preference_agreement
    with pytest.raises(ValueError, match="first and second and weights must have one shape"):
        agreement(ratings, mask, index, index[:1])
    with pytest.raises(ValueError, match="one shape"):
        agreement(ratings, mask, index, index, weights=jnp.ones(3))
    with pytest.raises(ValueError, match="first must be integers"):
        agreement(ratings, mask, jnp.ones(2), index)
    with pytest.raises(ValueError, match="mask must be boolean"):
        agreement(ratings, ratings, index, index)
    with pytest.raises(ValueError, match="second must be from 0 to 2, not 0 to 3"):
        agreement(ratings, mask, index, index * 3)
    with pytest.raises(ValueError, match="ratings must be finite where the mask is true, not inf"):
        agreement(ratings.at[2, 1].set(jnp.inf), mask, index, index)
    with pytest.raises(ValueError, match="second must be finite where the mask is true, not nan"):
        measures.retest_agreement(jnp.ones(2), jnp.array([1, jnp.nan]))
    with pytest.raises(ValueError, match=r"must be \[\.\.\., N\]"):
        measures.retest_agreement(1.0, 2.0)
    with pytest.raises(ValueError, match="one shape"):
        measures.retest_agreement(jnp.ones(2), jnp.ones(3))
