"""3.2.1, values that are no reward (fundamental): what people want need not be any reward function.

In the limit of infinitely many comparisons, the divergence that the best of all Bradley-Terry
models cannot avoid: of preferences that go round in a circle, P = s(base + k * circle), where a
small circle of no base has k^2 / 8; of people in two minds, for a reason that nobody records; and
of wishes that change with time. A model of pairs, which knows of no reward, avoids the first.
"""

import jax
import jax.numpy as jnp
import numpy as np
import protocol
from protocol import at_least, at_most, challenge, interval, main, near, nothing

import rlhf_jax as rj

KAPPAS = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
SIZES = (3, 9, 27)
LABELS = 2 ** np.arange(12, 19)
ANSWERS, SPREAD, TIMES, STEP = 9, 1.0, 8, 0.5


def circle(count: int) -> np.ndarray:
    """Rock, paper, scissors of an odd number of answers: each beats the half that comes after."""
    ahead = (np.arange(count) - np.arange(count)[:, None]) % count
    return np.where(ahead == 0, 0.0, np.where(ahead <= count // 2, 1.0, -1.0))


def divergence(truth: jax.Array, said: jax.Array) -> jax.Array:
    """Of what is said of pairs from what is true, in nats a comparison."""
    count = truth.shape[-1]
    terms = jax.scipy.special.xlogy(truth, truth) - jax.scipy.special.xlogy(truth, said)
    return 2 * jnp.sum(terms, axis=(-2, -1)) / (count * (count - 1))


def excess(truth: jax.Array) -> jax.Array:
    """Of the best Bradley-Terry model for all moments ``[T, N, N]`` together, or for one."""
    moments = truth.reshape(-1, *truth.shape[-2:])
    best = rj.worlds.fit_bradley_terry(moments.mean(axis=0)).strengths
    return divergence(moments, rj.worlds.bradley_terry_preferences(best)).mean()


def one_seed(key: jax.Array) -> dict[str, jax.Array]:
    """All measurements of one seed."""
    keys = jax.random.split(key, 5)
    base = SPREAD * jax.random.normal(keys[0], (ANSWERS,))
    leads = base[:, None] - base
    minds = 2 * SPREAD * jax.random.normal(keys[1], (2, ANSWERS))
    drift = jnp.cumsum(STEP * jax.random.normal(keys[2], (TIMES, ANSWERS)), axis=0)
    table = jax.nn.sigmoid(KAPPAS[-1] * circle(3))
    world = rj.worlds.bandit(jnp.zeros(3))
    human = rj.humans.preferring(lambda a, b: table[a.tokens[:, 1], b.tokens[:, 1]])
    pairs = world.pairs(int(LABELS[-1]))(keys[3], world.reference, ())
    answers = human(keys[4], pairs).preference
    first, second = pairs.first.tokens[:, 1], pairs.second.tokens[:, 1]

    def learnt(labels: jax.Array) -> jax.Array:
        asked = jnp.arange(len(answers)) < labels
        wins = jnp.zeros((3, 3)).at[first, second].add(asked * answers)
        wins = wins.at[second, first].add(asked * (1 - answers))
        fit = rj.worlds.fit_bradley_terry(wins).strengths
        by_pair = wins / (wins + wins.T)
        said = jnp.stack([rj.worlds.bradley_terry_preferences(fit), by_pair])
        return divergence(jnp.broadcast_to(table, said.shape), said)

    def going_round(leads: jax.Array | float, count: int) -> jax.Array:
        return jax.vmap(lambda k: excess(jax.nn.sigmoid(leads + k * circle(count))))(KAPPAS)

    people = jax.vmap(rj.worlds.bradley_terry_preferences)  # of several rewards
    return {
        "circles": jnp.stack([going_round(0.0, count) for count in SIZES]),
        "based": going_round(leads, ANSWERS),
        "minds": jax.vmap(lambda x: excess(people(x).mean(0)))(
            jnp.stack([minds, minds[np.array([0, 0])]])
        ),
        "drift": jax.vmap(lambda x: excess(people(base + x)))(jnp.stack([drift, 0 * drift])),
        "labels": jax.lax.map(learnt, LABELS).T,  # [reward or pairs, labels]
    }


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """What ``one_seed`` finds, of all seeds."""
    return protocol.over_seeds(one_seed, keys)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    three, based = found["circles"][:, 0, 2], found["based"]
    relative = (found["circles"][..., 1:] / (KAPPAS[1:] ** 2 / 8)).reshape(len(three), -1)
    farthest = relative[:, np.argmax(np.abs(relative.mean(0) - 1))]
    (early, late), by_pair = found["labels"][:, 0, [-3, -1]].T, found["labels"][:, 1, -1]
    (minds, mind), (drift, still) = found["minds"].T, found["drift"].T
    fourfold = interval(np.stack([early, late], axis=1), lambda x: x[:, 1].mean() / x[:, 0].mean())
    theory, more = 0.004975, "k = .1 to .4, 3 to 27 answers: k^2 / 8 +- 2%"
    return [
        near("circle, k = .2: .004975 nats +- 2%", interval(three), theory, 0.02 * theory, null=0),
        near(f"{more} (farthest)", interval(farthest), 1, 0.02, null=0),
        near("fitted to labels, 4 times as many: the same +- 2%", fourfold, 1, 0.02, null=0.25),
        at_most("a model of pairs: <= 1% of it", interval(by_pair / late), 0.01, null=1.0),
        at_least("a circle on a base of rewards: > 0", interval(based[:, -1]), 0.0),
        at_least("people in two minds: > 0", interval(minds), 0.0),
        at_least("wishes that drift: > 0", interval(drift), 0.0),
        nothing("no circle: 0 (+- 1e-5)", interval(based[:, 0]), tolerance=1e-5),
        nothing("people in one mind: 0 (+- 1e-5)", interval(mind), tolerance=1e-5),
        nothing("no drift: 0 (+- 1e-5)", interval(still), tolerance=1e-5),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """The excess by how strong the circle is, and by labels."""
    left, right = axes
    blue, orange, green = rj.report.COLOURS[:3]
    k = np.linspace(0, KAPPAS[-1])
    left.plot(k, k**2 / 8, ":", color="#666666", label="k² / 8")
    left.plot(KAPPAS, found["circles"][:, 0].mean(0), "o", color=blue, label="circle of 3")
    left.plot(KAPPAS, found["based"].mean(0), "s", color=green, label="9 answers of some worth")
    left.set(xlabel="strength k of the circle", ylabel="nats lost by the best reward")
    reward, by_pair = found["labels"].mean(axis=0)
    right.plot(LABELS, reward, "o-", color=blue, label="a reward")
    right.plot(LABELS, by_pair, "o-", color=orange, label="a model of pairs")
    right.set(xscale="log", yscale="log", xlabel="labels", ylabel="nats from the truth, k = .4")


CHALLENGE = challenge("values-not-a-reward", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
