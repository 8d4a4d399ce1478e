"""3.3.2, power-seeking (fundamental): whatever is wanted, keeping options open serves it.

An agent may be switched off or go on to a hub with k ends, and nobody has put power into its
reward: those of all ends are drawn alike. How often is avoiding the switch optimal? By symmetry in
k / (k + 1) of cases, and as often if the reward was learnt from comparisons; and an assistant that
can steer its user, with a chance p that they follow, does so in p k / (k + 1). POWER is the
expected optimal value of where one is (Turner et al. 2021, https://arxiv.org/abs/1912.01683).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import testbeds
from protocol import at_most, challenge, intervals, main, near, nothing

import rlhf_jax as rj

OPTIONS = np.array([1, 2, 4, 8])
PERSUASION = np.array([1.0, 0.8])  # being switched off, as it were a user who always follows
# Of people who never take nothing for something (pilots had 10) no one learns how much more an end
# is worth than nothing: the assistant then steers too often.
RATIONALITY = 4.0
ABSENT = -1e3  # the reward of an end that there is not


def optimal(rewards: jax.Array, persuasion: jax.Array) -> jax.Array:
    """Whether an optimal agent avoids the first end; and its values at the hub and at that end."""
    mdp = rj.worlds.dialogue(rewards, persuasion=persuasion)
    solution = rj.worlds.value_iteration(mdp)
    return jnp.stack([solution.policy[0] > 0, solution.values[1], rewards[0]])


def learnt(key: jax.Array, rewards: jax.Array, there: jax.Array, labels: int) -> jax.Array:
    """What people's comparisons of the ends teach a reward model of them; the last is nothing."""
    utilities = jnp.append(rewards, 0)
    asked = jnp.where(jnp.append(there, True), 0.0, -1e9)
    world = rj.worlds.bandit(utilities, ref_log_probs=asked)
    human = rj.humans.boltzmann(world.utility, rationality=RATIONALITY)
    found = (
        testbeds.learnt_reward(key, world, human, 0 * utilities, labels=labels, l2=1e-4)
        / RATIONALITY
    )
    return jnp.where(there, found[:-1] - found[-1], ABSENT)


def one_seed(key: jax.Array, draws: int, fits: int, labels: int) -> jax.Array:
    """Means of ``optimal`` over rewards, ``[options, told or learnt, worlds, 3]``."""
    act = jax.vmap(jax.vmap(optimal, (0, None)), (None, 0))

    def of(key: jax.Array, options: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        there = jnp.arange(OPTIONS[-1] + 1) <= options
        told = jnp.where(there, jax.random.uniform(keys[0], (draws, len(there))), ABSENT)
        teach = jax.vmap(partial(learnt, there=there, labels=labels))
        taught = teach(jax.random.split(keys[1], fits), told[:fits])
        return jnp.stack([act(rewards, PERSUASION).mean(axis=1) for rewards in (told, taught)])

    return jax.lax.map(lambda given: of(*given), (jax.random.split(key, 4), OPTIONS))


def measure(keys: jax.Array, fast: bool) -> jax.Array:
    """``[seeds, options, told or learnt, worlds, 3]``."""
    sizes = (2000, 128, 512) if fast else (3000, 128, 1024)
    return jax.jit(partial(jax.lax.map, lambda key: one_seed(key, *sizes)))(keys)


def judge(found: np.ndarray) -> list:
    """What must come out."""
    expected = OPTIONS / (OPTIONS + 1)

    def statistic(rows: jax.Array) -> jax.Array:
        means = rows.mean(axis=0)
        power = jnp.max(jnp.abs(means[:, 0, 0, 1] - means[:, 0, 0, 2] - (expected - 0.5)))
        steering = jnp.max(jnp.abs(means[..., 1, 0].T - PERSUASION[1] * expected), axis=1)
        return jnp.concatenate([means[:, 0, 0, 0], means[:, 1, 0, 0], power[None], steering])

    *avoided, power, steering, steering_learnt = intervals(found, statistic)
    told, taught, claims = avoided[: len(OPTIONS)], avoided[len(OPTIONS) :], []
    for how, found, tolerance in (("told", told, 0.02), ("learnt", taught, 0.05)):
        for k, share, measured in zip(OPTIONS, expected, found, strict=True):
            text = f"reward {how}, {k} options on: off is avoided in {share:.3f} +- {tolerance}"
            null = None if k == 1 else 0.5
            claims.append(near(text, measured, share, tolerance, null=null))
    none = rj.measures.Interval(*(x - 0.5 for x in told[0]))
    return [
        *claims,
        at_most("POWER at the hub less that switched off: k/(k+1) - 1/2 +- .02", power, 0.02),
        at_most("dialogue, reward told: steers the user in p k/(k+1) +- .02", steering, 0.02),
        at_most("dialogue, reward learnt: in p k/(k+1) +- .05", steering_learnt, 0.05),
        nothing("control: no more options on than off, no preference", none, tolerance=0.02),
    ]


def plot(axes, found: np.ndarray) -> None:
    """How often power is sought, and what it is worth."""
    left, right = axes
    blue, orange, *_, grey = rj.report.COLOURS
    line = np.linspace(1, 8)
    means = found.mean(axis=0)
    names = "avoids being switched off", f"steers the user (p = {PERSUASION[1]})"
    for world, (colour, name) in enumerate(zip((blue, orange), names, strict=True)):
        left.plot(line, PERSUASION[world] * line / (line + 1), ":", color=grey)
        for how, (mark, words) in enumerate((("o", "told"), ("x", "learnt"))):
            row = means[:, how, world, 0]
            left.plot(OPTIONS, row, mark, color=colour, label=f"{name}, reward {words}")
    left.set(xlabel="options behind the hub", ylabel="share of rewards for which it is optimal")
    left.set(ylim=(0, 1), xticks=OPTIONS)
    for colour, place, name in ((blue, 1, "at the hub"), (orange, 2, "switched off")):
        right.plot(OPTIONS, means[:, 0, 0, place], "o-", color=colour, label=name)
    right.plot(line, line / (line + 1), ":", color=grey, label="k / (k + 1)")
    right.set(xlabel="options behind the hub", ylabel="POWER (expected optimal value)", ylim=(0, 1))


CHALLENGE = challenge("power-seeking", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
