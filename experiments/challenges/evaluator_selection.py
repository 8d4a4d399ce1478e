"""3.1.1, the selection of evaluators (tractable): those who are asked decide what is learnt.

A finite bandit and a population of groups with wishes of their own. Who is asked is drawn with
``q_g exp(lambda agreement)``: the more lambda, the more they are like the researcher. The gap is
what the population loses if the policy is trained on those and not on a fair sample of it.

And real people: reward models of film reviews, by a fifth of the raters, kept by how high they rate
(half of the sentences say who, the other half what is learnt), should shift by the bias of those
kept. By the bias alone they do not: those kept rated other sentences, and a model that reads little
out of a text shifts with these too. So it is proposed to keep them from among the raters of the
same sentences. (Of one crowd 82% were white, of those hired 68%; Santurkar et al. 2023 found
text-davinci-003 near 99% in approval of one politician.)
"""

import films
import jax
import jax.numpy as jnp
import numpy as np
import protocol
import testbeds
from protocol import at_least, challenge, interval, main, near, nothing

import rlhf_jax as rj

SHARES = np.array([0.1, 0.18, 0.18, 0.18, 0.18, 0.18])  # the researcher is of the first group
SELECTION = np.array([0.0, 1.0, 2.0, 4.0])
FEATURES, DIFFERENCE, DRAWS = 16, 1.5, 64  # best of 64: all policies are as far away
WORLDS = 8  # a seed's gaps are means of theirs
WIDTH = 256


def gaps(key: jax.Array, answers: int, labels: int) -> dict[str, jax.Array]:
    """What the population and its worst-off group lose, ``[selections]``, in SD of utility."""
    keys = jax.random.split(key, 5)
    features = jax.random.normal(keys[0], (answers, FEATURES))
    apart = jax.random.normal(keys[1], (len(SHARES), FEATURES)) / np.sqrt(FEATURES)
    common = jax.random.normal(keys[2], (FEATURES,))
    wishes = common / jnp.linalg.norm(common) + DIFFERENCE * apart
    groups = wishes @ features.T
    world = rj.worlds.bandit(SHARES @ groups, features=features)
    directions = wishes / jnp.linalg.norm(wishes, axis=1, keepdims=True)
    agreement = directions @ directions[0]
    members = [rj.humans.boltzmann(lambda s, u=u: u[s.tokens[:, 1]]) for u in groups]

    def optimised(key: jax.Array, selection: jax.Array) -> jax.Array:
        """The policy of those who were selected, as log-probabilities."""
        human = rj.humans.population(members, weights=SHARES * jnp.exp(selection * agreement))
        reward = testbeds.learnt_reward(key, world, human, jnp.zeros(FEATURES), labels=labels)
        return rj.measures.best_of_n_policy(world.reference, world.rewards(reward), DRAWS)

    # The fair sample is another one than that of lambda = 0, which has to come out alike.
    samples = jnp.append(keys[4], jax.random.split(keys[3], len(SELECTION)))
    policies = jax.vmap(optimised)(samples, jnp.append(0.0, SELECTION))
    gold = protocol.standard(jnp.concatenate([world.utilities[None], groups]))
    utility = jnp.exp(policies) @ gold.T
    everybody, worst = utility[:, 0], utility[:, 1:].min(axis=1)
    return {"gap": everybody[0] - everybody[1:], "worst": worst[0] - worst[1:]}


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Gaps ``[seeds, selections]``, and of films ``[seeds, raters kept, shift and bias]``."""
    features, *ratings, rest = films.load(64 if fast else WIDTH)
    sizes = (1024, 2048) if fast else (4096, 8192)

    def one(key: jax.Array, *real: jax.Array) -> dict[str, jax.Array]:
        worlds = jax.lax.map(lambda key: gaps(key, *sizes), jax.random.split(key, WORLDS))
        return jax.tree.map(lambda x: x.mean(axis=0), worlds) | {"films": films.shifts(key, *real)}

    return protocol.over_seeds(one, keys, features, (*ratings, rest.batch))


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    gap, real, n = found["gap"], found["films"], films.FIFTHS
    off = np.abs(real[..., 0] - real[..., 1])
    alike, of_all = off[:, :n].max(axis=1), off[:, n : 2 * n].max(axis=1)
    spread = real[:, n - 1, 0] - real[:, 0, 0]
    return [
        near("no selection: the gap is 0 +- .02", interval(gap[:, 0]), 0, 0.02),
        at_least("the gap rises with lambda", interval(protocol.slope(SELECTION, gap)), 0),
        at_least(
            "and keeps its order, rho >= .9", interval(protocol.spearman(gap, SELECTION)), 0.9
        ),
        near("films, by bias: shift less bias, +- .1, at worst", interval(of_all), 0, 0.1),
        near("proposed: by bias among a sentence's raters, the same", interval(alike), 0, 0.1),
        at_least("films: from the lowest fifth to the highest", interval(spread), 0),
        nothing("a fifth by chance: no shift (.02)", interval(real[:, -1, 0]), tolerance=0.02),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """What selection costs, and how far models go with those who are kept."""
    left, right = axes
    blue, orange, *_ = rj.report.COLOURS
    protocol.band(left, SELECTION, found["gap"], color=blue, label="everybody")
    protocol.band(left, SELECTION, found["worst"], color=orange, label="the worst-off group")
    left.axhline(0, color="#666666", lw=0.5)
    left.set(xlabel="λ, how like the researcher those asked are", ylabel="lost utility, in SD")
    shift, bias = np.moveaxis(found["films"], 2, 0)
    kept = {"fifths of each sentence's": (0, 5), "fifths of all": (5, 10), "by chance": (10, 11)}
    for colour, (words, (n, m)) in zip(rj.report.COLOURS, kept.items(), strict=False):
        right.plot(bias[:, n:m].ravel(), shift[:, n:m].ravel(), ".", color=colour, label=words)
    right.axline((0, 0), slope=1, ls=":", color="#666666")
    right.set(xlabel="bias of the raters kept, points", ylabel="shift of the reward model")


CHALLENGE = challenge("evaluator-selection", measure, judge, plot, fast_seeds=4)

if __name__ == "__main__":
    main(CHALLENGE)
