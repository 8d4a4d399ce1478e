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


class Said(NamedTuple):
    """What a model says of the ``N`` sentences judged."""

    scores: jax.Array  # [N]
    prefers: jax.Array | None = None  # [N, N], how probably one rater prefers the first
    spread: jax.Array | None = None  # [N], variance of the reward


ARMS = {
    "comparisons": Arm("comparisons"),
    "comparisons, ensemble": Arm("comparisons", ensemble=True),
    "means": Arm("means"),
    "means, ensemble": Arm("means", ensemble=True),
    "DPL, mean and variance": Arm("comparisons", normal()),
    "DPL, categorical": Arm("comparisons", categorical(np.linspace(-4, 4, 9))),
    "ratings, mean and variance": Arm("ratings", normal()),
    "ratings, categorical": Arm("ratings", categorical(np.linspace(-4, 4, 9))),
}
RATERS = "ratings, bias, slope and noise of each rater"
LABELS = {"comparisons": "single raters' comparisons", "means": "raters' means", "ratings": "single ratings"}


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
    params, score_fn, members = study.start(model), model.score_fn, None
    settings = {"steps": sizes.steps if arm.feedback == "means" else sizes.answer_steps}
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
        params = study.fit(name, model.score_fn, params, batches, l2=arm.l2, **settings)
        scores = study.read(jax.vmap(model.score_fn, (0, None, None)), params)
        prefers = jnp.mean(jax.nn.sigmoid(scores[:, :, None] - scores[:, None]), axis=0)
        return Said(scores.mean(0), prefers if arm.feedback == "comparisons" else None)
    batches = batches_of(study, arm.feedback, train, 0)
    params = study.fit(name, model.score_fn, params, batches, l2=arm.l2, **settings)
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
