"""3.1.3, biased collection (tractable): a reward model is right where its data are from.

Real people's ratings of four kinds of text: a reward model of each kind, of as many texts, judged
on each kind; the control draws the four groups from all kinds alike. And a finite bandit whose
answers are asked about with density ``exp(-s x)`` of one feature (their length, say, of which the
first is welcome and the last is not): where questions are about short answers it is learnt that
longer is better, and what is deployed pays for that. (Singhal et al. 2023: length explains 70 to
90% of the gain of PPO.)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import protocol
import testbeds
from protocol import at_least, challenge, interval, main, nothing, slope

import rlhf_jax as rj

SHIFTS = np.array([0.0, 0.5, 1.0, 1.5])
FEATURES, SURFEIT, DRAWS = 4, 0.6, 64  # best of 64
DOMAINS = ("products", "films", "editorials", "tweets")
LEARNT, JUDGED, WIDTH = 3000, 700, 512


def regrets(key: jax.Array, answers: int, labels: int) -> jax.Array:
    """What is lost by having asked about other answers, ``[shifts]``, in SD of utility."""
    keys = jax.random.split(key, 3)
    features = jax.random.normal(keys[0], (answers, FEATURES))
    length = features[:, 0]
    welcome = features.sum(axis=1) - SURFEIT * jnp.square(length) / 2
    world = rj.worlds.bandit(welcome, features=features)
    gold, human = protocol.standard(world.utilities), rj.humans.boltzmann(world.utility)

    def deployed(key: jax.Array, shift: jax.Array) -> jax.Array:
        asked, said = jax.random.split(key)
        pairs = world.pairs(labels)(asked, -shift * length, ())
        batch = rj.feedback.to_batch(pairs, human(said, pairs))
        rewards = world.rewards(testbeds.fitted(world, batch, jnp.zeros(FEATURES)))
        return jnp.exp(rj.measures.best_of_n_policy(world.reference, rewards, DRAWS)) @ gold

    # What is asked about as deployed is another sample than that of no shift.
    samples = jnp.append(keys[1], jax.random.split(keys[2], len(SHIFTS)))
    utility = jax.vmap(deployed)(samples, jnp.append(0.0, SHIFTS))
    return utility[0] - utility[1:]


def accuracies(key: jax.Array, features: jax.Array, means: jax.Array, kind: jax.Array) -> jax.Array:
    """Of pairs in the raters' order, ``[learnt from, judged on]``."""
    # The texts of each kind in an order of chance.
    order = jnp.argsort(kind + jax.random.uniform(key, kind.shape))
    first = jnp.searchsorted(kind[order], jnp.arange(len(DOMAINS)))
    rows = order[first[:, None] + jnp.arange(LEARNT + JUDGED)]
    fit = partial(rj.worlds.ridge, l2=10.0)
    params = jax.lax.map(lambda rows: fit(features[rows], means[rows]), rows[:, :LEARNT])

    def judged(rows: jax.Array) -> jax.Array:
        accuracy = partial(rj.measures.ranking_accuracy, truth=means[rows])
        return jax.vmap(accuracy)(params @ features[rows].T)

    return jax.lax.map(judged, rows[:, LEARNT:]).T


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Regret ``[seeds, shifts]``, accuracy ``[seeds, real or control, learnt from, judged on]``."""
    ratings = rj.data.load_ratings()
    features = rj.worlds.text_features(ratings.texts, width=128 if fast else WIDTH)
    answers = 1024 if fast else 4096

    def one(key: jax.Array, features: jax.Array, means: jax.Array, kind: jax.Array) -> dict:
        mixed = jax.random.permutation(jax.random.fold_in(key, 2), kind)
        of = partial(accuracies, jax.random.fold_in(key, 1), features, means)
        cells = jax.lax.map(of, jnp.stack([kind, mixed]))
        return {"regret": regrets(key, answers, labels=4096), "accuracy": cells}

    return protocol.over_seeds(one, keys, features, ratings.mean, ratings.domain)


def gap(accuracy: np.ndarray) -> np.ndarray:
    """The own kind's model less another kind's, where that one is judged; 0 on the diagonal."""
    return np.diagonal(accuracy, axis1=-2, axis2=-1)[..., None, :] - accuracy


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    real, mixed = np.moveaxis(gap(found["accuracy"]), 1, 0)
    cells = len(DOMAINS) * (len(DOMAINS) - 1)
    better = interval(real, lambda gaps: jnp.sum(gaps.mean(axis=0) > 0))
    regret = found["regret"]
    return [
        at_least("the own kind's model is better in 10 of 12 cells", better, 10, null=6),
        at_least("and in the mean", interval(real.sum(axis=(1, 2)) / cells), 0),
        nothing("kinds mixed: it is not", interval(mixed.sum(axis=(1, 2)) / cells), tolerance=0.01),
        at_least("regret rises with the shift s", interval(slope(SHIFTS, regret)), 0),
        nothing("s = 0: no regret (.02)", interval(regret[:, 0]), tolerance=0.02),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """The table of accuracies, and regret by shift."""
    left, right = axes
    cells = found["accuracy"][:, 0].mean(axis=0)
    left.imshow(cells, cmap="Blues", vmin=0.5, vmax=cells.max() + 0.1)
    for (row, column), accuracy in np.ndenumerate(cells):
        left.text(column, row, f"{accuracy:.2f}", ha="center", va="center", fontsize=9)
    left.set(xticks=range(4), yticks=range(4), xticklabels=DOMAINS, yticklabels=DOMAINS)
    left.set(xlabel="judged on", ylabel="learnt from", title="pairs in the raters' order")
    protocol.band(right, SHIFTS, found["regret"], color=rj.report.COLOURS[1])
    right.axhline(0, color="#666666", lw=0.5)
    right.set(xlabel="s, how much shorter the answers asked about are")
    right.set(ylabel="regret where deployed, SD of utility")


CHALLENGE = challenge("data-collection-bias", measure, judge, plot, fast_seeds=4)

if __name__ == "__main__":
    main(CHALLENGE)
