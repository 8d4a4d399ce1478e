"""3.1.2, simple mistakes (tractable): people err, and errors cost labels.

A finite bandit with features; people compare its answers and turn some of what they say round. How
many labels until the reward model is right about 90% of pairs, against what information theory
says, 1 / (1 - 2 e)^2 times as many; and what a vote of nine restores.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import protocol
import testbeds
from protocol import at_least, challenge, interval, intervals, main, near

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs

ANSWERS, FEATURES, SCALE = 512, 10, 0.1  # of small margins: a comparison says little
RATES = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
LABELS = 2 ** np.arange(9, 17)
WANTED, VOTERS, VOTE_RATE = 0.9, 9, 0.25


def accuracies(key: jax.Array, rate: jax.Array) -> jax.Array:
    """Of all pairs of answers, the share that reward models of so many labels get right."""
    keys = jax.random.split(key, 4)
    features = jax.random.normal(keys[0], (ANSWERS, FEATURES))
    wanted = jax.random.normal(keys[1], (FEATURES,))
    world = rj.worlds.bandit(SCALE * features @ wanted, features=features)
    human = rj.humans.with_mistakes(rj.humans.boltzmann(world.utility), rate=rate)
    pairs = world.pairs(LABELS[-1])(keys[2], world.reference, ())
    batch = rj.feedback.to_batch(pairs, human(keys[3], pairs))

    def more(reward: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A reward model of more labels, fitted from that of fewer on."""
        asked = batch.replace(weight=jnp.arange(LABELS[-1]) < count)
        reward = testbeds.fitted(world, asked, reward, steps=4)
        return reward, rj.measures.ranking_accuracy(world.rewards(reward), world.utilities)

    return jax.lax.scan(more, jnp.zeros(FEATURES), LABELS)[1]


def votes(key: jax.Array) -> jax.Array:
    """How often one who errs is right, and how often most of nine such are."""
    pairs = Pairs(jnp.ones(20_000), jnp.zeros(20_000))
    human = rj.humans.with_mistakes(rj.humans.oracle(lambda x: x), rate=VOTE_RATE)
    answers = jax.vmap(human, (0, None))(jax.random.split(key, VOTERS), pairs)
    most = rj.feedback.majority(answers)
    return jnp.stack([answers.preference[0].mean(), most.preference.mean()])


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Accuracy ``[seeds, rates, labels]``, and the votes' ``[seeds, 2]``."""
    over_rates = jax.vmap(accuracies, (None, 0))

    def one_seed(key: jax.Array) -> dict[str, jax.Array]:
        return {"accuracy": over_rates(key, RATES), "votes": votes(key)}

    return protocol.over_seeds(one_seed, keys)


def needed(accuracy: np.ndarray) -> np.ndarray:
    """Log of the labels at which the mean accuracy ``[..., labels]`` reaches what is wanted."""
    rising = jnp.maximum.accumulate(accuracy, axis=-1)
    crossed = jnp.vectorize(partial(jnp.interp, WANTED), signature="(n),(n)->()")
    return crossed(rising, jnp.broadcast_to(jnp.log(LABELS), rising.shape))


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    less = -2 * jnp.log(1 - 2 * RATES)

    def of_mean(accuracy: jax.Array) -> jax.Array:
        return protocol.line(less, needed(accuracy.mean(axis=0)))

    rise, explained = intervals(found["accuracy"], of_mean)
    one, nine = (interval(x) for x in found["votes"].T)
    return [
        near("log labels rise by 1 +- .25 a unit of -2 log(1 - 2e)", rise, 1, 0.25, null=0),
        at_least("and that explains R2 >= .9 of them", explained, 0.9),
        near("one who errs in a quarter is right in .75", one, 0.75, 0.01),
        near("most of nine such are right in .951", nine, 0.951, 0.01, null=0.75),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Accuracy by labels, and the labels needed by how often people err."""
    left, right = axes
    rows = zip(rj.report.COLOURS, RATES, found["accuracy"].swapaxes(0, 1), strict=False)
    for colour, rate, accuracy in rows:
        protocol.band(left, LABELS, accuracy, "-", color=colour, label=f"{rate:.0%} wrong")
    left.axhline(WANTED, color="#666666", ls=":")
    left.set(xscale="log", xlabel="labels", ylabel="pairs in the true order")
    labels = np.exp(needed(found["accuracy"].mean(axis=0)))
    right.plot(RATES, labels, "o", color=rj.report.COLOURS[0], label="measured")
    right.plot(RATES, labels[0] / (1 - 2 * RATES) ** 2, ":", color="#666666", label="1 / (1 - 2e)²")
    right.set(yscale="log", xlabel="share of answers turned round", ylabel="labels to 90%")


CHALLENGE = challenge("simple-mistakes", measure, judge, plot, fast_seeds=4)

if __name__ == "__main__":
    main(CHALLENGE)
