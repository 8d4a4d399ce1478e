r"""Implicit rewards: what a policy's own log-probabilities say an answer is worth.

All take ``log_probs, ref_log_probs, mask``, each ``[B, T]`` and aligned with the tokens, and
return ``float[B]``. ``mask`` is the response's. Those that need no reference ignore it. None of
them applies ``beta``: ``algorithms.direct`` does, once.

With :math:`t = \pi_\theta(x) / \pi_{ref}(x)` of the whole response, DPO under a penalty
:math:`D_f(\pi_\theta \| \pi_{ref})` has the reward :math:`f'(t)`, less a constant that gives the
reference 0: ``log_ratio`` is that of the reverse KL, the usual penalty; the others are
``forward_kl``, ``jensen_shannon`` and ``alpha_divergence``.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.sequences import masked_mean

__all__ = [
    "alpha_divergence",
    "forward_kl",
    "jensen_shannon",
    "log_odds",
    "log_prob",
    "log_ratio",
    "mean_log_prob",
    "mean_log_ratio",
]

# As in TRL: exp of a larger log-ratio is taken as exp of this, which a float32 can hold.
_LARGEST_EXPONENT = 80.0


def _check(log_probs, ref_log_probs, mask):
    checks.token_arrays(mask, log_probs=log_probs, ref_log_probs=ref_log_probs)


def log_ratio(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""DPO's reward, over beta: ``sum_t log(pi / pi_ref)``.

    .. math:: \hat r(x) = \sum_t \log \frac{\pi_\theta(x_t \mid x_{<t})}{\pi_{ref}(x_t \mid x_{<t})}

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``, under the reference policy.
        mask: ``bool[B, T]``, the response's tokens.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Rafailov et al. 2023, eq. 5, https://arxiv.org/abs/2305.18290

    >>> mask = jnp.array([[False, True, True]])
    >>> log_ratio(jnp.array([[0.0, -1.0, -2.0]]), jnp.array([[0.0, -1.5, -3.0]]), mask).tolist()
    [1.5]
    """
    _check(log_probs, ref_log_probs, mask)
    return jnp.sum(jnp.where(mask, log_probs - ref_log_probs, 0), axis=-1)


def forward_kl(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""DPO's reward, over beta, under the forward KL: bounded above, steep below.

    .. math:: \hat r(x) = 1 - \frac{\pi_{ref}(x)}{\pi_\theta(x)}

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``, under the reference policy.
        mask: ``bool[B, T]``, the response's tokens.

    Returns:
        ``float[B]``, at most 1. A log-ratio below -80 is read as -80.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Wang et al. 2023, https://arxiv.org/abs/2309.16240

    >>> mask = jnp.array([[True, True]])
    >>> forward_kl(jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, -2.0]]), mask).tolist()
    [0.632121]
    """
    return alpha_divergence(log_probs, ref_log_probs, mask, alpha=0.0)


def jensen_shannon(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""DPO's reward, over beta, under the Jensen-Shannon divergence: bounded above.

    .. math:: \hat r(x) = \log \frac{2t}{1 + t}, \qquad t = \frac{\pi_\theta(x)}{\pi_{ref}(x)}

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``, under the reference policy.
        mask: ``bool[B, T]``, the response's tokens.

    Returns:
        ``float[B]``, at most log 2.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Wang et al. 2023, https://arxiv.org/abs/2309.16240

    >>> mask = jnp.array([[True, True]])
    >>> jensen_shannon(jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, -2.0]]), mask).tolist()
    [0.379885]
    """
    ratio = log_ratio(log_probs, ref_log_probs, mask)
    return jnp.log(jnp.asarray(2, ratio.dtype)) + jax.nn.log_sigmoid(ratio)


