"""From the rewards of several models to one: ``(rewards[M, ...]) -> [...]``.

The members are an ensemble, several groups of people, or several objectives. Bind what a function
needs besides with ``functools.partial``. All are differentiable in the rewards, and reward models
are comparable here only if they share a zero and a scale: standardise them first
(``rewards.standardised``).
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = ["mean", "quantile", "uncertainty_weighted", "weighted", "worst_case"]


def mean(rewards: jax.Array) -> jax.Array:
    r"""The members' mean.

    .. math:: \frac1M \sum_m r_m

    Members that err alike are no protection: it can still be overoptimised.

    Args:
        rewards: ``float[M, ...]``.

    Returns:
        ``float[...]``.

    Raises:
        ValueError: if there are no members, or the rewards are not floating.

    Reference: Coste et al. 2023, https://arxiv.org/abs/2310.02743

    >>> mean(jnp.array([1.0, 2.0, 6.0])).item()
    3.0
    """
    _check(rewards)
    return jnp.mean(rewards, axis=0)


def worst_case(rewards: jax.Array) -> jax.Array:
    r"""The least of the members' rewards (worst-case optimisation).

    .. math:: \min_m r_m

    Args:
        rewards: ``float[M, ...]``.

    Returns:
        ``float[...]``; its gradient goes to the least alone, in equal parts where several are.

    Raises:
        ValueError: if there are no members, or the rewards are not floating.

    Reference: Coste et al. 2023, https://arxiv.org/abs/2310.02743

    >>> worst_case(jnp.array([1.0, 2.0, 6.0])).item()
    1.0
    """
    _check(rewards)
    return jnp.min(rewards, axis=0)


def uncertainty_weighted(rewards: jax.Array, *, coefficient: float | jax.Array) -> jax.Array:
    r"""The mean, less a multiple of how much the members disagree (uncertainty-weighted).

    .. math:: \bar r - \lambda \, \frac1M \sum_m (r_m - \bar r)^2

    The variance has the square of the reward's unit, so ``coefficient`` must follow its scale.

    Args:
        rewards: ``float[M, ...]``.
        coefficient: lambda, per unit of reward; the paper's code has 0.5 for best-of-n and 0.1
            for PPO.

    Returns:
        ``float[...]``.

    Raises:
        ValueError: if there are no members, or the rewards are not floating.

    Reference: Coste et al. 2023, https://arxiv.org/abs/2310.02743

    >>> uncertainty_weighted(jnp.array([1.0, 2.0, 6.0]), coefficient=0.5).item()
    0.666667
    """
    _check(rewards)
    return jnp.mean(rewards, axis=0) - coefficient * jnp.var(rewards, axis=0)


def quantile(rewards: jax.Array, *, level: float | jax.Array) -> jax.Array:
    """A quantile of the members' rewards, between neighbours linearly interpolated.

    Args:
        rewards: ``float[M, ...]``.
        level: which, from 0 (``worst_case``) through 0.5 (the median) to 1 (the best).

    Returns:
        ``float[...]``.

    Raises:
        ValueError: if there are no members, the rewards are not floating, or ``level`` is not from
            0 to 1.

    >>> quantile(jnp.array([1.0, 2.0, 6.0]), level=0.25).item()
    1.5
    """
    _check(rewards)
    if not isinstance(level, jax.core.Tracer) and not 0 <= level <= 1:
        raise ValueError(f"level must be from 0 to 1, not {level}")
    return jnp.quantile(rewards, level, axis=0)


def weighted(rewards: jax.Array, *, weights: jax.Array) -> jax.Array:
    r"""A weighted sum, of objectives for instance.

    .. math:: \sum_m w_m r_m

    Args:
        rewards: ``float[M, ...]``.
        weights: ``float[M]``, of either sign; they need not sum to 1.

    Returns:
        ``float[...]``.

    Raises:
        ValueError: if there are no members, they are not as many as weights, or something is not
            floating.

    >>> weighted(jnp.array([1.0, 2.0, 6.0]), weights=jnp.array([0.5, 0.5, -0.25])).item()
    0.0
    """
    _check(rewards)
    checks.floating(weights=weights)
    if jnp.shape(weights) != (len(rewards),):
        found = f"{list(jnp.shape(weights))} for rewards {list(jnp.shape(rewards))}"
        raise ValueError(f"weights must be [M], one a member, not {found}")
    return jnp.tensordot(weights, rewards, axes=1, precision="highest")


def _check(rewards: jax.Array) -> None:
    checks.floating(rewards=rewards)
    if jnp.ndim(rewards) < 1 or np.shape(rewards)[0] < 1:
        raise ValueError(f"rewards must be [M, ...], M at least 1, not {list(jnp.shape(rewards))}")
