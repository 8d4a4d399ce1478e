"""From the rewards of several models to one: ``(rewards[M, ...]) -> [...]``.

The members are an ensemble, several groups of people, or several objectives. Bind what a function
needs besides with ``functools.partial``. All are differentiable in the rewards, and reward models
are comparable here only if they share a zero and a scale: standardise them first
(``rewards.standardised``).

``Adaptive`` ones have a state that follows what the policy earns: the multiplier of a constraint,
the weights of groups. ``algorithms.policy_gradient`` takes either.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.types import PyTree

__all__ = [
    "Adaptive",
    "Aggregate",
    "fixed",
    "lagrangian",
    "maxmin",
    "mean",
    "quantile",
    "uncertainty_weighted",
    "weighted",
    "worst_case",
]

# rewards[M, ...] -> [...]
Aggregate = Callable[[jax.Array], jax.Array]


class Adaptive(NamedTuple):
    """An aggregate with a state, as pure functions.

    Attributes:
        init: ``() -> state``, arrays.
        combine: ``(state, rewards[M, ...]) -> [...]``.
        update: ``(state, means[M]) -> state``, given what the policy earned of each on average.
    """

    init: Callable[[], PyTree]
    combine: Callable[[PyTree, jax.Array], jax.Array]
    update: Callable[[PyTree, jax.Array], PyTree]


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
    checks.probability(level=level)
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


def fixed(aggregate: Aggregate) -> Adaptive:
    """An aggregate without a state as one with an empty one.

    >>> constant = fixed(worst_case)
    >>> constant.combine(constant.init(), jnp.array([1.0, 2.0, 6.0])).item()
    1.0
    """
    return Adaptive(
        lambda: (), lambda state, rewards: aggregate(rewards), lambda state, means: state
    )


def lagrangian(
    limits: jax.Array, *, rate: float, initial: float = 1.0, normalised: bool = True
) -> Adaptive:
    r"""A reward under constraints: costs that must stay below limits on average.

    .. math::
        \max_\pi \min_{\lambda \ge 0} \; \mathbb E[r] - \sum_k \lambda_k (\mathbb E[c_k] - d_k),
        \qquad \lambda_k \leftarrow [\lambda_k + \eta (\bar c_k - d_k)]_+

    The first of the rewards is ``r``, the others are the costs. What is kept is an average over
    many answers, and not each of them; with a linear reward the policy and the multipliers may
    circle the solution, so average over steps, or lower both rates.

    Args:
        limits: ``float[M - 1]``, d, in the costs' units.
        rate: eta, how fast the multipliers follow; reward per squared unit of cost and step.
        initial: lambda before the first step.
        normalised: whether to divide by one plus the multipliers' sum, so that the scale, and with
            it the size of the steps, does not grow with them. A KL penalty then holds the policy
            back by so much more: only without is the solution that of the penalised problem.

    Returns:
        An ``Adaptive`` whose state is ``float32[M - 1]``, the multipliers.

    Raises:
        ValueError: if ``limits`` is not of rank 1, ``rate`` is not positive, ``initial`` is
            negative, or the rewards are not one more than the limits.

    Reference: Dai et al. 2023 (Safe RLHF), eq. 9 and 31, https://arxiv.org/abs/2310.12773

    >>> limited = lagrangian(jnp.array([0.5]), rate=2.0, normalised=False)
    >>> multipliers = limited.update(limited.init(), jnp.array([3.0, 0.75]))
    >>> multipliers.tolist(), limited.combine(multipliers, jnp.array([[3.0], [1.0]])).tolist()
    ([1.5], [1.5])
    """
    limits = jnp.asarray(limits, jnp.float32)
    checks.vectors(limits=limits)
    checks.positive(rate=rate)
    if initial < 0:
        raise ValueError(f"initial must be at least 0, not {initial}")

    def combine(multipliers: jax.Array, rewards: jax.Array) -> jax.Array:
        _check(rewards)
        if len(rewards) != len(limits) + 1:
            wanted = f"a reward and {len(limits)} costs, one for each limit"
            raise ValueError(f"rewards must be {wanted}, not {len(rewards)}")
        penalised = rewards[0] - jnp.tensordot(multipliers, rewards[1:], axes=1)
        return penalised / (1 + jnp.sum(multipliers)) if normalised else penalised

    def update(multipliers: jax.Array, means: jax.Array) -> jax.Array:
        return jnp.maximum(multipliers + rate * (means[1:] - limits), 0)

    return Adaptive(lambda: jnp.full(limits.shape, initial, jnp.float32), combine, update)


def maxmin(members: int, *, rate: float) -> Adaptive:
    r"""The group that is worst off: each weighs the more, the less the policy earned for it.

    .. math::
        \max_\pi \min_g \mathbb E_\pi[r_g]
        = \max_\pi \min_{w \in \Delta} \sum_g w_g \mathbb E_\pi[r_g],
        \qquad w_g \leftarrow \frac{w_g \, e^{-\eta \bar r_g}}{\sum_h w_h \, e^{-\eta \bar r_h}}

    ``worst_case`` is another thing: the minimum in each answer, by which no group gets an answer
    that another dislikes. Here groups may take turns. The weights play the multiplicative-weights
    strategy against the policy, and it is their average over steps that solves the game.

    Args:
        members: ``M``, how many groups.
        rate: eta, per unit of reward and step; a large one follows the worst group of each batch.

    Returns:
        An ``Adaptive`` whose state is ``float32[M]``, log-weights, equal at first.

    Raises:
        ValueError: if there are no members, ``rate`` is not positive, or the rewards are not as
            many as members.

    Reference: Chakraborty et al. 2024 (MaxMin-RLHF), https://arxiv.org/abs/2402.08925; the weights,
    Sagawa et al. 2020, algorithm 1, https://arxiv.org/abs/1911.08731

    >>> fair = maxmin(2, rate=1.0)
    >>> weights = fair.update(fair.init(), jnp.array([1.0, 0.0]))
    >>> jnp.exp(weights).tolist(), fair.combine(weights, jnp.array([[1.0], [0.0]])).tolist()
    ([0.268941, 0.731059], [0.268941])
    """
    if members < 1:
        raise ValueError(f"members must be at least 1, not {members}")
    checks.positive(rate=rate)

    def combine(log_weights: jax.Array, rewards: jax.Array) -> jax.Array:
        return weighted(rewards, weights=jnp.exp(log_weights))

    def update(log_weights: jax.Array, means: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(log_weights - rate * means)

    return Adaptive(lambda: jnp.full(members, -jnp.log(members), jnp.float32), combine, update)


def _check(rewards: jax.Array) -> None:
    checks.floating(rewards=rewards)
    if jnp.ndim(rewards) < 1 or np.shape(rewards)[0] < 1:
        raise ValueError(f"rewards must be [M, ...], M at least 1, not {list(jnp.shape(rewards))}")
