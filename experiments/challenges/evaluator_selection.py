"""3.1.1, the selection of evaluators (tractable): those who are asked decide what is learnt.

A finite bandit and a population of groups with wishes of their own. Who is asked is drawn with
``q_g exp(lambda agreement)``: the more lambda, the more they are like the researcher. The gap is
what the population loses if the policy is trained on those and not on a fair sample of it. The same
with real people: reward models of film reviews by a fifth of each sentence's raters, kept by how
high they rate (half of the sentences say who, the other half what is learnt). The shift of the
model should then be the bias of those who were kept. By the bias alone it is not: they come from
other sentences too, and a model that reads little out of a text shifts with those as well. So it
is proposed to keep them from among the raters of the same sentences. (Of one crowd 82% were white,
of those hired 68%; Santurkar et al. 2023 found text-davinci-003 near 99% in approval of one
politician.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from protocol import Challenge, at_least, interval, main, near, nothing, slope

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs

SHARES = np.array([0.1, 0.18, 0.18, 0.18, 0.18, 0.18])  # the researcher is of the first group
SELECTION = np.array([0.0, 1.0, 2.0, 4.0])
FEATURES, DIFFERENCE, DRAWS, STEPS = 16, 1.5, 64, 8  # best of 64: all policies are as far away
FIFTHS, WIDTH, COLUMNS = 5, 256, 29


def gaps(key: jax.Array, *, answers: int, labels: int) -> dict[str, jax.Array]:
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

    def query(key: jax.Array, policy: jax.Array, reward: jax.Array) -> Pairs:
        return Pairs(*map(world.answers, jax.random.randint(key, (2, labels), 0, answers)))

    def optimised(key: jax.Array, selection: jax.Array) -> jax.Array:
        """The policy of those who were selected, as log-probabilities."""
        asked = SHARES * jnp.exp(selection * agreement)
        human = rj.humans.population(members, weights=asked)
        human_key, pairs = jax.random.fold_in(key, 1), query(key, (), ())
        batch = rj.feedback.to_batch(pairs, human(human_key, pairs))
        fit = world.newton(1e-6)
        state = fit.init(jnp.zeros(FEATURES), key)
        state, _ = jax.lax.scan(lambda s, _: fit.step(s, batch), state, length=STEPS)
        return rj.measures.best_of_n_policy(world.reference, world.rewards(state.params), DRAWS)

    standard = jnp.concatenate([world.utilities[None], groups])
    standard -= standard.mean(axis=1, keepdims=True)
    standard /= standard.std(axis=1, keepdims=True)
    # The fair sample is another one than that of lambda = 0, which has to come out alike.
    samples = jnp.append(keys[4], jax.random.split(keys[3], len(SELECTION)))
    policies = jax.vmap(optimised)(samples, jnp.append(0.0, SELECTION))
    utility = jnp.exp(policies) @ standard.T
    everybody, worst = utility[:, 0], utility[:, 1:].min(axis=1)
    return {"gap": everybody[0] - everybody[1:], "worst": worst[0] - worst[1:]}


def shifts(
    key: jax.Array, features: jax.Array, ratings: jax.Array, mask: jax.Array, batch: jax.Array
) -> jax.Array:
    """The model's shift and the bias of those kept: by fifths of a sentence's raters, of all."""
    keys, batches = jax.random.split(key, 3), len(features) // 30 + 1
    learnt = (jax.random.uniform(keys[0], (batches,)) < 0.7)[batch]
    shown = jax.random.bernoulli(keys[1], 0.5, batch.shape)  # where it is seen who rates high

    def effects(rows: jax.Array) -> rj.measures.RaterEffects:
        return rj.measures.rater_effects(ratings, mask, jnp.where(rows, batch, -1), batches=batches)

    known, later = effects(learnt & shown), effects(learnt & ~shown)
    there = (known.count > 2) & (later.count > 2)

    def fifths(values: jax.Array) -> jax.Array:
        """Of the raters of the same sentences, from the lowest on."""
        place = jnp.argsort(jnp.argsort(jnp.where(there, values, jnp.inf), axis=1), axis=1)
        return jnp.where(there, FIFTHS * place // there.sum(axis=1, keepdims=True), -1)

    fifth = fifths(known.bias)
    chance = fifths(jax.random.uniform(keys[2], there.shape)) == 0
    edges = jnp.linspace(0, 1, FIFTHS + 1)[1:-1]
    edges = jnp.nanquantile(jnp.where(there, known.bias, jnp.nan), edges)
    of_all = jnp.where(there, jnp.searchsorted(edges, known.bias), -1)
    kept = [there, *(who == n for who in (fifth, of_all) for n in range(FIFTHS)), chance]
    rows = mask & (learnt & ~shown)[:, None]

    def model(who: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What it says of unseen sentences in the mean, and the bias of who taught it."""
        theirs = rows & who[batch]
        count = theirs.sum(axis=1)
        said = jnp.sum(ratings * theirs, axis=1) / jnp.maximum(count, 1)
        scores = features @ rj.worlds.ridge(features, said, weight=count, l2=10.0)
        bias = jnp.sum(jnp.where(who, later.bias * later.count, 0)) / count.sum()
        return jnp.sum(scores * ~learnt) / jnp.sum(~learnt), bias

    found = jnp.stack(jax.lax.map(model, jnp.stack(kept)), axis=1)
    return found[1:] - found[0]


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Gaps ``[seeds, selections]``, and of films ``[seeds, raters kept, shift and bias]``."""
    films = rj.data.load_ratings().only("movies")
    features = rj.worlds.text_features(films.texts, width=64 if fast else WIDTH)
    table = (films.ratings[:, :COLUMNS], films.rating_mask[:, :COLUMNS], films.batch)
    sizes = {"answers": 1024, "labels": 2048} if fast else {"answers": 4096, "labels": 8192}

    def one(key: jax.Array, *real: jax.Array) -> dict[str, jax.Array]:
        return gaps(key, **sizes) | {"films": shifts(key, *real)}

    over = jax.jit(lambda keys, *real: jax.lax.map(lambda key: one(key, *real), keys))
    return over(keys, features, *table)


def ordered(gap: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the gaps ``[..., selections]`` with lambda."""
    rank = np.argsort(np.argsort(gap, axis=-1), axis=-1)
    return 1 - 6 * np.square(rank - np.arange(len(SELECTION))).sum(axis=-1) / (
        len(SELECTION) * (len(SELECTION) ** 2 - 1)
    )


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    gap, films = found["gap"], found["films"]
    off = np.abs(films[..., 0] - films[..., 1])
    alike, of_all = (x.max(axis=1) for x in (off[:, :FIFTHS], off[:, FIFTHS : 2 * FIFTHS]))
    spread = films[:, FIFTHS - 1, 0] - films[:, 0, 0]
    return [
        near("no selection: the gap is 0 +- .02", interval(gap[:, 0]), 0, 0.02),
        at_least("the gap rises with lambda", interval(slope(SELECTION, gap)), 0),
        at_least("and keeps its order, rho >= .9", interval(ordered(gap)), 0.9),
        near("films, by bias: shift less bias, +- .1, at worst", interval(of_all), 0, 0.1),
        near("proposed: by bias among a sentence's raters, the same", interval(alike), 0, 0.1),
        at_least("films: from the lowest fifth to the highest", interval(spread), 0),
        nothing("a fifth by chance: no shift (.02)", interval(films[:, -1, 0]), tolerance=0.02),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """What selection costs, and how far models go with those who are kept."""
    left, right = axes
    for i, (name, words) in enumerate({"gap": "everybody", "worst": "the worst-off group"}.items()):
        low, high = np.quantile(found[name], (0.1, 0.9), axis=0)
        colour = rj.report.COLOURS[i]
        left.plot(SELECTION, found[name].mean(axis=0), "o-", color=colour, label=words)
        left.fill_between(SELECTION, low, high, color=colour, alpha=0.15, lw=0)
    left.axhline(0, color="#666666", lw=0.5)
    left.set(xlabel="λ, how like the researcher those asked are", ylabel="lost utility, in SD")
    left.legend(frameon=False, fontsize=8)
    shift, bias = np.moveaxis(found["films"], 2, 0)
    kept = {"fifths of each sentence's": (0, 5), "fifths of all": (5, 10), "by chance": (10, 11)}
    for colour, (words, (n, m)) in zip(rj.report.COLOURS, kept.items(), strict=False):
        right.plot(bias[:, n:m].ravel(), shift[:, n:m].ravel(), ".", color=colour, label=words)
    line = np.array([bias.min(), bias.max()])
    right.plot(line, line, ":", color="#666666")
    right.set(xlabel="bias of the raters kept, points", ylabel="shift of the reward model")
    right.legend(frameon=False, fontsize=8)


CHALLENGE = Challenge(
    slug="evaluator-selection",
    section="3.1.1",
    fundamental=False,
    claim="Selecting representative humans and getting them to give good feedback is hard.",
    measure=measure,
    judge=judge,
    plot=plot,
    fast_seeds=4,
)

if __name__ == "__main__":
    main(CHALLENGE)
