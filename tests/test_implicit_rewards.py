"""Implicit rewards by hand, masked, and with finite gradients at the corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import implicit_rewards, losses

ALL = [
    implicit_rewards.log_ratio,
    implicit_rewards.mean_log_ratio,
    implicit_rewards.log_prob,
    implicit_rewards.mean_log_prob,
    implicit_rewards.log_odds,
]
LOG_PROBS = jnp.array([[0.0, -1.0, -0.5, -9.0]])
REFERENCE = jnp.array([[0.0, -1.5, -0.75, -1.0]])
MASK = jnp.array([[False, True, True, False]])


@pytest.mark.parametrize(
    ("reward", "expected"),
    list(zip(ALL, [0.75, 0.375, -1.5, -0.75, -0.75 - np.log1p(-np.exp(-0.75))], strict=True)),
)
def test_by_hand(reward, expected):
    np.testing.assert_allclose(reward(LOG_PROBS, REFERENCE, MASK), [expected], rtol=1e-6)


@pytest.mark.parametrize("reward", ALL)
def test_masked_tokens_do_not_matter(reward):
    gradient = jax.grad(lambda x: reward(x, REFERENCE, MASK)[0])(LOG_PROBS)
    np.testing.assert_array_equal(gradient[0, [0, 3]], [0, 0])
    assert (gradient[0, [1, 2]] > 0).all()
    nothing = reward(LOG_PROBS, REFERENCE, jnp.zeros_like(MASK))
    np.testing.assert_array_equal(nothing, [0])
    with pytest.raises(ValueError, match="shape"):
        reward(LOG_PROBS, REFERENCE[:, :2], MASK)


def test_log_odds_of_a_certain_answer_is_finite_with_a_finite_gradient():
    certain = jnp.zeros([1, 4])
    value, gradient = jax.value_and_grad(
        lambda x: implicit_rewards.log_odds(x, REFERENCE, MASK)[0]
    )(certain)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_simpo_and_orpo_of_the_science_page():
    """SimPO beta 2, gamma 0.5 at mean log-probabilities -0.8 and -1.2; ORPO's odds-ratio loss."""
    rows, mask = jnp.array([[-0.8], [-1.2]]), jnp.ones([2, 1], bool)
    chosen, rejected = 2 * implicit_rewards.mean_log_prob(rows, rows, mask)[:, None]
    np.testing.assert_allclose(
        losses.bradley_terry(chosen, rejected, margin=0.5), [0.554355], atol=1e-6
    )
    chosen, rejected = implicit_rewards.log_odds(rows, rows, mask)[:, None]
    np.testing.assert_allclose(losses.bradley_terry(chosen, rejected), [0.424106], atol=1e-6)
