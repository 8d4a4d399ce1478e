"""3.1.4, rich feedback (fundamental): no form of feedback is the best always.

A finite bandit and a learner who knows how people answer, and keeps the exact posterior over a set
of wishes, one of which is the truth. People compare, rate on a scale whose zero drifts, choose one
of four, correct, or say which way to go; every answer that they read or write costs as much.
Ratings tell most while the scale stands still, and less than comparisons when it drifts. And who
chooses without thinking of some options, while the learner takes all for the choice set (Freedman
et al. 2021), is misunderstood however much they say.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import protocol
from posteriors import Wishes
from protocol import at_least, challenge, interval, main, nothing

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs

DRIFTS = np.array([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])  # of the scale from answer to answer
ANSWERS, FEATURES, OPTIONS = 256, 4, 4
NOISE = 1.28  # of a rating: as noisy as half of a comparison
COSTS = {"comparison": 2, "correction": 2, "language": 2, "label": 4, "rating": 1}  # read, written
BUDGET, LABELS = 96, 2 ** np.arange(3, 10)
UNFAMILIAR = 0.5  # nobody thinks of options that have more than this of the first feature


def learnt(key: jax.Array, *, particles: int) -> dict[str, dict | jax.Array]:
    """The regret of what is learnt from each form, and how many bits it told."""
    keys = iter(jax.random.split(key, 16))
    features = jax.random.normal(next(keys), (ANSWERS, FEATURES))
    wishes = jax.random.normal(next(keys), (particles, FEATURES))  # the first are the truth
    worth, human = wishes @ features.T, rj.humans
    learner = Wishes(worth)

    def utility(answer: jax.Array) -> jax.Array:
        return worth[0][answer]

    def drawn(form: str, *width: int) -> jax.Array:
        return jax.random.randint(next(keys), (BUDGET // COSTS[form], *width), 0, ANSWERS)

    pairs, labelled = drawn("comparison", 2), drawn("label", OPTIONS)
    corrected = drawn("correction", 1 + OPTIONS)  # what is shown, and what there is instead
    prefers = human.boltzmann(utility)(next(keys), Pairs(*pairs.T)).preference
    instead = human.correcting(utility)(next(keys), (corrected[:, 0], corrected[:, 1:])).corrected
    choices = {
        "comparison": (pairs, (prefers < 0.5).astype(jnp.int32)),
        "correction": (corrected, jnp.argmax(corrected == instead[:, None], axis=1)),
        "label": (labelled, human.choosing(utility)(next(keys), labelled).choice),
    }
    likely = {form: learner.of_choices(worth[:, x], said) for form, (x, said) in choices.items()}
    found = {form: learner.judged(told) for form, told in likely.items()}

    ways = jnp.concatenate([jnp.eye(FEATURES), -jnp.eye(FEATURES)])
    critic = human.criticising(lambda x: x @ wishes[0], heeded=lambda x: x[:, None] + ways)
    said = critic(next(keys), features[drawn("language")]).text
    towards = jnp.broadcast_to((wishes @ ways.T)[:, None], (particles, len(said), len(ways)))
    found["language"] = learner.judged(learner.of_choices(towards, said))

    rated, rate_key = drawn("rating"), next(keys)

    def of_ratings(drift: jax.Array) -> tuple[jax.Array, jax.Array]:
        said = human.linear_scale(utility, noise=NOISE, drift=drift)(rate_key, rated).value
        return learner.judged(learner.of_ratings(rated, said, noise=NOISE, drift=drift))

    ratings = jax.lax.map(of_ratings, DRIFTS)

    options = jax.random.randint(next(keys), (LABELS[-1], OPTIONS), 0, ANSWERS)
    label_key = next(keys)

    def of_labels(considered: jax.Array) -> jax.Array:
        """Regret after so many labels, of a learner who takes all options for considered."""
        chooser = human.choosing(utility, considers=lambda numbers: considered[numbers])
        said = chooser(label_key, options)
        likelihood = learner.of_choices(worth[:, options], said.choice, said.answered)
        upto = jnp.arange(LABELS[-1]) < LABELS[:, None]
        return jax.vmap(lambda first: learner.judged(jnp.where(first, likelihood, 0))[0])(upto)

    sets = jnp.stack([jnp.ones(ANSWERS, bool), features[:, 0] <= UNFAMILIAR])
    return {"forms": found, "ratings": ratings, "labels": jax.lax.map(of_labels, sets)}


def measure(keys: jax.Array, fast: bool) -> dict:
    """Regret and bits by form, and by drift; regret of labels ``[seeds, 2, labels]``."""
    worlds, particles = (4, 256) if fast else (8, 512)
    return protocol.over_seeds(partial(learnt, particles=particles), keys, worlds=worlds)


def judge(found: dict) -> list:
    """What must come out."""
    better = found["forms"]["comparison"][0][:, None] - found["ratings"][0]
    complete, lacking = np.moveaxis(found["labels"], 1, 0)
    kept = lacking[:, -1] - lacking[:, -4] / 2
    return [
        at_least("the scale stands still: ratings leave less regret", interval(better[:, 0]), 0),
        at_least("it drifts by 16: comparisons do", interval(-better[:, -1]), 0),
        at_least("unthought-of options: regret after 512 labels", interval(lacking[:, -1]), 0),
        at_least("and more than half of that after 64", interval(kept), 0),
        nothing("all thought of: none after 512 (.02)", interval(complete[:, -1]), tolerance=0.02),
    ]


def plot(axes, found: dict) -> None:
    """Regret by drift against the other forms, and by labels."""
    left, right = axes
    left.plot(DRIFTS, found["ratings"][0].mean(axis=0), "o-", color="black", label="rating")
    for colour, (form, (regret, bits)) in zip(
        rj.report.COLOURS, found["forms"].items(), strict=False
    ):
        words = f"{form}, {bits.mean() / (BUDGET // COSTS[form]):.2f} bits each"
        left.axhline(regret.mean(), color=colour, ls="--", label=words)
    left.set(xlabel="drift of the scale from answer to answer", ylabel="regret, SD of utility")
    left.set(title=f"at the same cost: {BUDGET} answers read or written", ylim=(0, None))
    for i, words in enumerate(("all options thought of", "some are not, the best perhaps")):
        colour = rj.report.COLOURS[i]
        protocol.band(right, LABELS, found["labels"][:, i], color=colour, label=words)
    right.set(xscale="log", xlabel="labels, one of four each", ylabel="regret, SD of utility")


CHALLENGE = challenge("feedback-richness", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
