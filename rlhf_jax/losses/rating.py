"""Losses of ratings: from what a model says of one answer, and what a person said, to a loss.

They are elementwise, so they serve one rating an answer, several attributes, or one a token or a
step alike. On a scale of steps with unknown distances, take ``ordinal``. Those at the end take a
``distributions.Distribution``: the model's outputs are then its parameters.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.distributions import Distribution

__all__ = ["binary_cross_entropy", "distributional", "likelihood", "squared_error"]


def squared_error(rewards: jax.Array, ratings: jax.Array) -> jax.Array:
    r"""The squared difference, whose minimum is the mean rating.

    .. math:: \ell = (r - y)^2

    Args:
        rewards: ``float[...]``.
        ratings: of the same shape, floating or whole steps.

    Returns:
        ``float[...]``.

    Raises:
        ValueError: if the shapes differ, or ``rewards`` is not floating.

    >>> squared_error(jnp.array([1.0, 0.5]), jnp.array([3, 0])).tolist()
    [4.0, 0.25]
    """
    _check(rewards, ratings)
    return jnp.square(rewards - ratings)


def binary_cross_entropy(rewards: jax.Array, ratings: jax.Array) -> jax.Array:
    r"""The loss of good against bad, or of how probable it is that something is right.

    .. math:: \ell = -y \log \sigma(r) - (1 - y) \log \sigma(-r)

    Of steps this trains a process reward model.

    Args:
        rewards: ``float[...]``, log-odds, in nats.
        ratings: of the same shape: boolean, or from 0 to 1.

    Returns:
        ``float[...]`` in nats.

    Raises:
        ValueError: if the shapes differ, or ``rewards`` is not floating.

    Reference: of steps, Lightman et al. 2023, https://arxiv.org/abs/2305.20050

    >>> binary_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([0.3, 1.0])).tolist()
    [0.693147, 0.126928]
    """
    _check(rewards, ratings)
    good = jnp.asarray(ratings).astype(rewards.dtype)
    return jax.nn.softplus(rewards) - good * rewards


def distributional(
    chosen: jax.Array, rejected: jax.Array, *, distribution: Distribution
) -> jax.Array:
    r"""Negative log-probability that a draw of the chosen's reward exceeds one of the rejected's.

    .. math:: \ell = -\log P(R_w > R_l), \qquad R \sim p_\phi(\cdot \mid x)

    Args:
        chosen: ``float[B, size]``, the distribution's parameters.
        rejected: ``float[B, size]``.
        distribution: ``distributions.normal()``, ``distributions.categorical(atoms)``.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ, are not floating or not of the distribution's size.

    Reference: Siththaranjan et al. 2023, https://arxiv.org/abs/2312.08358

    >>> from rlhf_jax.distributions import normal
    >>> alike = jnp.array([[0.3, 1.0]])
    >>> distributional(alike, alike, distribution=normal()).tolist()
    [0.693147]
    """
    checks.pair(chosen, rejected)
    _check_size(distribution, chosen=chosen)
    return -distribution.log_prefers(chosen, rejected)


def likelihood(rewards: jax.Array, ratings: jax.Array, *, distribution: Distribution) -> jax.Array:
    r"""Negative log-density of a rating: the model learns how far raters differ, and not noise.

    .. math:: \ell = -\log p_\phi(y \mid x)

    Args:
        rewards: ``float[B, size]``, the distribution's parameters.
        ratings: ``float[B]``.
        distribution: ``distributions.normal()``, ``distributions.categorical(atoms)``.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes do not fit, or ``rewards`` is not floating.

    >>> from rlhf_jax.distributions import categorical
    >>> even = jnp.zeros([1, 3])
    >>> scale = categorical(jnp.array([-1.0, 0.0, 1.0]))
    >>> likelihood(even, jnp.array([1.0]), distribution=scale).tolist()  # log 3
    [1.098612]
    """
    checks.floating(rewards=rewards)
    _check_size(distribution, rewards=rewards)
    checks.alike(rewards=rewards[..., 0], ratings=ratings)
    return -distribution.log_density(rewards, ratings)


def _check(rewards: jax.Array, ratings: jax.Array) -> None:
    checks.alike(rewards=rewards, ratings=ratings)
    checks.floating(rewards=rewards)


def _check_size(distribution: Distribution, **outputs: jax.Array) -> None:
    for name, array in outputs.items():
        if jnp.shape(array)[-1:] != (distribution.size,):
            wanted = f"[..., {distribution.size}], the distribution's parameters"
            raise ValueError(f"{name} must be {wanted}, not {list(jnp.shape(array))}")
