"""Many rewards to one: the science page's ensemble, shapes, gradients, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import aggregates

ENSEMBLE = jnp.array([1.0, 2.0, 6.0])
CASES = {
    "mean": (aggregates.mean, 3, [1 / 3] * 3),
    "worst_case": (aggregates.worst_case, 1, [1, 0, 0]),
    # the population variance is 14/3; its slope is 2 (r - mean) / M
    "uncertainty_weighted": (
        partial(aggregates.uncertainty_weighted, coefficient=0.5),
        2 / 3,
        [1, 2 / 3, -2 / 3],
    ),
    "the median": (partial(aggregates.quantile, level=0.5), 2, [0, 1, 0]),
    "a quarter": (partial(aggregates.quantile, level=0.25), 1.5, [0.5, 0.5, 0]),
    "weighted": (
        partial(aggregates.weighted, weights=jnp.array([0.5, 0.25, -1.0])),
        -5,
        [0.5, 0.25, -1],
    ),
}
each = pytest.mark.parametrize(("aggregate", "value", "slope"), CASES.values(), ids=CASES)


@each
def test_value_and_gradient_by_hand(aggregate, value, slope):
    found = jax.value_and_grad(aggregate)(ENSEMBLE)
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(found[1], slope, rtol=1e-5, atol=1e-6)


@each
def test_each_answer_by_itself_and_the_same_compiled(aggregate, value, slope):
    rewards = jax.random.normal(jax.random.key(0), [3, 2, 4]).at[:, 1, 2].set(ENSEMBLE)
    found = jax.jit(aggregate)(rewards)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found[1, 2], value, rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], aggregate(rewards[:, 0, 1]), rtol=1e-4, atol=1e-6)


@each
def test_bad_rewards_are_refused(aggregate, value, slope):
    with pytest.raises(ValueError, match="rewards must be floating"):
        aggregate(jnp.arange(3))
    for empty in (jnp.float32(1), jnp.zeros([0, 3])):
        with pytest.raises(ValueError, match=r"rewards must be \[M, ...\], M at least 1"):
            aggregate(empty)


def test_members_that_agree_are_one_member():
    rewards = jnp.tile(jnp.array([0.5, -2.0]), (4, 1))
    for aggregate in (aggregates.mean, aggregates.worst_case, CASES["uncertainty_weighted"][0]):
        np.testing.assert_allclose(aggregate(rewards), rewards[0], rtol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"weights must be \[M\], one a member, not \[2\]"):
        aggregates.weighted(ENSEMBLE, weights=jnp.ones(2))
    with pytest.raises(ValueError, match="weights must be floating"):
        aggregates.weighted(ENSEMBLE, weights=jnp.arange(3))
    with pytest.raises(ValueError, match="level must be from 0 to 1, not 2"):
        aggregates.quantile(ENSEMBLE, level=2)
