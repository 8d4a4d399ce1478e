"""3.1.3, cost against quality (fundamental): care costs, and so do answers without it.

A finite bandit with features; people compare its answers with an effort e, err with probability
``exp(-e) / 2`` and cost ``c0 + e``. A budget buys many careless answers or a few careful ones, and
what it tells is ``I = B (1 - 2 eps)^2 / (c0 + e)``, which is largest in between: the dearer an
answer is to begin with, the more care is worth. The same trade with real people: a budget of
ratings of film reviews, for many sentences by one rater each or for fewer by several.
"""

import films
import jax
import jax.numpy as jnp
import numpy as np
import protocol
import testbeds
from protocol import at_least, challenge, interval, intervals, main, near

import rlhf_jax as rj

ANSWERS, FEATURES, SCALE = 512, 16, 0.15  # of small margins, as in simple_mistakes.py
BASE, BEST = np.array([0.1, 1.0, 5.0]), np.array([1.37, 1.92, 2.81])  # e* of theory
EFFORTS = 2 ** (np.arange(11) / 2 - 2)  # a cell is a factor of the root of 2
BUDGET = 1400.0
RATERS, RATINGS, WIDTH = np.array([1, 2, 4, 8, 14]), 8000, 256


def accuracies(key: jax.Array) -> jax.Array:
    """Of pairs in the true order, ``[base costs, efforts]``, each for the same budget."""
    keys = jax.random.split(key, 4)
    features = jax.random.normal(keys[0], (ANSWERS, FEATURES))
    wanted = jax.random.normal(keys[1], (FEATURES,))
    world = rj.worlds.bandit(SCALE * features @ wanted, features=features)
    most = int(BUDGET / (BASE[0] + EFFORTS[0]))
    first, second = jax.random.randint(keys[2], (2, most), 0, ANSWERS)
    pairs = rj.feedback.Pairs(world.answers(first), world.answers(second))

    def accuracy(base: jax.Array, effort: jax.Array) -> jax.Array:
        human = rj.humans.boltzmann(world.utility)
        human = rj.humans.with_effort(human, effort=effort, base_cost=base)
        human = rj.humans.budgeted(human, budget=BUDGET)
        batch = rj.feedback.to_batch(pairs, human(keys[3], pairs))
        reward = testbeds.fitted(world, batch, jnp.zeros(FEATURES), steps=6)
        return rj.measures.ranking_accuracy(world.rewards(reward), world.utilities)

    return jax.vmap(jax.vmap(accuracy, (None, 0)), (0, None))(BASE, EFFORTS)


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Accuracy ``[seeds, base costs, efforts]``, and of films ``[seeds, raters]``."""
    features, ratings, there, rest = films.load(64 if fast else WIDTH)

    def one(key: jax.Array, *real: jax.Array) -> dict[str, jax.Array]:
        worlds = jax.random.split(key, 4)  # a seed's accuracy is the mean of theirs
        found = jax.lax.map(accuracies, worlds).mean(axis=0)
        return {
            "accuracy": found,
            "films": films.by_raters(key, *real, raters=RATERS, budget=RATINGS),
        }

    return protocol.over_seeds(one, keys, features, ratings, there, rest.mean)


def peaks(accuracy: jax.Array) -> jax.Array:
    """Log of the effort at which a quartic through the accuracies ``[..., efforts]`` peaks."""
    fine = np.linspace(np.log(EFFORTS[0]), np.log(EFFORTS[-1]), 500)
    powers = np.vander(np.log(EFFORTS), 5)
    curve = accuracy @ (np.vander(fine, 5) @ np.linalg.pinv(powers)).T
    return jnp.asarray(fine)[jnp.argmax(curve, axis=-1)]


def information() -> np.ndarray:
    """Logarithm of what the budget tells, ``[base costs, efforts]``."""
    return np.log(BUDGET * (1 - np.exp(-EFFORTS)) ** 2 / (BASE[:, None] + EFFORTS))


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    known = information().reshape(-1)

    def of_mean(accuracy: jax.Array) -> jax.Array:
        mean = accuracy.mean(axis=0)
        best, (_, explained) = peaks(mean), protocol.line(known, mean.reshape(-1))
        cells = 2 * (best - np.log(BEST)) / np.log(2)
        ends = jnp.min(mean.max(axis=1) - jnp.maximum(mean[:, 0], mean[:, -1]))
        return jnp.stack([*cells, ends, explained, best[2] - best[0]])

    *cells, ends, explained, moved = intervals(found["accuracy"], of_mean)
    fewer = interval(-protocol.slope(np.log(RATERS), found["films"]))
    return [
        near(f"c0 = {base:g}: best effort is {best:g}, +- 1 cell; off by, in cells", x, 0, 1)
        for base, best, x in zip(BASE, BEST, cells, strict=True)
    ] + [
        at_least("that is inside: the best cell less the better end", ends, 0),
        at_least("accuracy is linear in log I: R2 >= .9", explained, 0.9),
        at_least("log e* moves, from c0 = .1 to 5", moved, 0),
        at_least("films: each e-fold of raters a sentence costs accuracy", fewer, 0),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Accuracy by effort, with where it should be best, and by what the budget tells."""
    left, right = axes
    mean = found["accuracy"].mean(axis=0)
    for i, (base, best) in enumerate(zip(BASE, BEST, strict=True)):
        colour = rj.report.COLOURS[i]
        words = {"color": colour, "label": f"c0 = {base:g}", "ms": 3}
        protocol.band(left, EFFORTS, found["accuracy"][:, i], **words)
        left.axvline(best, color=colour, ls=":")
        right.plot(np.exp(information()[i]), mean[i], "o", ms=3, color=colour)
    left.set(xscale="log", xlabel="effort e, at the same budget", ylabel="pairs in the true order")
    left.set(xticks=EFFORTS[::2], xticklabels=[f"{effort:g}" for effort in EFFORTS[::2]])
    left.legend(frameon=False, fontsize=8, title="cost c0 + e; dotted: e*", title_fontsize=8)
    right.set(xscale="log", xlabel="I = B (1 - 2 ε)² / (c0 + e)", ylabel=left.get_ylabel())
    right.set(xticks=(ticks := (20, 50, 100, 200, 500)), xticklabels=ticks)
    other = right.twiny()
    pink = rj.report.COLOURS[3]
    other.plot(RATERS, found["films"].mean(axis=0), "s--", ms=3, color=pink)
    other.set(xscale="log", xticks=RATERS, xticklabels=RATERS)
    for axis in (left, right, other):
        axis.minorticks_off()
    other.set_xlabel(f"films: raters a sentence, {RATINGS} ratings in all", color=pink)


CHALLENGE = challenge("cost-quality", measure, judge, plot, fast_seeds=4)

if __name__ == "__main__":
    main(CHALLENGE)
