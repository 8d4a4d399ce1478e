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


def test_a_lagrangian_by_hand():
    limited = aggregates.lagrangian(jnp.array([0.5, 0.0]), rate=0.1)
    assert limited.init().tolist() == [1, 1]
    # the first cost is over its limit, the second far below: its multiplier stops at 0
    multipliers = limited.update(limited.init(), jnp.array([9.0, 1.5, -20.0]))
    np.testing.assert_allclose(multipliers, [1.1, 0])
    rewards = jnp.array([[2.0, 1.0], [3.0, 0.0], [7.0, 7.0]])
    expected = (np.array([2.0, 1.0]) - 1.1 * np.array([3.0, 0.0])) / 2.1
    np.testing.assert_allclose(limited.combine(multipliers, rewards), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="a reward and 2 costs, one for each limit, not 2"):
        limited.combine(multipliers, rewards[:2])
    with pytest.raises(ValueError, match="rate must be positive"):
        aggregates.lagrangian(jnp.array([0.5]), rate=0.0)


def test_a_lagrangian_and_an_exact_policy_meet_at_the_constraint():
    """On a bandit whose tilt is exact, the multiplier settles where the cost is at its limit."""
    rewards, costs = jnp.array([0.0, 1.0, 3.0]), jnp.array([0.0, 0.2, 1.0])
    limited = aggregates.lagrangian(jnp.array([0.3]), rate=0.5, normalised=False)

    def round_(multipliers, _):
        both = jnp.stack([rewards, costs])
        policy = jax.nn.softmax(limited.combine(multipliers, both) / 0.5)
        means = both @ policy
        return limited.update(multipliers, means), means

    multipliers, means = jax.lax.scan(round_, limited.init(), None, 300)
    np.testing.assert_allclose(means[-1, 1], 0.3, atol=1e-3)
    assert multipliers[0] > 0


def test_maxmin_gives_the_worst_off_group_the_say():
    """Two groups of opposite wishes and a compromise: the mean is blind to it, max-min takes it."""
    groups = jnp.array([[1.0, -1.0, 0.2], [-1.0, 1.0, 0.2]])  # groups by answers
    fair = aggregates.maxmin(2, rate=0.1)

    def round_(carry, _):
        log_weights, logits = carry
        policy = jax.nn.softmax(logits)
        means = groups @ policy
        combined = fair.combine(log_weights, groups)
        logits = logits + 0.1 * policy * (combined - policy @ combined)
        return (fair.update(log_weights, means), logits), policy

    start = (fair.init(), jnp.array([0.5, 0.0, 0.0]))
    _, policies = jax.jit(lambda s: jax.lax.scan(round_, s, None, 8000))(start)
    assert jnp.min(groups @ policies[-2000:].mean(axis=0)) > 0.15
    with pytest.raises(ValueError, match=r"weights must be \[M\]"):
        fair.combine(fair.init(), groups[:1])
