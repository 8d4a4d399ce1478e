"""Advantages against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import advantages

REWARDS, VALUES = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 0.6, 0.7]])
ALL = jnp.ones([1, 3], bool)


@pytest.mark.parametrize(
    ("discount", "gae_lambda", "expected"),
    [
        (0.99, 0.95, [0.44683, 0.37515, 0.3]),  # science.md, section 6
        (1.0, 1.0, [0.5, 0.4, 0.3]),  # the return minus the value
        (0.99, 0.0, [0.094, 0.093, 0.3]),  # the one-step error
    ],
)
def test_gae_by_hand(discount, gae_lambda, expected):
    estimates = advantages.gae(REWARDS, VALUES, ALL, discount=discount, gae_lambda=gae_lambda)
    np.testing.assert_allclose(estimates, [expected], atol=1e-5)


def test_gae_steps_over_what_is_masked():
    """Prompt before, padding after, and another's words in between make no difference."""
    mask = jnp.array([[0, 1, 0, 1, 1, 0]], bool)
    spread = jnp.array([[9.0, 0.0, 9.0, 0.0, 1.0, 9.0]])
    values = jnp.array([[9.0, 0.5, 9.0, 0.6, 0.7, 9.0]])
    estimates = advantages.gae(spread, values, mask, discount=0.99)
    packed = advantages.gae(REWARDS, VALUES, ALL, discount=0.99)
    np.testing.assert_allclose(estimates[0, [1, 3, 4]], packed[0], atol=1e-6)
    np.testing.assert_array_equal(estimates[0, [0, 2, 5]], [0, 0, 0])


def test_reinforce_plus_plus_by_hand():
    """Returns 1.5, 2 and -0.5; the hole, the padding and the values do not matter."""
    mask = jnp.array([[1, 0, 1], [1, 0, 0]], bool)
    rewards = jnp.array([[0.5, 9.0, 2.0], [-0.5, 9.0, 9.0]])
    returns = np.array([0.5 + 0.5 * 2.0, 2.0, -0.5])
    found = advantages.reinforce_plus_plus(rewards, 7 * rewards, mask, discount=0.5)
    expected = (returns - returns.mean()) / returns.std()
    np.testing.assert_allclose(found[mask], expected, atol=1e-6)
    np.testing.assert_array_equal(found[~mask], [0, 0, 0])
    rows = [x[:, None] for x in (rewards, rewards, mask)]
    across = jax.pmap(
        lambda *x: advantages.reinforce_plus_plus(*x, discount=0.5, axis_name="data"),
        axis_name="data",
    )
    np.testing.assert_allclose(across(*rows)[:, 0], found, atol=1e-6)


def test_baselines_by_hand():
    rewards = jnp.array([[1.0, 0.0, 4.0], [2.0, 3.0, 2.0]])
    np.testing.assert_array_equal(advantages.no_baseline(rewards), rewards)
    np.testing.assert_array_equal(
        advantages.greedy_baseline(rewards, jnp.array([1.0, 3.0])), [[0, -1, 3], [-1, 0, -1]]
    )
    np.testing.assert_array_equal(
        advantages.greedy_baseline(rewards[0], rewards[0, 2]), [-3, -4, 0]
    )
    for wrong in (rewards, rewards[0], rewards[:1, 0]):
        with pytest.raises(ValueError, match="one baseline"):
            advantages.greedy_baseline(rewards, wrong)
    for estimate in (advantages.no_baseline, lambda x: advantages.greedy_baseline(x, x[:, 0])):
        with pytest.raises(ValueError, match="must be floating"):
            estimate(rewards.astype(int))


def test_best_of_n_by_hand():
    rewards = jnp.array(
        [[[0.0, 2.0, 1.0, -1.0], [3.0, 3.0, 1.0, 0.0]], [[5.0] * 4, [-2, -1, -3, -4]]]
    )
    np.testing.assert_allclose(
        advantages.best_of_n(rewards),
        [[[0, 1, 0, 0], [0.5, 0.5, 0, 0]], [[0.25] * 4, [0, 1, 0, 0]]],
    )


def test_leave_one_out_by_hand():
    estimates = advantages.leave_one_out(jnp.array([[1.0, 0.0, 0.0, 1.0], [5.0, 5.0, 5.0, 5.0]]))
    third = 2 / 3
    np.testing.assert_allclose(estimates, [[third, -third, -third, third], [0] * 4], atol=1e-6)


def test_group_normalised_by_hand():
    rewards = jnp.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(
        advantages.group_normalised(rewards, epsilon=0), [1, -1, -1, 1], atol=1e-6
    )
    np.testing.assert_allclose(  # as TRL: unbiased deviation, 1e-4 outside the root
        advantages.group_normalised(rewards, ddof=1),
        np.array([1, -1, -1, 1]) * 0.5 / (np.sqrt(1 / 3) + 1e-4),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        advantages.group_normalised(rewards, scale=False), [0.5, -0.5, -0.5, 0.5], atol=1e-6
    )
    np.testing.assert_array_equal(advantages.group_normalised(jnp.ones(3)), [0, 0, 0])


@pytest.mark.parametrize(
    "estimate", [advantages.leave_one_out, advantages.group_normalised, advantages.best_of_n]
)
def test_one_sample_a_prompt_is_refused(estimate):
    with pytest.raises(ValueError, match="at least 2 samples a prompt"):
        estimate(jnp.ones([3, 1]))


def test_leave_one_out_is_unbiased_for_a_softmax_policy():
    """The mean over samples of A * grad log pi is the exact gradient of the expected reward."""
    rewards, logits = jnp.array([1.0, -0.5, 0.3]), jnp.array([0.2, -0.1, 0.4])
    exact = jax.grad(lambda z: jax.nn.softmax(z) @ rewards)(logits)
    actions = jax.random.categorical(jax.random.key(0), logits, shape=(40_000, 4))
    estimates = advantages.leave_one_out(rewards[actions])
    scores = jax.nn.one_hot(actions, 3) - jax.nn.softmax(logits)
    np.testing.assert_allclose(
        jnp.mean(estimates[..., None] * scores, axis=(0, 1)), exact, atol=5e-3
    )


def test_whiten_counts_what_the_mask_counts_also_across_devices():
    values = jnp.arange(8.0).reshape(4, 2)
    mask = jnp.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool)
    counted = np.asarray(values)[np.asarray(mask)]
    expected = np.where(mask, (values - counted.mean()) / counted.std(), 0)
    np.testing.assert_allclose(advantages.whiten(values, mask), expected, atol=1e-5)
    across = jax.pmap(lambda v, m: advantages.whiten(v, m, axis_name="data"), axis_name="data")
    np.testing.assert_allclose(across(values, mask), expected, atol=1e-5)
