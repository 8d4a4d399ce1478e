"""Are there groups of raters with tastes of their own? Expectation-maximisation on real people.

Two rewards are fitted to comparisons by known raters of film reviews, and judged by what the same
raters say of unseen sentences; beside it the same with a quarter of the raters turned round, whom
it has to find. About 3 minutes on two cores. Writes runs/rater_groups/.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import rlhf_jax as rj
from rlhf_jax.measures import Interval
from rlhf_jax.types import Algorithm, Params, Preferences, Sequences


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a preset fixes."""

    vocabulary: int = 16_000
    buckets: int = 2**17
    held_out: int = 1500  # sentences of the tests, and as many of the validation
    comparisons: int = 400_000  # drawn; ties and sentences that a rater has not seen fall out
    batch: int = 4096
    single_steps: int = 200
    group_steps: int = 150
    game_steps: int = 2000
    resamples: int = 1000  # of the bootstrap


# "tiny" takes seconds, to see that everything runs; its figures mean nothing.
PRESETS = {"default": Sizes(), "tiny": Sizes(64, 256, 20, 4000, 64, 10, 10, 10, 20)}
LENGTH = 48  # tokens: one sentence in a hundred is longer
TURNED = 0.25  # of the raters, in the control
# Found best on the validation sentences: of the one reward for all, and of how far a group's may be
# from where it began.
SINGLE_L2, GROUP_L2 = 3e-6, 3e-5
BETA = 0.2  # SDs of reward a nat, of the policies
PAGE = """# Groups of raters

{learnt:,} comparisons of film sentences, each by one rater of two sentences in the batch that he
was given, {judged:,} of unseen sentences by the same {raters:,} raters. Two groups with a reward
each, and who belongs where, by expectation-maximisation from one reward for all: from that and some
noise, and from that and its opposite. In the control {turned:.0%} of the raters were turned round.

{groups}

*Gain*: nats by which a comparison of unseen sentences is likelier than under one reward for all,
with the groups' rewards and the probability that its rater belongs to each; batches of raters are
drawn for the 95% intervals. *Second group*: its share, and how its reward correlates with the
first's over the unseen sentences. *Finds*: AUROC of belonging there, for raters whose ratings
correlate negatively with the others' ({inverted:.1%}), or who were turned round in the control.

![Groups](plots/groups.png)

## Whom a policy pleases

The exact policies over the unseen sentences for the mean of the groups' rewards, by share, and for
the group that is worst off (MaxMin), at {beta} SDs of reward a nat: each group's reward, in its own
SDs over the sentences.

{policies}
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Groups of raters. A run folder that exists needs --resume or --overwrite."""

    run_dir: Path = Path("runs/rater_groups")
    seed: int = 0
    """Of draws and of training; the split by sentence is the same for all seeds."""
    judged_on: Literal["test", "validation"] = "test"
    """All settings were chosen on the validation sentences; the tests' models learn from these."""
    group_l2: float = GROUP_L2
    preset: Literal["default", "tiny"] = "default"
    data: Path | None = None
    """A copy of the ratings at hand, folder or archive; by default they are fetched."""
    resume: bool = False
    overwrite: bool = False


class Answers(NamedTuple):
    """Comparisons ``[N]``: two sentences, the preferred one first, and whose they are."""

    better: np.ndarray
    worse: np.ndarray
    rater: np.ndarray

    def turned(self, who: np.ndarray) -> "Answers":
        """With the answers of ``who[R]`` the other way round."""
        swap = who[self.rater]
        sides = np.where(swap, self.worse, self.better), np.where(swap, self.better, self.worse)
        return Answers(*sides, self.rater)


class Found(NamedTuple):
    """What came of two groups."""

    scores: jax.Array  # [2, N] of the sentences judged
    shares: jax.Array  # [2]
    second: jax.Array  # [R], the probability of belonging to the second
    gain: Interval


