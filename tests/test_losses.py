"""Losses against values worked out by hand, their gradients, masks and refusals."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import losses

PREFERENCE = {
    "bradley_terry": losses.bradley_terry,
    "bradley_terry with a margin": partial(losses.bradley_terry, margin=0.3),
    "hinge": losses.hinge,
    "squared": losses.squared,
}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # lead 0.06: DPO with beta 0.1 at log-ratios 0.4 and -0.2
        (losses.bradley_terry, np.log1p(np.exp(-0.06))),
        (partial(losses.bradley_terry, margin=0.5), np.log1p(np.exp(0.44))),
        (losses.hinge, 0.94),
        (partial(losses.hinge, margin=0.05), 0.0),
        (losses.squared, 0.94**2),
        (partial(losses.squared, tau=0.1), (0.06 - 5) ** 2),
    ],
)
def test_preference_loss_by_hand(loss, expected):
    value = jax.jit(loss)(jnp.array([0.04]), jnp.array([-0.02]))
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


def test_bradley_terry_at_equal_rewards_is_log_2_and_survives_large_ones():
    value = losses.bradley_terry(jnp.array([1.0, 1e4, -1e4]), jnp.array([1.0, -1e4, 1e4]))
    np.testing.assert_allclose(value, [np.log(2), 0, 2e4], rtol=1e-6)


def test_dpo_gradient_by_hand():
    """science.md: d loss / d log pi_w = -beta sigma(-beta h) = -0.0485 = -d loss / d log pi_l."""

    def dpo(chosen, rejected):
        return losses.bradley_terry(0.1 * chosen, 0.1 * rejected)[0]

    gradient = jax.grad(dpo, (0, 1))(jnp.array([0.4]), jnp.array([-0.2]))
    np.testing.assert_allclose(np.concatenate(gradient), [-0.0485, 0.0485], atol=1e-6)


@pytest.mark.parametrize("loss", PREFERENCE.values(), ids=PREFERENCE)
def test_preference_losses_push_the_chosen_up_and_are_per_example(loss):
    chosen, rejected = jnp.array([0.1, -0.2, 0.0]), jnp.array([0.0, 0.3, 0.0])
    up, down = jax.grad(lambda c, r: loss(c, r).sum(), (0, 1))(chosen, rejected)
    assert (up < 0).all()
    assert (down > 0).all()
    chex.assert_trees_all_close(jax.vmap(loss)(chosen, rejected), loss(chosen, rejected))
    with pytest.raises(ValueError, match="shape"):
        loss(chosen, rejected[:2])


def test_squared_refuses_a_tau_that_is_not_positive():
    with pytest.raises(ValueError, match="tau must be positive, not 0"):
        losses.squared(jnp.zeros(1), jnp.zeros(1), tau=0)


def row(*values):
    return jnp.array([values], jnp.float32)


def test_value_losses_by_hand():
    values, old, returns = row(1.0, 0.1, -1.0), row(0.0, 0.0, 0.0), row(1.0, 1.0, 1.0)
    np.testing.assert_allclose(losses.squared_value(values, old, returns), row(0, 0.405, 2))
    # clipped to 0.2, 0.1 and -0.2: the larger error counts
    np.testing.assert_allclose(
        losses.clipped_value(values, old, returns), row(0.32, 0.405, 2), rtol=1e-6
    )
    gradient = jax.grad(lambda v: losses.clipped_value(v, old, returns).sum())(values)
    np.testing.assert_allclose(gradient, row(0, -0.9, -2), rtol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        losses.clipped_value(values, old, returns[:, :1])
