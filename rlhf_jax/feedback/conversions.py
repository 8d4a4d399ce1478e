"""One form of feedback from another, and batches to learn from; each says what is lost.

Pure functions on arrays, which run under ``jax.jit`` and ``jax.vmap``; only ``decided`` gives
arrays whose length depends on the answers, and so works on NumPy arrays.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback.forms import (
    Attributes,
    Comparison,
    Correction,
    Feedback,
    Label,
    Pairs,
    Ranking,
    Rating,
    Spans,
    Steps,
)
from rlhf_jax.types import Preferences, PyTree, Ranked, Rated, Sequences

__all__ = [
    "averaged",
    "comparison_from_correction",
    "comparisons_from_ratings",
    "decided",
    "majority",
    "pairs_from_ranking",
    "preferences",
    "ranked",
    "rated",
    "rating_from_attributes",
    "rating_from_steps",
    "token_rewards",
]


def comparisons_from_ratings(
    first: Rating, second: Rating, *, margin: float | jax.Array = 0.0
) -> Comparison:
    r"""Which of two was rated higher by one rater.

    .. math:: y = \tfrac{1}{2} + \tfrac{1}{2} \operatorname{sign}(v_1 - v_2), \qquad
              y = \tfrac{1}{2} \text{ if } |v_1 - v_2| \le m

    It holds within one rater's scale, whatever that is: any increasing transformation of the
    ratings gives the same comparisons (with no margin). Of two raters the harsher one's favourite
    may have the lower rating, so a row whose raters differ, or of which one is unknown, counts as
    unanswered. Lost is how much better the one was, and how good both were. The comparisons of one
    rating with several others share its error and are not independent.

    Args:
        first: ratings ``[B]`` of the first of each pair.
        second: ratings ``[B]`` of the second.
        margin: ratings that differ by no more count as equal.

    Returns:
        ``Comparison`` of ``B`` rows. Its cost and time are those of both ratings, its rater is -1
        where the two differ. Where neither form names a rater, one is presumed for both, which
        cannot be checked.

    Raises:
        ValueError: if the values differ in shape, or only one of the two names raters.

    >>> first = Rating(value=jnp.array([3.0, 1.0, 5.0]), rater=jnp.array([7, 7, 7]))
    >>> second = Rating(value=jnp.array([2.0, 1.0, 4.0]), rater=jnp.array([7, 7, 8]))
    >>> comparison = comparisons_from_ratings(first, second)
    >>> print(comparison.preference, comparison.answered)
    [1.  0.5 1. ] [ True  True False]
    """
    checks.alike(first=first.value, second=second.value)
    if (first.rater is None) != (second.rater is None):
        missing = "first" if first.rater is None else "second"
        raise ValueError(f"{missing} names no raters, but the other does: whose scale is it?")
    gap = jnp.asarray(first.value, jnp.float32) - second.value
    preference = 0.5 + 0.5 * jnp.where(jnp.abs(gap) <= margin, 0.0, jnp.sign(gap))
    answered, rater = _both(first.answered, second.answered, jnp.logical_and), None
    if first.rater is not None:
        same = (first.rater == second.rater) & (first.rater >= 0)
        rater = jnp.where(same, first.rater, -1)
        answered = same if answered is None else same & answered
    return Comparison(
        preference=preference.astype(jnp.float32),
        rater=rater,
        cost=_both(first.cost, second.cost, jnp.add),
        seconds=_both(first.seconds, second.seconds, jnp.add),
        answered=answered,
    )


def pairs_from_ranking(ranking: Ranking, *, adjacent: bool = False) -> tuple[Pairs, Comparison]:
    """The comparisons that a ranking implies.

    All ``N (N - 1) / 2`` of them, or the ``N - 1`` between neighbours, from which the others
    follow. They are not independent: one ranking is one act of judgement, of which the pairs are
    many views (their product is not the likelihood of the ranking; ``losses.plackett_luce`` is).
    So hold out whole rankings, and resample them rather than pairs for an interval. Nothing of the
    order is lost, except, with ``adjacent``, weight: all pairs count the ends of the ranking most.

    Args:
        ranking: of ``B`` rows of ``N`` examples.
        adjacent: neighbours only.

    Returns:
        ``Pairs`` of indices ``int32[B * P]`` into the ``B * N`` examples laid end to end (example
        ``n`` of row ``b`` is ``b * N + n``), row after row, the better one first, and the
        ``Comparison`` of them, which is 1 throughout. The costs and times of a row are spread
        evenly over its pairs.

    Raises:
        ValueError: if ``order`` is not ``[B, N]`` of integers, or ``N`` is below 2.

    >>> ranking = Ranking(order=jnp.array([[2, 0, 1]]), cost=jnp.array([3.0]))
    >>> pairs, comparison = pairs_from_ranking(ranking)
    >>> print(pairs.first, pairs.second, comparison.preference, comparison.cost)
    [2 2 0] [0 1 1] [1. 1. 1.] [1. 1. 1.]
    """
    shape = _check_order(ranking.order)
    if shape[1] < 2:
        raise ValueError(f"order must rank at least 2 examples, not {shape[1]}")
    above, below = np.triu_indices(shape[1], 1)
    if adjacent:
        above, below = above[below - above == 1], below[below - above == 1]
    order = jnp.asarray(ranking.order, jnp.int32) + jnp.arange(shape[0])[:, None] * shape[1]
    count = len(above)

    def repeated(column, share=1):
        return None if column is None else jnp.repeat(jnp.asarray(column) / share, count)

    comparison = Comparison(
        preference=jnp.ones(shape[0] * count, jnp.float32),
        rater=None if ranking.rater is None else jnp.repeat(jnp.asarray(ranking.rater), count),
        cost=repeated(ranking.cost, count),
        seconds=repeated(ranking.seconds, count),
        answered=None if ranking.answered is None else jnp.repeat(ranking.answered, count),
    )
    return Pairs(order[:, above].ravel(), order[:, below].ravel()), comparison


def comparison_from_correction(
    examples: PyTree, correction: Correction
) -> tuple[Pairs, Comparison]:
    """A corrected example is better than what it was; one left as it was is as good.

    It presumes that a person corrects towards what they like better. Lost is where the fault was
    and that the correction, unlike an answer that merely won, was good enough to be left.

    Args:
        examples: the pytree that was shown, arrays ``[B, ...]``.
        correction: of its ``B`` rows.

    Returns:
        ``Pairs`` of the corrected and the original, and the ``Comparison`` of them: 1, or 0.5 where
        nothing was changed. Of ``Sequences`` what is compared is the real tokens and the masks;
        they come without ``log_probs``, as no policy wrote the corrections.

    Raises:
        ValueError: if the two are not of one structure and shape.

    >>> examples, corrected = jnp.array([[1, 2], [3, 4]]), jnp.array([[1, 5], [3, 4]])
    >>> _, comparison = comparison_from_correction(examples, Correction(corrected=corrected))
    >>> comparison.preference.tolist()
    [1.0, 0.5]
    """
    original, corrected = _without_log_probs(examples, correction.corrected)
    _check_same_structure(examples=original, corrected=corrected)

    def unchanged(before, after):
        before, after = jnp.asarray(before), jnp.asarray(after)
        return jnp.all((before == after).reshape(len(before), -1), axis=1)

    def real(side):
        if not isinstance(side, Sequences):
            return side
        return side.replace(tokens=jnp.where(side.mask, side.tokens, 0))

    same = jax.tree.leaves(jax.tree.map(unchanged, real(original), real(corrected)))
    preference = jnp.where(jnp.all(jnp.stack(same), axis=0), 0.5, 1.0).astype(jnp.float32)
    return Pairs(corrected, original), Comparison(preference=preference, **_about(correction))


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
        ValueError: if the sides or the answers do not fit together.

    >>> pairs = Pairs(np.array([4, 5, 6]), np.array([7, 8, 9]))
    >>> answers = Comparison(preference=np.array([1.0, 0.5, 0.0]))
    >>> [side.tolist() for side in decided(pairs, answers)]
    [[4, 9], [7, 6]]
    """
    _check_pairs(pairs, comparison.preference)
    preference = np.asarray(comparison.preference)
    keep = preference != 0.5
    if comparison.answered is not None:
        keep &= np.asarray(comparison.answered)

    def side(wins):
        def chosen(first, second):
            first, second = np.asarray(first), np.asarray(second)
            return np.where(_columns(wins, first), first, second)[keep]

        return jax.tree.map(chosen, pairs.first, pairs.second)

    return side(preference > 0.5), side(preference < 0.5)


