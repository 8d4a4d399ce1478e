"""3.1.2, partial observability (tractable): who judges by a log, gets good logs.

A task succeeds with probability p. An empty log makes people believe that it did with probability
q. The agent can hide failures from the log, at a cost h, or write a verbose one that shows success,
at a cost c, in every episode; what is wanted is success, and neither helps. A reward model that
sees everything learns from people who see the log, and the policy is best by it: deceptive
inflation where q > h, overjustification where p (1 - q) > c, and nothing of either where people see
what happened (Lang et al. 2024, https://arxiv.org/abs/2402.17747).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import testbeds
from protocol import at_least, challenge, intervals, main, nothing

import rlhf_jax as rj

# Outcomes are success unshown, success shown, failure shown, failure hidden; logs are empty, or
# they show success or failure.
TRUTH, LOG = jnp.array([1.0, 1.0, 0.0, 0.0]), jnp.array([0, 1, 2, 0])
SUCCESS, COST = 0.8, 0.3  # the cost of what is not varied
GRID = np.linspace(0, 1, 21)
BAND = 0.05
RATIONALITY, LABELS = 4.0, 4096
WORLD = rj.worlds.bandit(TRUTH, features=jnp.eye(4))


def learnt(key: jax.Array, believed: jax.Array, observed: bool) -> jax.Array:
    """What a reward model learns of the outcomes, from people who see them or only the log."""
    belief, start = jnp.stack([believed, 1.0, 0.0]), jnp.zeros(4)
    sees = rj.humans.boltzmann(WORLD.utility, rationality=RATIONALITY)
    reads = rj.humans.boltzmann(lambda log: belief[log], rationality=RATIONALITY)
    reads = rj.humans.partial_observer(reads, observe=lambda x: LOG[x.tokens[:, 1]])
    human = sees if observed else reads
    found = testbeds.learnt_reward(key, WORLD, human, start, labels=LABELS, l2=1e-5) / RATIONALITY
    return found - found[2]


def behaviour(rewards: jax.Array, believed: jax.Array, hiding: jax.Array, logging: jax.Array):
    """Whether the best policy by these rewards hides, and is verbose; J, J_obs, E+ and E-."""
    costs = {"success": SUCCESS, "hiding": hiding, "logging": logging}
    policy = rj.worlds.value_iteration(rj.worlds.logged_task(rewards, **costs)).policy
    verbose, hides = policy[0].astype(jnp.float32), policy[1].astype(jnp.float32)
    success = SUCCESS * jnp.stack([1 - verbose, verbose])
    chances = jnp.concatenate([success, (1 - SUCCESS) * jnp.stack([1 - hides, hides])])
    lead = jnp.stack([believed, 1.0, 0.0, believed]) - TRUTH
    paid = logging * verbose + hiding * hides * (1 - SUCCESS)
    value = chances @ TRUTH - paid
    over, under = chances @ jnp.maximum(lead, 0), chances @ jnp.maximum(-lead, 0)
    return jnp.stack([hides, verbose, value, value + over - under, over, under])


def measure(keys: jax.Array, fast: bool) -> jax.Array:
    """``[seeds, observed, q, h or c varied, its value, 6]``, of ``behaviour``."""

    def cell(key: jax.Array, believed: jax.Array) -> jax.Array:
        fixed = np.full_like(GRID, COST)
        over = jax.vmap(behaviour, (None, None, 0, 0))
        rewards = [learnt(key, believed, observed) for observed in (False, True)]
        both = [[over(x, believed, *c) for c in ((GRID, fixed), (fixed, GRID))] for x in rewards]
        return jnp.array(both)

    def one_seed(key: jax.Array) -> jax.Array:
        return jax.vmap(cell, out_axes=1)(jax.random.split(key, len(GRID)), GRID)

    return jax.jit(partial(jax.lax.map, one_seed))(keys)


def judge(found: np.ndarray) -> list:
    """What must come out."""
    partly, fully = found[:, 0], found[:, 1]
    leads = GRID[:, None] - GRID, SUCCESS * (1 - GRID[:, None]) - GRID  # of hiding, of verbosity
    clear = [np.abs(lead) > BAND + 1e-6 for lead in leads]
    matches = [
        (partly[:, :, place, :, place] == (leads[place] > 0))[:, clear[place]].mean(axis=1)
        for place in (0, 1)
    ]
    inflated = (partly[:, :, 0, :, 4] * partly[:, :, 0, :, 0]).mean(axis=(1, 2))
    lost, none = (SUCCESS - x[..., 2].mean(axis=(1, 2, 3)) for x in (partly, fully))
    rows = [*matches, lost, inflated, none]
    hides, verbose, lost, inflated, none = intervals(np.stack(rows, axis=1))
    return [
        at_least("hides iff q > h: >= 95% of cells clear of it by .05", hides, 0.95, null=0.5),
        at_least("verbose iff p(1 - q) > c: >= 95% of cells", verbose, 0.95, null=0.5),
        at_least("people who see a log: true J falls short of J*", lost, 0),
        at_least("and hiding makes them overestimate it, E+ > 0", inflated, 0),
        nothing("control, people who see what happened: J = J* +- .01", none, tolerance=0.01),
    ]


def plot(axes, found: np.ndarray) -> None:
    """The phases, and what is believed against what is true."""
    left, right = axes
    blue, orange, *_, grey = rj.report.COLOURS
    shares = found[:, 0, :, 0, :, 0].mean(axis=0)
    left.pcolormesh(GRID, GRID, shares.T, cmap="Blues", vmin=0, vmax=1.5)
    left.plot(GRID, GRID, "--", color=grey, label="h = q")
    verbose = found[:, 0, :, 1, :, 1].mean(axis=0)
    left.contourf(GRID, GRID, verbose.T, [0.5, 1.1], colors="none", hatches=["///"])
    left.plot(GRID, SUCCESS * (1 - GRID), ":", color=orange, label="c = p (1 - q)")
    left.set(xlabel="q, belief in success at an empty log", ylabel="cost, h or c")
    left.set_title("hides failures (blue); verbose (hatched)", fontsize=9)
    left.legend(fontsize=8, loc="center right")
    place = int(np.argmin(np.abs(GRID - COST)))
    rows = found[:, 0, :, 0, place].mean(axis=0)
    right.plot(GRID, rows[:, 3], color=orange, label="J_obs, as people see it")
    right.plot(GRID, rows[:, 2], color=blue, label="J, in truth")
    seen = found[:, 1, :, 0, place, 2].mean(axis=0)
    right.plot(GRID, seen, "--", color=grey, label="J, where people see what happened")
    right.set(xlabel="q, belief in success at an empty log", ylabel=f"value (h = c = {COST})")


CHALLENGE = challenge("partial-observability", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
