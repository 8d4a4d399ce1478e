"""One form of feedback from another; each says what is lost.

Pure functions on arrays, which run under ``jax.jit`` and ``jax.vmap``.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import common
from rlhf_jax.feedback.forms import (
    Attributes,
    Comparison,
    Correction,
    Feedback,
    Pairs,
    Ranking,
    Rating,
    Steps,
)
from rlhf_jax.types import PyTree, Sequences

__all__ = [
    "averaged",
    "comparison_from_correction",
    "comparisons_from_ratings",
    "majority",
    "pairs_from_ranking",
    "rating_from_attributes",
    "rating_from_steps",
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
        ValueError: if the values differ in shape, only one of the two names raters, or the ratings
            of a pair that one rater answered are not finite.

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
    wrong = ~jnp.isfinite(gap) & (True if answered is None else answered)
    common.refuse("the first's value less the second's", gap, wrong, "finite")
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
        ValueError: if ``order`` is not ``[B, N]`` of integers, a row has not every index once, or
            ``N`` is below 2.

    >>> ranking = Ranking(order=jnp.array([[2, 0, 1]]), cost=jnp.array([3.0]))
    >>> pairs, comparison = pairs_from_ranking(ranking)
    >>> print(pairs.first, pairs.second, comparison.preference, comparison.cost)
    [2 2 0] [0 1 1] [1. 1. 1.] [1. 1. 1.]
    """
    shape = common.check_order(ranking)
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
    original, corrected = common.without_log_probs(examples, correction.corrected)
    common.check_same_structure(examples=original, corrected=corrected)

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
    about["answered"] = (total > 0) & common.answered(attributes, total.shape)
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
    marks, mask = common.check_steps(steps)
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
    about["answered"] = mask.any(axis=1) & common.answered(steps, value.shape)
    return Rating(value=value, **about)


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
        ValueError: if the arrays are not ``[R, B]``, ``weights`` does not fit or is negative, or an
            answer that counts is not finite.
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
    counted = common.answered(feedback, answers.shape).astype(jnp.float32)
    if weights is not None:
        weights = jnp.asarray(weights)
        if weights.shape not in (answers.shape, answers.shape[:1]):
            allowed = f"{answers.shape[:1]} or {answers.shape}"
            raise ValueError(f"weights must have the shape {allowed}, not {weights.shape}")
        common.refuse("weights", weights, ~(weights >= 0), "at least 0")
        counted = counted * (weights if weights.ndim == 2 else weights[:, None])
    total = counted.sum(axis=0)
    neutral = 0.5 if name == "preference" else 0.0
    # Answers that do not count may be anything, nan as well.
    common.refuse(name, answers, (counted > 0) & ~jnp.isfinite(answers), "finite")
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


def _both(first, second, combine):
    """A column of two forms together; one that has none is taken to have nothing to add."""
    if first is None or second is None:
        return first if second is None else second
    return combine(first, second)


def _about(feedback: Feedback) -> dict[str, jax.Array | None]:
    return {name: getattr(feedback, name) for name in ("rater", "cost", "seconds", "answered")}
