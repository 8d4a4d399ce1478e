"""Rewards made of what scores a text."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.types import JudgeFn, Params, RewardFn, ScoreFn, Sequences

__all__ = ["Standardised", "ensemble", "from_scores", "judge", "several", "standardised"]


def from_scores(score_fn: ScoreFn) -> RewardFn:
    """The score of the whole text, prompt and response, as the reward.

    Args:
        score_fn: ``(params, tokens, mask) -> scores[B]``.

    Returns:
        A ``RewardFn`` of the same parameters.

    >>> reward_fn = from_scores(lambda params, tokens, mask: jnp.sum(tokens * mask, axis=-1))
    >>> tokens, mask = jnp.array([[1, 2, 3]]), jnp.array([[True, True, False]])
    >>> reward_fn((), Sequences(tokens, mask, mask)).tolist()
    [3]
    """

    def reward_fn(params: Params, sequences: Sequences) -> jax.Array:
        return score_fn(params, sequences.tokens, sequences.mask)

    return reward_fn


def judge(reward_fn: RewardFn) -> JudgeFn:
    r"""The Bradley-Terry judge that a reward implies: how often it would prefer the first of two.

    .. math:: P(x \succ x') = \sigma(r(x) - r(x'))

    Args:
        reward_fn: ``(params, sequences) -> rewards[B]``, in nats.

    Returns:
        A ``JudgeFn`` of the same parameters.

    >>> reward_fn = from_scores(lambda params, tokens, mask: jnp.sum(tokens, axis=-1) / 1.0)
    >>> one, two = (Sequences(jnp.array([[n]]), jnp.ones([1, 1]), None) for n in (1, 2))
    >>> judge(reward_fn)((), one, two).tolist()
    [0.268941]
    """

    def judge_fn(params: Params, first: Sequences, second: Sequences) -> jax.Array:
        return jax.nn.sigmoid(reward_fn(params, first) - reward_fn(params, second))

    return judge_fn


def ensemble(reward_fn: RewardFn) -> RewardFn:
    """The rewards of several models of one kind: ``[M, B]``, to be aggregated.

    Args:
        reward_fn: ``(params, sequences) -> rewards[B]`` or ``[B, T]``.

    Returns:
        A ``RewardFn`` of parameters ``[M, ...]``, as ``algorithms.ensemble`` trains them, for
        ``policy_gradient(..., aggregate=aggregates.worst_case)``.

    >>> reward_fn = ensemble(from_scores(lambda p, tokens, mask: p * jnp.sum(tokens, axis=-1)))
    >>> reward_fn(jnp.array([1, 2]), Sequences(jnp.array([[1, 2]]), None, None)).tolist()
    [[3], [6]]
    """
    return jax.vmap(reward_fn, in_axes=(0, None))


def several(*reward_fns: RewardFn) -> RewardFn:
    """The rewards of several models of any kind: ``[M, B]``, to be aggregated.

    Args:
        *reward_fns: ``M`` functions ``(params, sequences) -> rewards[B]`` or ``[B, T]``.

    Returns:
        A ``RewardFn`` whose parameters are a sequence of those of each, in their order.

    >>> length = lambda params, sequences: jnp.sum(sequences.mask, axis=-1)
    >>> first = lambda params, sequences: sequences.tokens[:, 0] * params
    >>> both = several(length, first)
    >>> both(((), 2), Sequences(jnp.array([[5, 0]]), jnp.array([[True, False]]), None)).tolist()
    [[1], [10]]
    """

    def reward_fn(params: Params, sequences: Sequences) -> jax.Array:
        each = [fn(own, sequences) for fn, own in zip(reward_fns, params, strict=True)]
        return jnp.stack(each)

    return reward_fn


class Standardised(NamedTuple):
    """A score's parameters, and its mean and standard deviation over reference samples.

    Attributes:
        params: the score's.
        mean: ``float32[]``.
        deviation: ``float32[]``.
    """

    params: Params
    mean: jax.Array
    deviation: jax.Array


def standardised(score_fn: ScoreFn) -> RewardFn:
    r"""The score in standard deviations over samples of the reference policy.

    .. math:: r(x) = (s(x) - \mu_{ref}) / \sigma_{ref}

    A Bradley-Terry score has no zero, and its unit depends on how noisy the labels were. In these
    units several judges can be compared, and a KL coefficient means the same for each.

    Args:
        score_fn: ``(params, tokens, mask) -> scores[B]``.

    Returns:
        A ``RewardFn`` of ``Standardised`` parameters.

    >>> reward_fn = standardised(lambda params, tokens, mask: jnp.sum(tokens * mask, axis=-1))
    >>> tokens, mask = jnp.array([[1, 2, 3]]), jnp.array([[True, True, False]])
    >>> reward_fn(Standardised((), 1.0, 4.0), Sequences(tokens, mask, mask)).tolist()
    [0.5]
    """

    def reward_fn(params: Standardised, sequences: Sequences) -> jax.Array:
        scores = score_fn(params.params, sequences.tokens, sequences.mask)
        return (scores - params.mean) / params.deviation

    return reward_fn