def by_one_rater(films: rj.data.Ratings, rows: np.ndarray, count: int, seed) -> Answers:
    """Two sentences as one and the same rater compares them, ties left out.

    Both are of the batch that the rater was given, for beyond it nobody is known; so neither where
    someone begins on the scale nor what their batch was about makes a difference.
    """
    rng, width = np.random.default_rng(seed), films.ratings.shape[1]
    rows = rows[np.argsort(films.batch[rows], kind="stable")]
    _, begin, place, members = np.unique(
        films.batch[rows], return_index=True, return_inverse=True, return_counts=True
    )
    drawn = rng.integers(0, len(rows), count)
    group = place[drawn]
    first, second = rows[drawn], rows[begin[group] + rng.integers(0, members[group])]
    column = rng.integers(0, width, count)
    there = films.rating_mask[first, column] & films.rating_mask[second, column]
    gap = films.ratings[first, column].astype(int) - films.ratings[second, column]
    kept = there & (gap != 0)
    sides = np.where(gap > 0, first, second), np.where(gap > 0, second, first)
    return Answers(*(x[kept] for x in (*sides, films.batch[first] * width + column)))


@dataclasses.dataclass(frozen=True)
class Study:
    """The sentences as numbers, the one model of all arms, and where fitted models go."""

    config: Config
    sizes: Sizes
    run: rj.runs.Run
    model: rj.models.NgramModel
    tokens: np.ndarray
    mask: np.ndarray
    judged: np.ndarray
    width: int  # raters of a batch
    raters: int

    def fit(self, name: str, algorithm: Algorithm, params: Params, answers: Answers, steps: int):
        """The state after training."""
        size = min(self.sizes.batch, len(answers.rater))
        picked = rj.data.epochs(answers, size, seed=self.config.seed)

        def batches(step: int) -> Preferences:
            better, worse, rater = picked(step)
            sides = (Sequences(self.tokens[x], self.mask[x], self.mask[x]) for x in (better, worse))
            return Preferences(*sides, rater=rater.astype(np.int32))

        key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        how = {"steps": steps, "show": ["loss"], "keep": 1}
        return self.run.fit(name, algorithm, partial(algorithm.init, params, key), batches, **how)

    def single(self, name: str, start: Params, answers: Answers) -> Params:
        """One reward for all."""
        steps = self.sizes.single_steps
        algorithm = rj.algorithms.reward_model(
            self.model.score_fn,
            optax.adam(optax.cosine_decay_schedule(0.05, steps)),
            regulariser=lambda params: SINGLE_L2 * jnp.sum(jnp.square(params["weight"])),
            token_dropout=0.3,
        )
        return self.fit(name, algorithm, start, answers, steps).state.params

    def groups(self, name: str, begin: Sequence[Params], learnt: Answers) -> tuple[jax.Array, ...]:
        """Groups that begin so: scores of the sentences judged, shares, and who belongs where."""
        steps, size = self.sizes.group_steps, min(self.sizes.batch, len(learnt.rater))

        def regulariser(params: Params) -> jax.Array:
            moved = params["now"]["weight"] - jax.lax.stop_gradient(params["begin"]["weight"])
            return self.config.group_l2 * jnp.sum(jnp.square(moved))

        algorithm = rj.algorithms.mixture(
            lambda params, *text: self.model.score_fn(params["now"], *text),
            optax.adam(optax.cosine_decay_schedule(0.02, steps)),
            groups=len(begin),
            raters=self.raters,
            regulariser=regulariser,
            memory=len(learnt.rater) / size,
        )
        # Two copies: the step takes its state over.
        now, begin = (jax.tree.map(lambda *x: jnp.stack(x), *begin) for _ in range(2))
        state = self.fit(name, algorithm, {"now": now, "begin": begin}, learnt, steps).state
        read = jax.jit(jax.vmap(self.model.score_fn, (0, None, None)))
        scores = read(state.params["now"], self.tokens[self.judged], self.mask[self.judged])
        return scores, jnp.exp(state.extra.log_prior), rj.algorithms.group_posterior(state.extra)

    def log_likelihood(self, scores: jax.Array, belongs: jax.Array, unseen: Answers) -> jax.Array:
        """Of each comparison, ``[N]`` in nats."""
        place = np.zeros(len(self.tokens), np.int32)
        place[self.judged] = np.arange(len(self.judged))
        gap = scores[:, place[unseen.better]] - scores[:, place[unseen.worse]]
        said = jnp.log(belongs[unseen.rater]) + jax.nn.log_sigmoid(gap).T
        return jax.nn.logsumexp(said, axis=1)

    def mean_gain(self, gain: jax.Array, unseen: Answers) -> Interval:
        """Over comparisons; raters of a batch read the same sentences: batches are drawn."""
        batch = unseen.rater // self.width
        total, count = np.bincount(batch, gain), np.bincount(batch)
        return rj.measures.bootstrap(
            jnp.stack([total, count], axis=1)[count > 0],
            key=jax.random.key(self.config.seed),
            statistic=lambda x: x[:, 0].sum() / x[:, 1].sum(),
            resamples=self.sizes.resamples,
        )


