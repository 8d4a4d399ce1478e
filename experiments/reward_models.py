"""Reward models beyond one scalar from one crowd, on real people's ratings of film reviews.

A model, ensembles, distributions and a model of each rater, judged by raters who were not learnt
from: accuracy, calibration, transfer between four domains, and whether it is seen what people
disagree about. Split by sentence; about 8 CPU minutes; writes runs/reward_models/.
"""

import dataclasses
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
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
from rlhf_jax import losses
from rlhf_jax.distributions import Distribution, categorical, normal
from rlhf_jax.feedback import Pairs
from rlhf_jax.measures import Interval
from rlhf_jax.types import Params, Preferences, Rated, Sequences


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a preset fixes. Steps are of ``batch`` pairs or sentences."""

    vocabulary: int = 24_000
    buckets: int = 2**19
    held_out: int = 1500  # film sentences of the tests, and as many of the validation
    steps: int = 200  # where raters' means are learnt from
    answer_steps: int = 300  # where single answers are, which are noisier
    batch: int = 1024
    comparisons: int = 400_000
    members: int = 5
    domain_train: int = 3000
    domain_test: int = 700
    resamples: int = 1000


# "tiny" takes seconds, to see that everything runs; its figures mean nothing.
PRESETS = {"default": Sizes(), "tiny": Sizes(64, 256, 20, 10, 10, 16, 400, 2, 16, 8, 20)}
BINS = 10
LENGTH = 48  # tokens; one sentence in a hundred is longer
FILMS = rj.data.DOMAINS.index("movies")
DOMAINS = ("products", "films", "editorials", "tweets")
REFERENCE = {"lexicon": 0.644, "bag of n-grams": 0.755, "one human, ties left out": 0.888}


@dataclasses.dataclass(frozen=True)
class Config:
    """Reward models on real ratings. A run folder that exists needs --resume or --overwrite."""

    run_dir: Path = Path("runs/reward_models")
    seed: int = 0
    """Of draws and of training; the split by sentence is the same for all seeds."""
    judged_on: Literal["test", "validation"] = "test"
    """All settings were chosen on the validation sentences; the tests' models learn from these."""
    preset: Literal["default", "tiny"] = "default"
    data: Path | None = None
    """A copy of the ratings at hand, folder or archive; by default they are fetched."""
    resume: bool = False
    overwrite: bool = False


class Arm(NamedTuple):
    """A kind of reward model: what it learns from, and what it says."""

    feedback: Literal["comparisons", "means", "ratings"]
    distribution: Distribution | None = None
    ensemble: bool = False
    l2: float = 1e-5
    token_dropout: float = 0.3


class Said(NamedTuple):
    """What a model says of the ``N`` sentences judged."""

    scores: jax.Array  # [N]
    prefers: jax.Array | None = None  # [N, N], how probably one rater prefers the first
    spread: jax.Array | None = None  # [N], variance of the reward


LOOSE = ("comparisons, unregularised", "comparisons, unregularised, ensemble")
ARMS = {
    "comparisons": Arm("comparisons"),
    "comparisons, ensemble": Arm("comparisons", ensemble=True),
    LOOSE[0]: Arm("comparisons", l2=0.0, token_dropout=0.0),
    LOOSE[1]: Arm("comparisons", ensemble=True, l2=0.0, token_dropout=0.0),
    "means": Arm("means"),
    "means, ensemble": Arm("means", ensemble=True),
    "DPL, mean and variance": Arm("comparisons", normal()),
    "DPL, categorical": Arm("comparisons", categorical(np.linspace(-4, 4, 9))),
    "ratings, mean and variance": Arm("ratings", normal()),
    "ratings, categorical": Arm("ratings", categorical(np.linspace(-4, 4, 9))),
}
RATERS = "ratings, each rater's bias, slope and noise"
UNSEEN, SEEN = "ratings, mean and variance", "DPL, sentences compared by other raters"
PAGE = """# Reward models of film reviews

{learnt_from:,} sentences of four domains learnt from, {judged:,} of films judged ({judged_on} split); no
text in common. Brackets are 95% bootstrap intervals over sentences, of pairs all pairs of them; ties
of people count as half. Measured earlier on other splits: {reference}.

{models}

*comparisons*: Bradley-Terry on comparisons of two single ratings; *means*: squared error of the
raters' means; *DPL*: distributional preference learning, from comparisons; *ratings*: likelihood of
single ratings. ECE: calibration error of predicted preferences, against single raters or the sign
of the raters' mean, which nothing here was trained to predict. An ensemble's members learn from
resamples of the sentences. To know who rates adds {gain} nats to the log-density of a rating.

![Accuracy and transfer](plots/reward_models.png)

{transfer}

![Calibration](plots/calibration.png)

## What people disagree about

{share:.1%} of the sentences are polarised: a quarter of raters or more above 0, and below. Of those
in the last row, the even columns' comparisons were learnt from and the odd columns' ratings say
what is polarised; the other rows know the text alone.

{polarised}

## Claims

PASS: the estimate meets the threshold and the interval excludes the null (0.755 for the first, 0.5
for an AUROC, 0 for a difference); FAIL: the interval excludes the threshold.

{claims}

{seconds}
"""


