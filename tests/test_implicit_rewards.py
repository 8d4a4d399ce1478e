"""Implicit rewards by hand, masked, and with finite gradients at the corners."""

from functools import partial

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
    implicit_rewards.forward_kl,
    implicit_rewards.jensen_shannon,
    partial(implicit_rewards.alpha_divergence, alpha=2.0),
]
LOG_PROBS = jnp.array([[0.0, -1.0, -0.5, -9.0]])
REFERENCE = jnp.array([[0.0, -1.5, -0.75, -1.0]])
MASK = jnp.array([[False, True, True, False]])


@pytest.mark.parametrize(
    ("reward", "expected"),
    list(
        zip(
            ALL,
            [
                0.75,
                0.375,
                -1.5,
                -0.75,
                -0.75 - np.log1p(-np.exp(-0.75)),
                1 - np.exp(-0.75),
                np.log(2 * np.exp(0.75) / (1 + np.exp(0.75))),
                np.exp(0.75) - 1,
            ],
            strict=True,
        )
    ),
)
def test_by_hand(reward, expected):
    np.testing.assert_allclose(reward(LOG_PROBS, REFERENCE, MASK), [expected], rtol=1e-6)


@pytest.mark.parametrize("reward", ALL)
def test_masked_tokens_do_not_matter(reward):
    gradient = jax.grad(lambda x: reward(x, REFERENCE, MASK)[0])(LOG_PROBS)
    np.testing.assert_array_equal(gradient[0, [0, 3]], [0, 0])
    assert (gradient[0, [1, 2]] > 0).all()
    both = [jnp.concatenate([x, x]) for x in (LOG_PROBS, REFERENCE)]
    padded = reward(*both, jnp.concatenate([MASK, jnp.zeros_like(MASK)]))
    np.testing.assert_array_equal(padded, [*reward(LOG_PROBS, REFERENCE, MASK), 0])
    with pytest.raises(ValueError, match=r"mask \[1, 4\] has no true entry"):
        reward(LOG_PROBS, REFERENCE, jnp.zeros_like(MASK))
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


def test_alpha_divergence_joins_the_forward_and_the_reverse_kl():
    alpha = implicit_rewards.alpha_divergence
    arguments = (LOG_PROBS, REFERENCE, MASK)
    for value, other in [(0.0, implicit_rewards.forward_kl), (1.0, implicit_rewards.log_ratio)]:
        np.testing.assert_allclose(alpha(*arguments, alpha=value), other(*arguments), rtol=1e-6)
    near = alpha(*arguments, alpha=1.001)
    np.testing.assert_allclose(near, implicit_rewards.log_ratio(*arguments), rtol=1e-3)


def numerical_slope(f, t):
    return (f(t * (1 + 1e-6)) - f(t * (1 - 1e-6))) / (2e-6 * t)


@pytest.mark.parametrize(
    ("reward", "f"),
    [
        (implicit_rewards.log_ratio, lambda t: t * np.log(t)),
        (implicit_rewards.forward_kl, lambda t: -np.log(t)),
        (
            implicit_rewards.jensen_shannon,
            lambda t: t * np.log(t) - (t + 1) * np.log((t + 1) / 2),
        ),
        (
            partial(implicit_rewards.alpha_divergence, alpha=0.5),
            lambda t: t**0.5 / (0.5 * -0.5),
        ),
    ],
)
def test_the_reward_is_the_derivative_of_the_divergence(reward, f):
    log_ratios = np.linspace(-2, 2, 9)
    rows = jnp.array(log_ratios, jnp.float32)[:, None]
    value = reward(rows, jnp.zeros_like(rows), jnp.ones(rows.shape, bool))
    slopes = np.array([numerical_slope(f, t) - numerical_slope(f, 1.0) for t in np.exp(log_ratios)])
    np.testing.assert_allclose(value, slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reward", ALL[-3:])
@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_divergence_rewards_are_finite_with_finite_gradients(reward, extreme):
    def value(x):
        return reward(x, jnp.zeros([1, 1]), jnp.ones([1, 1], bool))[0]

    result, gradient = jax.value_and_grad(value)(jnp.full([1, 1], extreme))
    assert np.isfinite(result)
    assert np.isfinite(gradient).all()
