"""What a policy's samples are worth, and what they leave for the updates."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.aggregates import Adaptive
from rlhf_jax.algorithms.common import divided, row_keys, rows_mean
from rlhf_jax.types import Key, LogitsFn, Params, PyTree, RewardFn, Sequences, Shared, TrainState

__all__ = ["Adapted", "Experience", "Frozen", "SharedFn", "minibatches_of", "scorer"]

# reference's parameters, reward's parameters, sequences -> Shared; with trunk_fn a fourth argument,
# what the reference reads in the tokens' place
SharedFn = Callable[..., Shared]


class Frozen(NamedTuple):
    """What a policy is trained with and against.

    Attributes:
        reference: parameters of the reference policy.
        reward: parameters of the reward function.
        watched: parameters of ``watch``.
    """

    reference: Params
    reward: Params
    watched: Params


class Adapted(NamedTuple):
    """What is adapted to the measurements from step to step: the state's ``extra``.

    Attributes:
        kl_coefficient: ``float32[]``, reward per nat.
        aggregate: the state of an ``aggregates.Adaptive``, such as a multiplier; else ``()``.
    """

    kl_coefficient: jax.Array
    aggregate: PyTree


class Experience(NamedTuple):
    """What one round of sampling leaves for the updates; every field ``[B, T]``.

    But ``features`` is ``[B, T, D]``, or ``()`` where the critic reads the tokens itself; and
    ``read``, what the policy reads, is ``tokens`` or what ``trunk_fn`` made of them.
    """

    tokens: jax.Array
    mask: jax.Array
    response_mask: jax.Array
    old_log_probs: jax.Array
    ref_log_probs: jax.Array
    advantages: jax.Array
    old_values: jax.Array
    returns: jax.Array
    features: jax.Array | tuple[()]
    read: PyTree


def scorer(
    reward_fn: RewardFn | None,
    shared_fn: SharedFn | None,
    aggregate: Adaptive | None,
    axis_name: str | None,
) -> Callable[..., tuple[Shared, list[jax.Array]]]:
    """Scores samples, and reads them with the reference.

    Args:
        reward_fn: the reward, or
        shared_fn: it and the reference's logits of one forward pass.
        aggregate: from the rewards of several models to one, if there are several.
        axis_name: the pmapped axis, if any.

    Returns:
        ``(logits_fn, state, sequences, read, mask[B, T]) -> (Shared, means)``: the reference's
        logits, of what it reads; rewards ``[B]`` or ``[B, T]``, 0 where masked; and, with
        ``aggregate``, what was earned of each model on average.

    Raises:
        ValueError: unless exactly one of ``reward_fn`` and ``shared_fn`` is given; when called, if
            the rewards have another shape.
    """
    if (reward_fn is None) == (shared_fn is None):
        raise ValueError("give either reward_fn or shared_fn; of the two, the other is None")

    def scored(
        logits_fn: LogitsFn,
        state: TrainState,
        sequences: Sequences,
        read: PyTree,
        mask: jax.Array,
    ) -> tuple[Shared, list]:
        """The reference's logits; one reward an answer or a token; the mean of each model's."""
        reference, params = state.frozen.reference, state.frozen.reward
        if shared_fn is None:
            rewards = reward_fn(params, sequences)
            logits = logits_fn(reference, read, sequences.mask)
            found = Shared(logits, rewards, ())
        else:
            trunk = () if read is sequences.tokens else (read,)  # It can read the tokens itself.
            found = shared_fn(reference, params, sequences, *trunk)
        rewards = found.rewards.astype(jnp.float32)
        models = () if aggregate is None else rewards.shape[:1]
        if rewards.shape not in (models + mask.shape[:1], models + mask.shape):
            name = "reward_fn" if shared_fn is None else "shared_fn"
            wanted = "[B] or [B, T]" if aggregate is None else "[M, B] or [M, B, T]"
            raise ValueError(
                f"{name} must return rewards {wanted}, with B, T = {list(mask.shape)}, "
                f"not {list(rewards.shape)}"
            )
        if rewards.shape[len(models) :] == mask.shape:
            rewards = jnp.where(mask, rewards, 0)
        if aggregate is None:
            return found._replace(rewards=rewards), []
        valid = jnp.any(mask, axis=-1)
        totals = rewards.reshape(*models, len(valid), -1).sum(axis=-1)
        means = divided({m: rows_mean(each, valid) for m, each in enumerate(totals)}, axis_name)
        rewards = aggregate.combine(state.extra.aggregate, rewards)
        return found._replace(rewards=rewards), list(means.values())

    return scored


def minibatches_of(
    experience: Experience, key: Key, minibatches: int, axis_name: str | None
) -> Experience:
    """``[B, ...]`` to ``[minibatches, B / minibatches, ...]``.

    Each block of ``minibatches`` neighbouring rows gives one row to every minibatch, at random. So
    a minibatch takes as much from every device's share as from any other's, and without traffic.
    """
    if minibatches == 1:
        return jax.tree.map(lambda x: x[None], experience)
    blocks = experience.tokens.shape[0] // minibatches
    keys = row_keys(key, blocks, axis_name)
    order = jax.vmap(lambda k: jax.random.permutation(k, minibatches))(keys)

    def cut(x):
        x = x.reshape(blocks, minibatches, *x.shape[1:])
        x = jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        return jnp.moveaxis(x, 1, 0)

    return jax.tree.map(cut, experience)