class Study:
    """The sentences, who may see which, and how a model is fitted and read."""

    def __init__(self, config: Config, run: rj.runs.Run):
        self.config, self.run, self.sizes = config, run, PRESETS[config.preset]
        self.key, self.seconds = jax.random.key(config.seed), {}
        self.ratings = ratings = rj.data.load_ratings(config.data)
        size = self.sizes.held_out
        films = np.random.default_rng(5).permutation(np.flatnonzero(ratings.domain == FILMS))
        tests, validation = films[:size], films[size : 2 * size]
        self.judged = tests if config.judged_on == "test" else validation
        # Nothing that reads like a test, or like what is judged, is learnt from.
        hidden = {ratings.texts[row] for row in (*tests, *self.judged)}
        self.train = np.array([n for n, text in enumerate(ratings.texts) if text not in hidden])
        texts = [ratings.texts[row] for row in self.train]
        tokenizer = rj.data.train_tokenizer(texts, vocab_size=self.sizes.vocabulary)
        self.words = [tokenizer.id_to_token(n) for n in range(tokenizer.get_vocab_size())]
        self.tokens, self.mask = rj.data.encode(tokenizer, ratings.texts, length=LENGTH)
        domain, mean = ratings.domain[self.train], ratings.mean[self.train]
        centres = [mean[domain == n].mean() for n in range(len(DOMAINS))]
        self.centre = np.array(centres, np.float32)[ratings.domain]

    def model(self, outputs: int | None = None) -> rj.models.NgramModel:
        """The reward model of all arms: linear in words, pairs and pieces of words."""
        return rj.models.hashed_model(self.words, outputs=outputs, buckets=self.sizes.buckets)

    def start(self, model: rj.models.NgramModel, rows: np.ndarray | None = None) -> Params:
        """Parameters that know which words are rare in these texts, and nothing else."""
        rows = self.train if rows is None else rows
        return jax.jit(model.init)(self.key, self.tokens[rows], self.mask[rows])

    def sequences(self, rows: np.ndarray) -> Sequences:
        """Sentences by number."""
        return Sequences(self.tokens[rows], self.mask[rows], self.mask[rows])

    def read(self, score_fn: Callable, params: Params, rows: np.ndarray | None = None) -> jax.Array:
        """What a fitted model says, of the sentences judged or of others."""
        text = self.sequences(self.judged if rows is None else rows)
        return jax.jit(score_fn)(params, text.tokens, text.mask)

    def compared(self, rows: np.ndarray, draw: int, raters: np.ndarray | bool = True):
        """Two sentences of a domain, as one rating of each compares them; ties are left out."""
        rng, domain = np.random.default_rng((self.config.seed, draw)), self.ratings.domain
        first = rng.choice(rows, self.sizes.comparisons)
        second = np.empty_like(first)
        for n in np.unique(domain[rows]):
            here = domain[first] == n
            second[here] = rng.choice(rows[domain[rows] == n], here.sum())
        human = rj.humans.real_raters(self.ratings.ratings, self.ratings.rating_mask & raters)
        pairs = Pairs(jnp.array(first), jnp.array(second))
        answers = jax.jit(human)(jax.random.fold_in(self.key, draw), pairs)
        sides = rj.feedback.decided(pairs, answers)
        return rj.data.epochs(sides, self.sizes.batch, seed=self.config.seed)

    def rated(self, rows: np.ndarray, values: np.ndarray, **of_rows) -> Callable[[int], Rated]:
        """Sentences, each with a rating; a sentence may come several times."""
        table = {"rows": rows, "ratings": values} | of_rows
        size = min(self.sizes.batch, len(rows))
        batches = rj.data.epochs(table, size, seed=self.config.seed)

        def batch(step: int) -> Rated:
            fields = batches(step)
            return Rated(self.sequences(fields.pop("rows")), **fields)

        return batch

    def answers(self, rows: np.ndarray, people: np.ndarray | None = None):
        """Every single rating, and whose it is if ``people[N, K]`` says."""
        of, column = np.nonzero(self.ratings.rating_mask[rows])
        of = rows[of]
        values = self.ratings.ratings[of, column] - self.centre[of]
        who = {} if people is None else {"rater": people[of, column].astype(np.int32)}
        return self.rated(of, values.astype(np.float32), **who)

    def fit(self, name, score_fn, params, batches, *, steps, l2, **settings):
        """One model's parameters; with ``members``, those of an ensemble."""
        began, members = time.process_time(), settings.pop("members", None)
        further = settings.pop("regulariser", lambda params: 0.0)

        def regulariser(params: Params) -> jax.Array:
            score = params.get("score", params)  # A model of raters has one of sentences inside.
            return l2 * jnp.sum(jnp.square(score["weight"])) + further(params)

        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
        settings = {"token_dropout": 0.3, "regulariser": regulariser} | settings
        algorithm = rj.algorithms.reward_model(score_fn, optimizer, **settings)
        if members is not None:
            algorithm = rj.algorithms.ensemble(algorithm, members, own_batches=True)
        state = partial(algorithm.init, params, jax.random.fold_in(self.key, 1))
        name = name.replace(",", "").replace(" ", "_")
        fitted = self.run.fit(name, algorithm, state, batches, steps=steps, show=["loss"])
        params = jax.block_until_ready(fitted.state.params)
        self.seconds[name] = time.process_time() - began
        return params


