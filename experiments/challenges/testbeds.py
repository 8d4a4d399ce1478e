"""What challenges build of: worlds, reward models and people, and rounds of RLHF."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import rlhf_jax as rj


def near_an_ideal(
    keys: jax.Array, *, answers: int, dimensions: int, curvature: float
) -> tuple[jax.Array, jax.Array]:
    """Answers ``[N, D]``, and how good they are: towards an ideal more, beyond it less."""
    said = jax.random.normal(keys[0], (answers, dimensions))
    towards = jax.random.normal(keys[1], (dimensions,))
    good = said @ towards / jnp.linalg.norm(towards)
    return said, good - curvature / 2 * jnp.sum(jnp.square(said), axis=1)


def random_features(keys: jax.Array, answers: jax.Array, width: int, *models: int) -> jax.Array:
    """As reward models see answers ``[N, D]``: rectified, in random directions, ``[N, width]``.

    With a number of models each has directions of its own, ``[models, N, width]``.
    """
    directions = jax.random.normal(keys[0], (*models, answers.shape[1], width))
    directions /= jnp.linalg.norm(directions, axis=-2, keepdims=True)
    return jax.nn.relu(answers @ directions + jax.random.normal(keys[1], (*models, 1, width)))


def fitted(
    world: rj.worlds.Bandit,
    batch: rj.types.Preferences,
    start: jax.Array,
    *,
    l2: float = 1e-6,
    steps: int = 8,
) -> jax.Array:
    """The reward model that fits comparisons best, by Newton's method from a start on."""
    init, step = world.newton(l2)
    state = init(start, jax.random.key(0))
    return jax.lax.scan(lambda s, _: step(s, batch), state, length=steps)[0].params


def ensemble(
    features: jax.Array, l2: float
) -> tuple[Callable[[jax.Array], jax.Array], rj.types.Algorithm]:
    """Linear reward models, each of features of its own ``[models, N, D]``, fitted side by side.

    Returns what each says of all answers about its own mean, ``(params[models, D]) -> [models,
    N]``, and their steps of Newton's method on the same comparisons.
    """

    def opinions(params: jax.Array) -> jax.Array:
        rewards = jnp.einsum("mnd,md->mn", features, params)
        return rewards - rewards.mean(axis=1, keepdims=True)

    def of_member(seen: jax.Array) -> rj.types.Algorithm:
        return rj.worlds.bandit(jnp.zeros(len(seen)), features=seen).newton(l2)

    def step(
        state: rj.types.TrainState, batch: rj.types.Preferences
    ) -> tuple[rj.types.TrainState, rj.types.Metrics]:
        def member(seen: jax.Array, params: jax.Array) -> tuple[jax.Array, rj.types.Metrics]:
            after, metrics = of_member(seen).step(state.replace(params=params), batch)
            return after.params, metrics

        params, metrics = jax.vmap(member)(features, state.params)
        after = state.replace(step=state.step + 1, params=params)
        return after, jax.tree.map(jnp.mean, metrics)

    return opinions, rj.types.Algorithm(of_member(features[0]).init, step)


def performative(
    key: jax.Array, shift: jax.Array, *, wish: float, people: int, times: int
) -> jax.Array:
    """What is deployed, time after time: the mean opinion of people whom the last one moved."""
    states = rj.humans.linear_scale(lambda opinion: opinion, noise=1.0)

    def deploy(theta: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        opinions = jnp.full(people, wish + shift * theta)
        return states(key, opinions).value.mean(), theta

    return jax.lax.scan(deploy, jnp.float32(0), jax.random.split(key, times))[1]


def learnt_reward(
    key: jax.Array,
    world: rj.worlds.Bandit,
    human: rj.humans.Human,
    start: jax.Array,
    *,
    labels: int,
    l2: float = 1e-6,
    steps: int = 8,
) -> jax.Array:
    """What a reward model learns, from its start on, of pairs of the reference's own answers."""
    keys = jax.random.split(key, 3)
    pairs = world.pairs(labels)(keys[0], world.reference, start)
    batch = rj.feedback.to_batch(pairs, human(keys[1], pairs))
    return fitted(world, batch, start, l2=l2, steps=steps)


def rounds(
    pipeline: rj.pipeline.Pipeline,
    key: jax.Array,
    world: rj.worlds.Bandit,
    reward: Any,
    *,
    rounds: int = 1,
    reward_steps: int,
    **settings: Any,
) -> tuple[rj.types.TrainState, rj.types.Metrics]:
    """RLHF from the reference on, with a step of a policy that is exact in each round."""
    return rj.pipeline.run(
        pipeline,
        key,
        rj.pipeline.Learners(world.reference, reward),
        rounds=rounds,
        reward_steps=reward_steps,
        policy_steps=1,
        prompts=world.prompts(1),
        **settings,
    )
