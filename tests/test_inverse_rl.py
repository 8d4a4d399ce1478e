"""Rewards from demonstrations, on a world of 16 answers where everything can be enumerated."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import algorithms, divergences, losses, parallel, worlds
from rlhf_jax.algorithms import Demonstrated, PolicyAndReward, rloo
from rlhf_jax.types import Preferences, Prompts, Sequences

WORDS, ROWS = 4, 128
PROMPTS = Prompts(jnp.zeros([ROWS, 1], jnp.int32), jnp.ones([ROWS, 1], bool))


@jax.jit
def answers(indices):
    """The two-word answers of these numbers, to one and the same prompt."""
    first, second = jnp.divmod(indices, WORDS)
    tokens = jnp.stack([jnp.zeros_like(first), first, second], axis=1).astype(jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    return Sequences(tokens, mask, mask.at[:, 0].set(False))


def logits_fn(params, tokens, mask):
    first = jnp.broadcast_to(params["first"], (len(tokens), 1, WORDS))
    second = params["second"][tokens[:, 1:2]]
    return jnp.concatenate([first, second, second], axis=1)


def distribution(params):
    first, second = (jax.nn.log_softmax(params[name]) for name in ("first", "second"))
    return (first[:, None] + second).ravel()


def sample_fn(params, prompts, keys):
    """Whole answers are drawn at once, by the keys' own bits: quick to compile."""
    first, second = (jax.nn.log_softmax(params[name]) for name in ("first", "second"))
    ends = jnp.cumsum(jnp.exp(distribution(params)))
    drawn = jax.random.key_data(keys)[:, 1] / 2.0**32
    prompt = jnp.repeat(prompts.tokens[:, 0], len(keys) // len(prompts.tokens))
    drawn = jnp.where(prompt > 0, 1.0, drawn)  # another prompt has one answer
    sampled = answers(jnp.sum(ends[:-1] <= drawn[:, None], axis=1))
    _, x, y = sampled.tokens.T
    return sampled.replace(log_probs=jnp.stack([0.0 * first[x], first[x], second[x, y]], axis=1))


def reward_fn(table, sequences):
    return table[sequences.tokens[:, 1], sequences.tokens[:, 2]]


def some_policy(seed=0):
    table = 0.5 * jax.random.normal(jax.random.key(seed), [WORDS + 1, WORDS])
    return {"first": table[0], "second": table[1:]}


REFERENCE = some_policy()
TRUTH = 1.5 * jax.random.normal(jax.random.key(5), [WORDS, WORDS])
TARGET = worlds.tilt(distribution(REFERENCE), TRUTH.ravel())
PEOPLE = jax.random.categorical(jax.random.key(2), TARGET, shape=(2048,))


def trained(build, steps=200, speed=0.1, reward_speed=0.2, policy=REFERENCE):
    """Learns from 2048 demonstrations; the policy's log-probabilities, and the reward."""

    def adam(speed):
        return optax.adam(lambda count: speed * optax.cosine_decay_schedule(1.0, steps)(count))

    algorithm = build(logits_fn, sample_fn, reward_fn, adam(speed), adam(reward_speed))
    start = PolicyAndReward(policy, jnp.zeros([WORDS, WORDS]))
    state = algorithm.init(start, jax.random.key(1), REFERENCE)

    def step(state, key):
        shown = jax.random.choice(key, PEOPLE, (ROWS,))
        return algorithm.step(state, (answers(shown), PROMPTS))

    state, history = jax.lax.scan(step, state, jax.random.split(jax.random.key(3), steps))
    return distribution(state.params.policy), state.params.reward, history


def reward_error(reward):
    """Deviation from the truth over what people do; a constant is not identified."""
    difference, weights = (reward - TRUTH).ravel(), jnp.exp(TARGET)
    return jnp.sqrt(jnp.sum(weights * (difference - jnp.sum(weights * difference)) ** 2))


def test_the_game_recovers_the_demonstrators_and_only_with_the_reward_s_move():
    """AIRL; AIRL whose reward stands still; GAIL: one compiled program."""

    @jax.jit
    @jax.vmap
    def play(speed, reward_speed, told, penalty):
        def loss(rewards, log_ratios, demonstrated):
            return losses.airl(rewards, told * log_ratios, demonstrated)

        def policy(*given, kl_coefficient, **settings):
            return rloo(*given, kl_coefficient=penalty * kl_coefficient, **settings)

        build = partial(algorithms.inverse_rl, loss=loss, policy=policy)
        log_probs, reward, history = trained(build, 200, speed, reward_speed)
        return divergences.exact_kl(TARGET, log_probs), reward_error(reward), history

    speeds = jnp.array([0.1, 0.1, 0.05])
    kl, error, history = play(
        speeds, jnp.array([0.2, 0.0, 0.2]), jnp.array([1, 1, 0]), jnp.array([1, 1, 0])
    )
    still = divergences.exact_kl(TARGET, distribution(REFERENCE))
    assert still > 0.5, "the case must be far from its start"
    assert kl[0] < 0.02
    np.testing.assert_allclose(kl[1], still, rtol=1e-3)
    assert kl[2] < 0.02
    # AIRL's reward is the demonstrators'; GAIL imitates them without one.
    assert error[0] < 0.2
    assert error[2] > 0.5
    gap = history["demonstration_reward"] - history["sample_reward"]
    assert jnp.abs(gap[0, -50:].mean()) < 0.05 < gap[0, :5].mean()
    assert history["skipped"].max() == 0


def test_guided_cost_learning_finds_the_reward_whoever_drew_the_samples():
    """The weights do it alone: this policy stays what it is, and once reports a failure."""

    def idle(*given, **settings):
        def step(state, prompts):
            failed = jnp.where(state.step == 100, 1, 0)
            told = jnp.sum(state.frozen.reward)
            metrics = {"grad_norm": jnp.float32(0), "told": told, "skipped": failed}
            return state.replace(skipped=failed), metrics

        return rloo(*given, **settings)._replace(step=step)

    beta, sampler = 2.0, some_policy(1)
    build = partial(algorithms.guided_cost_learning, policy=idle, beta=beta)
    learn = jax.jit(lambda: trained(build, reward_speed=0.4, policy=sampler))
    log_probs, reward, history = learn()
    np.testing.assert_allclose(log_probs, distribution(sampler), rtol=1e-5)
    assert divergences.exact_kl(distribution(REFERENCE), log_probs) > 0.2
    asked = worlds.tilt(distribution(REFERENCE), reward.ravel(), beta=beta)
    assert divergences.exact_kl(TARGET, asked) < 0.03
    assert reward_error(reward / beta) < 0.25
    assert history["effective_samples"].max() < 0.8
    # The policy is trained on the reward as it now is, and a failure of its holds both back.
    np.testing.assert_allclose(history["told"][-1], reward.sum(), atol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(history["skipped"]), [100])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(history["grad_norm"])), [100])


