"""Bootstrap intervals: the right width, the right coverage, the right shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import bootstrap


def test_the_width_is_that_of_the_normal_approximation():
    values = jax.random.normal(jax.random.key(0), (400,))
    found = bootstrap(values, key=jax.random.key(1), resamples=4000)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose(found.estimate, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.low, values.mean() - half, atol=0.01)
    np.testing.assert_allclose(found.high, values.mean() + half, atol=0.01)
    narrower = bootstrap(values, key=jax.random.key(1), level=0.5)
    assert found.low < narrower.low < narrower.high < found.high


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