def batches_of(study: Study, feedback: str, rows: np.ndarray, draw: int) -> Callable:
    """What an arm learns from: of each pair or rating, one rater."""
    if feedback == "means":
        return study.rated(rows, (study.ratings.mean - study.centre)[rows])
    if feedback == "comparisons":
        numbers = study.compared(rows, draw)
        return lambda step: Preferences(*map(study.sequences, numbers(step)))
    return study.answers(rows)


def learnt(study: Study, name: str, arm: Arm) -> Said:
    """Fit one arm and read it."""
    sizes, beliefs, train = study.sizes, arm.distribution, study.train
    model = study.model(None if beliefs is None else beliefs.size)
    params = study.start(model)
    settings = {"l2": arm.l2, "token_dropout": arm.token_dropout}
    settings["steps"] = sizes.steps if arm.feedback == "means" else sizes.answer_steps
    if beliefs is not None:
        loss = losses.distributional if arm.feedback == "comparisons" else losses.likelihood
        settings |= {"loss": partial(loss, distribution=beliefs), "reward": beliefs.mean}
    elif arm.feedback == "means":
        settings["loss"] = losses.squared_error
    if arm.ensemble:
        # Each member has a resample of the sentences, an order and a dropout of its own.
        rng = np.random.default_rng(study.config.seed)
        drawn = [rng.choice(train, len(train)) for _ in range(sizes.members)]
        each = [batches_of(study, arm.feedback, rows, 1 + n) for n, rows in enumerate(drawn)]
        batches, settings["members"] = rj.data.stacked(each), sizes.members
        params = jax.tree.map(lambda x: jnp.stack([x] * sizes.members), params)
        params = study.fit(name, model.score_fn, params, batches, **settings)
        scores = study.read(jax.vmap(model.score_fn, (0, None, None)), params)
        prefers = jnp.mean(jax.nn.sigmoid(scores[:, :, None] - scores[:, None]), axis=0)
        return Said(scores.mean(0), prefers if arm.feedback == "comparisons" else None)
    batches = batches_of(study, arm.feedback, train, 0)
    params = study.fit(name, model.score_fn, params, batches, **settings)
    outputs = study.read(model.score_fn, params)
    if beliefs is not None:
        return Said(beliefs.mean(outputs), told_apart(beliefs, outputs), beliefs.variance(outputs))
    prefers = jax.nn.sigmoid(outputs[:, None] - outputs)
    return Said(outputs, prefers if arm.feedback == "comparisons" else None)