def preferences(pairs: Pairs, comparison: Comparison, *, keep_ties: bool = True) -> Preferences:
    """A batch for ``algorithms.direct`` and ``algorithms.reward_model``.

    Lost are a judge's probability (which of the two it is nearer to is kept), the strength, and
    who answered.

    Args:
        pairs: two ``Sequences`` of ``B`` rows.
        comparison: the answers, ``[B]``.
        keep_ties: whether to say which are ties, for a loss that takes them
            (``losses.davidson``, ``losses.rao_kupper``); otherwise they become padding.

    Returns:
        ``Preferences`` of ``B`` rows. Rows that were not answered are padding: their response masks
        are empty. Without ``log_probs`` if one side has none.

    Raises:
        ValueError: if the sides or the answers do not fit together.

    >>> ones = jnp.ones([3, 1], bool)
    >>> first, second = (Sequences(jnp.full([3, 1], i), ones, ones) for i in (7, 8))
    >>> answers = Comparison(preference=jnp.array([0.0, 1.0, 0.5]))
    >>> batch = preferences(Pairs(first, second), answers)
    >>> print(batch.chosen.tokens[:, 0], batch.tied)
    [8 7 7] [False False  True]
    """
    first, second = _without_log_probs(pairs.first, pairs.second, only_if_missing=True)
    _check_pairs(Pairs(first, second), comparison.preference)
    preference = jnp.asarray(comparison.preference)
    tied, valid = preference == 0.5, _answered(comparison, preference.shape)

    def side(wins):
        def chosen(x, y):
            return jnp.where(_columns(wins, x), x, y)

        return _padded(jax.tree.map(chosen, first, second), valid if keep_ties else valid & ~tied)

    chosen, rejected = side(preference >= 0.5), side(preference < 0.5)
    return Preferences(chosen, rejected, tied & valid if keep_ties else None)


