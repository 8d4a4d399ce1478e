"""Policy losses: per-token surrogates whose gradient is the policy gradient.

All take ``log_probs, old_log_probs, advantages, mask``, each ``[B, T]`` and aligned with the
tokens, and return ``float[B, T]``, exactly 0 (with zero gradient) where the mask is false.
``old_log_probs`` are those of the policy that sampled. Advantages are treated as constants.
The estimates are only valid if the tokens were in fact sampled from the old policy, which these
functions cannot check.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["ppo_clip", "reinforce"]


def _check(log_probs, old_log_probs, advantages, mask):
    checks.token_arrays(
        mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )


def reinforce(
    log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> jax.Array:
    r"""The score-function estimator.

    .. math:: \ell_t = -\hat A_t \log \pi_\theta(x_t \mid x_{<t})

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``; not used: the estimator is right only on policy, for the
            first update after sampling.
        advantages: ``float[B, T]``.
        mask: ``bool[B, T]``.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Williams 1992, Machine Learning 8

    >>> row = lambda *values: jnp.array([values])
    >>> reinforce(row(-1.0, -2.0), row(0.0, 0.0), row(2.0, 2.0), row(True, False)).tolist()
    [[2.0, 0.0]]
    """
    _check(log_probs, old_log_probs, advantages, mask)
    return jnp.where(mask, -jax.lax.stop_gradient(advantages) * log_probs, 0)


def ppo_clip(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
) -> jax.Array:
    r"""The clipped surrogate of proximal policy optimisation.

    .. math::
        \rho_t = \frac{\pi_\theta(x_t \mid x_{<t})}{\pi_{old}(x_t \mid x_{<t})}, \qquad
        \ell_t = -\min\left(\rho_t \hat A_t,
                 \operatorname{clip}(\rho_t, 1-\epsilon, 1+\epsilon_{high})\, \hat A_t\right)

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``, under the policy that sampled.
        advantages: ``float[B, T]``.
        mask: ``bool[B, T]``.
        clip_range: the ratio may fall to ``1 - clip_range`` before its gradient ends.
        clip_range_high: and rise to ``1 + clip_range_high``; by default ``clip_range``.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347; the asymmetric range,
    Yu et al. 2025, https://arxiv.org/abs/2503.14476

    >>> old, new = jnp.zeros([1, 2]), jnp.log(jnp.array([[1.3, 0.7]]))
    >>> ppo_clip(new, old, jnp.array([[1.0, -1.0]]), jnp.array([[True, True]])).tolist()
    [[-1.2, 0.8]]
    """
    _check(log_probs, old_log_probs, advantages, mask)
    advantages = jax.lax.stop_gradient(advantages)
    high = clip_range if clip_range_high is None else clip_range_high
    # Masked before the exponential: an overflow on padding would turn its zero gradient into nan.
    ratio = jnp.exp(jnp.where(mask, log_probs - jax.lax.stop_gradient(old_log_probs), 0))
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + high)
    return jnp.where(mask, -jnp.minimum(ratio * advantages, clipped * advantages), 0)
