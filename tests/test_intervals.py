"""Bootstrap intervals: the right width, coverage and shape; and what they say of a claim."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import (
    Interval,
    bootstrap,
    bootstrap_difference,
    bootstrap_pairs,
    clopper_pearson,
    verdict,
)


def test_the_width_is_that_of_the_normal_approximation():
    values = jax.random.normal(jax.random.key(0), (400,))
    found = bootstrap(values, key=jax.random.key(1), resamples=4000)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose(found.estimate, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.low, values.mean() - half, atol=0.01)
    np.testing.assert_allclose(found.high, values.mean() + half, atol=0.01)
    narrower = bootstrap(values, key=jax.random.key(1), level=0.5)
    assert found.low < narrower.low < narrower.high < found.high


@pytest.mark.slow
def test_coverage():
    def covers(key):
        values_key, resample_key = jax.random.split(key)
        values = jax.random.normal(values_key, (40,))
        found = bootstrap(values, key=resample_key, resamples=400)
        return (found.low < 0.0) & (found.high > 0.0)

    coverage = jax.jit(jax.vmap(covers))(jax.random.split(jax.random.key(0), 1000)).mean()
    assert 0.91 < coverage < 0.97


def test_rows_stay_together_and_other_statistics_are_allowed():
    rows = jnp.stack([jnp.arange(50.0), 2.0 * jnp.arange(50.0)], axis=1)
    found = bootstrap(rows, key=jax.random.key(0), statistic=lambda x: x.mean(axis=0))
    assert found.low.shape == (2,)
    np.testing.assert_allclose(found.high[1], 2.0 * found.high[0], rtol=1e-5)
    ratio = bootstrap(
        rows, key=jax.random.key(0), statistic=lambda x: x[:, 1].sum() / x[:, 0].sum()
    )
    np.testing.assert_allclose([ratio.low, ratio.high], 2.0, rtol=1e-5)


def test_pure_and_degenerate():
    values = jnp.arange(5.0)
    one, two = (bootstrap(values, key=jax.random.key(3)) for _ in "ab")
    assert one.low == two.low and one.high == two.high
    assert bootstrap(jnp.array([7.0]), key=jax.random.key(0), resamples=1) == (7.0, 7.0, 7.0)


def test_bad_input():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="needs rows"):
        bootstrap(jnp.zeros(0), key=key)
    with pytest.raises(ValueError, match="needs rows"):
        bootstrap(jnp.float32(1.0), key=key)
    with pytest.raises(ValueError, match="level"):
        bootstrap(jnp.ones(3), key=key, level=95)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(jnp.ones(3), key=key, resamples=0)


def test_pairs_are_drawn_by_their_items():
    rng, items = np.random.default_rng(0), 12
    values = rng.normal(size=(2, items, items)).astype(np.float32)
    where = rng.random((items, items)) < 0.7
    key, count = jax.random.key(4), 200

    def ratio(means):
        return means[0] / means[1]

    found = bootstrap_pairs(values, key=key, where=where, statistic=ratio, resamples=count)
    # The same by drawing the items and listing their pairs; an item is no pair with itself.
    rows = np.asarray(jax.random.randint(key, (count, items), 0, items))
    each = []
    for drawn in [np.arange(items), *rows]:
        first, second = np.repeat(drawn, items), np.tile(drawn, items)
        counts = where[first, second] & (first != second)
        each.append(ratio([v[first, second][counts].mean() for v in values]))
    np.testing.assert_allclose(found.estimate, each[0], rtol=1e-5)
    np.testing.assert_allclose(found[1:], np.quantile(each[1:], [0.025, 0.975]), rtol=1e-4)


def test_an_interval_of_pairs_covers_where_one_that_draws_pairs_does_not():
    """The mean of x_i + x_j is as uncertain as twice the mean of N numbers, and not of N^2."""

    def covers(key):
        values_key, resample_key = jax.random.split(key)
        x = jax.random.normal(values_key, (60,))
        found = bootstrap_pairs(x[:, None] + x, key=resample_key, resamples=300)
        return (found.low < 0) & (found.high > 0)

    coverage = jax.jit(jax.vmap(covers))(jax.random.split(jax.random.key(0), 400)).mean()
    assert 0.9 < coverage < 0.98


@pytest.mark.parametrize(
    "interval, said",
    [
        ((0.78, 0.76, 0.79), "PASS"),
        ((0.76, 0.752, 0.78), "INCONCLUSIVE"),
        ((0.78, 0.74, 0.81), "INCONCLUSIVE"),
        ((0.76, 0.755, 0.765), "FAIL"),
        ((0.5, 0.4, 0.6), "FAIL"),
        ((float("nan"), 0.8, 0.9), "INCONCLUSIVE"),
    ],
)
def test_verdict(interval, said):
    assert verdict(Interval(*interval), null=0.75, threshold=0.77) == said


def test_a_difference_below_its_null_fails():
    assert verdict(Interval(-0.1, -0.2, 0.0), null=0.0, threshold=0.0) == "FAIL"
    assert verdict(Interval(0.1, 0.01, 0.2), null=0.0, threshold=0.0) == "PASS"


def test_bad_pairs_and_claims():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\[\.\.\., N, N\], not \[3, 4\]"):
        bootstrap_pairs(jnp.ones((3, 4)), key=key)
    with pytest.raises(ValueError, match="where must be"):
        bootstrap_pairs(jnp.ones((3, 3)), key=key, where=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="no pair"):
        bootstrap_pairs(jnp.ones((1, 1)), key=key)
    with pytest.raises(ValueError, match="must not be above"):
        verdict(Interval(1, 0, 2), null=1, threshold=0)


def test_a_paired_bootstrap_draws_the_same_rows_of_both_arms():
    key, rng = jax.random.key(5), np.random.default_rng(0)
    seeds = rng.normal(size=30)
    treated, control = seeds * 10 + rng.normal(size=30) + 1, seeds * 10
    found = bootstrap_difference(treated, control, key=key)
    of_differences = bootstrap(treated - control, key=key)
    np.testing.assert_allclose(found, of_differences, atol=1e-4)
    curves = np.stack([treated, 2 * treated], axis=1)
    found = bootstrap_difference(curves, curves - 3, key=key, statistic=lambda x: x.mean(axis=0))
    np.testing.assert_allclose(found, np.full((3, 2), 3), rtol=1e-4)
    with pytest.raises(ValueError, match="shape"):
        bootstrap_difference(treated, control[:3], key=key)
    with pytest.raises(ValueError, match="needs rows"):
        bootstrap_difference(1.0, 2.0, key=key)


def test_clopper_pearson():
    # Of 0 in n the upper end solves (1 - p)^n = .025; the rest from tables.
    found = clopper_pearson(np.array([0, 8, 10]), 10)
    np.testing.assert_allclose(found.low, [0, 0.44390, 1 - found.high[0]], atol=1e-5)
    np.testing.assert_allclose(found.high, [1 - 0.025**0.1, 0.97479, 1], atol=1e-5)
    np.testing.assert_allclose(clopper_pearson(0, 1000, level=0.9).high, 3 / 1000, rtol=4e-3)
    # At least the nominal coverage at every probability.
    ends = clopper_pearson(np.arange(21), 20)
    for p in np.linspace(0.02, 0.98, 25):
        chances = [math.comb(20, k) * p**k * (1 - p) ** (20 - k) for k in range(21)]
        assert np.sum(np.where((ends.low <= p) & (p <= ends.high), chances, 0)) >= 0.95
    for wrong, match in (((3, 2), "from 0 to trials"), ((0, 0), "at least 1"), ((0.5, 2), "integ")):
        with pytest.raises(ValueError, match=match):
            clopper_pearson(*wrong)
    with pytest.raises(ValueError, match="level"):
        clopper_pearson(1, 2, level=95)
