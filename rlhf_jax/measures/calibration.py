"""Whether scores put things in the right order, and whether probabilities mean what they say."""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = [
    "Reliability",
    "auroc",
    "brier",
    "expected_calibration_error",
    "pair_accuracy",
    "ranking_accuracy",
    "reliability",
    "selective_accuracy",
]


class Reliability(NamedTuple):
    """A reliability diagram.

    Attributes:
        predicted: ``float32[bins]``, mean probability in each bin, NaN in an empty one.
        observed: ``float32[bins]``, mean outcome in each bin, NaN in an empty one.
        count: ``int32[bins]``, how many fell into it.
    """

    predicted: jax.Array
    observed: jax.Array
    count: jax.Array


def pair_accuracy(
    scores_first: jax.Array, scores_second: jax.Array, preference: jax.Array
) -> jax.Array:
    r"""Whether scores order each pair as a human did: 1 if so, 0 if not, 0.5 if either has a tie.

    .. math:: \tfrac12 + \tfrac12 \operatorname{sign}(s_1 - s_2) \operatorname{sign}(y - \tfrac12)

    Unreduced: the accuracy is its mean, its interval ``bootstrap`` of it. A model that never ties
    cannot reach 1 where humans tie.

    Args:
        scores_first: ``float[B]``, scores of the first items.
        scores_second: ``float[B]``, scores of the second.
        preference: ``float[B]``, above 0.5 if the first was preferred, below if the second, 0.5 for
            a tie.

    Returns:
        ``float32[B]``; NaN where a score is NaN.

    Raises:
        ValueError: the shapes differ.

    >>> pair_accuracy(jnp.array([2., 2., 2.]), jnp.array([1., 1., 2.]), jnp.array([1., 0., 1.]))
    Array([1. , 0. , 0.5], dtype=float32)
    """
    checks.alike(scores_first=scores_first, scores_second=scores_second, preference=preference)
    # The comparison itself, since a difference of equal infinities would be NaN.
    order = jnp.where(
        jnp.isnan(scores_first) | jnp.isnan(scores_second),
        jnp.nan,
        1.0 * jnp.greater(scores_first, scores_second) - jnp.less(scores_first, scores_second),
    )
    return (0.5 + 0.5 * order * jnp.sign(jnp.asarray(preference) - 0.5)).astype(jnp.float32)


def ranking_accuracy(scores: jax.Array, truth: jax.Array) -> jax.Array:
    r"""``pair_accuracy`` over all pairs of different items.

    Args:
        scores: ``float[N]``.
        truth: ``float[N]``, such as the raters' mean.

    Returns:
        ``float32[]``; 0.5 is chance. Holds ``N`` by ``N`` arrays.

    Raises:
        ValueError: the shapes differ or there are fewer than two items.

    >>> float(ranking_accuracy(jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 3.0, 2.0])))
    0.6667
    """
    checks.alike(scores=scores, truth=truth)
    checks.vectors(scores=scores, truth=truth)
    count = scores.shape[0]
    if count < 2:
        raise ValueError(f"pairs need at least 2 items, got {count}")
    agreement = jnp.sign(scores[:, None] - scores) * jnp.sign(truth[:, None] - truth)
    # The diagonal, no pair at all, is 0 like a tie; it is left out of the mean.
    return 0.5 + 0.5 * jnp.sum(agreement) / (count * (count - 1))


