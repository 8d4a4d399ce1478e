"""What several challenges build of: worlds, reward models of them, and rounds of RLHF in them."""

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
