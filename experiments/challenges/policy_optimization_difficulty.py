"""3.3.1, the difficulty of policy optimisation (tractable): what chance never finds is not learnt.

A lock with a combination of H of A actions; only opening it earns anything. The reward is right,
and the optimum takes H steps to describe; yet REINFORCE, like any method that learns from its own
successes, waits A^H episodes for the first. Under one budget all runs solve the short locks, none
the long, and in between the seed decides. Where each right step earns too, none of it happens.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
from protocol import at_least, challenge, intervals, main, near, nothing

import rlhf_jax as rj

ACTIONS, DEPTHS = 4, np.arange(1, 6)
MIDDLE = len(DEPTHS) // 2
EPISODES, RUNS = 16, 4  # of a step; of a seed and depth
# Episodes, for all depths: chance opens the middle lock within them in half of the runs.
BUDGET = EPISODES * round(np.log(2) * ACTIONS ** int(DEPTHS[MIDDLE]) / EPISODES)
PATIENCE = 10  # in the longest lock's expected waiting times


def one_run(key: jax.Array, depth: jax.Array, along_the_way: jax.Array, steps: int) -> jax.Array:
    """Episodes to the first success, and how surely the policy opens the lock after the budget."""
    keys = jax.random.split(key)
    longest = int(DEPTHS[-1])
    combination = jax.random.randint(keys[0], (longest,), 0, ACTIONS)
    lock = rj.worlds.combination_lock(combination, jnp.ones(ACTIONS))
    right = jax.nn.one_hot(combination, ACTIONS)
    easier = lock.rewards.at[:longest].add(along_the_way * right)
    start = jax.nn.one_hot(longest - depth, longest + 2)  # what is before is unlocked already

    def watch(played: rj.worlds.Trajectories, returns: jax.Array) -> dict[str, jax.Array]:
        opened = jnp.any(played.states == longest, axis=1)
        return {"first": jnp.where(opened.any(), jnp.argmax(opened), jnp.inf)}

    init, step = rj.worlds.reinforce(
        lock._replace(rewards=easier),
        start,
        optax.sgd(50.0),  # the first success may as well teach all there is to know
        episodes=EPISODES,
        length=longest + 1,
        watch=watch,
    )

    def unfinished(carry) -> jax.Array:
        state, first, _ = carry
        return (state.step < steps) & (jnp.isinf(first) | (state.step <= BUDGET // EPISODES))

    def play(carry):
        state, first, kept = carry
        kept = jnp.where(state.step == BUDGET // EPISODES, state.params, kept)
        done = EPISODES * state.step
        state, metrics = step(state)
        return state, jnp.minimum(first, done + metrics["first"] + 1), kept

    logits = jnp.zeros_like(lock.rewards)
    carry = (init(logits, keys[1]), jnp.float32(jnp.inf), logits)
    _, first, kept = jax.lax.while_loop(unfinished, play, carry)
    first = jnp.minimum(first, EPISODES * steps)
    policy = jnp.broadcast_to(jax.nn.softmax(kept), (longest + 1, *kept.shape))
    return jnp.stack([first, jnp.vdot(rj.worlds.occupancy(lock, policy, start), lock.rewards)])


def measure(keys: jax.Array, fast: bool) -> jax.Array:
    """``[seeds, arms, depths, runs, 2]``: with nothing on the way, and with a reward for it."""
    steps = PATIENCE * ACTIONS ** int(DEPTHS[-1]) // EPISODES
    arms = np.broadcast_arrays(DEPTHS[None, :, None], np.array([0.0, 1.0])[:, None, None])
    arms = [np.repeat(x, RUNS, axis=2) for x in arms]

    def one_seed(key: jax.Array) -> jax.Array:
        run = jnp.vectorize(partial(one_run, steps=steps), signature="(),(),()->(n)")
        return run(jax.random.split(key, arms[0].shape), *arms)

    # Side by side: a step of few runs costs hardly less than one of many.
    return jax.jit(jax.vmap(one_seed))(keys)


def judge(found: np.ndarray) -> list:
    """What must come out."""

    def statistic(rows: jax.Array) -> jax.Array:
        waited = jnp.log(rows[:, 0, ..., 0].mean(axis=(0, 2)))
        rise, explained = protocol.line(DEPTHS, waited)
        middle = rows[:, :, MIDDLE, :, 1].swapaxes(0, 1).reshape(2, -1)
        low, high = jnp.quantile(middle, jnp.array([0.25, 0.75]), axis=1)
        return jnp.stack([rise / np.log(ACTIONS), explained, *(high - low)])

    rise, explained, spread, spread_easier = intervals(found, statistic)
    return [
        near("log episodes to the first success rise by log A +- 10% a step", rise, 1, 0.1, null=0),
        at_least("and that explains R2 >= .95 of them", explained, 0.95),
        at_least("success after the budget, lock of middle length: IQR >= .2", spread, 0.2),
        nothing("control: with a reward on the way, none", spread_easier, tolerance=0.2),
    ]


def plot(axes, found: np.ndarray) -> None:
    """Waiting for the first success, and what the same budget buys."""
    left, right = axes
    blue, orange, *_, grey = rj.report.COLOURS
    names = ("only opening it earns", "each right step earns too")
    left.plot(DEPTHS, float(ACTIONS) ** DEPTHS, ":", color=grey, label="chance, A^H")
    for arm, (colour, name) in enumerate(zip((blue, orange), names, strict=True)):
        rows = found[:, arm].swapaxes(1, 2).reshape(-1, len(DEPTHS), 2)
        left.plot(DEPTHS, rows[..., 0].mean(axis=0), "o", color=colour, label=name)
        low, middle, high = np.quantile(rows[..., 1], [0.25, 0.5, 0.75], axis=0)
        right.plot(DEPTHS, middle, "o-", color=colour, label=f"{name}: median")
        right.fill_between(DEPTHS, low, high, color=colour, alpha=0.15, lw=0, label="quartiles")
    left.set(yscale="log", ylabel="episodes to the first success")
    right.set(ylabel=f"success after {BUDGET} episodes")
    for axis in axes:
        axis.set(xticks=DEPTHS, xlabel="length of the combination, H")


CHALLENGE = challenge("policy-optimization-difficulty", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
