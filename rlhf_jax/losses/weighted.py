"""Weighted likelihood: policy losses ``-weight * log_prob`` whose weights are not differentiated.

Arguments, results and promises are those of ``policy``. A ratio in a weight makes up for samples
of an older policy; the losses without one (``awr``, ``rwr``) are regressions: they take the samples
as they are, whichever policy they are from, and imitate the better ones more.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.losses.common import bounded_exp, policy_arrays
from rlhf_jax.losses.language import advantage_weighted, reward_weighted

__all__ = ["awr", "clipped_is", "rwr", "vespo"]


def clipped_is(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_range: float | None = None,
    clip_range_high: float = 4.0,
) -> jax.Array:
    r"""The score-function estimator with clipped importance weights (CISPO).

    .. math:: \ell_t = -\operatorname{sg}\left[\operatorname{clip}(\rho_t, 1-\epsilon,
              1+\epsilon_{high})\right] \hat A_t \log \pi_\theta(x_t \mid x_{<t})

    with :math:`\rho_t` the ratio of ``ppo_clip`` and sg no gradient. Unlike there, a clipped token
    still has a gradient: only its weight is bounded.

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``, under the policy that sampled.
        advantages: ``float[B, T]``.
        mask: ``bool[B, T]``.
        clip_range: weights are at least ``1 - clip_range``; by default not bounded below.
        clip_range_high: and at most ``1 + clip_range_high``. Others state the bound itself: this
            is TRL's ``epsilon_high`` less 1.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2, or a clip range is not positive.

    Reference: MiniMax 2025, https://arxiv.org/abs/2506.13585; 5 for the upper bound, Khatri et al.
    2025 (ScaleRL), https://arxiv.org/abs/2510.13786

    >>> new, old = jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, -4.0]])
    >>> clipped_is(new, old, jnp.ones([1, 2]), jnp.array([[True, True]])).tolist()
    [[1.0, 5.0]]
    """
    checks.positive(clip_range_high=clip_range_high)
    if clip_range is not None:
        checks.positive(clip_range=clip_range)
    log_probs, old, advantages = policy_arrays(log_probs, old_log_probs, advantages, mask)
    low = None if clip_range is None else 1 - clip_range
    weights = jnp.clip(bounded_exp(log_probs - old), low, 1 + clip_range_high)
    return jnp.where(mask, -jax.lax.stop_gradient(weights) * advantages * log_probs, 0)


def vespo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    power: float = 2.0,
    decay: float = 3.0,
    negative_power: float = 3.0,
    negative_decay: float = 2.0,
) -> jax.Array:
    r"""The score-function estimator with the whole answer's ratio, softly bounded (VESPO).

    .. math::
        w = \prod_t \frac{\pi_\theta(x_t \mid x_{<t})}{\pi_{old}(x_t \mid x_{<t})}, \qquad
        \ell_t = -\operatorname{sg}\left[w^k e^{\lambda (1 - w)}\right]
                 \hat A_t \log \pi_\theta(x_t \mid x_{<t})

    The weight is 1 where the policies agree, highest at a ratio of ``k / lambda``, and falls to 0
    on both sides. The ratio is that of the answer, not of a token: long answers leave 1 soon.

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``, under the policy that sampled.
        advantages: ``float[B, T]``.
        mask: ``bool[B, T]``.
        power: k where the advantage is not negative.
        decay: lambda where the advantage is not negative.
        negative_power: k where it is negative.
        negative_decay: lambda where it is negative.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2, or a setting is not positive.

    Reference: Shen et al. 2026, https://arxiv.org/abs/2602.10693, with the defaults of TRL 1.16.0

    >>> new, old = jnp.array([[-1.0, -1.0]]), jnp.array([[-1.5, -1.0]])
    >>> vespo(new, old, jnp.ones([1, 2]), jnp.array([[True, True]])).tolist()
    [[0.388228, 0.388228]]
    """
    checks.positive(
        power=power, decay=decay, negative_power=negative_power, negative_decay=negative_decay
    )
    log_probs, old, advantages = policy_arrays(log_probs, old_log_probs, advantages, mask)
    log_ratio = jnp.sum(log_probs - old, axis=-1, keepdims=True)
    k = jnp.where(advantages < 0, negative_power, power)
    scale = jnp.where(advantages < 0, negative_decay, decay)
    weights = bounded_exp(k * log_ratio + scale * (1 - bounded_exp(log_ratio)))
    return jnp.where(mask, -jax.lax.stop_gradient(weights) * advantages * log_probs, 0)


def awr(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    maximum: float = 20.0,
) -> jax.Array:
    r"""Advantage-weighted regression: every token is imitated, the better ones exponentially more.

    .. math:: \ell_t = -\min\left(e^{\hat A_t / \tau}, w_{max}\right)
              \log \pi_\theta(x_t \mid x_{<t})

    Nothing is ever pushed down, and a policy that is trained long on the same samples comes to rest
    at their weighted distribution.

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``; not used.
        advantages: ``float[B, T]``.
        mask: ``bool[B, T]``.
        temperature: tau, in units of advantage: how far the result may be from the samples'
            distribution; large ones imitate everything alike.
        maximum: the largest weight.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2, or a setting is not positive.

    Reference: Peng et al. 2019, https://arxiv.org/abs/1910.00177

    >>> new, advantages = jnp.array([[-1.0, -1.0, -1.0]]), jnp.array([[0.0, 1.0, 9.0]])
    >>> awr(new, new, advantages, jnp.array([[True, True, True]])).tolist()
    [[1.0, 2.718282, 20.0]]
    """
    log_probs, _, advantages = policy_arrays(log_probs, old_log_probs, advantages, mask)
    settings = {"temperature": temperature, "maximum": maximum}
    return advantage_weighted(log_probs, mask, advantages, **settings)


def rwr(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    axis_name: str | None = None,
) -> jax.Array:
    r"""Reward-weighted regression: imitation with weights that average 1 over the batch.

    .. math:: \ell_t = -\frac{e^{R_t / \tau}}{\operatorname{mean}(e^{R / \tau})}
              \log \pi_\theta(x_t \mid x_{<t})

    No baseline is needed: a constant added to all rewards cancels. The mean is over all tokens that
    count in the arrays it is given, so that minibatches are normalised each on its own.

    Args:
        log_probs: ``float[B, T]``, under the policy being trained, in nats.
        old_log_probs: ``float[B, T]``; not used.
        advantages: ``float[B, T]``, here the rewards themselves: that of an answer at each of its
            tokens.
        mask: ``bool[B, T]``.
        temperature: tau, in units of reward; near 0 the best answer alone counts.
        axis_name: the pmapped axis over whose devices, too, the weights average 1.

    Returns:
        ``float[B, T]``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2, or ``temperature`` is not positive.

    Reference: Peters and Schaal 2007, "Reinforcement learning by reward-weighted regression for
    operational space control", ICML

    >>> new, rewards = jnp.array([[-1.0, -1.0]]), jnp.log(jnp.array([[1.0, 3.0]]))
    >>> rwr(new, new, rewards, jnp.array([[True, True]])).tolist()
    [[0.5, 1.5]]
    """
    log_probs, _, rewards = policy_arrays(log_probs, old_log_probs, advantages, mask)
    settings = {"temperature": temperature, "axis_name": axis_name}
    return reward_weighted(log_probs, mask, rewards, **settings)