def told_apart(beliefs: Distribution, outputs: jax.Array) -> jax.Array:
    """The probability of preferring each of ``N`` to each other, ``[N, N]``."""

    def row(first: jax.Array) -> jax.Array:
        return jnp.exp(beliefs.log_prefers(jnp.broadcast_to(first, outputs.shape), outputs))

    return jax.jit(lambda x: jax.lax.map(row, x, batch_size=50))(outputs)


def of_raters(study: Study) -> tuple[Said, jax.Array]:
    """A model of each rater, and how much likelier it makes the ratings of raters it knows."""
    ratings, model = study.ratings, study.model()
    people = ratings.batch[:, None] * ratings.ratings.shape[1] + np.arange(ratings.ratings.shape[1])
    people = np.where(ratings.batch[:, None] >= 0, people, -1)
    answers = int(ratings.rating_mask[study.train].sum())
    scale = rj.models.rater_scale(model.score_fn, int(people.max()) + 1, answers=answers)
    how = {"loss": partial(losses.likelihood, distribution=normal()), "l2": 1e-5}
    how |= {"personal": scale.personal, "regulariser": scale.regulariser}
    how |= {"reward": lambda outputs: outputs[..., 0], "steps": study.sizes.answer_steps}
    start = scale.init(study.start(model))
    batches = study.answers(study.train, people)
    params = study.fit("raters", scale.score_fn, start, batches, **how)
    scores = study.read(scale.score_fn, params)
    nobody = jnp.full(len(scores), -1)
    average = scale.personal(params, scores[None], nobody)[0]
    said = Said(scores, told_apart(normal(), average))
    given = (ratings.ratings - study.centre[:, None])[study.judged]
    there = ratings.rating_mask[study.judged]

    def surprise(who: jax.Array) -> jax.Array:
        outputs = jax.vmap(lambda r: scale.personal(params, scores[None], r)[0], 1, 1)(who)
        return normal().log_density(outputs, given)

    known = jnp.asarray(people[study.judged])
    gain = surprise(known) - surprise(jnp.full_like(known, -1))
    return said, jnp.sum(jnp.where(there, gain, 0), axis=1) / there.sum(axis=1)


def seen(study: Study) -> tuple[jax.Array, np.ndarray]:
    """DPL of sentences some raters have compared; and whom the other raters disagree about.

    Each sentence judged has a mean and a variance of its own, from comparisons of the even columns.
    """
    even = np.arange(study.ratings.ratings.shape[1]) % 2 == 0
    place = np.zeros(len(study.ratings), np.int32)
    place[study.judged] = np.arange(len(study.judged))
    numbers = study.compared(study.judged, 99, even)

    def rows(side: np.ndarray) -> Sequences:
        there = np.ones((len(side), 1), bool)
        return Sequences(place[side][:, None], there, there)

    how = {"loss": partial(losses.distributional, distribution=normal()), "token_dropout": 0.0}
    how |= {"reward": normal().mean, "steps": study.sizes.answer_steps, "l2": 1e-4}
    table = {"weight": jnp.zeros((len(study.judged), 2))}
    params = study.fit(
        "seen",
        lambda params, tokens, mask: params["weight"][tokens[:, 0]],
        table,
        lambda step: Preferences(*map(rows, numbers(step))),
        **how,
    )
    return normal().variance(params["weight"]), polarised(study, ~even)


def polarised(study: Study, columns: np.ndarray | bool = True) -> np.ndarray:
    """Whether at least a quarter of raters are above 0 and a quarter below."""
    values = study.ratings.ratings[study.judged]
    there = study.ratings.rating_mask[study.judged] & columns
    shares = [((values * sign > 0) & there).sum(1) / there.sum(1) for sign in (1, -1)]
    return np.minimum(*shares) >= 0.25


