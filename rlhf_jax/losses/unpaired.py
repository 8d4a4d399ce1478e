"""Losses on single answers that were called good or bad, without a partner.

Both take ``rewards: float[B]`` (``beta`` times an implicit reward), ``desirable: bool[B]`` and
``kl``, the policy's divergence from the reference in the same unit, so times ``beta`` too, and
return ``float[B]``.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["apo_zero_unpaired", "kto"]


def _anchored(rewards, desirable, anchor, desirable_weight, undesirable_weight):
    checks.alike(rewards=rewards, desirable=desirable)
    checks.floating(rewards=rewards)
    checks.booleans(desirable=desirable)
    checks.positive(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    excess = rewards - anchor
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weight * jax.nn.sigmoid(jnp.where(desirable, -excess, excess))


def kto(
    rewards: jax.Array,
    desirable: jax.Array,
    kl: float | jax.Array,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    r"""Kahneman-Tversky optimisation: gains and losses against what the policy does anyway.

    .. math::
        z = \max(0, \beta\, \mathrm{KL}), \qquad
        \ell = \begin{cases} \lambda_D (1 - \sigma(r - z)) & \text{desirable} \\
        \lambda_U (1 - \sigma(z - r)) & \text{undesirable} \end{cases}

    Args:
        rewards: ``float[B]``, in nats.
        desirable: ``bool[B]``, whether the answer was called good.
        kl: a number or ``float[B]``: ``beta`` times the policy's KL from the reference, in nats,
            usually one estimate for the batch, from answers of other prompts. Treated as a
            constant, and as 0 where negative.
        desirable_weight: weight of the good answers.
        undesirable_weight: weight of the bad ones. The paper sets the ratio of the two so that
            neither kind dominates.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ, the types are not float and bool, or a weight is not
            positive.

    Reference: Ethayarajh et al. 2024, eq. 7, https://arxiv.org/abs/2402.01306

    >>> kto(jnp.array([1.0, 1.0]), jnp.array([True, False]), 0.5).tolist()
    [0.377541, 0.622459]
    """
    checks.number_or_alike(rewards, kl=kl)
    anchor = jnp.maximum(jax.lax.stop_gradient(kl), 0)
    return _anchored(rewards, desirable, anchor, desirable_weight, undesirable_weight)


def apo_zero_unpaired(
    rewards: jax.Array,
    desirable: jax.Array,
    kl: float | jax.Array = 0.0,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    r"""``apo_zero`` on single answers: good ones up, bad ones down, from the reference.

    .. math::
        \ell = \begin{cases} \lambda_D (1 - \sigma(r)) & \text{desirable} \\
        \lambda_U \, \sigma(r) & \text{undesirable} \end{cases}

    Args:
        rewards: ``float[B]``, in nats.
        desirable: ``bool[B]``, whether the answer was called good.
        kl: not used; there so that it can stand where ``kto`` does.
        desirable_weight: weight of the good answers.
        undesirable_weight: weight of the bad ones.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ, the types are not float and bool, or a weight is not
            positive.

    Reference: after D'Oosterlinck et al. 2024, eq. 7, https://arxiv.org/abs/2408.06266; unpaired as
    in TRL

    >>> apo_zero_unpaired(jnp.array([1.0, 1.0]), jnp.array([True, False])).tolist()
    [0.268941, 0.731059]
    """
    return _anchored(rewards, desirable, 0.0, desirable_weight, undesirable_weight)
