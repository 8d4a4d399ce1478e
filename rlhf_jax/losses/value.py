"""Value losses: how far a critic's estimates are from the returns that followed."""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["clipped_value", "squared_value"]


def squared_value(values: jax.Array, old_values: jax.Array, returns: jax.Array) -> jax.Array:
    r"""Half the squared error.

    .. math:: \ell_t = \tfrac12 (V_\theta(s_t) - \hat R_t)^2

    Args:
        values: ``float[B, T]``, the critic's estimates.
        old_values: ``float[B, T]``; not used.
        returns: ``float[B, T]``, treated as constants.

    Returns:
        ``float[B, T]``; mask it when reducing.

    Raises:
        ValueError: if the shapes differ.

    >>> squared_value(jnp.array([[1.0]]), jnp.array([[0.0]]), jnp.array([[3.0]])).tolist()
    [[2.0]]
    """
    checks.alike(values=values, old_values=old_values, returns=returns)
    checks.floating(values=values, old_values=old_values, returns=returns)
    return 0.5 * jnp.square(values - jax.lax.stop_gradient(returns))


def clipped_value(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip_range: float = 0.2
) -> jax.Array:
    r"""The larger of the plain and the clipped error: a step may not move a value far.

    .. math::
        \ell_t = \tfrac12 \max\left[(V_\theta - \hat R)^2,
        (\operatorname{clip}(V_\theta, V_{old} - \epsilon, V_{old} + \epsilon) - \hat R)^2\right]

    Args:
        values: ``float[B, T]``, the critic's estimates.
        old_values: ``float[B, T]``, its estimates when the data was sampled.
        returns: ``float[B, T]``, treated as constants.
        clip_range: how far from ``old_values`` a value earns a smaller loss; in units of reward.

    Returns:
        ``float[B, T]``; mask it when reducing.

    Raises:
        ValueError: if the shapes differ.

    Reference: the code of Schulman et al. 2017; described in Engstrom et al. 2020, section 3,
    https://arxiv.org/abs/2005.12729

    >>> values, returns = jnp.array([[1.0]]), jnp.array([[1.0]])
    >>> clipped_value(values, jnp.array([[0.0]]), returns).tolist()
    [[0.32]]
    """
    checks.alike(values=values, old_values=old_values, returns=returns)
    checks.floating(values=values, old_values=old_values, returns=returns)
    returns, old_values = jax.lax.stop_gradient((returns, old_values))
    clipped = jnp.clip(values, old_values - clip_range, old_values + clip_range)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
