"""Policy losses: per-token surrogates whose gradient is the policy gradient.

All take ``log_probs, old_log_probs, advantages, mask``, each ``[B, T]`` and aligned with the
tokens, and return ``float[B, T]``, in float32 at least and exactly 0 (with zero gradient) where the
mask is false. ``old_log_probs`` are those of the policy that sampled. Advantages are treated as
constants. Ratios above ``e^40`` go on along the tangent, so that neither a loss nor a gradient
overflows. The estimates are only valid if the tokens were in fact sampled from the old policy,
which these functions cannot check.

Those of this file differ in what bounds the probability ratio; those of ``weighted`` are
log-likelihoods, each with a weight that is not differentiated.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.losses.common import bounded_exp, policy_arrays
from rlhf_jax.sequences import masked_mean

__all__ = ["ppo_clip", "reinforce", "sequence_clip", "soft_gate"]


def _clipped(
    ratio: jax.Array, advantages: jax.Array, clip_range: float, clip_range_high: float | None
) -> jax.Array:
    high = clip_range if clip_range_high is None else clip_range_high
    checks.positive(clip_range=clip_range, clip_range_high=high)
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + high)
    return jnp.minimum(ratio * advantages, clipped * advantages)


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
    log_probs, _, advantages = policy_arrays(log_probs, old_log_probs, advantages, mask)
    return jnp.where(mask, -advantages * log_probs, 0)


def ppo_clip(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> jax.Array:
    r"""The clipped surrogate of proximal policy optimisation.

    .. math::
        \rho_t = \frac{\pi_\theta(x_t \mid x_{<t})}{\pi_{old}(x_t \mid x_{<t})}, \qquad
        \ell_t = -\min\left(\rho_t \hat A_t,
                 \operatorname{clip}(\rho_t, 1-\epsilon, 1+\epsilon_{high})\, \hat A_t\right)

    A bad token that has become likelier is not clipped by this: its loss grows with the ratio. With
    a dual clip ``c`` it is at most :math:`c |\hat A_t|` where the advantage is negative.

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``, under the policy that sampled.
        advantages: ``float[B, T]``.
        mask: ``bool[B, T]``.
        clip_range: the ratio may fall to ``1 - clip_range`` before its gradient ends.
        clip_range_high: and rise to ``1 + clip_range_high``; by default ``clip_range``.
        dual_clip: the ratio at which the gradient ends where the advantage is negative, above
            ``1 + clip_range_high`` to make sense; by default nowhere.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2, a clip range is not positive, or
            ``dual_clip`` is not above 1.

    Reference: Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347; the asymmetric range,
    Yu et al. 2025, https://arxiv.org/abs/2503.14476; the dual clip, Ye et al. 2020,
    https://arxiv.org/abs/1912.09729

    >>> old, new = jnp.zeros([1, 2]), jnp.log(jnp.array([[1.3, 0.7]]))
    >>> ppo_clip(new, old, jnp.array([[1.0, -1.0]]), jnp.array([[True, True]])).tolist()
    [[-1.2, 0.8]]
    """
    log_probs, old, advantages = policy_arrays(log_probs, old_log_probs, advantages, mask)
    objective = _clipped(bounded_exp(log_probs - old), advantages, clip_range, clip_range_high)
    if dual_clip is not None:
        if not isinstance(dual_clip, jax.core.Tracer) and dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, a bound of the ratio, not {dual_clip}")
        bounded = jnp.maximum(objective, dual_clip * advantages)
        objective = jnp.where(advantages < 0, bounded, objective)
    return jnp.where(mask, -objective, 0)


def sequence_clip(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_range: float = 3e-4,
    clip_range_high: float | None = 4e-4,
) -> jax.Array:
    r"""The clipped surrogate of the whole answer's ratio, carried by each of its tokens (GSPO).

    .. math::
        s = \exp\left(\frac1{|x|} \sum_t \log
            \frac{\pi_\theta(x_t \mid x_{<t})}{\pi_{old}(x_t \mid x_{<t})}\right), \qquad
        \ell_t = -\min\left(s \hat A_t,
                 \operatorname{clip}(s, 1-\epsilon, 1+\epsilon_{high})\, \hat A_t\right)

    An answer is clipped as a whole, as it is rewarded. Under ``sequences.sequence_mean`` this is
    the paper's objective; if tokens are summed instead, a long answer counts more (LUSPO). The
    ratio is a geometric mean, hence the narrow ranges.

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``, under the policy that sampled.
        advantages: ``float[B, T]``, one value an answer: the same at all of its tokens.
        mask: ``bool[B, T]``.
        clip_range: the ratio may fall to ``1 - clip_range`` before its gradient ends.
        clip_range_high: and rise to ``1 + clip_range_high``; ``None`` stands for ``clip_range``.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2, or a clip range is not positive.

    Reference: Zheng et al. 2025, https://arxiv.org/abs/2507.18071; summed over tokens, LUSPO,
    https://arxiv.org/abs/2602.05261

    >>> old, new = jnp.zeros([1, 2]), jnp.log(jnp.array([[1.21, 1.0]]))
    >>> ones, mask = jnp.ones([1, 2]), jnp.array([[True, True]])
    >>> sequence_clip(new, old, ones, mask, clip_range=0.2, clip_range_high=0.2).tolist()
    [[-1.1, -1.1]]
    """
    log_probs, old, advantages = policy_arrays(log_probs, old_log_probs, advantages, mask)
    ratio = bounded_exp(masked_mean(log_probs - old, mask, axis=-1))[:, None]
    return jnp.where(mask, -_clipped(ratio, advantages, clip_range, clip_range_high), 0)


def soft_gate(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    negative_temperature: float = 1.05,
) -> jax.Array:
    r"""A sigmoid of the ratio instead of a clip (SAPO).

    .. math:: \ell_t = -\frac4\tau\, \sigma\left(\tau (\rho_t - 1)\right) \hat A_t

    The gradient is that of the policy gradient where the policies agree, and fades as the ratio
    leaves 1, the faster the higher the temperature.

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``, under the policy that sampled.
        advantages: ``float[B, T]``.
        mask: ``bool[B, T]``.
        temperature: tau where the advantage is positive.
        negative_temperature: tau elsewhere; higher, for the tokens that a bad token's probability
            goes to are many and unknown.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2, or a temperature is not positive.

    Reference: Gao et al. 2025, https://arxiv.org/abs/2511.20347

    >>> old, new = jnp.zeros([1, 2]), jnp.log(jnp.array([[1.0, 2.0]]))
    >>> soft_gate(new, old, jnp.ones([1, 2]), jnp.array([[True, True]])).tolist()
    [[-2.0, -2.924234]]
    """
    checks.positive(temperature=temperature, negative_temperature=negative_temperature)
    log_probs, old, advantages = policy_arrays(log_probs, old_log_probs, advantages, mask)
    tau = jnp.where(advantages > 0, temperature, negative_temperature)
    gate = 4 / tau * jax.nn.sigmoid(tau * (bounded_exp(log_probs - old) - 1))
    return jnp.where(mask, -gate * advantages, 0)