def auroc(scores: jax.Array, positive: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    r"""How well scores tell two classes apart: the area under the ROC curve.

    .. math:: P(s_+ > s_-) + \tfrac12 P(s_+ = s_-)

    over all pairs of a positive and a negative (Mann and Whitney's statistic, ties by mid-ranks).
    Of an uncertainty for errors, or for items that people disagree about, it says how well doubt
    is placed. For an interval, ``bootstrap`` rows of score and class.

    Args:
        scores: ``number[B]``, higher where more likely positive; only their order matters.
        positive: ``bool[B]``, the class.
        mask: ``bool[B]``, true on what counts; all of it by default.

    Returns:
        ``float32[]``: 0.5 is chance, below it the order is the wrong way round. NaN if a class is
        missing or a score that counts is NaN.

    Raises:
        ValueError: the shapes are not ``[B]`` or differ, or ``positive`` or ``mask`` is not
            boolean.

    Reference: Mann and Whitney 1947, Annals of Mathematical Statistics 18(1); Hanley and McNeil
    1982, Radiology 143(1)

    >>> auroc(jnp.array([0.9, 0.4, 0.4, 0.1]), jnp.array([True, True, False, False])).item()
    0.875
    """
    mask = jnp.ones(jnp.shape(scores), bool) if mask is None else jnp.asarray(mask)
    checks.alike(scores=scores, positive=positive, mask=mask)
    checks.vectors(scores=scores)
    checks.booleans(positive=positive, mask=mask)
    scores, positive = jnp.where(mask, scores, 0), jnp.asarray(positive)
    ups, downs = mask & positive, mask & ~positive
    low, high, total = _below(scores, downs.astype(jnp.float32))
    # Divided before it is summed: the number of pairs can be past what a float32 counts.
    share_below = (low + high) / (2 * total)
    area = jnp.sum(jnp.where(ups, share_below, 0)) / jnp.sum(ups)
    return jnp.where(jnp.any(mask & jnp.isnan(scores)), jnp.nan, area)


def selective_accuracy(uncertainty: jax.Array, correct: jax.Array) -> jax.Array:
    r"""Accuracy on the share of items that a model is surest of, for every share.

    .. math:: a_k = \frac1k \sum_{i \le k} y_{(i)}, \qquad u_{(1)} \le \dots \le u_{(B)}

    One minus it is the risk of the risk-coverage curve, whose area is one minus the mean. Items of
    one uncertainty are taken in random order, in expectation.

    Args:
        uncertainty: ``number[B]``, without NaN.
        correct: ``number[B]`` or ``bool[B]``: 1 if right, 0 if wrong, or in between, as from
            ``pair_accuracy``.

    Returns:
        ``float32[B]``; entry ``k - 1`` is the accuracy at a coverage of ``k / B``, the last one
        the ordinary accuracy.

    Raises:
        ValueError: the shapes are not ``[B]`` or differ.

    Reference: Geifman and El-Yaniv 2017, https://arxiv.org/abs/1705.08500

    >>> correct = jnp.array([False, True, True, False])
    >>> selective_accuracy(jnp.array([0.9, 0.1, 0.2, 0.5]), correct).tolist()
    [1.0, 1.0, 0.666667, 0.5]
    """
    checks.alike(uncertainty=uncertainty, correct=correct)
    checks.vectors(uncertainty=uncertainty)
    order = jnp.argsort(jnp.asarray(uncertainty))
    ranked, correct = jnp.asarray(uncertainty)[order], jnp.asarray(correct, jnp.float32)[order]
    low, high, _ = _below(ranked, correct)
    first, last, _ = _below(ranked, jnp.ones_like(correct))
    expected = (high - low) / (last - first)  # the mean over those of equal uncertainty
    return jnp.cumsum(expected) / jnp.arange(1, len(correct) + 1)


def brier(probabilities: jax.Array, outcomes: jax.Array) -> jax.Array:
    r"""The Brier score, :math:`(p - y)^2`; 0 is perfect, 0.25 is what always saying 0.5 gets.

    Unreduced, and a proper score: no other probability does better in the mean than the true one.

    Args:
        probabilities: ``float[B]`` from 0 to 1.
        outcomes: ``float[B]``, 0 or 1, or in between (0.5 for a tie).

    Returns:
        ``float[B]``.

    Raises:
        ValueError: the shapes differ.

    Reference: Brier 1950, Monthly Weather Review 78(1).

    >>> brier(jnp.array([0.5, 1.0]), jnp.array([1.0, 1.0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    checks.alike(probabilities=probabilities, outcomes=outcomes)
    return jnp.square(jnp.asarray(probabilities) - outcomes)


def reliability(
    probabilities: jax.Array,
    outcomes: jax.Array,
    bins: int = 10,
    *,
    mask: jax.Array | None = None,
    equal_mass: bool = False,
) -> Reliability:
    """Predicted against observed frequency in bins of equal width, or of equal mass.

    Args:
        probabilities: ``float[B]`` from 0 to 1; values outside count in the nearest bin.
        outcomes: ``float[B]``, 0 or 1, or in between (0.5 for a tie).
        bins: how many; a probability on an edge counts in the upper bin, 1 in the last.
        mask: ``bool[B]``, true on what counts; all of it by default.
        equal_mass: whether each bin gets as many as the others, as far as ties allow (equal
            probabilities share a bin), instead of an equal part of the range from 0 to 1.

    Returns:
        A ``Reliability``.

    Raises:
        ValueError: the shapes are not ``[B]`` or differ, or ``bins`` is not positive.

    >>> reliability(jnp.array([0.1, 0.3, 0.9]), jnp.array([0., 1., 1.]), 2).count.tolist()
    [2, 1]
    """
    predicted, observed, count = _sums(probabilities, outcomes, bins, mask, equal_mass)
    divisor = jnp.maximum(count, 1)
    return Reliability(
        jnp.where(count > 0, predicted / divisor, jnp.nan),
        jnp.where(count > 0, observed / divisor, jnp.nan),
        count,
    )


def expected_calibration_error(
    probabilities: jax.Array,
    outcomes: jax.Array,
    bins: int = 10,
    *,
    mask: jax.Array | None = None,
    equal_mass: bool = False,
) -> jax.Array:
    r"""How far probabilities are from frequencies, on average over bins.

    .. math:: \sum_b \frac{n_b}{n} \left| \bar p_b - \bar y_b \right|

    It is biased upwards where bins hold few: compare it at equal ``n`` and ``bins``. With bins of
    equal width most of it can come from one bin, into which a cautious model's probabilities all
    fall; bins of equal mass do not have that weakness.

    Args:
        probabilities: ``float[B]`` from 0 to 1; values outside count in the nearest bin.
        outcomes: ``float[B]``, 0 or 1, or in between (0.5 for a tie).
        bins: how many.
        mask: ``bool[B]``, true on what counts; all of it by default.
        equal_mass: as in ``reliability``.

    Returns:
        ``float32[]`` from 0 to 1; 0 if nothing counts.

    Raises:
        ValueError: the shapes are not ``[B]`` or differ, or ``bins`` is not positive.

    Reference: Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599; bins of equal mass, Nixon
    et al. 2019, https://arxiv.org/abs/1904.01685

    >>> round(float(expected_calibration_error(jnp.array([0.75, 0.75]), jnp.array([1., 0.]))), 6)
    0.25
    """
    predicted, observed, count = _sums(probabilities, outcomes, bins, mask, equal_mass)
    return jnp.sum(jnp.abs(predicted - observed)) / jnp.maximum(jnp.sum(count), 1)


def _sums(
    probabilities: jax.Array,
    outcomes: jax.Array,
    bins: int,
    mask: jax.Array | None,
    equal_mass: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of probabilities and of outcomes, and counts, by bin."""
    mask = jnp.ones(jnp.shape(probabilities), bool) if mask is None else mask
    checks.vectors(probabilities=probabilities)
    checks.alike(probabilities=probabilities, outcomes=outcomes, mask=mask)
    if operator.index(bins) < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    weight = jnp.asarray(mask).astype(jnp.float32)
    # where and not a product: what is masked out may be NaN.
    probabilities = jnp.where(mask, probabilities, 0.0).astype(jnp.float32)
    outcomes = jnp.where(mask, outcomes, 0.0).astype(jnp.float32)
    place = probabilities
    if equal_mass:
        low, high, total = _below(probabilities, weight)
        place = (low + high) / jnp.maximum(2 * total, 1)
    index = jnp.clip(jnp.floor(place * bins).astype(jnp.int32), 0, bins - 1)
    empty = jnp.zeros(bins, jnp.float32)
    return (
        empty.at[index].add(probabilities),
        empty.at[index].add(outcomes),
        empty.at[index].add(weight).astype(jnp.int32),
    )


def _below(values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each value, the weight of those below it, of those up to it, and of all."""
    order = jnp.argsort(values)
    ranked = values[order]
    sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(weight[order])])
    left, right = (jnp.searchsorted(ranked, values, side=side) for side in ("left", "right"))
    return sums[left], sums[right], sums[-1]
