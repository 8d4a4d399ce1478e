"""The real step of a workload, and the shapes of its state and batch: nothing is allocated."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import algorithms
from rlhf_jax.models import (
    feature_values,
    language_model,
    linear_head,
    lora,
    score_model,
    shared_trunk,
    value_model,
)
from rlhf_jax.planning.workloads import Workload
from rlhf_jax.sampling import sampler
from rlhf_jax.types import (
    ActorCritic,
    Algorithm,
    Batch,
    Key,
    Metrics,
    Params,
    Preferences,
    Prompts,
    PyTree,
    RewardFn,
    ScoreFn,
    Sequences,
    TrainState,
)

__all__ = ["Program", "float32_moments", "program"]


class Program(NamedTuple):
    """A step and what it is called with.

    Attributes:
        step: of an ``Algorithm``.
        state: its ``TrainState``, of ``jax.ShapeDtypeStruct``.
        batch: its batch, likewise.
        cache: what generation keeps of the tokens, likewise; ``None`` where nothing is generated.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    state: PyTree
    batch: PyTree
    cache: PyTree = None


def float32_moments(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser whose state is float32, whatever the parameters are.

    The gradients are made float32 first, and the updates stay so: ``optax.apply_updates`` adds them
    in float32 and rounds the sum.

    Args:
        optimizer: any.

    Returns:
        The same with float32 states.

    >>> state = float32_moments(optax.adam(1e-3)).init(jnp.ones([2], jnp.bfloat16))
    >>> state[0].nu.dtype
    dtype('float32')
    """

    def wide(tree: PyTree) -> PyTree:
        floating = jnp.issubdtype
        return jax.tree.map(
            lambda x: x.astype(jnp.float32) if floating(x.dtype, jnp.floating) else x, tree
        )

    def init(params: PyTree) -> PyTree:
        return optimizer.init(wide(params))

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None):
        return optimizer.update(wide(updates), state, None if params is None else wide(params))

    return optax.GradientTransformation(init, update)


def program(workload: Workload) -> Program:
    """The step of a workload, built by ``algorithms`` as for a run.

    Args:
        workload: what is to be planned.

    Returns:
        A ``Program``.
    """
    step = _algorithm(workload).step
    # The state is the same whatever the batch: what traces the models is done once.
    state = _state(
        dataclasses.replace(
            workload,
            batch=1,
            samples=1 if workload.on_policy else None,
            epochs=1 if workload.on_policy else None,
            minibatches=1,
            accumulate=1,
            prompt_length=1,
            response_length=1,
            remat=False,
            share_prompts=False,
        )
    )
    if workload.on_policy:
        tokens = jax.ShapeDtypeStruct((workload.batch, workload.prompt_length), jnp.int32)
        batch = Prompts(tokens, jax.ShapeDtypeStruct(tokens.shape, jnp.bool_))
        init_cache = language_model(workload.config).decoder.init_cache
        cache = jax.eval_shape(lambda: init_cache(workload.sequences, workload.length - 1))
        return Program(step, state, batch, cache)
    tokens = jax.ShapeDtypeStruct((workload.batch, workload.length), jnp.int32)
    mask = jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)
    text = Sequences(tokens, mask, mask)
    return Program(
        step, state, text if workload.algorithm == "supervised" else Preferences(text, text)
    )


def _algorithm(workload: Workload) -> Algorithm:
    config = workload.config
    model = language_model(config)
    settings = {"accumulate": workload.accumulate, "trainable": _trainable(workload)}
    optimizer = _optimizer(workload)
    if not workload.on_policy:
        build, read = getattr(algorithms, workload.algorithm), model.factored_logits_fn
        if workload.share_prompts:
            settings["prompt_length"] = workload.prompt_length
        if workload.algorithm == "reward_model":
            read = score_model(config).score_fn
        if workload.algorithm != "reward_model" or workload.share_prompts:
            settings["response_length"] = workload.response_length
        return build(read, optimizer, **settings)
    sample = sampler(
        model.decoder, max_new_tokens=workload.response_length, eos_id=config.vocab_size - 1
    )
    settings |= {
        "samples_per_prompt": workload.resolved_samples,
        "epochs": workload.resolved_epochs,
        "minibatches": workload.minibatches,
        "share_prompts": workload.share_prompts,
    }
    shared, head = workload.reward == "shared", linear_head(config.hidden_size)
    if shared:
        settings["shared_fn"] = shared_trunk(model.factored_logits_fn, head)
    if workload.algorithm == "ppo":
        settings["value_fn"] = feature_values(head) if shared else value_model(config).value_fn
    reward_fn = None if shared else _rewards(score_model(config).score_fn)
    build = getattr(algorithms, workload.algorithm)
    return build(model.factored_logits_fn, sample, reward_fn, optimizer, **settings)


def _optimizer(workload: Workload) -> optax.GradientTransformation:
    momentum = jnp.bfloat16 if workload.momentum_bfloat16 else jnp.float32
    adam = optax.adamw(1e-6, weight_decay=0.0, mu_dtype=momentum)
    return float32_moments(adam) if workload.param_dtype == jnp.bfloat16 else adam


def _trainable(workload: Workload) -> tuple[str, ...] | None:
    if workload.lora_rank is None:
        return None
    if workload.algorithm == "reward_model":
        return (*lora.TRAINABLE, "head/*")
    if workload.algorithm != "ppo":
        return lora.TRAINABLE
    adapters = tuple(f"policy/{pattern}" for pattern in lora.TRAINABLE)
    if workload.reward == "shared":
        return (*adapters, "critic/*")
    return (*adapters, *(f"critic/{pattern}" for pattern in lora.TRAINABLE), "critic/head/*")


@functools.cache
def _state(workload: Workload) -> PyTree:
    """The shapes of a workload's ``TrainState``."""
    config, key = workload.config, jax.eval_shape(lambda: jax.random.key(0))
    head = linear_head(config.hidden_size)

    def of(init: Callable[[Key], Params], *, trains: bool = True) -> PyTree:
        shapes = jax.eval_shape(init, key)
        if not trains:
            return _frozen(shapes, workload.dtype)
        if workload.lora_rank is None or init is head.init:
            return shapes
        rank = workload.lora_rank
        add = partial(lora.add, rank=rank, alpha=2.0 * rank)
        return jax.eval_shape(lambda params: add(jax.random.key(0), params), shapes)

    scorer, init = score_model(config).init, _algorithm(workload).init
    if workload.algorithm == "reward_model":
        return jax.eval_shape(init, of(scorer), key)
    policy = of(language_model(config).init)
    if workload.algorithm == "supervised":
        return jax.eval_shape(init, policy, key)
    # With adapters the reference is the initial adapter on the same base; else a copy of all.
    reference = None if workload.lora_rank else _frozen(policy, workload.dtype)
    if workload.algorithm == "dpo":
        return jax.eval_shape(init, policy, key, reference)
    shared = workload.reward == "shared"
    if workload.algorithm == "ppo":
        policy = ActorCritic(policy, of(head.init if shared else value_model(config).init))
    reward = of(head.init if shared else scorer, trains=False)
    return jax.eval_shape(init, policy, key, reward, reference)


def _frozen(params: PyTree, dtype: jnp.dtype) -> PyTree:
    """Parameters as they are kept that never train."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)


def _rewards(score_fn: ScoreFn) -> RewardFn:
    def reward_fn(params: Params, sequences: Sequences) -> jax.Array:
        return score_fn(params, sequences.tokens, sequences.mask)

    return reward_fn