def case(axis_name=None):
    """Everything at once."""
    algorithm = algorithms.guided_cost_learning(
        logits_fn,
        sample_fn,
        reward_fn,
        optax.sgd(0.3),
        optax.adam(0.1),
        loss=losses.airl,
        beta=0.5,
        samples_per_prompt=2,
        reward_updates=2,
        regulariser=lambda table: 0.1 * table[0, 0] ** 2,
        preference_weight=0.7,
        axis_name=axis_name,
    )
    start = PolicyAndReward(some_policy(1), 0.5 * TRUTH)
    return algorithm.step, algorithm.init(start, jax.random.key(7), REFERENCE)


def batch(padding=0):
    """Rows of padding on two of four devices; what they hold is ``padding``."""
    rng, real = np.random.default_rng(0), ~np.isin(np.arange(8), [3, 6])

    def side():
        mask = np.broadcast_to(real[:, None], [8, 3])
        tokens = np.where(mask, rng.integers(0, WORDS, [8, 3]), padding).astype(np.int32)
        tokens[:, 0] = 0
        return Sequences(tokens, mask, mask & (np.arange(3) > rng.integers(0, 2, [8, 1])))

    prompts = Prompts(np.where(real, 0, padding)[:, None].astype(np.int32), real[:, None])
    return Demonstrated(side(), prompts, Preferences(side(), side()))


@functools.cache
def on_one_device():
    step, state = case()
    step = jax.jit(step)
    return step, state, step(state, batch())


def close(a, b):
    a, b = (jax.device_get((state.params, state.opt_state, metrics)) for state, metrics in (a, b))
    chex.assert_trees_all_close(a, b, atol=2e-6, rtol=2e-5)