def rated(
    sequences: Sequences,
    answer: Rating | Label | Spans | Steps,
    *,
    low: int | None = None,
    choices: int = 2,
) -> Rated:
    """A batch of sequences that were judged each by itself.

    Lost is who answered: the ratings of several people are taken for one scale, although people
    differ in where they begin and how far they go (see ``humans.fit_rater_effects``).

    Args:
        sequences: of ``B`` rows.
        answer: what was said of each. Of spans and steps it takes the ``token_rewards``.
        low: the least rating of a scale of whole steps; the ratings then become ``int32`` steps
            from 0, as ``losses.ordinal`` wants them.
        choices: among how many a label chooses. Of two, it becomes ``bool``, good or bad.

    Returns:
        ``Rated`` of ``B`` rows; those not answered are padding, with empty response masks.

    Raises:
        ValueError: if the shapes do not fit, a choice is none of ``choices``, or a rating is no
            whole step from ``low``.
        TypeError: if the answer is of no such form.

    >>> mask = jnp.ones([2, 1], bool)
    >>> texts = Sequences(jnp.array([[5], [6]]), mask, mask)
    >>> answer = Rating(value=jnp.array([-2.0, 4.0]), answered=jnp.array([True, False]))
    >>> batch = rated(texts, answer, low=-4)
    >>> print(batch.ratings, batch.sequences.response_mask[:, 0])
    [2 8] [ True False]
    """
    if isinstance(answer, Rating):
        ratings = jnp.asarray(answer.value)
        if low is not None:
            steps = jnp.round(ratings - low).astype(jnp.int32)
            wrong = _answered(answer, ratings.shape) & ((steps < 0) | (steps + low != ratings))
            _refuse("value", ratings, wrong, f"a whole number from {low} up")
            ratings = steps
    elif isinstance(answer, Label):
        ratings = jnp.asarray(answer.choice)
        wrong = _answered(answer, ratings.shape) & ((ratings < 0) | (ratings >= choices))
        _refuse("choice", ratings, wrong, f"from 0 to {choices - 1}")
        ratings = ratings == 1 if choices == 2 else ratings
    elif isinstance(answer, Spans | Steps):
        ratings = token_rewards(answer, length=jnp.shape(sequences.tokens)[1])
    else:
        raise TypeError(f"rated takes Rating, Label, Spans or Steps, not {type(answer).__name__}")
    if len(ratings) != len(sequences.tokens):
        found = f"{len(sequences.tokens)} and {len(ratings)}"
        raise ValueError(f"sequences and answer must have as many rows, not {found}")
    return Rated(_padded(sequences, _answered(answer, len(ratings))), ratings)


