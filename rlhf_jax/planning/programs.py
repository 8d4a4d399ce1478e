"""The real step of a workload, and the shapes of its state and batch: nothing is allocated."""

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
    Batch,
    Metrics,
    Preferences,
    Prompts,
    PyTree,
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
    build = _on_policy if workload.on_policy else _off_policy
    return build(workload, _optimizer(workload))


def _optimizer(workload: Workload) -> optax.GradientTransformation:
    momentum = jnp.bfloat16 if workload.momentum_bfloat16 else jnp.float32
    adam = optax.adamw(1e-6, weight_decay=0.0, mu_dtype=momentum)
    return float32_moments(adam) if workload.param_dtype == jnp.bfloat16 else adam


def _abstract(function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    return jax.eval_shape(function, *arguments)


def _frozen(params: PyTree, dtype: jnp.dtype) -> PyTree:
    """Parameters as they are kept that never train."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)


def _adapted(params: PyTree, workload: Workload) -> PyTree:
    if workload.lora_rank is None:
        return params
    rank = workload.lora_rank
    add = partial(lora.add, rank=rank, alpha=2.0 * rank)
    return _abstract(lambda p: add(jax.random.key(0), p), params)


def _text(rows: int, length: int) -> Sequences:
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((rows, length), jnp.bool_)
    return Sequences(tokens, mask, mask)


def _key() -> PyTree:
    return _abstract(lambda: jax.random.key(0))


def _off_policy(workload: Workload, optimizer: optax.GradientTransformation) -> Program:
    config, rows = workload.config, workload.batch
    model, text = language_model(config), _text(rows, workload.length)
    settings = {"accumulate": workload.accumulate}
    adapters = lora.TRAINABLE if workload.lora_rank else None
    if workload.algorithm == "reward_model":
        scorer = score_model(config)
        if adapters:
            adapters = ("trunk/*lora_a", "trunk/*lora_b", "head/*")
        algorithm = algorithms.reward_model(
            scorer.score_fn, optimizer, trainable=adapters, **settings
        )
        params = _adapted(_abstract(scorer.init, _key()), workload)
        state = _abstract(algorithm.init, params, _key())
        return Program(algorithm.step, state, Preferences(text, text))
    params = _adapted(_abstract(model.init, _key()), workload)
    if workload.algorithm == "supervised":
        algorithm = algorithms.supervised(
            model.factored_logits_fn, optimizer, trainable=adapters, **settings
        )
        state = _abstract(algorithm.init, params, _key())
        return Program(algorithm.step, state, text)
    algorithm = algorithms.dpo(model.factored_logits_fn, optimizer, trainable=adapters, **settings)
    # With adapters the reference is the initial adapter on the same base; else a copy of all.
    reference = None if adapters else _frozen(params, workload.dtype)
    state = _abstract(partial(algorithm.init), params, _key(), reference)
    return Program(algorithm.step, state, Preferences(text, text))


def _on_policy(workload: Workload, optimizer: optax.GradientTransformation) -> Program:
    config, dtype = workload.config, workload.dtype
    model = language_model(config)
    sample = sampler(
        model.decoder, max_new_tokens=workload.response_length, eos_id=config.vocab_size - 1
    )
    policy = _adapted(_abstract(model.init, _key()), workload)
    shared, critic = workload.reward == "shared", workload.algorithm == "ppo"
    head = linear_head(config.hidden_size)
    heads = _abstract(head.init, _key())
    scorer = score_model(config)
    settings = {
        "samples_per_prompt": workload.resolved_samples,
        "epochs": workload.resolved_epochs,
        "minibatches": workload.minibatches,
        "accumulate": workload.accumulate,
    }
    if shared:
        reward_fn, reward = None, heads
        settings["shared_fn"] = shared_trunk(model.factored_logits_fn, head)
    else:
        reward_fn = _rewards(scorer.score_fn)
        reward = _frozen(_abstract(scorer.init, _key()), dtype)
    params, trainable = policy, lora.TRAINABLE
    if critic:
        valuer = value_model(config)
        settings["value_fn"] = feature_values(head) if shared else valuer.value_fn
        values = heads if shared else _adapted(_abstract(valuer.init, _key()), workload)
        params = ActorCritic(policy, values)
        beside = ("critic/*",) if shared else ("critic/*lora_a", "critic/*lora_b", "critic/head/*")
        trainable = ("policy/*lora_a", "policy/*lora_b", *beside)
    settings["trainable"] = trainable if workload.lora_rank else None
    algorithm = getattr(algorithms, workload.algorithm)(
        model.factored_logits_fn, sample, reward_fn, optimizer, **settings
    )
    reference = None if workload.lora_rank else _frozen(policy, dtype)
    state = _abstract(algorithm.init, params, _key(), reward, reference)
    tokens = (workload.batch, workload.prompt_length)
    batch = Prompts(jax.ShapeDtypeStruct(tokens, jnp.int32), jax.ShapeDtypeStruct(tokens, bool))
    cache = _abstract(
        lambda: model.decoder.init_cache(workload.sequences, workload.length - 1)
    )
    return Program(algorithm.step, state, batch, cache)


def _rewards(score_fn: Callable) -> Callable:
    def reward_fn(params: PyTree, sequences: Sequences) -> jax.Array:
        return score_fn(params, sequences.tokens, sequences.mask)

    return reward_fn
