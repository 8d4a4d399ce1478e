"""Reward overoptimisation as Gao et al. found it: gold reward by distance from the initial policy.

The same run has three rewards: the proxy that it optimises, the gold that counts, and what a person
approves of. These are curves of the gold one; each is a form to be fitted, with its ``R^2``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = [
    "GoldFit",
    "Peak",
    "best_of_n_gold",
    "best_of_n_gold_peak",
    "fit_best_of_n_gold",
    "fit_rl_gold",
    "rl_gold",
    "rl_gold_peak",
]


class GoldFit(NamedTuple):
    """A curve fitted to measured gold rewards.

    Attributes:
        alpha: ``float32[...]``, as of the curve.
        beta: ``float32[...]``.
        r_squared: ``float32[...]``, the share of the points' variance that the curve explains;
            negative where their mean would do better.
    """

    alpha: jax.Array
    beta: jax.Array
    r_squared: jax.Array


class Peak(NamedTuple):
    """Where a gold curve is highest.

    Attributes:
        distance: ``float32[...]``, square root of nats.
        gold: ``float32[...]``, the gold reward there.
    """

    distance: jax.Array
    gold: jax.Array


def best_of_n_gold(distance: jax.Array, *, alpha: float, beta: float) -> jax.Array:
    r"""Gold reward of best-of-n at a distance from the initial policy, as Gao et al. found it.

    .. math:: R(d) = d (\alpha - \beta d), \qquad d = \sqrt{KL(\pi \| \pi_{ref})}

    An empirical law: nothing makes a given proxy follow it.

    Args:
        distance: ``float[...]``, at least 0, in square roots of nats.
        alpha: the slope at 0.
        beta: how fast it falls off; 0 is no overoptimisation.

    Returns:
        ``float[...]``, the gain in gold reward over the initial policy.

    Reference: Gao et al. 2023, https://arxiv.org/abs/2210.10760

    >>> best_of_n_gold(jnp.array([0.0, 2.0, 4.0]), alpha=1.0, beta=0.25).tolist()
    [0.0, 1.0, 0.0]
    """
    return distance * (alpha - beta * distance)


def rl_gold(distance: jax.Array, *, alpha: float, beta: float) -> jax.Array:
    r"""Gold reward of a policy trained by RL at a distance from its start, as Gao et al. found it.

    .. math:: R(d) = d (\alpha - \beta \log d), \qquad d = \sqrt{KL(\pi \| \pi_{ref})}

    An empirical law, with its own ``alpha`` and ``beta``; its slope at 0 is infinite.

    Args:
        distance: ``float[...]``, at least 0, in square roots of nats.
        alpha: the reward at distance 1.
        beta: how fast it falls off.

    Returns:
        ``float[...]``, the gain in gold reward over the initial policy; 0 at 0.

    Reference: Gao et al. 2023, https://arxiv.org/abs/2210.10760

    >>> rl_gold(jnp.array([0.0, 1.0, 7.389056]), alpha=1.0, beta=0.5).tolist()
    [0.0, 1.0, 0.0]
    """
    return alpha * distance - beta * jax.scipy.special.xlogy(distance, distance)


def best_of_n_gold_peak(*, alpha: float | jax.Array, beta: float | jax.Array) -> Peak:
    r"""Where ``best_of_n_gold`` is highest.

    .. math:: d^* = \frac{\alpha}{2 \beta}, \qquad R(d^*) = \frac{\alpha^2}{4 \beta}

    Args:
        alpha: as there, a number or an array.
        beta: as there, positive.

    Returns:
        A ``Peak``.

    Raises:
        ValueError: if ``beta`` is not positive: the curve has no peak.

    >>> [x.item() for x in best_of_n_gold_peak(alpha=1.0, beta=0.25)]
    [2.0, 1.0]
    """
    checks.positive(beta=beta)
    distance = jnp.asarray(alpha / (2 * beta), jnp.float32)
    return Peak(distance, distance * alpha / 2)


def rl_gold_peak(*, alpha: float | jax.Array, beta: float | jax.Array) -> Peak:
    r"""Where ``rl_gold`` is highest.

    .. math:: d^* = e^{\alpha / \beta - 1}, \qquad R(d^*) = \beta d^*

    Args:
        alpha: as there, a number or an array.
        beta: as there, positive.

    Returns:
        A ``Peak``.

    Raises:
        ValueError: if ``beta`` is not positive: the curve has no peak.

    >>> [x.item() for x in rl_gold_peak(alpha=1.0, beta=0.5)]
    [2.718282, 1.359141]
    """
    checks.positive(beta=beta)
    distance = jnp.exp(jnp.asarray(alpha / beta - 1, jnp.float32))
    return Peak(distance, beta * distance)


def fit_best_of_n_gold(distance: jax.Array, gold: jax.Array) -> GoldFit:
    r"""The ``best_of_n_gold`` that is nearest to a measured curve.

    .. math:: \min_{\alpha, \beta} \sum_i (R_i - d_i (\alpha - \beta d_i))^2

    How sure the coefficients are is not to be had of one curve, whose points are not independent:
    give ``bootstrap`` the curves of several seeds and a statistic that fits their mean.

    Args:
        distance: ``float[..., P]``, at least 0, in square roots of nats; not all 0.
        gold: ``float[..., P]``, the gain in gold reward over the initial policy.

    Returns:
        A ``GoldFit`` of ``[...]``.

    Raises:
        ValueError: if the shapes differ or are not floating, or there are fewer than 3 points.

    Reference: Gao et al. 2023, https://arxiv.org/abs/2210.10760

    >>> distance = jnp.array([0.0, 1.0, 2.0, 3.0])
    >>> [x.item() for x in fit_best_of_n_gold(distance, jnp.array([0.0, 0.8, 1.2, 1.0]))]
    [1.079, 0.247, 0.997]
    """
    return _fit(distance, gold, jnp.square)


def fit_rl_gold(distance: jax.Array, gold: jax.Array) -> GoldFit:
    r"""The ``rl_gold`` that is nearest to a measured curve.

    .. math:: \min_{\alpha, \beta} \sum_i (R_i - d_i (\alpha - \beta \log d_i))^2

    Args:
        distance: as of ``fit_best_of_n_gold``.
        gold: as there.

    Returns:
        A ``GoldFit`` of ``[...]``.

    Raises:
        ValueError: as there.

    >>> distance = jnp.array([0.0, 1.0, 2.0, 4.0])
    >>> [x.item() for x in fit_rl_gold(distance, rl_gold(distance, alpha=1.0, beta=0.5))]
    [1.0, 0.5, 1.0]
    """
    return _fit(distance, gold, lambda d: jax.scipy.special.xlogy(d, d))


def _fit(distance: jax.Array, gold: jax.Array, bend: Callable[[jax.Array], jax.Array]) -> GoldFit:
    checks.alike(distance=distance, gold=gold)
    checks.floating(distance=distance, gold=gold)
    if jnp.ndim(distance) < 1 or jnp.shape(distance)[-1] < 3:
        found = list(jnp.shape(distance))
        raise ValueError(f"distance must be [..., P] of at least 3 points, not {found}")
    # R = alpha x - beta z, by the normal equations.
    x, z, y = jnp.asarray(distance, jnp.float32), bend(distance), jnp.asarray(gold, jnp.float32)
    xx, xz, zz, xy, zy = (jnp.sum(a * b, -1) for a, b in ((x, x), (x, z), (z, z), (x, y), (z, y)))
    determinant = xx * zz - xz**2
    alpha, beta = (zz * xy - xz * zy) / determinant, (xz * xy - xx * zy) / determinant
    left = jnp.sum(jnp.square(y - alpha[..., None] * x + beta[..., None] * z), axis=-1)
    total = jnp.sum(jnp.square(y - jnp.mean(y, axis=-1, keepdims=True)), axis=-1)
    return GoldFit(alpha, beta, 1 - left / total)