def transfer(study: Study) -> list[tuple[jax.Array, np.ndarray]]:
    """A model of each domain's means, of equally many sentences, on unseen ones of every domain.

    Returns, for each domain judged, the models' scores ``[D, N]`` and the raters' means ``[N]``.
    """
    sizes, ratings = study.sizes, study.ratings
    rng, model, parts = np.random.default_rng(6), study.model(), []
    for domain in range(len(DOMAINS)):
        rows = rng.permutation(study.train[ratings.domain[study.train] == domain])
        learnt, rest = np.split(rows, [sizes.domain_train])
        # Of films, some of those that all others are judged by.
        test = (study.judged if domain == FILMS else rest)[: sizes.domain_test]
        parts.append((learnt, test))
    params = jax.tree.map(lambda *x: jnp.stack(x), *[study.start(model, x) for x, _ in parts])
    batches = rj.data.stacked([batches_of(study, "means", x, 0) for x, _ in parts])
    how = {"loss": losses.squared_error, "members": len(DOMAINS), "l2": 1e-5}
    params = study.fit("domains", model.score_fn, params, batches, steps=sizes.steps, **how)
    each = jax.vmap(model.score_fn, (0, None, None))
    return [(study.read(each, params, test), ratings.mean[test]) for _, test in parts]


def lexicon(study: Study) -> jax.Array | None:
    """Sums of the words' valences by the lexicon that comes with the data, if it is there."""
    source = study.config.data or rj.assets.fetch(rj.assets.VADER_RATINGS)
    if not source.is_file() or not tarfile.is_tarfile(source):
        return None
    with tarfile.open(source) as archive:
        found = [m for m in archive.getmembers() if m.name.endswith("/vader_lexicon.txt")]
        if not found:
            return None
        lines = archive.extractfile(found[0]).read().decode().splitlines()
    valence = {word: float(mean) for word, mean, *_ in (line.split("\t") for line in lines)}
    table = np.array([valence.get(word, 0.0) for word in study.words], np.float32)
    text = study.sequences(study.judged)
    return jnp.sum(jnp.where(text.mask, table[text.tokens], 0), axis=1)


def resampled(rng: np.random.Generator, count: int, resamples: int) -> jax.Array:
    """How often each of ``count`` items is drawn: once in the first row, then by the bootstrap."""
    drawn = rng.multinomial(count, np.full(count, 1 / count), resamples)
    return jnp.array(np.concatenate([np.ones((1, count)), drawn]), jnp.float32)


@jax.jit
def over_pairs(values: jax.Array, draws: jax.Array) -> jax.Array:
    """Means of ``values[N, N]`` over pairs of different items, each as often as both are drawn."""
    values = jnp.where(jnp.eye(len(values), dtype=bool), 0, values)
    total = jnp.sum((draws @ values) * draws, axis=1)
    return total / (jnp.sum(draws, axis=1) ** 2 - jnp.sum(draws**2, axis=1))


def right(scores: jax.Array, outcomes: jax.Array) -> jax.Array:
    """How right the scores' order of each pair is, ties as half; ``outcomes[N, N]`` from 0 to 1."""
    return 0.5 + jnp.sign(scores[:, None] - scores) * (outcomes - 0.5)


@jax.jit
def calibration_error(prefers: jax.Array, outcomes: jax.Array, draws: jax.Array) -> jax.Array:
    """``measures.expected_calibration_error`` over all pairs, for each row of draws."""
    bins = jnp.clip(jnp.floor(prefers * BINS), 0, BINS - 1)

    def part(place: jax.Array) -> jax.Array:
        return jnp.abs(over_pairs(jnp.where(bins == place, prefers - outcomes, 0), draws))

    return jnp.sum(jax.lax.map(part, jnp.arange(BINS)), axis=0)


def interval(values: jax.Array) -> Interval:
    """Of an estimate and its resamples."""
    values = np.asarray(values)
    return Interval(float(values[0]), *map(float, np.nanquantile(values[1:], [0.025, 0.975])))


def verdict(found: Interval, *, null: float, threshold: float) -> str:
    """PASS if the threshold is met and the null excluded, FAIL if the threshold is excluded."""
    if found.estimate >= threshold and found.low > null:
        return "PASS"
    return "FAIL" if found.high < threshold else "INCONCLUSIVE"


