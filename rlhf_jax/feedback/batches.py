"""Feedback as batches to learn from, and as rewards for tokens; each says what is lost.

Pure functions on arrays, which run under ``jax.jit`` and ``jax.vmap``; only ``decided`` gives
arrays whose length depends on the answers, and so works on NumPy arrays.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import common
from rlhf_jax.feedback.forms import (
    Comparison,
    Feedback,
    Label,
    Pairs,
    Ranking,
    Rating,
    Spans,
    Steps,
)
from rlhf_jax.types import Preferences, PyTree, Ranked, Rated, Sequences

__all__ = ["decided", "preferences", "ranked", "rated", "to_batch", "token_rewards"]


def decided(pairs: Pairs, comparison: Comparison) -> tuple[PyTree, PyTree]:
    """The examples preferred and those not preferred; ties and unanswered rows are left out.

    What is lost is that the tied pairs were close (a loss for ties would use it, ``preferences``
    keeps it), how sure a judge was that gave a probability, and the strength of the preference.

    Args:
        pairs: what was compared, arrays ``[B, ...]``.
        comparison: the answers, ``[B]``.

    Returns:
        Chosen and rejected, pytrees of ``[D, ...]`` like the pairs' sides: NumPy arrays, since
        their length depends on the answers.

    Raises:
        ValueError: if the sides or the answers do not fit together, or a preference is not from 0
            to 1.

    >>> pairs = Pairs(np.array([4, 5, 6]), np.array([7, 8, 9]))
    >>> answers = Comparison(preference=np.array([1.0, 0.5, 0.0]))
    >>> [side.tolist() for side in decided(pairs, answers)]
    [[4, 9], [7, 6]]
    """
    first, second = common.without_log_probs(pairs.first, pairs.second, only_if_missing=True)
    _check_pairs(Pairs(first, second), comparison)
    preference = np.asarray(comparison.preference)
    keep = preference != 0.5
    if comparison.answered is not None:
        keep &= np.asarray(comparison.answered)

    def side(wins):
        def chosen(x, y):
            x, y = np.asarray(x), np.asarray(y)
            return np.where(_columns(wins, x), x, y)[keep]

        return jax.tree.map(chosen, first, second)

    return side(preference > 0.5), side(preference < 0.5)


def preferences(
    pairs: Pairs, comparison: Comparison, *, keep_ties: bool = True, soft: bool = False
) -> Preferences:
    """A batch for ``algorithms.direct`` and ``algorithms.reward_model``.

    Lost are the strength and, unless ``soft``, a judge's probability: which of the two it is nearer
    to is kept.

    Args:
        pairs: two ``Sequences`` of ``B`` rows.
        comparison: the answers, ``[B]``.
        keep_ties: whether to say which are ties, for a loss that takes them
            (``losses.davidson``, ``losses.rao_kupper``); otherwise they become padding.
        soft: whether to keep the probabilities, for any loss; a tie is then one of a half.

    Returns:
        ``Preferences`` of ``B`` rows. Rows that were not answered are padding: their response masks
        are empty. Without ``log_probs`` if one side has none.

    Raises:
        ValueError: if the sides or the answers do not fit together, or a preference is not from 0
            to 1.

    >>> ones = jnp.ones([3, 1], bool)
    >>> first, second = (Sequences(jnp.full([3, 1], i), ones, ones) for i in (7, 8))
    >>> answers = Comparison(preference=jnp.array([0.0, 1.0, 0.5]))
    >>> batch = preferences(Pairs(first, second), answers)
    >>> print(batch.chosen.tokens[:, 0], batch.tied)
    [8 7 7] [False False  True]
    """
    first, second = common.without_log_probs(pairs.first, pairs.second, only_if_missing=True)
    _check_pairs(Pairs(first, second), comparison)
    preference = jnp.asarray(comparison.preference)
    tied, valid = preference == 0.5, common.answered(comparison, preference.shape)

    def side(wins):
        def chosen(x, y):
            return jnp.where(_columns(wins, x), x, y)

        kept = valid if keep_ties or soft else valid & ~tied
        return _padded(jax.tree.map(chosen, first, second), kept)

    chosen, rejected = side(preference >= 0.5), side(preference < 0.5)
    if soft:
        probability = jnp.maximum(preference, 1 - preference)
        return Preferences(chosen, rejected, probability=probability, rater=comparison.rater)
    said = tied & valid if keep_ties else None
    return Preferences(chosen, rejected, said, rater=comparison.rater)


def rated(
    sequences: Sequences,
    answer: Rating | Label | Spans | Steps,
    *,
    low: int | None = None,
    choices: int = 2,
) -> Rated:
    """A batch of sequences that were judged each by itself.

    Nothing is lost. But unless a model is told otherwise (``models.rater_scale``) it takes the
    ratings of several people for one scale, although people differ in where they begin and how far
    they go (see ``humans.fit_rater_effects``).

    Args:
        sequences: of ``B`` rows.
        answer: what was said of each. Of spans and steps it takes the ``token_rewards``, 0 where
            nothing was marked; to learn from the marks alone, take ``step_labels``.
        low: the least rating of a scale of whole steps; the ratings then become ``int32`` steps
            from 0, as ``losses.ordinal`` wants them.
        choices: among how many a label chooses. Of two, it becomes ``bool``, good or bad.

    Returns:
        ``Rated`` of ``B`` rows; those not answered are padding, with empty response masks and
        ratings of 0.

    Raises:
        ValueError: if the shapes do not fit, a choice is none of ``choices``, or a rating is not
            finite or no whole step from ``low``.
        TypeError: if the answer is of no such form.

    >>> mask = jnp.ones([2, 1], bool)
    >>> texts = Sequences(jnp.array([[5], [6]]), mask, mask)
    >>> answer = Rating(value=jnp.array([-2.0, 4.0]), answered=jnp.array([True, False]))
    >>> batch = rated(texts, answer, low=-4)
    >>> print(batch.ratings, batch.sequences.response_mask[:, 0])
    [2 0] [ True False]
    """
    if isinstance(answer, Rating):
        ratings = jnp.asarray(answer.value)
        wrong = common.answered(answer, ratings.shape) & ~jnp.isfinite(ratings)
        common.refuse("value", ratings, wrong, "finite")
        if low is not None:
            steps = jnp.round(ratings - low).astype(jnp.int32)
            wrong = common.answered(answer, ratings.shape) & (
                (steps < 0) | (steps + low != ratings)
            )
            common.refuse("value", ratings, wrong, f"a whole number from {low} up")
            ratings = steps
    elif isinstance(answer, Label):
        ratings = jnp.asarray(answer.choice)
        wrong = common.answered(answer, ratings.shape) & ((ratings < 0) | (ratings >= choices))
        common.refuse("choice", ratings, wrong, f"from 0 to {choices - 1}")
        ratings = ratings == 1 if choices == 2 else ratings
    elif isinstance(answer, Spans | Steps):
        ratings = token_rewards(answer, length=jnp.shape(sequences.tokens)[1])
    else:
        raise TypeError(f"rated takes Rating, Label, Spans or Steps, not {type(answer).__name__}")
    if len(ratings) != len(sequences.tokens):
        found = f"{len(sequences.tokens)} and {len(ratings)}"
        raise ValueError(f"sequences and answer must have as many rows, not {found}")
    valid = common.answered(answer, len(ratings))
    # What nobody said may be nan, and a gradient of 0 times that is nan too.
    ratings = jnp.where(_columns(valid, ratings), ratings, jnp.zeros_like(ratings))
    return Rated(_padded(sequences, valid), ratings, rater=answer.rater)


def ranked(sequences: Sequences, ranking: Ranking) -> Ranked:
    """A batch of ranked answers, for ``losses.plackett_luce`` and ``losses.rrhf``.

    Nothing is lost.

    Args:
        sequences: ``[B, N, T]``, as they were shown.
        ranking: of ``B`` rows of ``N``.

    Returns:
        ``Ranked``; rows that were not answered are padding, with empty response masks.

    Raises:
        ValueError: if the shapes do not fit, or a row does not rank each answer once.

    >>> mask = jnp.ones([1, 2, 1], bool)
    >>> texts = Sequences(jnp.array([[[5], [6]]]), mask, mask)
    >>> ranked(texts, Ranking(order=jnp.array([[1, 0]]))).rankings.tolist()
    [[1, 0]]
    """
    shape, wanted = common.check_order(ranking), jnp.shape(sequences.tokens)[:2]
    if shape != wanted:
        raise ValueError(f"order must have the shape {wanted} of the sequences, not {shape}")
    valid = common.answered(ranking, shape[0])
    order = jnp.asarray(ranking.order, jnp.int32)
    return Ranked(_padded(sequences, valid), order, rater=ranking.rater)


def to_batch(examples: PyTree, answer: Feedback) -> Preferences | Rated | Ranked:
    """What was said of examples as a batch to learn from, whichever form it has.

    Args:
        examples: what was asked about: ``Pairs`` of ``Sequences`` for a comparison, ``Sequences``
            ``[B, T]`` for a rating, a label, spans or steps, ``[B, N, T]`` for a ranking.
        answer: the feedback.

    Returns:
        As of ``preferences`` (ties and what was not answered are padding), ``rated`` or ``ranked``.

    Raises:
        TypeError: if no batch can be made of such an answer.
        ValueError: if examples and answer do not fit together.

    >>> mask = jnp.ones([2, 1], bool)
    >>> texts = Sequences(jnp.array([[5], [6]]), mask, mask)
    >>> to_batch(texts, Rating(value=jnp.array([1.0, 2.0]))).ratings.tolist()
    [1.0, 2.0]
    """
    if isinstance(answer, Comparison):
        return preferences(examples, answer, keep_ties=False)
    if isinstance(answer, Ranking):
        return ranked(examples, answer)
    if isinstance(answer, Rating | Label | Spans | Steps):
        return rated(examples, answer)
    raise TypeError(f"{type(answer).__name__} is no feedback to learn a reward from as it is")


def token_rewards(
    feedback: Spans | Steps,
    *,
    length: int | None = None,
    place: Literal["every", "end"] = "every",
) -> jax.Array:
    """Fine-grained feedback as a reward for each token.

    A step's mark goes to its last token. A span's goes to each of its tokens, so that a long span
    weighs more, or to the last one, so that it does not; two spans that touch and have the same
    mark are then one. Lost is the difference between what was marked 0 and what was not marked.

    Args:
        feedback: spans of ``[B, T]``, or steps.
        length: ``T``, for steps.
        place: for spans, ``"every"`` token or the ``"end"``.

    Returns:
        ``float32[B, T]``; 0 in rows that were not answered.

    Raises:
        ValueError: if the shapes differ, ``length`` is needed and not given, does not fit or ends
            before a step does, or ``place`` is unknown.
        TypeError: if the feedback is of another form.

    Reference: Wu et al. 2023, https://arxiv.org/abs/2306.01693

    >>> spans = Spans(marks=jnp.array([[0.0, -1.0, -1.0, 0.5]]))
    >>> token_rewards(spans, place="end").tolist()
    [[0.0, 0.0, -1.0, 0.5]]
    """
    if place not in ("every", "end"):
        raise ValueError(f"place must be every or end, not {place!r}")
    if isinstance(feedback, Steps):
        marks, mask = common.check_steps(feedback)
        if length is None:
            raise ValueError("length must be given: steps do not say how long the text is")
        ends = jnp.asarray(feedback.ends)
        wrong = mask & ((ends < 0) | (ends >= length))
        common.refuse("ends", ends, wrong, f"from 0 to {length - 1}")
        rows = jnp.arange(len(marks))[:, None]
        # A column beyond the end is dropped, as is what was not marked.
        column = jnp.where(mask & (ends >= 0), ends, length)
        rewards = jnp.zeros((len(marks), length), jnp.float32)
        rewards = rewards.at[rows, column].add(marks, mode="drop")
    elif isinstance(feedback, Spans):
        rewards = jnp.asarray(feedback.marks, jnp.float32)
        if rewards.ndim != 2 or length not in (None, rewards.shape[1]):
            wanted = "[B, T]" if length is None else f"[B, {length}]"
            raise ValueError(f"marks must be {wanted}, not {list(rewards.shape)}")
        if place == "end":
            ends = jnp.pad(rewards[:, 1:] != rewards[:, :-1], ((0, 0), (0, 1)), constant_values=1)
            rewards = jnp.where(ends, rewards, 0.0)
    else:
        raise TypeError(f"token_rewards takes Spans or Steps, not {type(feedback).__name__}")
    return jnp.where(common.answered(feedback, len(rewards))[:, None], rewards, 0.0)


def _columns(rows: jax.Array, like: jax.Array) -> jax.Array:
    return rows.reshape(rows.shape + (1,) * (jnp.ndim(like) - 1))


def _padded(sequences: Sequences, valid: jax.Array) -> Sequences:
    mask = jnp.asarray(sequences.response_mask)
    return sequences.replace(response_mask=mask & _columns(valid, mask))


def _check_pairs(pairs: Pairs, comparison: Comparison) -> None:
    preference = jnp.asarray(comparison.preference)
    common.check_same_structure(first=pairs.first, second=pairs.second)
    checks.vectors(preference=preference)
    for leaf in jax.tree.leaves(pairs.first):
        if jnp.shape(leaf)[:1] != preference.shape:
            found = f"{jnp.shape(leaf)[:1]} and {preference.shape}"
            raise ValueError(f"pairs and preference must have as many rows, not {found}")
    # Of nan neither side would be chosen, or the same one twice.
    wrong = common.answered(comparison, preference.shape) & ~((preference >= 0) & (preference <= 1))
    common.refuse("preference", preference, wrong, "from 0 to 1")
