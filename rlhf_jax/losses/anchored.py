"""Preference losses that ask where each answer's reward is, not only which of two leads.

As in ``preference``, ``chosen`` and ``rejected`` are ``float[B]`` and the result is ``float[B]``;
with ``algorithms.direct`` they are ``beta`` times an implicit reward, whose zero is the reference
policy. That zero is the anchor: adding a constant to both rewards changes these losses, so they
mean little for a reward model, whose zero is arbitrary. The last one sorts over the batch.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.losses.preference import smoothed

__all__ = [
    "alternative_optimal_transport",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "nca_pair",
    "sppo_hard",
]


def nca_pair(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    r"""Noise-contrastive alignment on pairs: keeps the chosen answer's likelihood from falling.

    .. math:: \ell = -\log \sigma(r_w) - \tfrac12 \log \sigma(-r_w) - \tfrac12 \log \sigma(-r_l)

    The chosen reward is drawn to log 2, from both sides; the rejected one down.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ or are not floating.

    Reference: Chen et al. 2024, https://arxiv.org/abs/2402.05369

    >>> nca_pair(jnp.array([0.0]), jnp.array([0.0])).tolist()
    [1.386294]
    """
    checks.pair(chosen, rejected)
    noise = 0.5 * (jax.nn.softplus(chosen) + jax.nn.softplus(rejected))
    return jax.nn.softplus(-chosen) + noise


def bco_pair(
    chosen: jax.Array, rejected: jax.Array, *, shift: float | jax.Array = 0.0
) -> jax.Array:
    r"""Binary classifier optimisation: chosen answers are above the shift, rejected ones below.

    .. math:: \ell = -\log \sigma(r_w - \delta) - \log \sigma(\delta - r_l)

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.
        shift: the paper's delta, half the sum of the running means of the two rewards, in the
            unit of the rewards; treated as a constant. TRL has none, which is 0.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ, are not floating, or that of ``shift`` does not fit.

    Reference: Jung et al. 2024, https://arxiv.org/abs/2404.04656

    >>> bco_pair(jnp.array([1.0]), jnp.array([-1.0])).tolist()
    [0.626523]
    """
    checks.pair(chosen, rejected)
    checks.number_or_alike(chosen, shift=shift)
    shift = jax.lax.stop_gradient(shift)
    return jax.nn.softplus(shift - chosen) + jax.nn.softplus(rejected - shift)


def sppo_hard(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    r"""Self-play preference optimisation with certain labels: rewards are pulled to 1/2 and -1/2.

    .. math:: \ell = \left(r_w - \tfrac12\right)^2 + \left(r_l + \tfrac12\right)^2

    The paper pulls the log-ratio itself to :math:`\pm \eta / 2`. With ``r = beta * log_ratio`` and
    ``beta = 1 / eta`` this is the paper's loss, and TRL's, times ``beta**2``: the same minimum, the
    gradient smaller by that factor.

    Args:
        chosen: ``float[B]``, reward of the preferred answer: a probability of winning, less 1/2.
        rejected: ``float[B]``, reward of the other.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ or are not floating.

    Reference: Wu et al. 2024, eq. 4.7, https://arxiv.org/abs/2405.00675

    >>> sppo_hard(jnp.array([0.5, 0.0]), jnp.array([-0.5, 0.0])).tolist()
    [0.0, 0.5]
    """
    checks.pair(chosen, rejected)
    return jnp.square(chosen - 0.5) + jnp.square(rejected + 0.5)


def apo_zero(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    r"""Anchored preference optimisation (APO), for answers better than the policy's own.

    .. math:: \ell = 1 - \sigma(r_w) + \sigma(r_l)

    The chosen answer's likelihood rises, the rejected one's falls.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.

    Returns:
        ``float[B]`` in [0, 2].

    Raises:
        ValueError: if the shapes differ or are not floating.

    Reference: D'Oosterlinck et al. 2024, eq. 7, https://arxiv.org/abs/2408.06266

    >>> apo_zero(jnp.array([1.0]), jnp.array([-1.0])).tolist()
    [0.537883]
    """
    checks.pair(chosen, rejected)
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)


def apo_down(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    r"""Anchored preference optimisation (APO), for answers worse than the policy's own.

    .. math:: \ell = \sigma(r_w) + 1 - \sigma(r_w - r_l)

    Both likelihoods are to fall, the rejected one's further: the chosen reward's gradient is not
    negative everywhere.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.

    Returns:
        ``float[B]`` in [0, 2].

    Raises:
        ValueError: if the shapes differ or are not floating.

    Reference: D'Oosterlinck et al. 2024, eq. 8, https://arxiv.org/abs/2408.06266

    >>> apo_down(jnp.array([-1.0]), jnp.array([-2.0])).tolist()
    [0.537883]
    """
    checks.pair(chosen, rejected)
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)


def alternative_optimal_transport(
    chosen: jax.Array,
    rejected: jax.Array,
    *,
    ref_lead: jax.Array | None = None,
    flip_rate: float = 0.0,
) -> jax.Array:
    r"""Asks every quantile of the chosen rewards to lead that of the rejected ones (AOT).

    .. math:: d_i = r_w^{(i)} - r_l^{(i)}, \qquad
              \ell_i = -(1 - \epsilon) \log \sigma(d_i) - \epsilon \log \sigma(-d_i)

    with :math:`r^{(i)}` the rewards in increasing order. Unpaired by default: which chosen answer
    came with which rejected one plays no part. With ``ref_lead`` paired: with ``r`` the rewards
    ``beta * log_ratio``, the quantiles compared are those of the policy's
    :math:`\beta \log \pi(x_w) / \pi(x_l)` and those of the reference's, which is ``ref_lead``.

    It **sorts over the batch**, and an example's loss depends on the others. Rows of padding would
    count as examples, which it cannot check; under ``pmap`` each device would sort its own rows.

    Args:
        chosen: ``float[B]``, reward of the preferred answers, in nats.
        rejected: ``float[B]``, reward of the others.
        ref_lead: ``float[B]``, ``beta * (log pi_ref(chosen) - log pi_ref(rejected))``.
        flip_rate: the probability that a label is the wrong way round.

    Returns:
        ``float[B]`` in nats, in the order of ``chosen`` (paired: of the policy's leads).

    Raises:
        ValueError: if the shapes differ, are not floating or not of rank 1, or ``flip_rate`` is not
            in [0, 0.5).

    Reference: Melnyk et al. 2024, https://arxiv.org/abs/2406.05882

    >>> alternative_optimal_transport(jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0])).tolist()
    [0.693147, 0.693147]
    """
    checks.pair(chosen, rejected)
    checks.vectors(chosen=chosen, rejected=rejected)
    checks.flip_rate(flip_rate)
    if ref_lead is not None:
        checks.alike(chosen=chosen, ref_lead=ref_lead)
        ref_lead = jax.lax.stop_gradient(ref_lead)
        chosen, rejected = chosen - rejected + ref_lead, ref_lead
    rank = jnp.argsort(jnp.argsort(chosen))
    return smoothed(chosen, jnp.sort(rejected)[rank], flip_rate=flip_rate)
