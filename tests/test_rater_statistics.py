"""Raters' bias, slope and noise, against NumPy's own regression; the careless and the inverted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import linregress

from rlhf_jax import measures

effects_of = jax.jit(measures.rater_effects, static_argnames="batches")


def some_ratings(seed=0):
    """Three batches of unequal sizes, gaps, and items of no batch."""
    rng = np.random.default_rng(seed)
    batch = np.array([0] * 6 + [1] * 9 + [-1] * 2 + [2] * 7)[rng.permutation(24)]
    ratings = rng.integers(-4, 5, 24)[:, None] + rng.integers(-2, 3, (24, 5))
    mask = rng.random((24, 5)) < 0.9
    mask[batch == 2, 4] = False  # a column that is nobody in this batch
    return ratings.astype(float), mask, batch


def test_effects_are_numpy_s_regression():
    ratings, mask, batch = some_ratings()
    found = effects_of(np.where(mask, ratings, np.nan), mask, batch, batches=3)
    assert found.bias.shape == (3, 5)
    for group in range(3):
        for k in range(5):
            rows = [n for n in range(24) if batch[n] == group and mask[n, k] and mask[n].sum() > 1]
            assert found.count[group, k] == len(rows)
            if not rows:
                assert np.isnan([x[group, k] for x in found[:-1]]).all()
                continue
            own = ratings[rows, k]
            rest = [
                np.mean([ratings[n, j] for j in range(5) if j != k and mask[n, j]]) for n in rows
            ]
            slope, intercept = np.polyfit(rest, own, 1)
            residuals = own - intercept - slope * np.array(rest)
            noise = np.sqrt(np.sum(residuals**2) / (len(rows) - 2))
            expected = [
                np.mean(own - rest),
                intercept,
                slope,
                np.corrcoef(rest, own)[0, 1],
                noise,
                linregress(rest, own).stderr,
                np.mean(rest),
            ]
            np.testing.assert_allclose([x[group, k] for x in found[:-1]], expected, atol=2e-5)
    eager = measures.rater_effects(ratings, mask, batch)  # counts the batches itself
    for one, other in zip(found, eager, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_one_batch_is_the_default_and_lonely_items_do_not_count():
    ratings, mask, _ = some_ratings(1)
    mask[3] = [True, False, False, False, False]
    alone = effects_of(ratings, mask)
    assert alone.bias.shape == (1, 5)
    mask[3] = False
    without = effects_of(ratings, mask)
    for a, b in zip(alone, without, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_known_raters_are_found_out():
    rng = np.random.default_rng(0)
    truth, bias, slope, noise = (
        2 * rng.normal(size=400),
        np.zeros(20),
        np.ones(20),
        np.full(20, 0.5),
    )
    bias[0], slope[1:4], noise[4] = 1.0, [0.5, 0.0, -1.0], 1.5
    ratings = bias + slope * truth[:, None] + noise * rng.normal(size=(400, 20))
    found = effects_of(ratings, jnp.ones(ratings.shape, bool))
    # The mean of the others: of 19, whose slopes' sum is 17.5 less the rater's own.
    shrunk = (slope.sum() - slope) / 19
    np.testing.assert_allclose(found.slope[0], slope / shrunk, atol=0.06)
    np.testing.assert_allclose(found.bias[0], bias - (1 - bias) / 19, atol=0.25)
    np.testing.assert_allclose(found.noise[0, 4], 1.5, atol=0.12)
    suspect = measures.suspect_raters(found)
    assert np.flatnonzero(suspect.careless[0]).tolist() == [2, 3]
    # Of the one whose slope is 0, chance decides.
    assert set(np.flatnonzero(suspect.inverted[0])) - {2} == {3}


def test_who_always_says_the_same_is_careless_and_who_hardly_answered_is_not_judged():
    truth = np.arange(17.0)
    # The mean of 17 times 1.1 is not 1.1: what rounding leaves must not pass for a correlation.
    ratings = np.stack([truth, truth, np.full(17, 1.1), -truth, truth], axis=1)
    mask = np.ones((17, 5), bool)
    effects = effects_of(ratings, mask)
    assert np.isnan(effects.correlation[0, 2])
    suspect = measures.suspect_raters(effects)
    assert suspect.careless[0].tolist() == [False, False, True, True, False]
    assert suspect.inverted[0].tolist() == [False, False, False, True, False]
    mask[:8, 3] = False
    effects = effects_of(ratings, mask)
    assert not measures.suspect_raters(effects).careless[0, 3]
    assert measures.suspect_raters(effects, least=3).inverted[0, 3]


def test_bad_arguments_are_refused():
    ratings, mask = jnp.ones([3, 2]), jnp.ones([3, 2], bool)
    with pytest.raises(ValueError, match="mask must be boolean"):
        measures.rater_effects(ratings, ratings)
    with pytest.raises(ValueError, match=r"ratings must be \[N, K\], not \[3\]"):
        measures.rater_effects(ratings[:, 0], mask[:, 0])
    with pytest.raises(ValueError, match=r"batch must be \[N\], .*\[2\] beside ratings \[3, 2\]"):
        measures.rater_effects(ratings, mask, jnp.array([0, 1]))
    with pytest.raises(ValueError, match="batch must be integers"):
        measures.rater_effects(ratings, mask, jnp.ones(3))
    with pytest.raises(ValueError, match="batches must be given"):
        jax.jit(measures.rater_effects)(ratings, mask, jnp.array([0, 0, 1]))
    with pytest.raises(ValueError, match="batches must be at least 3, as batch has it, not 2"):
        measures.rater_effects(ratings, mask, jnp.array([0, 2, 1]), batches=2)
    effects = measures.RaterEffects(*[jnp.ones([1, 2])] * 8)
    with pytest.raises(ValueError, match=r"at most careless_below, not 0\.3 above 0\.2"):
        measures.suspect_raters(effects, inverted_below=0.3)