def policies(found: Found, steps: int) -> dict[str, np.ndarray]:
    """What the exact policies for the groups' mean and for the worst off are worth to each, SDs."""
    scores = found.scores - found.scores.mean(axis=1, keepdims=True)
    rewards = scores / jnp.maximum(scores.std(axis=1, keepdims=True), 1e-9)
    uniform, fair = jnp.zeros(rewards.shape[1]), rj.aggregates.maxmin(2, rate=0.05)

    def best(weights: jax.Array) -> jax.Array:
        return jnp.exp(rj.worlds.tilt(uniform, weights @ rewards, beta=BETA))

    def play(log_weights: jax.Array, _) -> tuple[jax.Array, jax.Array]:
        return fair.update(log_weights, rewards @ best(jnp.exp(log_weights))), jnp.exp(log_weights)

    # The game's solution is what the weights are on average.
    weights = jax.lax.scan(play, fair.init(), length=steps)[1].mean(axis=0)
    chosen = {"mean of raters": best(found.shares), "worst off (MaxMin)": best(weights)}
    return {name: np.asarray(rewards @ policy) for name, policy in chosen.items()}


def main(config: Config) -> None:
    """Fit, judge, write, show."""
    began, sizes = time.process_time(), PRESETS[config.preset]
    films = rj.data.load_ratings(config.data).only("movies")
    run = rj.runs.begin(config, free=("data",))
    rj.training.compilation_cache()
    # Split by sentence: nothing that reads like what is judged, or like a test, is learnt from.
    order = np.random.default_rng(5).permutation(len(films))
    tests, validation = order[: sizes.held_out], order[sizes.held_out : 2 * sizes.held_out]
    judged = tests if config.judged_on == "test" else validation
    hidden = {films.texts[row] for row in (*tests, *judged)}
    train = np.array([row for row, text in enumerate(films.texts) if text not in hidden])
    tokenizer = rj.data.train_tokenizer(
        [films.texts[n] for n in train], vocab_size=sizes.vocabulary
    )
    words = [tokenizer.id_to_token(n) for n in range(tokenizer.get_vocab_size())]
    tokens, mask = rj.data.encode(tokenizer, films.texts, length=LENGTH)
    model = rj.models.hashed_model(words, buckets=sizes.buckets)
    width, count = films.ratings.shape[1], int(films.batch.max()) + 1
    study = Study(config, sizes, run, model, tokens, mask, judged, width, width * count)
    drawn = [
        by_one_rater(films, rows, sizes.comparisons // n, (config.seed, n))
        for n, rows in ((1, train), (4, judged))
    ]

    # Who disagrees with the others in truth, and who is made to.
    effects = rj.measures.rater_effects(films.ratings, films.rating_mask, films.batch)
    there = np.asarray(effects.count).ravel() > 0
    agrees = np.asarray(effects.correlation).ravel()
    inverted = np.asarray(rj.measures.suspect_raters(effects).inverted).ravel()
    turned = np.random.default_rng(config.seed).random(study.raters) < TURNED
    start = jax.jit(model.init)(jax.random.key(config.seed), tokens[train], mask[train])

    found = {}
    for name, who in (("real", np.zeros_like(turned)), ("control", turned)):
        learnt, unseen = (answers.turned(who) for answers in drawn)
        one = study.single(f"{name}_single", start, learnt)
        # One reward for all, trained in all as long as two are.
        alone = study.groups(f"{name}_one", [one], learnt)
        alone = study.log_likelihood(alone[0], alone[2], unseen)
        noise = 0.05 * jax.random.normal(jax.random.key(config.seed), one["weight"].shape)
        others = {"noise": one | {"weight": one["weight"] + noise}}
        others["opposite"] = one | {"weight": -one["weight"]}
        for how, other in others.items():
            if (name, how) != ("control", "noise"):
                scores, shares, belongs = study.groups(f"{name}_{how}", [one, other], learnt)
                gain = study.log_likelihood(scores, belongs, unseen) - alone
                gain = study.mean_gain(gain, unseen)
                found[f"{name}, from {how}"] = Found(scores, shares, belongs[:, 1], gain)

    truth = {name: turned if "control" in name else inverted for name in found}
    finds = {
        name: rj.measures.auroc(x.second[there], jnp.asarray(truth[name][there]))
        for name, x in found.items()
    }
    alike = {name: jnp.corrcoef(x.scores)[0, 1] for name, x in found.items()}
    pleased = {name: policies(x, sizes.game_steps) for name, x in found.items()}
    result = {
        "judged_on": config.judged_on,
        "comparisons": {"learnt": len(drawn[0].rater), "judged": len(drawn[1].rater)},
        "raters": int(there.sum()),
        "inverted": float(inverted[there].mean()),
        "groups": {
            name: {
                "gain_nats": x.gain,
                "shares": x.shares,
                "correlation": alike[name],
                "finds_auroc": finds[name],
                "policies": pleased[name],
            }
            for name, x in found.items()
        },
        "cpu_seconds": time.process_time() - began,
    }
    run.write_json("result.json", result)
    shown = {name.replace("real", "real raters"): x for name, x in found.items()}
    rj.report.plot_groups(
        {name: x.gain for name, x in shown.items()},
        {name: (agrees[there], np.asarray(x.second)[there]) for name, x in shown.items()},
        run.folder / "plots/groups.png",
    )
    header = ["", "gain, nats", "second group", "correlation", "finds"]
    rows = [
        [
            name,
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*map(float, x.gain)),
            f"{float(x.shares[1]):.3f}",
            *(f"{float(y[name]):.3f}" for y in (alike, finds)),
        ]
        for name, x in found.items()
    ]
    second = ["groups", "policy for", "first group", "second group"]
    lines = [
        [name, policy, *(f"{float(value):+.2f}" for value in worth)]
        for name, both in pleased.items()
        for policy, worth in both.items()
    ]
    words = result["comparisons"] | {"raters": result["raters"], "inverted": result["inverted"]}
    words |= {"turned": TURNED, "beta": BETA, "groups": rj.report.table(rows, header)}
    page = PAGE.format(**words, policies=rj.report.table(lines, second))
    (run.folder / "report.md").write_text(page, encoding="utf-8")
    console = Console()
    for columns, body in ((header, rows), (second, lines)):
        closing = Table(*columns)
        for row in body:
            closing.add_row(*row)
        console.print(closing)
    console.print(f"Report: {run.folder / 'report.md'}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