def main(config: Config) -> None:
    """Fit, judge, write, show."""
    began, run = time.process_time(), rj.runs.begin(config, free=("data",))
    rj.training.compilation_cache()
    study, console = Study(config, run), Console()
    ratings, judged, sizes = study.ratings, study.judged, study.sizes
    said = {name: learnt(study, name, arm) for name, arm in ARMS.items()}
    said[RATERS], known = of_raters(study)
    across = transfer(study)

    # What people say of the sentences judged: all in the mean, and one by one.
    truth, values = jnp.array(ratings.mean[judged]), ratings.ratings[judged].astype(np.float32)
    columns = range(int(ratings.rating_mask[judged].sum(axis=1).min()))  # all of them have these
    order = {"mean": 0.5 + 0.5 * jnp.sign(truth[:, None] - truth)}
    answers = [0.5 + 0.5 * jnp.sign(values[:, None, k] - values[:, k]) for k in columns]
    order["one"] = sum(answers) / len(columns)
    count = ratings.rating_mask[judged].sum(axis=1)
    others = [(truth * count - values[:, k]) / (count - 1) for k in columns]
    human = sum(
        right(values[:, k], 0.5 + 0.5 * jnp.sign(rest[:, None] - rest))
        for k, rest in zip(columns, others, strict=True)
    ) / len(columns)

    # Pairs are not independent: sentences are drawn, and all arms are measured on the same draws.
    rng = np.random.default_rng((config.seed, 7))
    draws = resampled(rng, len(judged), sizes.resamples)
    measured, errors = {}, {}
    if (scores := lexicon(study)) is not None:
        said = {"lexicon": Said(scores)} | said
    for name, (scores, prefers, _) in said.items():
        found = {f"accuracy_{by}": over_pairs(right(scores, y), draws) for by, y in order.items()}
        if prefers is not None:
            errors[name] = {by: calibration_error(prefers, y, draws) for by, y in order.items()}
            found |= {f"ece_{by}": values for by, values in errors[name].items()}
        measured[name] = {what: interval(values) for what, values in found.items()}
    measured["one human, and the others' mean"] = {
        "accuracy_mean": interval(over_pairs(human, draws))
    }

    def drawn(statistic: Callable[[jax.Array], jax.Array]) -> Interval:
        """Of a statistic of the rows of the sentences judged."""
        rows, key = jnp.arange(len(judged)), jax.random.fold_in(study.key, 2)
        how = {"key": key, "statistic": statistic, "resamples": sizes.resamples}
        return Interval(*map(float, rj.measures.bootstrap(rows, **how)))

    # Whether a spread is where people disagree.
    def apart(spread: jax.Array, disputed: np.ndarray) -> Interval:
        disputed = jnp.asarray(disputed)
        return drawn(lambda rows: rj.measures.auroc(spread[rows], disputed[rows]))

    disputed = polarised(study)
    spreads = {name: x.spread for name, x in said.items() if x.spread is not None}
    spreads["nearness of the means' model to 0"] = -jnp.abs(
        said["means"].scores + study.centre[judged]
    )
    aurocs = {name: apart(spread, disputed) for name, spread in spreads.items()}
    aurocs[SEEN] = apart(*seen(study))
    gain = drawn(lambda rows: jnp.mean(known[rows]))

    # Transfer: every domain's sentences are drawn by themselves.
    matrix = []
    for scores, means in across:
        drawn = resampled(rng, len(means), sizes.resamples)
        signs = 0.5 + 0.5 * jnp.sign(means[:, None] - means)
        matrix.append(jnp.stack([over_pairs(right(x, signs), drawn) for x in scores]))
    matrix = jnp.stack(matrix, axis=1)  # [trained in, judged in, resamples]
    others = (matrix.sum(axis=0) - jnp.diagonal(matrix).T) / (len(DOMAINS) - 1)
    gap = interval(jnp.mean(jnp.diagonal(matrix).T - others, axis=0))
    own = np.asarray(matrix[..., 0])
    better = int((np.diagonal(own) > own).sum())

    def less(arm: str, other: str) -> Interval:
        return interval(errors[arm]["one"] - errors[other]["one"])

    plain, loose = less("comparisons", "comparisons, ensemble"), less(*LOOSE)
    best = measured["means"]["accuracy_mean"]
    cells = f"own domain best in at least 10 of 12 cells ({better} were)"
    found = {
        "best_model": ("one model is right about 0.77 of pairs", best, 0.755, 0.77),
        "ensemble": ("an ensemble is better calibrated than a model", plain, 0, 0),
        "ensemble_unregularised": ("the same, both without regularisation", loose, 0, 0),
        "transfer": (cells, gap, 0, 0),
        "polarised_unseen": ("unseen sentences: AUROC 0.7", aurocs[UNSEEN], 0.5, 0.7),
        "polarised_seen": ("sentences others compared: AUROC 0.7", aurocs[SEEN], 0.5, 0.7),
    }
    claims = {
        name: {"claim": text, **x._asdict(), "verdict": verdict(x, null=null, threshold=least)}
        for name, (text, x, null, least) in found.items()
    }
    if better < 10:
        claims["transfer"]["verdict"] = "FAIL"

    # The files, and a table to read.
    curves = {}
    for name in ("comparisons", "comparisons, ensemble", *LOOSE):
        pairs = np.triu_indices(len(judged), 1)
        curves[name] = rj.measures.reliability(said[name].prefers[pairs], order["one"][pairs], BINS)
    ece = {name: measured[name]["ece_one"].estimate for name in curves}
    rj.report.plot_reliability(curves, run.folder / "plots/calibration.png", errors=ece)
    accuracies = {name: x["accuracy_mean"] for name, x in measured.items()}
    marks = {name: REFERENCE[name] for name in ("lexicon", "bag of n-grams")}
    path = run.folder / "plots/reward_models.png"
    rj.report.plot_reward_models(accuracies, own, DOMAINS, path, marks=marks)
    result = {
        "judged_on": config.judged_on,
        "sentences": {"learnt_from": len(study.train), "judged": len(judged)},
        "models": {
            name: {what: x._asdict() for what, x in y.items()} for name, y in measured.items()
        },
        "reference": REFERENCE,
        "transfer": {"domains": DOMAINS, "accuracy": own, "gap": gap._asdict(), "better": better},
        "auroc_polarised": {name: x._asdict() for name, x in aurocs.items()},
        "polarised_share": float(disputed.mean()),
        "known_raters_gain_nats": gain._asdict(),
        "claims": claims,
        "cpu_seconds": study.seconds | {"all": time.process_time() - began},
    }
    run.write_json("result.json", result)
    shown(result, run.folder, console)


