"""Implicit rewards: what a policy's own log-probabilities say an answer is worth.

All take ``log_probs, ref_log_probs, mask``, each ``[B, T]`` and aligned with the tokens, and
return ``float[B]``. ``mask`` is the response's. Those that need no reference ignore it. None of
them applies ``beta``: ``algorithms.direct`` does, once.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.sequences import masked_mean

__all__ = ["log_odds", "log_prob", "log_ratio", "mean_log_prob", "mean_log_ratio"]


def _check(log_probs, ref_log_probs, mask):
    chex.assert_equal_shape([log_probs, ref_log_probs, mask], exception_type=ValueError)
    chex.assert_rank(log_probs, 2, exception_type=ValueError)


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
