"""Film reviews, the people who rated them, and the two judges that `sentiment.py` makes of both.

The proxy is linear in features of a language model's own layers; the gold judge counts words. They
share no sentence and no column of ratings.
"""

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs
from rlhf_jax.rewards import Standardised
from rlhf_jax.types import Params, Preferences, Prompts, SampleFn, Sequences

_log = logging.getLogger("sentiment")

# What stands before every text, so that the model knows what it is reading, and what is asked
# behind it. No policy writes the question: the reward is read off what the frozen layers make
# of its last word.
LEAD, QUESTION = "Movie review:", " Overall, the movie was"
TEXT_LENGTH = 56  # tokens
TESTS = 1000  # sentences of film reviews that nothing learns from


class Layout(NamedTuple):
    """Every text's columns: the lead, the text (padded behind), the question."""

    lead: np.ndarray
    question: np.ndarray

    def rows(self, texts: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of texts of at most ``length`` tokens."""
        tokens = np.zeros((len(texts), length), np.int32)
        lengths = np.array([min(len(text), length) for text in texts])
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text[:length])] = text[:length]
        mask = np.arange(length) < lengths[:, None]
        ends = [np.tile(x, (len(texts), 1)) for x in self]
        there = [np.ones(x.shape, bool) for x in ends]
        return (
            np.concatenate([ends[0], tokens, ends[1]], axis=1),
            np.concatenate([there[0], mask, there[1]], axis=1),
        )

    def text(self, x: jax.Array) -> jax.Array:
        """The columns of the text."""
        return x[:, len(self.lead) : -len(self.question)]

    def asked(self, sample: SampleFn, end: int) -> SampleFn:
        """The same sampler, with the question behind each answer; ``end`` hides the end of text."""
        count = len(self.question)

        def answers(params: Params, prompts: Prompts, keys: jax.Array) -> Sequences:
            found = sample(params, prompts, keys)
            # Human texts have no end-of-text before the question.
            mask = found.mask & ~(found.response_mask & (found.tokens == end))

            def longer(x: jax.Array, tail: np.ndarray) -> jax.Array:
                tail = jnp.broadcast_to(jnp.asarray(tail, x.dtype), (len(x), count))
                return jnp.concatenate([x, tail], axis=1)

            return Sequences(
                tokens=longer(found.tokens, self.question),
                mask=longer(mask, True),
                response_mask=longer(found.response_mask, False),
                log_probs=longer(found.log_probs, 0.0),
            )

        return answers


class Fitting(NamedTuple):
    """How much a judge is fitted to."""

    comparisons: int
    batch: int
    steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Reviews:
    """The sentences as tokens, and who may learn from which.

    Attributes:
        ratings: of all sentences, films and others.
        texts: their tokens.
        layout: how a model reads them.
        test: films that nothing learns from.
        ours: films whose even columns of ratings the proxy may learn from, and the policy to go on
            with.
        theirs: all other sentences, whose odd columns are the gold judge's.
    """

    ratings: rj.data.Ratings
    texts: list[list[int]]
    layout: Layout
    test: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def odd(self) -> np.ndarray:
        """The gold judge's columns of ratings, ``bool[R]``; the others are the proxy's."""
        return np.arange(self.ratings.ratings.shape[1]) % 2 == 1

    def rows(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of sentences, without lead and question."""
        rows = self.layout.rows([self.texts[i] for i in items], TEXT_LENGTH)
        return self.layout.text(rows[0]), self.layout.text(rows[1])

    def comparisons(
        self, items: np.ndarray, columns: np.ndarray, key: jax.Array, how: Fitting
    ) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Batches of two of ``items``, the preferred one first, from one rating of each."""
        there = self.ratings.rating_mask & columns
        human = rj.humans.real_raters(self.ratings.ratings[items], there[items])
        keys = jax.random.split(key)
        pairs = Pairs(*jax.random.randint(keys[0], (2, how.comparisons), 0, len(items)))
        sides = rj.feedback.decided(pairs, jax.jit(human)(keys[1], pairs))
        return rj.data.epochs(sides, how.batch, seed=how.seed)

    def openings(self, items: np.ndarray, length: int, decode: Callable) -> Prompts:
        """The lead and the first tokens of sentences, up to the end of a word."""
        heads = [t for t in (self.texts[i] for i in items) if len(t) >= length + 4]
        heads = [t[:length] for t in heads if decode([t[length]])[0] == " "]
        rows = np.concatenate([np.tile(self.layout.lead, (len(heads), 1)), heads], axis=1)
        return Prompts(rows.astype(np.int32), np.ones(rows.shape, bool))


def reviews(ratings: rj.data.Ratings, encode: Callable[[str], list[int]], tests: int) -> Reviews:
    """All sentences in tokens, split by sentence; ``tests`` of those kept apart are looked at."""
    films = np.flatnonzero(ratings.domain == rj.data.DOMAINS.index("movies"))
    films = np.random.default_rng(0).permutation(films)
    ours = films[TESTS : TESTS + round(0.65 * (len(films) - TESTS))]
    theirs = np.setdiff1d(np.setdiff1d(np.arange(len(ratings)), films[:TESTS]), ours)
    texts = [encode(f" {text}")[:TEXT_LENGTH] for text in ratings.texts]
    layout = Layout(np.array(encode(LEAD)), np.array(encode(QUESTION)))
    return Reviews(ratings, texts, layout, films[:tests], ours, theirs)


def last_features(hidden: jax.Array) -> jax.Array:
    """What the reward is linear in, ``float32[B, D]``: the last column, to a length of one."""
    last = hidden[:, -1].astype(jnp.float32)
    return last * jax.lax.rsqrt(jnp.mean(jnp.square(last), axis=-1, keepdims=True) + 1e-5)


def features_of(texts: list[list[int]], layout: Layout, read: Callable, made_of: str) -> np.ndarray:
    """The features of texts, computed once and kept in the cache, a file for every 256 texts."""
    folder, found = rj.assets.cache_folder() / "features", []
    began = time.perf_counter()
    for start in range(0, len(texts), 256):
        part = texts[start : start + 256]
        ends = [end.tolist() for end in layout]
        name = hashlib.sha256(json.dumps([made_of, part, ends]).encode())
        path = folder / f"{name.hexdigest()[:32]}.npy"
        if not path.is_file():
            order, rows = np.argsort([len(text) for text in part], kind="stable"), None
            for batch in np.array_split(order, -(-len(part) // 32)):
                longest = max(len(part[i]) for i in batch)
                columns = min(-(-longest // 8) * 8, TEXT_LENGTH)
                padded = [part[i] for i in batch] + [[]] * (32 - len(batch))
                values = np.asarray(read(*layout.rows(padded, columns)))[: len(batch)]
                rows = np.zeros((len(part), values.shape[1]), np.float32) if rows is None else rows
                rows[batch] = values
            folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                np.save(file, rows)
            os.replace(temporary, path)
            took = time.perf_counter() - began
            _log.info("features of %d of %d texts, %.0f s", start + len(part), len(texts), took)
        found.append(np.load(path, allow_pickle=False))
    return np.concatenate(found)


class Judges(NamedTuple):
    """Both judges' parameters, each with what is read as one SD.

    Attributes:
        proxy: weights of the features, ``float32[F]``.
        gold: of the model of words.
    """

    proxy: Standardised
    gold: Standardised


def fit_judge(
    run: rj.runs.Run,
    name: str,
    score_fn: Callable,
    params: Params,
    batches: Callable[[int], Preferences],
    how: Fitting,
    *,
    decay: float,
    **settings: Any,
) -> Params:
    """The whole of step 2 for one judge."""
    rate = optax.cosine_decay_schedule(0.05, how.steps)
    optimizer = optax.chain(optax.add_decayed_weights(decay), optax.adam(rate, b2=0.99))
    algorithm = rj.algorithms.reward_model(score_fn, optimizer, **settings)
    state = partial(algorithm.init, params, jax.random.key(how.seed))
    shown = {"show": ["loss", "accuracy"], "keep": 1}
    return run.fit(name, algorithm, state, batches, steps=how.steps, **shown).state.params


def fit_proxy(
    run: rj.runs.Run, reviews: Reviews, learnt: np.ndarray, table: np.ndarray, how: Fitting
) -> jax.Array:
    """Weights ``float32[F]`` of the features ``table[N, F]`` of the sentences ``learnt[N]``."""
    key = jax.random.key(how.seed)
    mean, scale = table.mean(axis=0), (table.std(axis=0) + 1e-3) * table.shape[1] ** 0.5
    head = rj.models.linear_head(table.shape[1])

    def table_score(params: Params, rows: jax.Array, mask: jax.Array) -> jax.Array:
        return head.apply(params["head"], params["table"][rows[:, 0]])

    picked = reviews.comparisons(learnt, ~reviews.odd, jax.random.fold_in(key, 1), how)

    def batches(step: int) -> Preferences:
        there = np.ones((how.batch, 1), bool)
        return Preferences(*(Sequences(i[:, None], there, there) for i in picked(step)))

    start = {"table": (table - mean) / scale, "head": head.init(key)}
    only = {"decay": 1e-4, "trainable": ("head/*",)}
    fitted = fit_judge(run, "proxy", table_score, start, batches, how, **only)
    return fitted["head"]["kernel"][:, 0] / scale


def fit_gold(
    run: rj.runs.Run, reviews: Reviews, words: rj.models.NgramModel, how: Fitting
) -> Params:
    """A judge that counts words, pairs and pieces of words; it watches, and trains nothing."""
    key = jax.random.key(how.seed)
    tokens, mask = reviews.rows(reviews.theirs)
    picked = reviews.comparisons(reviews.theirs, reviews.odd, jax.random.fold_in(key, 2), how)

    def batches(step: int) -> Preferences:
        return Preferences(*(Sequences(tokens[i], mask[i], mask[i]) for i in picked(step)))

    only = {"decay": 3e-6, "trainable": ("weight", "bias"), "token_dropout": 0.3}
    start = words.init(key, tokens, mask)
    return fit_judge(run, "gold", words.score_fn, start, batches, how, **only)
