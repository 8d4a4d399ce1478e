"""Language-model losses on the log-probabilities of given text."""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["cross_entropy"]


def cross_entropy(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""Negative log-likelihood of each token that counts.

    .. math:: \ell_t = -\log \pi_\theta(x_t \mid x_{<t})

    Args:
        log_probs: ``float[B, T]`` in nats, aligned with the tokens.
        mask: ``bool[B, T]``.

    Returns:
        ``float[B, T]``, 0 where the mask is false.

    Raises:
        ValueError: if the shapes differ.

    >>> cross_entropy(jnp.array([[-1.0, -2.0]]), jnp.array([[False, True]])).tolist()
    [[0.0, 2.0]]
    """
    checks.token_arrays(mask, log_probs=log_probs)
    return jnp.where(mask, -log_probs, 0)
