"""People's ratings made ready for reward models: the split, the one model of all arms, batches."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs
from rlhf_jax.types import Batch, Params, Preferences, Rated, Sequences


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
    resamples: int = 1000  # of the bootstrap


# "tiny" takes seconds, to see that everything runs; its figures mean nothing.
PRESETS = {"default": Sizes(), "tiny": Sizes(64, 256, 20, 10, 10, 16, 400, 2, 16, 8, 20)}
LENGTH = 48  # tokens: one sentence in a hundred is longer
FILMS = rj.data.DOMAINS.index("movies")
DOMAINS = ("products", "films", "editorials", "tweets")


@dataclasses.dataclass(frozen=True)
class Study:
    """The sentences as numbers, who may see which, and where fitted models go."""

    sizes: Sizes
    seed: int
    run: rj.runs.Run
    ratings: rj.data.Ratings
    judged: np.ndarray
    train: np.ndarray
    words: Sequence[str]
    tokens: np.ndarray
    mask: np.ndarray
    centre: np.ndarray  # of each sentence's domain
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.seed)

    def sequences(self, rows: np.ndarray) -> Sequences:
        """Sentences by number."""
        return Sequences(self.tokens[rows], self.mask[rows], self.mask[rows])

    def model(self, outputs: int | None = None) -> rj.models.NgramModel:
        """The reward model of all arms: linear in words, pairs and pieces of words."""
        return rj.models.hashed_model(self.words, outputs=outputs, buckets=self.sizes.buckets)

    def start(self, model: rj.models.NgramModel, rows: np.ndarray) -> Params:
        """Parameters that know which words are rare in these texts, and nothing else."""
        return jax.jit(model.init)(self.key, self.tokens[rows], self.mask[rows])

    def read(self, score_fn: Callable, params: Params, rows: np.ndarray) -> jax.Array:
        """What a fitted model says of sentences."""
        return jax.jit(score_fn)(params, self.tokens[rows], self.mask[rows])

    def fit(
        self,
        name: str,
        score_fn: Callable,
        params: Params,
        batches: Callable[[int], Batch],
        *,
        steps: int,
        members: int | None = None,
        l2: float,
        token_dropout: float = 0.3,
        raters: Callable[[Params], jax.Array] = lambda params: 0.0,
        **settings: Any,
    ) -> Params:
        """The parameters of one model; of ``members`` models, each with batches of its own."""

        def regulariser(params: Params) -> jax.Array:
            score = params.get("score", params)  # A model of raters has one of sentences inside.
            return l2 * jnp.sum(jnp.square(score["weight"])) + raters(params)

        began = time.process_time()
        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
        settings = {"regulariser": regulariser, "token_dropout": token_dropout} | settings
        algorithm = rj.algorithms.reward_model(score_fn, optimizer, **settings)
        if members is not None:
            algorithm = rj.algorithms.ensemble(algorithm, members, own_batches=True)
        state = partial(algorithm.init, params, jax.random.fold_in(self.key, 1))
        fitted = self.run.fit(name, algorithm, state, batches, steps=steps, show=["loss"])
        params = jax.block_until_ready(fitted.state.params)
        self.seconds[name] = time.process_time() - began
        return params


def prepared(
    ratings: rj.data.Ratings, sizes: Sizes, run: rj.runs.Run, *, judged_on: str, seed: int
) -> Study:
    """Split by sentence: nothing that reads like a test, or like what is judged, is learnt from."""
    films = np.random.default_rng(5).permutation(np.flatnonzero(ratings.domain == FILMS))
    tests, validation = films[: sizes.held_out], films[sizes.held_out : 2 * sizes.held_out]
    judged = tests if judged_on == "test" else validation
    hidden = {ratings.texts[row] for row in (*tests, *judged)}
    train = np.array([n for n, text in enumerate(ratings.texts) if text not in hidden])
    texts = [ratings.texts[row] for row in train]
    tokenizer = rj.data.train_tokenizer(texts, vocab_size=sizes.vocabulary)
    words = [tokenizer.id_to_token(n) for n in range(tokenizer.get_vocab_size())]
    tokens, mask = rj.data.encode(tokenizer, ratings.texts, length=LENGTH)
    domain, mean = ratings.domain[train], ratings.mean[train]
    centres = np.array([mean[domain == n].mean() for n in range(len(DOMAINS))], np.float32)
    centre = centres[ratings.domain]
    return Study(sizes, seed, run, ratings, judged, train, words, tokens, mask, centre)


def comparisons(
    study: Study, rows: np.ndarray, draw: int, columns: np.ndarray | bool = True
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Two sentences of a domain, as one rating of each compares them; ties are left out."""
    rng, domain = np.random.default_rng((study.seed, draw)), study.ratings.domain
    first = rng.choice(rows, study.sizes.comparisons)
    second = np.empty_like(first)
    for n in np.unique(domain[rows]):
        here = domain[first] == n
        second[here] = rng.choice(rows[domain[rows] == n], here.sum())
    human = rj.humans.real_raters(study.ratings.ratings, study.ratings.rating_mask & columns)
    pairs = Pairs(jnp.array(first), jnp.array(second))
    answers = jax.jit(human)(jax.random.fold_in(study.key, draw), pairs)
    sides = rj.feedback.decided(pairs, answers)
    return rj.data.epochs(sides, study.sizes.batch, seed=study.seed)


def compared(study: Study, rows: np.ndarray, draw: int = 0) -> Callable[[int], Preferences]:
    """The same as batches of text."""
    numbers = comparisons(study, rows, draw)
    return lambda step: Preferences(*map(study.sequences, numbers(step)))


def rated(study: Study, rows: np.ndarray, ratings: np.ndarray, **of_rows) -> Callable[[int], Rated]:
    """Batches of sentences with a rating each; a sentence may come several times."""
    table = {"rows": rows, "ratings": np.asarray(ratings, np.float32)} | of_rows
    batches = rj.data.epochs(table, min(study.sizes.batch, len(rows)), seed=study.seed)

    def batch(step: int) -> Rated:
        fields = batches(step)
        return Rated(study.sequences(fields.pop("rows")), **fields)

    return batch