def ranked(sequences: Sequences, ranking: Ranking) -> Ranked:
    """A batch of ranked answers, for ``losses.plackett_luce`` and ``losses.rrhf``.

    Nothing of the order is lost; who ranked is.

    Args:
        sequences: ``[B, N, T]``, as they were shown.
        ranking: of ``B`` rows of ``N``.

    Returns:
        ``Ranked``; rows that were not answered are padding, with empty response masks.

    Raises:
        ValueError: if the shapes do not fit.

    >>> mask = jnp.ones([1, 2, 1], bool)
    >>> texts = Sequences(jnp.array([[[5], [6]]]), mask, mask)
    >>> ranked(texts, Ranking(order=jnp.array([[1, 0]]))).rankings.tolist()
    [[1, 0]]
    """
    shape, wanted = _check_order(ranking.order), jnp.shape(sequences.tokens)[:2]
    if shape != wanted:
        raise ValueError(f"order must have the shape {wanted} of the sequences, not {shape}")
    valid = _answered(ranking, shape[0])
    return Ranked(_padded(sequences, valid), jnp.asarray(ranking.order, jnp.int32))


def averaged(feedback: Comparison | Rating, *, weights: jax.Array | None = None):
    """What several raters said of the same examples, as one soft answer.

    The mean of votes estimates the share of people who prefer the first; the mean of ratings is
    the people's mean if their scales are one. Lost is everything beside the mean: who, and whether
    they disagreed or none of them was sure.

    Args:
        feedback: one form of ``[R, B]`` arrays, stacked: ``R`` raters' answers to ``B`` questions.
        weights: ``float[R]`` or ``float[R, B]``, not negative, how much each counts, the raters'
            reliabilities for instance; equal by default.

    Returns:
        The same form of ``[B]``. Unanswered where nobody answered whose weight is positive (value
        0, preference 0.5); costs and times are those of all together; nobody in particular is its
        rater, so that is ``None``, as is the strength.

    Raises:
        ValueError: if the arrays are not ``[R, B]`` or ``weights`` does not fit or is negative.
        TypeError: if the feedback is of another form.

    >>> votes = Comparison(preference=jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> averaged(votes).preference.tolist()
    [0.75, 0.75]
    """
    name = {Comparison: "preference", Rating: "value"}.get(type(feedback))
    if name is None:
        raise TypeError(f"averaged takes Comparison or Rating, not {type(feedback).__name__}")
    answers = jnp.asarray(getattr(feedback, name))
    if answers.ndim != 2:
        raise ValueError(f"{name} must be [R, B], several raters', not {list(answers.shape)}")
    counted = _answered(feedback, answers.shape).astype(jnp.float32)
    if weights is not None:
        weights = jnp.asarray(weights)
        if weights.shape not in (answers.shape, answers.shape[:1]):
            allowed = f"{answers.shape[:1]} or {answers.shape}"
            raise ValueError(f"weights must have the shape {allowed}, not {weights.shape}")
        _refuse("weights", weights, weights < 0, "at least 0")
        counted = counted * (weights if weights.ndim == 2 else weights[:, None])
    total = counted.sum(axis=0)
    neutral = 0.5 if name == "preference" else 0.0
    # Answers that do not count may be anything, nan as well.
    summed = jnp.sum(jnp.where(counted > 0, answers * counted, 0.0), axis=0)
    mean = jnp.where(total > 0, summed / jnp.where(total > 0, total, 1.0), neutral)
    return type(feedback)(
        **{name: mean.astype(jnp.float32)},
        cost=None if feedback.cost is None else jnp.sum(feedback.cost, axis=0),
        seconds=None if feedback.seconds is None else jnp.sum(feedback.seconds, axis=0),
        answered=total > 0,
    )


