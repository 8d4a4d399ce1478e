"""Several objectives: heads, weights, a front of policies, and a constraint that is kept."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from scipy.optimize import brentq
from scipy.special import xlogy

from rlhf_jax import aggregates, algorithms, losses, measures, rewards
from rlhf_jax.algorithms.feedback import imitated
from rlhf_jax.types import Preferences, Prompts, Rated, Sequences

ITEMS, ATTRIBUTES = 5, 3


def heads(params, tokens, mask):
    """Scores ``[B, A]`` of items that are one token each."""
    return params[tokens[:, 0]]


def items(index):
    index = np.asarray(index, np.int32)[:, None]
    return Sequences(index, np.ones_like(index, bool), index >= 0)


HEADS = 0.5 * jax.random.normal(jax.random.key(0), [ITEMS, ATTRIBUTES])


def stepped(algorithm, batch):
    state, metrics = jax.jit(algorithm.step)(algorithm.init(HEADS, jax.random.key(0)), batch)
    return HEADS - state.params, metrics  # The gradient, at a rate of 1.


def test_each_head_learns_from_the_ratings_that_there_are():
    """A missing rating may be NaN; rows of another weight count for as much in all attributes."""
    rng = np.random.default_rng(0)
    index, ratings = rng.integers(0, ITEMS, 12), rng.normal(size=[12, ATTRIBUTES])
    mask, weight = rng.random([12, ATTRIBUTES]) < 0.6, rng.integers(0, 3, 12).astype(np.float32)
    batch = Rated(
        items(index),
        np.where(mask, ratings, np.nan).astype(np.float32),
        rating_mask=mask,
        weight=weight,
    )
    algorithm = algorithms.reward_model(heads, optax.sgd(1.0), loss=losses.squared_error)
    gradient, metrics = stepped(algorithm, batch)
    gap = np.where(mask, np.asarray(HEADS)[index] - ratings, 0)
    counted = np.where(mask, weight[:, None], 0)
    expected = np.zeros([ITEMS, ATTRIBUTES])
    np.add.at(expected, index, 2 * counted * gap / counted.sum())
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], (counted * gap**2).sum() / counted.sum(), rtol=1e-5)


def test_pairs_compared_in_several_respects():
    """Each head learns from what was said of its attribute; of weight 0, nothing was."""
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, ITEMS, [2, 10])
    better = rng.choice([0.0, 1.0], [10, ATTRIBUTES]).astype(np.float32)
    asked = (rng.random([10, ATTRIBUTES]) < 0.6).astype(np.float32)
    batch = Preferences(items(first), items(second), probability=better, weight=asked)
    algorithm = algorithms.reward_model(heads, optax.sgd(1.0))
    gradient, metrics = stepped(algorithm, batch)
    lead = np.asarray(HEADS)[first] - np.asarray(HEADS)[second]
    pull = asked * (1 / (1 + np.exp(-lead)) - better) / asked.sum()
    expected = np.zeros([ITEMS, ATTRIBUTES])
    np.add.at(expected, first, pull)
    np.add.at(expected, second, -pull)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    right = (lead > 0) * better + (lead < 0) * (1 - better) + 0.5 * (lead == 0)
    np.testing.assert_allclose(metrics["accuracy"], (asked * right).sum() / asked.sum(), rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"weight must be \[B\], or of the losses' shape \[10, 3\]"
    ):
        algorithm.step(
            algorithm.init(HEADS, jax.random.key(0)), batch.replace(weight=np.ones([10, 2]))
        )
    with pytest.raises(ValueError, match=r"it returns \[10\], but reward makes \[10, 3\]"):
        algorithms.reward_model(
            heads, optax.sgd(1.0), loss=lambda chosen, rejected: jnp.sum(chosen - rejected, -1)
        ).step(algorithm.init(HEADS, jax.random.key(0)), batch)


# A bandit: the answer is one token, and what is good in one respect is not in the other.
ANGLE = np.linspace(0, np.pi / 2, toys.VOCAB)
WORTH = np.stack([np.cos(ANGLE), np.sin(ANGLE)]).astype(np.float32)
PROMPTS = Prompts(np.zeros([16, 1], np.int32), np.ones([16, 1], bool))
BETA = 0.1


def bandit(reward_fn, **settings):
    return algorithms.policy_gradient(
        toys.bigram_logits,
        toys.sample_fn(new_tokens=1, eos_id=None),
        reward_fn,
        optax.adam(0.05),
        kl_coefficient=BETA,
        samples_per_prompt=8,
        **settings,
    )


def tilted(reward):
    """The best policy for a reward with the penalty, from a uniform reference; its KL."""
    policy = np.exp(reward / BETA - np.max(reward / BETA))
    policy /= policy.sum()
    return policy, np.sum(xlogy(policy, policy * toys.VOCAB))


def test_a_constraint_is_kept_and_what_it_leaves_is_earned():
    cost, limit = -WORTH[1], -0.8  # At least .8 of the other.

    def best(multiplier):
        return tilted(WORTH[0] - multiplier * cost)

    needed = brentq(lambda multiplier: best(multiplier)[0] @ cost - limit, 0, 50)
    policy, kl = best(needed)
    assert best(0)[0] @ cost > limit + 0.3  # It binds.
    algorithm = bandit(
        rewards.ensemble(toys.bag_reward),
        aggregate=aggregates.lagrangian(
            jnp.array([limit]), rate=0.05, initial=1.0, normalised=False
        ),
    )

    @jax.jit
    def train(worth):
        table = jnp.zeros([toys.VOCAB] * 2)
        state = algorithm.init({"table": table}, jax.random.key(0), reward={"weights": worth})
        return jax.lax.scan(lambda s, _: algorithm.step(s, PROMPTS), state, None, 300)

    state, history = jax.device_get(train(np.stack([WORTH[0], cost])))
    found = {name: history[name][-150:].mean() for name in ("reward_0", "reward_1", "kl")}
    np.testing.assert_allclose(found["reward_1"], limit, atol=0.015)
    np.testing.assert_allclose(
        found["reward_0"] - BETA * found["kl"], policy @ WORTH[0] - BETA * kl, atol=0.015
    )
    np.testing.assert_allclose(state.extra.aggregate, needed, rtol=0.03)


def test_a_sweep_of_weights_is_one_program_and_finds_the_front():
    weights = np.stack([np.linspace(0, 1, 5), np.linspace(1, 0, 5)], axis=1).astype(np.float32)
    each = rewards.ensemble(toys.bag_reward)

    def weighed(params, sequences):
        return aggregates.weighted(each(params["worth"], sequences), weights=params["weights"])

    front = algorithms.ensemble(bandit(weighed), 5, own_frozen=True, same_draws=True)

    @jax.jit
    def train(worth):
        alike = partial(jnp.broadcast_to, shape=(5, 2, toys.VOCAB))
        reward = {"weights": jnp.asarray(weights), "worth": {"weights": alike(worth)}}
        params = {"table": jnp.zeros([5, toys.VOCAB, toys.VOCAB])}
        state = front.init(params, jax.random.key(0), reward=reward)
        state, _ = jax.lax.scan(lambda s, _: front.step(s, PROMPTS), state, None, 100)
        return jax.nn.softmax(state.params["table"][:, 0], axis=-1) @ worth.T

    found = np.asarray(train(WORTH))
    exact = np.stack([WORTH @ tilted(w @ WORTH)[0] for w in weights])
    np.testing.assert_allclose(found, exact, atol=0.02)
    worst = WORTH.mean(axis=1)  # The reference.
    reached, best = (measures.hypervolume(jnp.asarray(x), worst) for x in (found, exact))
    np.testing.assert_allclose(reached, best, rtol=0.02)


def test_what_is_imitated_is_the_more_probable_side():
    """Of soft labels; neither side of a tie, in words or in numbers."""
    batch = toys.preferences(4).replace(
        probability=np.array([0.9, 0.2, 0.5, 1.0]), tied=np.array([False, False, False, True])
    )
    expected = [[True, False, False, False], [False, True, False, False]]
    assert imitated(batch).tolist() == expected
