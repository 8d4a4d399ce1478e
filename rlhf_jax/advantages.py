"""Advantages: how much better an action, or a whole answer, was than expected.

Two families. Of tokens, ``(rewards[B, T], values[B, T], mask[B, T]) -> [B, T]``, usually with a
critic. Of whole answers, ``(rewards[..., K]) -> [..., K]``, without one: mostly the ``K`` samples
of a prompt are each other's baseline.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = [
    "best_of_n",
    "gae",
    "greedy_baseline",
    "group_normalised",
    "leave_one_out",
    "no_baseline",
    "reinforce_plus_plus",
    "whiten",
]


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    gae_lambda: float = 0.95,
) -> jax.Array:
    r"""Generalised advantage estimation along each sequence, which ends after its last token.

    .. math::
        \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad
        \hat A_t = \sum_{l \ge 0} (\gamma\lambda)^l \delta_{t+l}

    Args:
        rewards: ``float[B, T]``, the reward for choosing token ``t``.
        values: ``float[B, T]``, the critic's estimate before token ``t`` is chosen.
        mask: ``bool[B, T]``, the response's tokens. Others are stepped over, so that a response
            may be interrupted (by a tool's answer, say).
        discount: gamma.
        gae_lambda: lambda; 1 gives the return minus the value, 0 the one-step error.

    Returns:
        ``float[B, T]``, 0 where the mask is false; plus ``values``, they are the critic's targets.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Schulman et al. 2016, eq. 16, https://arxiv.org/abs/1506.02438

    >>> rewards, values = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 0.6, 0.7]])
    >>> mask = jnp.ones([1, 3], bool)
    >>> gae(rewards, values, mask, discount=0.99, gae_lambda=0.95).tolist()
    [[0.4468, 0.3752, 0.3]]
    """
    checks.token_arrays(mask, rewards=rewards, values=values)

    def backwards(following, column):
        next_value, next_advantage = following
        reward, value, counts = column
        delta = reward + discount * next_value - value
        advantage = delta + discount * gae_lambda * next_advantage
        following = (
            jnp.where(counts, value, next_value),
            jnp.where(counts, advantage, next_advantage),
        )
        return following, jnp.where(counts, advantage, 0)

    end = jnp.zeros_like(values[:, 0])
    columns = (rewards.T, values.T, mask.T)
    _, advantages = jax.lax.scan(backwards, (end, end), columns, reverse=True)
    return advantages.T


def reinforce_plus_plus(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    axis_name: str | None = None,
) -> jax.Array:
    r"""Returns, whitened over the whole batch: no critic, and no second sample (REINFORCE++).

    .. math:: \hat A_t = \frac{G_t - \operatorname{mean}(G)}{\operatorname{std}(G)}, \qquad
              G_t = \sum_{l \ge 0} \gamma^l r_{t+l}

    The baseline is one number for all prompts, so a prompt that is easy counts as good.

    Args:
        rewards: ``float[B, T]``, the reward for choosing token ``t``, with the penalty for leaving
            the reference.
        values: ``float[B, T]``; not used: it is here so that this can stand where ``gae`` does.
        mask: ``bool[B, T]``, the response's tokens; others are stepped over.
        discount: gamma.
        axis_name: the pmapped axis over whose devices, too, the returns are whitened.

    Returns:
        ``float[B, T]``, 0 where the mask is false.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Hu et al. 2025, https://arxiv.org/abs/2501.03262

    >>> rewards = jnp.array([[-0.5, 2.0], [0.0, -0.5]])
    >>> reinforce_plus_plus(rewards, jnp.zeros([2, 2]), jnp.ones([2, 2], bool)).tolist()
    [[0.76835, 1.207407], [-0.987878, -0.987878]]
    """
    # Without values and with lambda = 1, what gae accumulates is the return.
    returns = gae(rewards, jnp.zeros_like(values), mask, discount=discount, gae_lambda=1.0)
    return whiten(returns, mask, axis_name=axis_name)


def no_baseline(rewards: jax.Array) -> jax.Array:
    r"""The rewards themselves: plain REINFORCE, unbiased and of the highest variance.

    .. math:: \hat A_k = r_k

    Args:
        rewards: ``float[..., K]``, of the ``K`` samples of a prompt, of which there may be one.

    Returns:
        ``float[..., K]``.

    Raises:
        ValueError: if the rewards are not floating.

    Reference: Williams 1992, Machine Learning 8

    >>> no_baseline(jnp.array([1.0, 0.0])).tolist()
    [1.0, 0.0]
    """
    checks.floating(rewards=rewards)
    return rewards


def greedy_baseline(rewards: jax.Array, baseline: jax.Array) -> jax.Array:
    r"""Each sample against the greedy answer to the same prompt (ReMax).

    .. math:: \hat A_k = r_k - r(\operatorname{greedy})

    Unbiased, for the baseline depends on the prompt alone. That it is of the same prompt, and as it
    was when the samples were drawn, this cannot check.

    Args:
        rewards: ``float[..., K]``, of the ``K`` samples of a prompt, of which there may be one.
        baseline: ``float[...]``, the reward of the prompt's most probable answer, token by token.

    Returns:
        ``float[..., K]``.

    Raises:
        ValueError: if ``baseline`` has not one entry a prompt.

    Reference: Li et al. 2023, https://arxiv.org/abs/2310.10505

    >>> greedy_baseline(jnp.array([[1.0, 0.0], [2.0, 3.0]]), jnp.array([0.5, 2.0])).tolist()
    [[0.5, -0.5], [0.0, 1.0]]
    """
    checks.floating(rewards=rewards, baseline=baseline)
    if rewards.ndim == 0 or rewards.shape[:-1] != baseline.shape:
        raise ValueError(
            "rewards [..., K] must have one baseline [...] a prompt, "
            f"not {list(rewards.shape)} and {list(baseline.shape)}"
        )
    return rewards - baseline[..., None]


def best_of_n(rewards: jax.Array) -> jax.Array:
    r"""1 for the best of a prompt's samples, 0 for the others (RAFT, best-of-n distillation).

    .. math:: \hat A_k = \frac{[r_k = \max_j r_j]}{\sum_i [r_i = \max_j r_j]}

    With ``losses.reinforce`` the policy is then fine-tuned on its own best answers.

    Args:
        rewards: ``float[..., K]``, of the ``K`` samples of a prompt.

    Returns:
        ``float[..., K]`` of sum 1 over the samples: those that tie for the best share.

    Raises:
        ValueError: if ``K`` is less than 2.

    Reference: Dong et al. 2023, https://arxiv.org/abs/2304.06767

    >>> best_of_n(jnp.array([[0.0, 2.0, 1.0, -1.0], [3.0, 3.0, 1.0, 0.0]])).tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]
    """
    _samples(rewards, "best_of_n")
    best = (rewards == jnp.max(rewards, axis=-1, keepdims=True)).astype(rewards.dtype)
    return best / jnp.sum(best, axis=-1, keepdims=True)


def leave_one_out(rewards: jax.Array) -> jax.Array:
    r"""Each sample against the mean of the others of its prompt (RLOO).

    .. math:: \hat A_k = r_k - \frac1{K-1} \sum_{j \ne k} r_j

    Args:
        rewards: ``float[..., K]``, of the ``K`` samples of a prompt.

    Returns:
        ``float[..., K]``.

    Raises:
        ValueError: if ``K`` is less than 2.

    Reference: Ahmadian et al. 2024, eq. 7, https://arxiv.org/abs/2402.14740

    >>> leave_one_out(jnp.array([1.0, 0.0, 0.0, 1.0])).tolist()
    [0.6667, -0.6667, -0.6667, 0.6667]
    """
    samples = _samples(rewards, "leave_one_out")
    others = (jnp.sum(rewards, axis=-1, keepdims=True) - rewards) / (samples - 1)
    return rewards - others


def group_normalised(
    rewards: jax.Array, *, scale: bool = True, epsilon: float = 1e-4, ddof: int = 0
) -> jax.Array:
    r"""Each sample against the mean of its prompt's samples, in their standard deviations (GRPO).

    .. math:: \hat A_k = \frac{r_k - \operatorname{mean}(r)}{\operatorname{std}(r) + \epsilon}

    Args:
        rewards: ``float[..., K]``, of the ``K`` samples of a prompt.
        scale: whether to divide by the standard deviation. Dr. GRPO does not: the division favours
            prompts on which the samples hardly differ.
        epsilon: added to the standard deviation, in units of reward.
        ddof: what is subtracted from ``K`` in the variance; 0 as in the paper, 1 as in TRL.

    Returns:
        ``float[..., K]``, 0 where all samples are worth the same.

    Raises:
        ValueError: if ``K`` is less than 2.

    Reference: Shao et al. 2024, section 4.1.2, https://arxiv.org/abs/2402.03300; without scale,
    Liu et al. 2025, https://arxiv.org/abs/2503.20783

    >>> group_normalised(jnp.array([1.0, 0.0, 0.0, 1.0]), epsilon=0.0).tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    _samples(rewards, "group_normalised")
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if not scale:
        return centred
    return centred / (jnp.std(rewards, axis=-1, keepdims=True, ddof=ddof) + epsilon)


def whiten(values: jax.Array, mask: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    r"""Shifts and scales to mean 0 and standard deviation 1 over the entries that count.

    Args:
        values: ``float[...]``.
        mask: ``bool[...]`` of the same shape.
        axis_name: the pmapped axis over whose devices, too, the mean is taken.

    Returns:
        ``float[...]``, 0 where the mask is false.

    Raises:
        ValueError: if the shapes differ.

    >>> whiten(jnp.array([1.0, 3.0, 99.0]), jnp.array([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    """
    checks.alike(values=values, mask=mask)

    def mean(entries):
        sums = jnp.stack([jnp.sum(jnp.where(mask, entries, 0)), jnp.sum(mask)])
        total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
        return total / jnp.maximum(count, 1)

    centred = values - mean(values)
    deviation = jnp.sqrt(mean(jnp.square(centred)))
    return jnp.where(mask, centred / (deviation + 1e-8), 0)


def _samples(rewards: jax.Array, name: str) -> int:
    samples = rewards.shape[-1] if rewards.ndim else 0
    if samples < 2:
        raise ValueError(f"{name} needs at least 2 samples a prompt, got rewards {rewards.shape}")
    return samples