def alpha_divergence(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array, *, alpha: float = 0.5
) -> jax.Array:
    r"""DPO's reward, over beta, under an alpha divergence, between forward and reverse KL.

    .. math:: \hat r(x) = \frac{t^{\alpha - 1} - 1}{\alpha - 1}, \qquad
              t = \frac{\pi_\theta(x)}{\pi_{ref}(x)}

    This is TRL's alpha: 0 is ``forward_kl``, 1 in the limit the reverse KL, ``log_ratio``. Wang et
    al. count the other way round: theirs is 1 minus this one.

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``, under the reference policy.
        mask: ``bool[B, T]``, the response's tokens.
        alpha: a number, not an array.

    Returns:
        ``float[B]``. Where the exponent, ``(alpha - 1)`` times the log-ratio, is above 80 it is
        read as 80, with no gradient.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Wang et al. 2023, https://arxiv.org/abs/2309.16240

    >>> mask = jnp.array([[True, True]])
    >>> new, old = jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, -2.0]])
    >>> alpha_divergence(new, old, mask, alpha=0.5).tolist()
    [0.786939]
    """
    ratio = log_ratio(log_probs, ref_log_probs, mask)
    if abs(alpha - 1) < 1e-6:
        return ratio
    return jnp.expm1(jnp.minimum((alpha - 1) * ratio, _LARGEST_EXPONENT)) / (alpha - 1)


def mean_log_ratio(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""``log_ratio`` per token of the response, as TRL's IPO has it.

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``, under the reference policy.
        mask: ``bool[B, T]``, the response's tokens.

    Returns:
        ``float[B]`` in nats per token; 0 for an empty response.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    >>> log_probs, ref_log_probs = jnp.array([[0.0, -1.0, -2.0]]), jnp.array([[0.0, -1.5, -3.0]])
    >>> mean_log_ratio(log_probs, ref_log_probs, jnp.array([[False, True, True]])).tolist()
    [0.75]
    """
    _check(log_probs, ref_log_probs, mask)
    return masked_mean(log_probs - ref_log_probs, mask, axis=-1)


def log_prob(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""The response's log-probability; no reference (SLiC-HF, CPO).

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``; not used.
        mask: ``bool[B, T]``, the response's tokens.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Zhao et al. 2023, https://arxiv.org/abs/2305.10425

    >>> log_probs = jnp.array([[0.0, -1.0, -2.0]])
    >>> log_prob(log_probs, log_probs, jnp.array([[False, True, True]])).tolist()
    [-3.0]
    """
    _check(log_probs, ref_log_probs, mask)
    return jnp.sum(jnp.where(mask, log_probs, 0), axis=-1)


def mean_log_prob(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""The response's log-probability per token; no reference (SimPO).

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``; not used.
        mask: ``bool[B, T]``, the response's tokens.

    Returns:
        ``float[B]`` in nats per token; 0 for an empty response.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Meng et al. 2024, eq. 4, https://arxiv.org/abs/2405.14734

    >>> log_probs = jnp.array([[0.0, -1.0, -2.0]])
    >>> mean_log_prob(log_probs, log_probs, jnp.array([[False, True, True]])).tolist()
    [-1.5]
    """
    _check(log_probs, ref_log_probs, mask)
    return masked_mean(log_probs, mask, axis=-1)


def log_odds(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    r"""The log-odds of the response under its mean token log-probability; no reference (ORPO).

    .. math:: \hat r = \log\frac{p}{1 - p}, \qquad \log p = \frac1{|x|} \sum_t \log \pi(x_t)

    Args:
        log_probs: ``float[B, T]`` in nats.
        ref_log_probs: ``float[B, T]``; not used.
        mask: ``bool[B, T]``, the response's tokens.

    Returns:
        ``float[B]`` in nats. A mean log-probability above -1e-6 is read as -1e-6: at 0 the odds,
        and their gradient, are infinite. An empty response scores 0.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Hong et al. 2024, eq. 4, https://arxiv.org/abs/2403.07691

    >>> log_probs = jnp.array([[-0.8], [-1.2]])
    >>> scores = log_odds(log_probs, log_probs, jnp.array([[True], [True]]))
    >>> float((scores[0] - scores[1]))
    0.638235
    """
    _check(log_probs, ref_log_probs, mask)
    mean = jnp.minimum(masked_mean(log_probs, mask, axis=-1), -1e-6)
    # log1mexp(x) is log(1 - exp(-x)), accurate at both ends.
    return jnp.where(jnp.any(mask, axis=-1), mean - jax.nn.log1mexp(-mean), 0)
