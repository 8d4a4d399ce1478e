"""Divergence estimators: their values, and what differentiating them gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import divergences

Q, P = jnp.array([0.5, 0.5]), jnp.array([0.7, 0.3])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (divergences.kl_k1, 0.087177),
        (divergences.kl_k2, 0.093539),
        (divergences.kl_k3, 0.087177),
    ],
)
def test_expectation_of_the_estimators(estimator, expected):
    np.testing.assert_allclose(Q @ estimator(jnp.log(Q), jnp.log(P)), expected, atol=1e-6)


def test_exact_kl_and_its_corners():
    np.testing.assert_allclose(divergences.exact_kl(jnp.log(Q), jnp.log(P)), 0.087177, atol=1e-6)
    never = jnp.array([0.0, -jnp.inf])
    np.testing.assert_allclose(divergences.exact_kl(never, never), 0)
    np.testing.assert_allclose(divergences.exact_kl(never, jnp.zeros(2)), np.log(2), rtol=1e-6)


def expected_gradient(estimator, logits):
    """E over samples of the gradient of the estimator, as a loss on sampled tokens."""

    def loss(logits, token):
        return estimator(jax.nn.log_softmax(logits)[token], jnp.log(P)[token])

    gradients = jax.vmap(jax.grad(loss), (None, 0))(logits, jnp.arange(2))
    return jax.nn.softmax(logits) @ gradients


def test_gradients_of_the_estimators_as_losses():
    logits = jnp.array([0.4, -0.3])
    forward = jax.grad(lambda z: divergences.exact_kl(z, jnp.log(P)))(logits)
    backward = jax.grad(lambda z: divergences.exact_kl(jnp.log(P), z))(logits)
    assert jnp.abs(forward).max() > 0.01
    np.testing.assert_allclose(expected_gradient(divergences.kl_k1, logits), [0, 0], atol=1e-7)
    np.testing.assert_allclose(expected_gradient(divergences.kl_k2, logits), forward, atol=1e-6)
    np.testing.assert_allclose(expected_gradient(divergences.kl_k3, logits), backward, atol=1e-6)


@pytest.mark.parametrize(
    "estimator", [divergences.kl_k1, divergences.kl_k2, divergences.kl_k3, divergences.exact_kl]
)
def test_other_shapes_are_refused(estimator):
    with pytest.raises(ValueError, match="shape"):
        estimator(jnp.zeros([2, 3]), jnp.zeros([2, 1]))


def test_adaptive_coefficient_steers_to_its_target():
    coefficient = divergences.adaptive_coefficient(0.1, target=6.0, gain=0.5)
    assert float(coefficient.update(coefficient.init(), jnp.float32(60))) == pytest.approx(0.11)
    assert float(coefficient.update(coefficient.init(), jnp.float32(0))) == pytest.approx(0.09)
    held = divergences.adaptive_coefficient(0.1, target=6.0, gain=0.5, minimum=0.095)
    assert float(held.update(held.init(), jnp.float32(0))) == pytest.approx(0.095)
    # A plant whose divergence is 1 / coefficient: it settles where that is the target.
    value = coefficient.init()
    for _ in range(200):
        value = coefficient.update(value, 1 / value)
    assert float(1 / value) == pytest.approx(6.0, rel=1e-3)


def test_coefficients_refuse_what_cannot_work():
    with pytest.raises(ValueError, match="must be positive"):
        divergences.adaptive_coefficient(0.0, target=6.0)


def test_fixed_coefficient_stays():
    coefficient = divergences.fixed_coefficient(0.3)
    assert coefficient.update(coefficient.init(), jnp.float32(99)) == jnp.float32(0.3)
