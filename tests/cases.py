"""Every algorithm in its main compositions, on the toys, with batches of unequal masks."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import (
    advantages,
    aggregates,
    algorithms,
    divergences,
    implicit_rewards,
    losses,
    rewards,
    sequences,
)
from rlhf_jax.types import ActorCritic, Algorithm, Batch, TrainState


class Case(NamedTuple):
    build: Callable[..., Algorithm]  # axis_name -> Algorithm
    init: Callable[[Algorithm], TrainState]
    batch: Callable[[int], Batch]  # seed -> batch


def _direct(batch=toys.preferences, **settings):
    def build(axis_name=None):
        optimizer = optax.sgd(0.3)
        return algorithms.direct(toys.bigram_logits, optimizer, axis_name=axis_name, **settings)

    def init(algorithm):
        state = algorithm.init(toys.bigram_params(), jax.random.key(7))
        if settings.get("reference_free"):
            return state
        return algorithm.init(toys.bigram_params(), jax.random.key(7), toys.bigram_params(1))

    return Case(build, init, lambda seed: batch(8, seed=seed, empty=(1, 6)))


def _online(build_of):
    def build(axis_name=None):
        judge_fn = rewards.judge(toys.bag_reward)
        return build_of(judge_fn, optax.sgd(0.3), axis_name=axis_name)

    def init(algorithm):
        judge, reference = toys.bag_params(2), toys.bigram_params(1)
        return algorithm.init(toys.bigram_params(), jax.random.key(7), judge, reference)

    return Case(build, init, lambda seed: toys.prompts(8, seed=seed, empty=(2, 3)))


def _policy(critic=False, named=lambda axis_name: {}, two_rewards=False, **settings):
    def build(axis_name=None):
        if critic:
            settings["value_fn"] = toys.bag_values
        return algorithms.policy_gradient(
            toys.bigram_logits,
            toys.sample_fn(),
            rewards.ensemble(toys.bag_reward) if two_rewards else toys.bag_reward,
            optax.sgd(0.3),
            axis_name=axis_name,
            **named(axis_name),
            **settings,
        )

    def init(algorithm):
        params = toys.bigram_params()
        params = ActorCritic(params, toys.bag_params(4)) if critic else params
        reference = toys.bigram_params(1)
        reward = toys.bag_params(2)
        if two_rewards:
            reward = jax.vmap(toys.bag_params)(np.arange(2))
        return algorithm.init(params, jax.random.key(7), reward, reference)

    return Case(build, init, lambda seed: toys.prompts(8, seed=seed, empty=(2, 3)))


CASES = {
    "supervised": Case(
        lambda axis_name=None: algorithms.supervised(
            toys.bigram_logits, optax.sgd(0.3), axis_name=axis_name
        ),
        lambda algorithm: algorithm.init(toys.bigram_params(), jax.random.key(7)),
        lambda seed: toys.sequences(8, seed=seed, empty=(3,)),
    ),
    "reward_model": Case(
        lambda axis_name=None: algorithms.reward_model(
            toys.bag_scores, optax.sgd(0.3), token_dropout=0.2, axis_name=axis_name
        ),
        lambda algorithm: algorithm.init(toys.bag_params(), jax.random.key(7)),
        lambda seed: toys.preferences(8, seed, empty=(1, 6)),
    ),
    "mixture": Case(
        lambda axis_name=None: algorithms.mixture(
            toys.bag_scores, optax.sgd(0.3), groups=2, raters=3, memory=2, axis_name=axis_name
        ),
        lambda algorithm: algorithm.init(
            jax.vmap(toys.bag_params)(np.arange(2)), jax.random.key(7)
        ),
        lambda seed: toys.preferences(8, seed, empty=(1, 6)).replace(rater=np.arange(8) % 4),
    ),
    "dpo": _direct(),
    "ipo": _direct(beta=1.0, loss=partial(losses.squared, tau=0.3)),
    "slic": _direct(
        implicit_reward=implicit_rewards.log_prob,
        loss=losses.hinge,
        supervised_weight=0.5,
        reference_free=True,
    ),
    "kto": _direct(toys.rated, loss=losses.kto, supervised_weight=0.5),
    "ties": _direct(toys.ties, loss=losses.davidson),
    "ranking": _direct(toys.ranked, loss=losses.plackett_luce, supervised_weight=0.5),
    "rloo": _policy(),
    "remax": _policy(
        two_rewards=True,
        aggregate=aggregates.lagrangian(np.array([-0.5], np.float32), rate=0.5),
        samples_per_prompt=2,
        advantage=advantages.greedy_baseline,
        baseline_fn=toys.sample_fn(temperature=0),
        aggregation=partial(sequences.constant_length, length=5),
    ),
    "reinforce_plus_plus": _policy(
        named=lambda axis_name: {
            "advantage": partial(advantages.reinforce_plus_plus, axis_name=axis_name)
        },
        per_token=True,
        policy_loss=losses.ppo_clip,
    ),
    "online_dpo": _online(partial(algorithms.online_dpo, toys.bigram_logits, toys.sample_fn())),
    "nash_md": _online(
        partial(algorithms.nash_md, toys.bigram_logits, toys.sample_fn(), toys.mixture_fn())
    ),
    "grpo": _policy(
        advantage=advantages.group_normalised,
        policy_loss=losses.ppo_clip,
        reward_penalty=None,
        loss_penalty=divergences.kl_k3,
        aggregation=sequences.sequence_mean,
        epochs=2,
        minibatches=4,
    ),
    "ppo": _policy(
        critic=True,
        policy_loss=losses.ppo_clip,
        kl_coefficient=divergences.adaptive_coefficient(0.1, target=2.0),
        whiten=True,
        entropy_weight=0.01,
        epochs=2,
        minibatches=2,
    ),
}

# These run the code of others above (`ppo`, `remax`, `online_dpo`, `dpo`) but for a loss or an
# advantage with tests of its own; on the toys nearly all their time is compiling it again.
ALIKE = {"ipo", "ranking", "ties", "reinforce_plus_plus", "grpo", "nash_md", "rloo"}


def names(slow: set[str] = ALIKE) -> list:
    """All cases, as parameters of a test; of those that are alike it is slow."""
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(name, marks=marks[name in slow], id=name) for name in CASES]
