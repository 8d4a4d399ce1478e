"""Whether scores put pairs in the right order, and whether probabilities mean what they say."""

import operator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

__all__ = [
    "Reliability",
    "brier",
    "expected_calibration_error",
    "pair_accuracy",
    "ranking_accuracy",
    "reliability",
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
    chex.assert_equal_shape([scores_first, scores_second, preference], exception_type=ValueError)
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
    chex.assert_equal_shape([scores, truth], exception_type=ValueError)
    chex.assert_rank(scores, 1, exception_type=ValueError)
    count = scores.shape[0]
    if count < 2:
        raise ValueError(f"pairs need at least 2 items, got {count}")
    agreement = jnp.sign(scores[:, None] - scores) * jnp.sign(truth[:, None] - truth)
    # The diagonal, no pair at all, is 0 like a tie; it is left out of the mean.
    return 0.5 + 0.5 * jnp.sum(agreement) / (count * (count - 1))


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
    chex.assert_equal_shape([probabilities, outcomes], exception_type=ValueError)
    return jnp.square(jnp.asarray(probabilities) - outcomes)


def reliability(
    probabilities: jax.Array,
    outcomes: jax.Array,
    bins: int = 10,
    *,
    mask: jax.Array | None = None,
) -> Reliability:
    """Predicted against observed frequency in bins of equal width.

    Args:
        probabilities: ``float[B]`` from 0 to 1; values outside count in the nearest bin.
        outcomes: ``float[B]``, 0 or 1, or in between (0.5 for a tie).
        bins: how many; a probability on an edge counts in the upper bin, 1 in the last.
        mask: ``bool[B]``, true on what counts; all of it by default.

    Returns:
        A ``Reliability``.

    Raises:
        ValueError: the shapes are not ``[B]`` or differ, or ``bins`` is not positive.

    >>> reliability(jnp.array([0.1, 0.3, 0.9]), jnp.array([0., 1., 1.]), 2).count.tolist()
    [2, 1]
    """
    predicted, observed, count = _sums(probabilities, outcomes, bins, mask)
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
) -> jax.Array:
    r"""How far probabilities are from frequencies, on average over bins of equal width.

    .. math:: \sum_b \frac{n_b}{n} \left| \bar p_b - \bar y_b \right|

    It is biased upwards where bins hold few: compare it at equal ``n`` and ``bins``.

    Args:
        probabilities: ``float[B]`` from 0 to 1; values outside count in the nearest bin.
        outcomes: ``float[B]``, 0 or 1, or in between (0.5 for a tie).
        bins: how many.
        mask: ``bool[B]``, true on what counts; all of it by default.

    Returns:
        ``float32[]`` from 0 to 1; 0 if nothing counts.

    Raises:
        ValueError: the shapes are not ``[B]`` or differ, or ``bins`` is not positive.

    Reference: Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599

    >>> round(float(expected_calibration_error(jnp.array([0.75, 0.75]), jnp.array([1., 0.]))), 6)
    0.25
    """
    predicted, observed, count = _sums(probabilities, outcomes, bins, mask)
    return jnp.sum(jnp.abs(predicted - observed)) / jnp.maximum(jnp.sum(count), 1)


def _sums(
    probabilities: jax.Array, outcomes: jax.Array, bins: int, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of probabilities and of outcomes, and counts, by bin."""
    mask = jnp.ones(jnp.shape(probabilities), bool) if mask is None else mask
    chex.assert_rank(probabilities, 1, exception_type=ValueError)
    chex.assert_equal_shape([probabilities, outcomes, mask], exception_type=ValueError)
    if operator.index(bins) < 1:
        raise ValueError(f"bins must be at least 1: {bins}")
    weight = jnp.asarray(mask).astype(jnp.float32)
    # where and not a product: what is masked out may be NaN.
    probabilities = jnp.where(mask, probabilities, 0.0).astype(jnp.float32)
    outcomes = jnp.where(mask, outcomes, 0.0).astype(jnp.float32)
    index = jnp.clip(jnp.floor(probabilities * bins).astype(jnp.int32), 0, bins - 1)
    empty = jnp.zeros(bins, jnp.float32)
    return (
        empty.at[index].add(probabilities),
        empty.at[index].add(outcomes),
        empty.at[index].add(weight).astype(jnp.int32),
    )
