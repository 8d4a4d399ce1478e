"""3.4, efficiency against overfitting (tractable): how long to trust a reward model before asking.

So many labels in all, a few of them every M policy steps, on the policy's own answers. With few
steps in between, labels are spent on a policy that has hardly moved; with many it goes where the
reward model is wrong before anybody looks, and has by then too little left to be asked about to
find back. People want answers near an ideal that is not the farthest one; an ensemble of reward
models learns from their comparisons, and its mean is climbed by exact policy gradient steps. Does
the ensemble's disagreement, or the divergence, tell when gold has fallen? The control climbs the
true reward: more steps lose nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import protocol
import testbeds
from protocol import at_least, at_most, challenge, interval, main

import rlhf_jax as rj

ANSWERS, DIMENSIONS, CURVATURE, RATIONALITY = 2048, 8, 0.7, 2.0
MEMBERS, WIDTH, DECAY = 4, 24, 1e-3
STEPS = 4.0 ** np.arange(7)  # M, the policy's steps a round
INTERIOR, RATE = 3, 0.02  # which of these is held against the ends; nats per unit of reward
ROUNDS, ASKED = 16, 32  # labels: 512 in all
FALLEN = 0.1  # gold (SD) below the best so far that counts as a decline
NAMES = ("gold", "peak", "disagreement", "kl")
WITHIN = 1 - 2.0 ** -np.arange(12)  # parts of a round not yet gone, at which gold is looked at too


def run(key: jax.Array, steps: jax.Array, truly: jax.Array) -> dict[str, jax.Array]:
    """Each of ``NAMES``, ``[rounds]``, of a run with so many steps a round; by the truth, if so."""
    keys = jax.random.split(key, 5)
    answers, gold = testbeds.near_an_ideal(
        keys[:2], answers=ANSWERS, dimensions=DIMENSIONS, curvature=CURVATURE
    )
    gold = (gold - gold.mean()) / gold.std()
    world = rj.worlds.bandit(gold)
    # Each member sees an answer through random features of its own.
    features = testbeds.random_features(keys[2:4], answers, WIDTH, MEMBERS) * np.sqrt(2 / WIDTH)
    opinions, ensemble = testbeds.ensemble(features, DECAY)

    def climbed(params: jax.Array) -> jax.Array:
        return jnp.where(truly, gold, opinions(params).mean(axis=0))

    def look(key: jax.Array, policy: jax.Array, reward: jax.Array) -> dict[str, jax.Array]:
        means = opinions(reward) @ jax.nn.softmax(policy)
        # On its way through the round, which went along what was climbed.
        way = policy - WITHIN[:, None] * RATE * steps * climbed(reward)
        peak = jnp.max(jax.nn.softmax(way) @ gold)
        log_probs, reference = jax.nn.log_softmax(policy), jnp.full(ANSWERS, -np.log(ANSWERS))
        kl = rj.divergences.exact_kl(log_probs, reference)
        found = jax.nn.softmax(policy) @ gold, peak, means.std(), kl
        return dict(zip(NAMES, found, strict=True))

    pipeline = rj.pipeline.Pipeline(
        query=world.pairs(ASKED),
        human=rj.humans.boltzmann(world.utility, rationality=RATIONALITY),
        reward=ensemble,
        # As long as the reward stands still, this one step is M of rate RATE.
        policy=rj.worlds.mirror_ascent(climbed, rate=RATE * steps),
    )
    start, settings = jnp.zeros((MEMBERS, WIDTH)), {"rounds": ROUNDS, "memory": ROUNDS}
    _, history = testbeds.rounds(
        pipeline, keys[4], world, start, reward_steps=5, measure=look, **settings
    )
    return {name: history[name] for name in NAMES}


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Each of ``NAMES``, ``[seeds, learnt or true reward, steps, rounds]``."""
    over = jax.vmap(jax.vmap(run, (None, 0, None)), (None, None, 0))
    arms = np.array([False, True])
    return protocol.over_seeds(lambda key: over(key, STEPS, arms), keys)


def fallen(found: dict[str, np.ndarray]) -> np.ndarray:
    """Where gold is below the best that its run had on its way, ``[seeds, steps, rounds]``."""
    best = np.maximum.accumulate(found["peak"][:, 0], axis=-1)
    return found["gold"][:, 0] < best - FALLEN


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    last, truly = np.moveaxis(found["gold"][..., -1], 1, 0)
    better = last[:, INTERIOR, None] - last[:, [0, -1]]
    lost = truly[:, INTERIOR] - truly[:, -1]
    below = fallen(found)

    def told_by(name: str):
        rows = np.stack([found[name][:, 0], below], axis=1)
        return interval(
            rows, lambda rows: rj.measures.auroc(rows[:, 0].ravel(), rows[:, 1].ravel() > 0)
        )

    middle, most = int(STEPS[INTERIOR]), int(STEPS[-1])
    return [
        at_least(f"at equal labels M = {middle} beats 1 (gold, SD)", interval(better[:, 0]), 0),
        at_least(f"and {most}", interval(better[:, 1]), 0),
        at_least("disagreement tells gold's decline: AUROC >= .8", told_by("disagreement"), 0.8),
        at_least("so does the divergence: AUROC >= .8", told_by("kl"), 0.8),
        at_most(f"control, the true reward: {most} loses nothing to {middle}", interval(lost), 0),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Gold by M, and by what the ensemble says of it."""
    left, right = axes
    blue, orange, *_, grey = rj.report.COLOURS
    rows = found["gold"][..., -1]
    for colour, arm, name in ((blue, 0, "learnt reward"), (grey, 1, "true reward (control)")):
        protocol.band(left, STEPS, rows[:, arm], color=colour, label=name)
    left.set(xscale="log", xlabel=f"policy steps for each {ASKED} labels, M")
    left.set(ylabel=f"gold (SD) after {ROUNDS * ASKED} labels")
    below = fallen(found)
    for colour, where, name in ((blue, ~below, "at its best"), (orange, below, "fallen")):
        chosen = (found[x][:, 0][where] for x in ("disagreement", "gold"))
        right.scatter(*chosen, s=4, alpha=0.4, color=colour, label=f"gold {name}")
    right.set(xscale="log", xlabel="disagreement of the reward models (nats)", ylabel="gold (SD)")


CHALLENGE = challenge("efficiency-overfitting", measure, judge, plot, fast_seeds=16)

if __name__ == "__main__":
    main(CHALLENGE)
