"""Policy losses and advantages against rlax, in value and gradient.

Its functions take one trajectory and return a mean, so ours are given one row, whole.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rlhf_jax import advantages, losses

STEPS = 40
RNG = np.random.default_rng(0)
OLD, ESTIMATES, REWARDS, VALUES = jnp.float32(RNG.normal(size=[4, STEPS]))
LOG_PROBS = OLD + jnp.float32(RNG.normal(scale=0.3, size=STEPS))
MASK = jnp.ones([1, STEPS], bool)


def same(ours, theirs, at):
    for found, expected in zip(
        jax.value_and_grad(ours)(at), jax.value_and_grad(theirs)(at), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip_range", [0.05, 0.2])
def test_ppo_clip(clip_range):
    ratios = np.exp(LOG_PROBS - OLD)
    assert ((ratios < 0.8) & (ESTIMATES < 0)).any()
    assert ((ratios > 1.2) & (ESTIMATES > 0)).any()
    clip = partial(losses.ppo_clip, clip_range=clip_range)
    same(
        lambda x: clip(x[None], OLD[None], ESTIMATES[None], MASK).mean(),
        lambda x: rlax.clipped_surrogate_pg_loss(jnp.exp(x - OLD), ESTIMATES, clip_range),
        LOG_PROBS,
    )


def test_reinforce_on_the_logits_of_a_policy():
    actions, counts = jnp.array(RNG.integers(5, size=STEPS)), jnp.arange(STEPS) % 3 > 0
    logits = jnp.float32(RNG.normal(size=[STEPS, 5]))

    def ours(logits):
        log_probs = jax.nn.log_softmax(logits)[jnp.arange(STEPS), actions][None]
        return losses.reinforce(log_probs, OLD[None], ESTIMATES[None], counts[None]).mean()

    same(
        ours,
        lambda x: rlax.policy_gradient_loss(x, actions, ESTIMATES, counts.astype(jnp.float32)),
        logits,
    )


@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_gae(discount, gae_lambda):
    """The answer ends after its last token: rlax is told so by a last discount of 0."""
    weights = jnp.float32(RNG.normal(size=STEPS))
    gae = partial(advantages.gae, discount=discount, gae_lambda=gae_lambda)
    discounts = jnp.full(STEPS, discount).at[-1].set(0)

    def theirs(values):
        ended = jnp.append(values, 123.0)
        return rlax.truncated_generalized_advantage_estimation(
            REWARDS, discounts, gae_lambda, ended
        ).dot(weights)

    same(lambda v: gae(REWARDS[None], v[None], MASK)[0].dot(weights), theirs, VALUES)