def majority(comparison: Comparison, *, weights: jax.Array | None = None) -> Comparison:
    """What most of several raters said of the same pairs; a tie where both sides weigh the same.

    Condorcet: if each is right with the same probability above one half, and they err
    independently, the majority of many is right. Errors that raters share do not cancel. Lost is
    how large the majority was: where it counts, take ``averaged``.

    Args:
        comparison: of ``[R, B]`` arrays: ``R`` raters' answers to ``B`` questions.
        weights: as in ``averaged``.

    Returns:
        ``Comparison`` of ``[B]``, with preferences of 0, 0.5 and 1; else as ``averaged``.

    Raises:
        ValueError: as ``averaged``.
        TypeError: if it is not a ``Comparison``.

    >>> majority(Comparison(preference=jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.5]])))
    ... # doctest: +ELLIPSIS
    Comparison(..., preference=Array([1. , 0.5], dtype=float32), strength=None)
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(f"majority takes a Comparison, not {type(comparison).__name__}")
    soft = averaged(comparison, weights=weights)
    # Of equal sides rounding may leave a little; no real majority is as small.
    lead = jnp.where(jnp.abs(soft.preference - 0.5) < 1e-6, 0.0, soft.preference - 0.5)
    return soft.replace(preference=0.5 + 0.5 * jnp.sign(lead))


def rating_from_attributes(attributes: Attributes, weights: jax.Array) -> Rating:
    r"""One number from several respects, as someone with the given weights would see it.

    .. math:: v = \frac{\sum_a w_a v_a}{\sum_a |w_a|}

    Lost is what was traded for what: no weights at all reproduce a Pareto front that bends inwards,
    and people differ in theirs. Where an attribute is missing the rest stand for it, which presumes
    that it would have been as good as they.

    Args:
        attributes: of ``B`` rows of ``A`` values, on scales that can be added.
        weights: ``float[A]``; negative for what is bad.

    Returns:
        ``Rating`` of ``B`` rows, unanswered where no attribute with a weight is given.

    Raises:
        ValueError: if the shapes do not fit.

    >>> given = Attributes(values=jnp.array([[4.0, 1.0], [2.0, 9.0]]),
    ...                    mask=jnp.array([[True, True], [True, False]]))
    >>> rating_from_attributes(given, jnp.array([3.0, 1.0])).value.tolist()
    [3.25, 2.0]
    """
    values, weights = jnp.asarray(attributes.values, jnp.float32), jnp.asarray(weights)
    if values.ndim != 2 or weights.shape != values.shape[1:]:
        found = f"{list(values.shape)} and {list(weights.shape)}"
        raise ValueError(f"values and weights must be [B, A] and [A], not {found}")
    mask = jnp.ones(values.shape, bool) if attributes.mask is None else attributes.mask
    checks.alike(values=values, mask=mask)
    total = jnp.sum(jnp.where(mask, jnp.abs(weights), 0.0), axis=1)
    value = jnp.sum(jnp.where(mask, values * weights, 0.0), axis=1)
    about = _about(attributes)
    about["answered"] = (total > 0) & _answered(attributes, total.shape)
    return Rating(value=value / jnp.where(total > 0, total, 1.0), **about)


def rating_from_steps(
    steps: Steps, *, combine: Literal["product", "minimum", "mean"] = "product"
) -> Rating:
    r"""What the marks of its steps say of a solution.

    .. math:: v = \prod_s m_s, \qquad v = \min_s m_s \qquad\text{or}\qquad v = \bar m

    With marks that are probabilities the product is that of no wrong step, if their errors are
    independent; it falls with the number of steps. The minimum is the weakest step's and does not.
    Of marks 0 and 1 both say whether any step was wrong. Lost is which one.

    Args:
        steps: of ``B`` solutions.
        combine: which of the three.

    Returns:
        ``Rating`` of ``B`` rows from 0 to 1, unanswered where no step was marked.

    Raises:
        ValueError: if the shapes differ or ``combine`` is none of the three.

    Reference: Lightman et al. 2023, https://arxiv.org/abs/2305.20050

    >>> marks, ends = jnp.array([[0.9, 0.5, 0.0]]), jnp.array([[3, 7, 0]])
    >>> steps = Steps(marks=marks, ends=ends, mask=jnp.array([[True, True, False]]))
    >>> [rating_from_steps(steps, combine=c).value.item() for c in ("product", "minimum", "mean")]
    [0.45, 0.5, 0.7]
    """
    marks, mask = _check_steps(steps)
    counted = jnp.where(mask, marks, 1.0)
    if combine == "product":
        value = jnp.prod(counted, axis=1)
    elif combine == "minimum":
        value = jnp.min(counted, axis=1, initial=1.0)
    elif combine == "mean":
        value = jnp.sum(jnp.where(mask, marks, 0.0), axis=1) / jnp.maximum(mask.sum(axis=1), 1)
    else:
        raise ValueError(f"combine must be product, minimum or mean, not {combine!r}")
    about = _about(steps)
    about["answered"] = mask.any(axis=1) & _answered(steps, value.shape)
    return Rating(value=value, **about)


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
        marks, mask = _check_steps(feedback)
        if length is None:
            raise ValueError("length must be given: steps do not say how long the text is")
        ends = jnp.asarray(feedback.ends)
        _refuse("ends", ends, mask & ((ends < 0) | (ends >= length)), f"from 0 to {length - 1}")
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
    return jnp.where(_answered(feedback, len(rewards))[:, None], rewards, 0.0)


def _both(first, second, combine):
    """A column of two forms together; one that has none is taken to have nothing to add."""
    if first is None or second is None:
        return first if second is None else second
    return combine(first, second)


def _about(feedback: Feedback) -> dict[str, jax.Array | None]:
    return {name: getattr(feedback, name) for name in ("rater", "cost", "seconds", "answered")}


def _answered(feedback: Feedback, shape: int | tuple[int, ...]) -> jax.Array:
    if feedback.answered is None:
        return jnp.ones(shape, bool)
    answered = jnp.asarray(feedback.answered)
    checks.booleans(answered=answered)
    return answered


def _columns(rows: jax.Array, like: jax.Array) -> jax.Array:
    return rows.reshape(rows.shape + (1,) * (jnp.ndim(like) - 1))


def _padded(sequences: Sequences, valid: jax.Array) -> Sequences:
    mask = jnp.asarray(sequences.response_mask)
    return sequences.replace(response_mask=mask & _columns(valid, mask))


def _without_log_probs(first, second, *, only_if_missing=False):
    sides = (first, second)
    if not all(isinstance(side, Sequences) for side in sides):
        return sides
    if only_if_missing and not any(side.log_probs is None for side in sides):
        return sides
    return tuple(side.replace(log_probs=None) for side in sides)


def _refuse(name: str, values: jax.Array, wrong: jax.Array, wanted: str) -> None:
    """Unless traced, an error that names the first value that is wrong."""
    if isinstance(wrong, jax.core.Tracer) or not np.any(wrong):
        return
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    found, place = np.asarray(values)[where], ", ".join(map(str, where))
    raise ValueError(f"{name} must be {wanted}, not {found} as in [{place}]")


def _check_order(order: jax.Array) -> tuple[int, ...]:
    checks.integers(order=order)
    shape = jnp.shape(order)
    if len(shape) != 2:
        raise ValueError(f"order must be [B, N], not {list(shape)}")
    return shape


def _check_steps(steps: Steps) -> tuple[jax.Array, jax.Array]:
    checks.alike(marks=steps.marks, ends=steps.ends, mask=steps.mask)
    checks.booleans(mask=steps.mask)
    if jnp.ndim(steps.marks) != 2:
        raise ValueError(f"marks must be [B, S], not {list(jnp.shape(steps.marks))}")
    return jnp.asarray(steps.marks, jnp.float32), jnp.asarray(steps.mask)


def _check_same_structure(**sides: PyTree) -> None:
    (a, first), (b, second) = sides.items()
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise ValueError(f"{a} and {b} must be pytrees of one structure")
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        checks.alike(**{a: x, b: y})


def _check_pairs(pairs: Pairs, preference: jax.Array) -> None:
    _check_same_structure(first=pairs.first, second=pairs.second)
    checks.vectors(preference=preference)
    for leaf in jax.tree.leaves(pairs.first):
        if jnp.shape(leaf)[:1] != jnp.shape(preference):
            found = f"{jnp.shape(leaf)[:1]} and {jnp.shape(preference)}"
            raise ValueError(f"pairs and preference must have as many rows, not {found}")
