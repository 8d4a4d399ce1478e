"""Preference losses: from the rewards of two answers to the loss of having preferred the first.

All take ``chosen: float[B]`` and ``rejected: float[B]``, in whatever unit the rewards have, and
return ``float[B]``. They serve reward models (the rewards are scores) and direct preference
optimisation (the rewards are ``beta`` times an implicit reward) alike. ``beta`` is not applied
here but once, by ``algorithms.direct``. Those of this file see the rewards only through their
difference, the lead; those of ``anchored`` also ask where each of the two is.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.losses.common import bounded_exp

__all__ = [
    "bradley_terry",
    "discopop",
    "exo_pair",
    "exponential",
    "hinge",
    "smoothed",
    "squared",
    "thurstone",
    "unbiased",
]


def bradley_terry(
    chosen: jax.Array, rejected: jax.Array, *, margin: float | jax.Array = 0.0
) -> jax.Array:
    r"""Negative log-likelihood of the preference under the Bradley-Terry model.

    .. math:: \ell = -\log \sigma(r_w - r_l - m)

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.
        margin: by how much ``chosen`` should win, a number or ``float[B]``.

    Returns:
        ``float[B]`` in nats; log 2 where the rewards differ by the margin.

    Raises:
        ValueError: if the shapes differ, are not floating, or that of ``margin`` does not fit.

    Reference: Bradley and Terry 1952, Biometrika 39; as a reward model's loss, Ouyang et al. 2022,
    eq. 1, https://arxiv.org/abs/2203.02155; on implicit rewards, Rafailov et al. 2023, eq. 7,
    https://arxiv.org/abs/2305.18290; with a margin, Touvron et al. 2023, eq. 2,
    https://arxiv.org/abs/2307.09288

    >>> bradley_terry(jnp.array([0.04]), jnp.array([-0.02])).tolist()
    [0.663597]
    """
    checks.pair(chosen, rejected)
    checks.number_or_alike(chosen, margin=margin)
    return jax.nn.softplus(rejected - chosen + margin)


def hinge(chosen: jax.Array, rejected: jax.Array, *, margin: float = 1.0) -> jax.Array:
    r"""Zero once the preferred answer leads by the margin, linear before.

    .. math:: \ell = \max(0, m - (r_w - r_l))

    Args:
        chosen: ``float[B]``, reward of the preferred answer.
        rejected: ``float[B]``, reward of the other.
        margin: the lead at which the loss ends.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ or are not floating.

    Reference: Zhao et al. 2023 (SLiC-HF), eq. 1, https://arxiv.org/abs/2305.10425

    >>> hinge(jnp.array([2.0, 0.5]), jnp.array([0.0, 0.0])).tolist()
    [0.0, 0.5]
    """
    checks.pair(chosen, rejected)
    return jax.nn.relu(margin - (chosen - rejected))


def squared(chosen: jax.Array, rejected: jax.Array, *, tau: float = 0.5) -> jax.Array:
    r"""Pulls the lead of the preferred answer to one finite value (IPO).

    .. math:: \ell = \left(r_w - r_l - \frac{1}{2\tau}\right)^2

    Unlike Bradley-Terry it does not ask for an infinite lead when preferences are deterministic.
    With ``algorithms.direct`` use ``beta=1``: ``tau`` is IPO's own regularisation.

    Args:
        chosen: ``float[B]``, reward of the preferred answer.
        rejected: ``float[B]``, reward of the other.
        tau: strength of the regularisation; the lead asked for is ``1 / (2 tau)``.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ or are not floating, or ``tau`` is not positive.

    Reference: Azar et al. 2023, eq. 17, https://arxiv.org/abs/2310.12036

    >>> squared(jnp.array([0.4]), jnp.array([-0.2]), tau=0.1).tolist()
    [19.36]
    """
    checks.pair(chosen, rejected)
    checks.positive(tau=tau)
    return jnp.square(chosen - rejected - 1 / (2 * tau))


def exponential(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    r"""The loss of AdaBoost: a wrong order costs exponentially.

    .. math:: \ell = e^{-(r_w - r_l)}

    One wrong label can outweigh a batch: for noisy preferences take another.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.

    Returns:
        ``float[B]``; where the lead is below -40 the tangent at -40, so that nothing overflows.

    Raises:
        ValueError: if the shapes differ or are not floating.

    Reference: Freund and Schapire 1997, J. Comput. Syst. Sci. 55; on implicit rewards, Tang et al.
    2024, https://arxiv.org/abs/2402.05749

    >>> exponential(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])).tolist()
    [0.367879, 2.718282]
    """
    checks.pair(chosen, rejected)
    return bounded_exp(rejected - chosen)


def thurstone(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    r"""Negative log-likelihood of the preference under Thurstone's model, Case V (probit).

    .. math:: \ell = -\log \Phi(r_w - r_l)

    Both answers are felt with Gaussian noise; the unit of the rewards is the standard deviation of
    the difference of the two noises.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in standard deviations.
        rejected: ``float[B]``, reward of the other.

    Returns:
        ``float[B]`` in nats, in float32 at least; quadratic where the order is wrong.

    Raises:
        ValueError: if the shapes differ or are not floating.

    Reference: Thurstone 1927, Psychological Review 34

    >>> thurstone(jnp.array([0.0, 1.0]), jnp.array([0.0, 0.0])).tolist()
    [0.693147, 0.172753]
    """
    checks.pair(chosen, rejected)
    lead = chosen - rejected
    lead = lead.astype(jnp.promote_types(lead.dtype, jnp.float32))
    return -jax.scipy.special.log_ndtr(lead)


def smoothed(chosen: jax.Array, rejected: jax.Array, *, flip_rate: float = 0.1) -> jax.Array:
    r"""Bradley-Terry on labels of which some are believed to be flipped (conservative DPO).

    .. math:: \ell = -(1 - \epsilon) \log \sigma(r_w - r_l) - \epsilon \log \sigma(r_l - r_w)

    The cross-entropy with the smoothed label: it is least at the finite lead
    :math:`\log((1 - \epsilon) / \epsilon)`. Compare ``unbiased``.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.
        flip_rate: the probability that a label is the wrong way round; 0 is ``bradley_terry``.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ or are not floating, or ``flip_rate`` is not in [0, 0.5).

    Reference: Mitchell 2023, https://ericmitchell.ai/cdpo.pdf

    >>> smoothed(jnp.array([1.0]), jnp.array([0.0]), flip_rate=0.1).tolist()
    [0.413262]
    """
    checks.pair(chosen, rejected)
    checks.flip_rate(flip_rate)
    lead = chosen - rejected
    return (1 - flip_rate) * jax.nn.softplus(-lead) + flip_rate * jax.nn.softplus(lead)


def unbiased(chosen: jax.Array, rejected: jax.Array, *, flip_rate: float = 0.1) -> jax.Array:
    r"""Bradley-Terry whose mean over random flips of the label is the clean one (robust DPO).

    .. math:: \ell = \frac{-(1 - \epsilon) \log \sigma(r_w - r_l) + \epsilon \log \sigma(r_l - r_w)}
              {1 - 2 \epsilon}

    It is right on average if labels are flipped at this very rate and independently of the
    answers, which it cannot check, and pays with a larger variance. It can be negative.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.
        flip_rate: the probability that a label is the wrong way round; 0 is ``bradley_terry``.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ or are not floating, or ``flip_rate`` is not in [0, 0.5).

    Reference: Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409; the correction,
    Natarajan et al. 2013, lemma 1, NeurIPS 26

    >>> unbiased(jnp.array([1.0]), jnp.array([0.0]), flip_rate=0.1).tolist()
    [0.188262]
    """
    checks.pair(chosen, rejected)
    checks.flip_rate(flip_rate)
    lead = chosen - rejected
    clean, flipped = jax.nn.softplus(-lead), jax.nn.softplus(lead)
    return ((1 - flip_rate) * clean - flip_rate * flipped) / (1 - 2 * flip_rate)


def exo_pair(chosen: jax.Array, rejected: jax.Array, *, flip_rate: float = 1e-3) -> jax.Array:
    r"""Divergence of the policy's preference from the smoothed label, the policy's first (EXO).

    .. math::
        q = \sigma(r_w - r_l), \qquad
        \ell = q \log \frac{q}{1 - \epsilon} + (1 - q) \log \frac{1 - q}{\epsilon}

    ``smoothed`` is, up to a constant, the divergence the other way round. Least, and 0, at the lead
    :math:`\log((1 - \epsilon) / \epsilon)`. Its gradient vanishes where the order is badly wrong.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.
        flip_rate: what the label leaves to the other answer; above 0.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ or are not floating, or ``flip_rate`` is not in (0, 0.5).

    Reference: Ji et al. 2024, eq. 16, https://arxiv.org/abs/2402.00856

    >>> exo_pair(jnp.array([0.0]), jnp.array([0.0]), flip_rate=0.1).tolist()
    [0.510826]
    """
    checks.pair(chosen, rejected)
    checks.flip_rate(flip_rate, may_be_zero=False)
    lead = chosen - rejected
    log_q, log_p = jax.nn.log_sigmoid(lead), jax.nn.log_sigmoid(-lead)
    right = jnp.exp(log_q) * (log_q - jnp.log1p(-flip_rate))
    return right + jnp.exp(log_p) * (log_p - jnp.log(flip_rate))


def discopop(chosen: jax.Array, rejected: jax.Array, *, tau: float = 0.05) -> jax.Array:
    r"""Logistic where the order is wrong, exponential where it is right (DiscoPOP).

    .. math::
        d = r_w - r_l, \quad s = \sigma(d / \tau), \qquad
        \ell = -(1 - s) \log \sigma(d) + s \, e^{-d}

    Found by a language model's search. Not convex: for a small ``tau`` it rises for leads around 0,
    so a pair with the wrong order can come to rest there.

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.
        tau: width of the passage from one to the other, in nats.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ or are not floating, or ``tau`` is not positive.

    Reference: Lu et al. 2024, eq. 5, https://arxiv.org/abs/2406.08414

    >>> discopop(jnp.array([0.0, 1.0]), jnp.array([0.0, 0.0])).tolist()
    [0.846574, 0.367879]
    """
    checks.pair(chosen, rejected)
    checks.positive(tau=tau)
    lead = chosen - rejected
    logistic = jax.nn.sigmoid(-lead / tau) * jax.nn.softplus(-lead)
    # One exponent: exp(-lead) alone overflows where its weight is 0.
    return logistic + bounded_exp(jax.nn.log_sigmoid(lead / tau) - lead)
