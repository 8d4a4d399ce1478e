"""A policy that improves exactly: where it goes is known, and so is the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import divergences, worlds

REFERENCE = jax.nn.log_softmax(jnp.array([0.3, -1.0, 0.5, 0.0]))
REWARD = jnp.array([1.0, 2.0, -1.0, 0.5])


def after(steps, reward=REWARD, **settings):
    init, step = worlds.mirror_ascent(lambda params: params, **settings)
    state = init(REFERENCE, jax.random.key(0), reward=reward)
    for _ in range(steps):
        state, metrics = step(state)
    return state.params, metrics


def test_steps_by_one_reward_are_its_tilt_however_they_are_cut():
    policy, metrics = after(3, rate=0.2)
    tilted = worlds.tilt(REFERENCE, REWARD, beta=1 / 0.6)
    np.testing.assert_allclose(policy, tilted, rtol=1e-5)
    np.testing.assert_allclose(after(1, rate=0.6)[0], tilted, rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], jnp.exp(tilted) @ REWARD, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], divergences.exact_kl(tilted, REFERENCE), rtol=1e-4)


def test_with_a_penalty_it_ends_where_the_exact_policy_is():
    policy, _ = after(30, rate=1.0, kl_coefficient=0.5)
    np.testing.assert_allclose(policy, worlds.tilt(REFERENCE, REWARD, beta=0.5), atol=1e-4)


def test_it_goes_on_from_where_it_is_when_the_reward_changes():
    init, step = worlds.mirror_ascent(lambda params: params, rate=1.0)
    state, _ = step(init(REFERENCE, jax.random.key(0), reward=REWARD))
    state = state.replace(frozen=state.frozen._replace(reward=-REWARD))
    np.testing.assert_allclose(step(state)[0].params, REFERENCE, atol=1e-5)


def test_a_rate_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="rate"):
        worlds.mirror_ascent(lambda params: params, rate=0.0)