@pytest.mark.slow
def test_one_device_a_mesh_and_pmap_agree_and_padding_does_not_matter():
    step, state, expected = on_one_device()
    after, metrics = expected
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}
    assert all(np.isfinite(list(metrics.values())))
    assert {"loss", "grad_norm", "reward_loss", "accuracy", "skipped"} <= set(metrics)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, after.params, state.params)
    assert all(jax.tree.leaves(moved))
    close(step(state, batch(padding=2)), expected)
    mesh, (mapped, _) = parallel.data_mesh(), case(axis_name="data")
    placed = parallel.place(jax.tree.map(jnp.copy, state), mesh)
    close(parallel.shard_step(case()[0], mesh)(placed, batch()), expected)
    close(parallel.pmap_step(mapped)(state, batch()), expected)


def test_what_is_not_finite_on_either_side_moves_neither():
    step, good, _ = on_one_device()
    shown = int(batch().demonstrations.tokens[0, 1])
    never = jax.tree.map(lambda table: table.at[..., shown].set(-1e9), REFERENCE)
    silent = {"first": REFERENCE["first"], "second": never["second"]}
    unscored = good.params.reward.at[:, shown].set(jnp.nan)
    no_number = jax.tree.map(lambda x: x * jnp.nan, good.extra)  # the policy's KL coefficient
    for broken in (
        good.replace(params=PolicyAndReward(silent, unscored)),  # seen in demonstrations alone
        good.replace(params=PolicyAndReward(REFERENCE, unscored)),
        good.replace(extra=no_number),
    ):
        after, metrics = step(broken, batch())
        assert (metrics["skipped"], after.skipped, after.step) == (1, 1, 1)
        chex.assert_trees_all_equal(
            (after.params, after.opt_state), (broken.params, broken.opt_state)
        )
    # In the last only the policy's step could see it.
    assert np.isfinite(metrics["reward_loss"])
    assert np.isnan(metrics["grad_norm"])
    healed, metrics = step(after.replace(extra=good.extra), batch())
    assert (metrics["skipped"], healed.skipped) == (0, 0)
    assert np.abs(healed.params.reward - good.params.reward).max() > 1e-3


def test_losses_are_the_cross_entropy_of_their_discriminators():
    rewards, log_ratios = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.5, 0.1, -0.7])
    ref_log_probs = jnp.array([-1.0, -2.0, -0.5])
    policy, f = jnp.exp(log_ratios + ref_log_probs), jnp.exp(rewards + ref_log_probs)
    yes, no = jnp.ones(3, bool), jnp.zeros(3, bool)
    airl = f / (f + policy)
    np.testing.assert_allclose(losses.airl(rewards, log_ratios, yes), -jnp.log(airl), rtol=1e-5)
    np.testing.assert_allclose(losses.airl(rewards, log_ratios, no), -jnp.log(1 - airl), rtol=1e-5)
    gail = 1 / (1 + jnp.exp(-rewards))
    np.testing.assert_allclose(losses.gail(rewards, log_ratios, yes), -jnp.log(gail), rtol=1e-5)
    np.testing.assert_allclose(losses.gail(rewards, log_ratios, no), -jnp.log(1 - gail), rtol=1e-5)
    np.testing.assert_array_equal(losses.maximum_entropy(rewards, log_ratios, no), rewards)


def test_impossible_settings_are_refused():
    def build(reward_fn=reward_fn, **settings):
        optimizers = optax.sgd(0.1), optax.sgd(0.1)
        return algorithms.airl(logits_fn, sample_fn, reward_fn, *optimizers, **settings)

    with pytest.raises(ValueError, match="beta must be positive, not 0"):
        build(beta=0.0)
    with pytest.raises(ValueError, match="reward_updates must be at least 1, not 0"):
        build(reward_updates=0)
    with pytest.raises(ValueError, match=r"loss will be called as loss\(rewards, log_ratios"):
        build(loss=lambda rewards, demonstrated: rewards)
    with pytest.raises(ValueError, match=r"PolicyAndReward\(policy, reward\), not tuple"):
        build().init((REFERENCE, TRUTH), jax.random.key(0))
    wrong = build(lambda table, sequences: table[sequences.tokens, 0])
    state = wrong.init(PolicyAndReward(REFERENCE, TRUTH), jax.random.key(0))
    with pytest.raises(ValueError, match=r"one reward a sequence, \(8,\), not \(8, 3\)"):
        jax.eval_shape(wrong.step, state, (answers(PEOPLE[:8]), PROMPTS))