def shown(result: Mapping, folder: Path, console: Console) -> None:
    """The page, and the same tables at the terminal."""

    def cell(found: Mapping[str, float] | None) -> str:
        return "{estimate:.3f} [{low:.3f}, {high:.3f}]".format(**found) if found else ""

    columns = ("accuracy_mean", "accuracy_one", "ece_one", "ece_mean")
    names = ("model", "raters' mean", "one rater", "ECE, one rater", "ECE, mean")
    matrix = zip(DOMAINS, np.round(result["transfer"]["accuracy"], 3).tolist(), strict=True)
    seconds = result["cpu_seconds"]
    tables = {
        "models": (
            names,
            [[n, *(cell(x.get(c)) for c in columns)] for n, x in result["models"].items()],
        ),
        "transfer": (("trained in", *DOMAINS), [[name, *row] for name, row in matrix]),
        "polarised": (
            ("spread", "AUROC"),
            [[n, cell(x)] for n, x in result["auroc_polarised"].items()],
        ),
        "claims": (
            ("claim", "measured", "verdict"),
            [[x["claim"], cell(x), x["verdict"]] for x in result["claims"].values()],
        ),
        "seconds": (("fit", "CPU seconds"), [[name, f"{x:.0f}"] for name, x in seconds.items()]),
    }
    words = {name: rj.report.table(rows, header) for name, (header, rows) in tables.items()}
    words |= result["sentences"] | {"judged_on": result["judged_on"]}
    words |= {"share": result["polarised_share"], "gain": cell(result["known_raters_gain_nats"])}
    words["reference"] = ", ".join(f"{name} {x}" for name, x in result["reference"].items())
    (folder / "report.md").write_text(PAGE.format(**words), encoding="utf-8")
    for header, rows in tables.values():
        closing = Table(*header)
        for row in rows:
            closing.add_row(*(str(x).replace(" [", "\n[") for x in row))
        console.print(closing)
    console.print(f"Report: {folder / 'report.md'}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
