"""3.3.2, goal misgeneralisation (fundamental): a right reward, and a policy that wants another.

A corridor with a coin, and the coin is all that is rewarded. In training it lies at the far end but
for a share xi of the levels; an agent that learns "go to the end" and one that learns "go to the
coin" are then all but the same. The policy is improved by its exact gradient on the levels drawn;
then the coin may lie anywhere. A small agent after CoinRun (Langosco et al. 2021,
https://arxiv.org/abs/2105.14111).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
from protocol import at_least, at_most, challenge, intervals, main, nothing

import rlhf_jax as rj

CELLS, LEVELS, HORIZON = 7, 500, 14
STEPS, RATE = 200, 3.0
SHARES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
MDP = rj.worlds.corridor(CELLS)
VIEW = rj.worlds.corridor_view(CELLS)
ANYWHERE = np.full(CELLS, 1 / CELLS)


def done(weights: jax.Array, start: jax.Array) -> jax.Array:
    """How often what is done where, ``[S, A]``, within the horizon."""
    policy = jax.nn.softmax(VIEW @ weights)
    return rj.worlds.occupancy(MDP, jnp.broadcast_to(policy, (HORIZON, *policy.shape)), start)


def successes(weights: jax.Array, coins: jax.Array) -> jax.Array:
    """How often the policy takes the coin, and how often it reaches out there or at the end."""
    reached = done(weights, rj.worlds.corridor_start(coins))[:-1, 2].reshape(CELLS, CELLS)
    taken = jnp.trace(reached)
    return jnp.stack([taken, taken + jnp.sum(reached[-1, :-1])])


def one_seed(key: jax.Array) -> dict[str, jax.Array]:
    """For each share: successes in training ``[2]``, in test, and by where the coin lies."""
    keys = jax.random.split(key, 3)
    rare, place = (
        jax.random.uniform(keys[0], (LEVELS,)),
        jax.random.randint(keys[1], (LEVELS,), 0, CELLS),
    )
    weights = 0.1 * jax.random.normal(keys[2], (VIEW.shape[1], 3))
    optimizer = optax.sgd(RATE)

    def trained(share: jax.Array) -> dict[str, jax.Array]:
        coin = jnp.where(rare < share, place, CELLS - 1)
        levels = jnp.bincount(coin, length=CELLS) / LEVELS
        start = rj.worlds.corridor_start(levels)
        loss = lambda weights: -jnp.vdot(done(weights, start), MDP.rewards)  # noqa: E731

        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        (found, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=STEPS)
        by_place = jax.vmap(successes, (None, 0))(found, jnp.eye(CELLS))
        return {"train": levels @ by_place, "test": by_place.mean(axis=0), "places": by_place}

    return jax.vmap(trained)(SHARES)


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """``[seeds, shares, ...]``, of coins taken, and of coins or ends reached."""
    return jax.jit(jax.vmap(one_seed))(keys)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    (goal, able), trained = np.moveaxis(found["test"], -1, 0), found["train"][..., 0]
    rows = [able[:, 0], goal[:, 0] / trained[:, 0], trained[:, -1] - goal[:, -1], *goal.T]

    def statistic(rows: jax.Array) -> jax.Array:
        means = rows.mean(axis=0)
        return jnp.append(means[:3], jnp.min(jnp.diff(means[3:])))

    capable, kept, control, rise = intervals(np.stack(rows, axis=1), statistic)
    return [
        at_least("coin always at the end: able, >= .9 reach coin or end", capable, 0.9),
        at_most("but <= 1/2 as many take the coin as in training", kept, 0.5, null=1),
        at_least("success rises with xi: the least rise between two shares > 0", rise, 0),
        nothing("control, coins anywhere: as good in test as in training", control, tolerance=0.05),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Capability and goal by share of varied levels, and by where the coin lies."""
    left, right = axes
    blue, orange, green, *_, grey = rj.report.COLOURS
    for colour, what, name in ((grey, 1, "reaches coin or end"), (blue, 0, "takes the coin")):
        protocol.band(left, SHARES, found["test"][..., what], color=colour, label=f"test: {name}")
    trained = found["train"][..., 0].mean(axis=0)
    left.plot(SHARES, trained, ":", color=orange, label="training: takes the coin")
    left.set_xscale("symlog", linthresh=0.02)
    left.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
    left.set(xlabel="training levels with the coin anywhere", ylabel="share of levels")
    for colour, share in zip((blue, green, orange), (0, 2, 6), strict=True):
        rows = found["places"][:, share, :, 0].mean(axis=0)
        name = f"varied in {SHARES[share]:.0%}"
        right.plot(np.arange(1, CELLS + 1), rows, "o-", color=colour, label=name)
    right.set(xlabel="cell of the coin (the end is the last)", ylabel="takes the coin")
    for axis in axes:
        axis.set(ylim=(0, 1.05))


CHALLENGE = challenge("goal-misgeneralization", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
