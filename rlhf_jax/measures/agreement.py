"""How often raters agree about which of two is better: with each other, the rest, and themselves.

Ratings are ``[N, K]``, items by raters, with a mask, as ``data.load_ratings`` has them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["PreferenceAgreement", "Retest", "preference_agreement", "retest_agreement"]


class PreferenceAgreement(NamedTuple):
    """How often raters agree about which of two is better, ties left out.

    Attributes:
        two_raters: ``float32[]``, of two different raters who each prefer one.
        rater_rest: ``float32[]``, of a rater and the mean of all others. No model that does not
            know the rater can be much above it on single raters' answers.
        rater_mean: ``float32[]``, of a rater and the mean of all, the rater's own included: it is
            the higher the fewer they are.
        ties: ``float32[]``, the share of a rater's answers that are ties.
    """

    two_raters: jax.Array
    rater_rest: jax.Array
    rater_mean: jax.Array
    ties: jax.Array


class Retest(NamedTuple):
    """What the same people said of the same items on two occasions.

    Attributes:
        same: ``float32[...]``, the share of answers that are the same.
        correlation: ``float32[...]``, Pearson's; NaN if either occasion's answers are all equal.
        shift: ``float32[...]``, the mean of the second less that of the first: drift, practice.
        error: ``float32[...]``, the standard error of measurement, the differences' SD over the
            root of 2: what one answer is off by, the shift aside.
        count: ``int32[...]``, items answered twice.
    """

    same: jax.Array
    correlation: jax.Array
    shift: jax.Array
    error: jax.Array
    count: jax.Array


def preference_agreement(
    ratings: jax.Array,
    mask: jax.Array,
    first: jax.Array,
    second: jax.Array,
    *,
    weights: jax.Array | None = None,
) -> PreferenceAgreement:
    r"""Agreement about which of two items is better, of preferences derived from ratings.

    Column ``k`` prefers the item that it rated higher, and is asked about pairs of which it rated
    both. Of a pair that :math:`n` columns rated, :math:`p` prefer the first and :math:`q` the
    second; a pair is drawn, then two different columns, and those with a tie are left out:

    .. math::
        \text{two raters} = \frac{\sum_{\text{pairs}} [p (p - 1) + q (q - 1)] / [n (n - 1)]}
        {\sum_{\text{pairs}} (p + q) (p + q - 1) / [n (n - 1)]}

    and so for one column and the mean of the others, or of all, of each item's ratings; pairs of
    equal means are left out there. Columns are counted and not drawn, so nothing is random. Where a
    column is not one person, as outside a batch of the movies, the differences between persons are
    part of the disagreement.

    Pairs that share items are not independent. For an interval, draw items and weigh each pair by
    how often both of its items were drawn::

        def resampled(rows):
            drawn = jnp.bincount(rows, length=N)
            weights = drawn[first] * drawn[second]
            return preference_agreement(ratings, mask, first, second, weights=weights).two_raters

        bootstrap(jnp.arange(N), key=key, statistic=resampled)

    Args:
        ratings: ``number[N, K]``, items by raters; higher is better.
        mask: ``bool[N, K]``, true where there is a rating.
        first: ``int[P]``, one item of each pair.
        second: ``int[P]``, the other. A pair of an item with itself is all ties.
        weights: ``number[P]``, how much each pair counts; all the same by default.

    Returns:
        ``PreferenceAgreement``; NaN where no pair has what it takes.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]`` and ``[P]``, the mask is not boolean,
            the indices are not integers or out of range, or a rating that counts is not finite (of
            arguments that are being traced, values cannot be checked).

    >>> ratings = jnp.array([[2, 3, 1], [1, 1, 1], [0, 2, 3]])
    >>> pairs = jnp.array([0, 0, 1]), jnp.array([1, 2, 2])
    >>> found = preference_agreement(ratings, jnp.ones((3, 3), bool), *pairs)
    >>> found.two_raters.item(), found.ties.item()
    (0.428571, 0.111111)
    """
    checks.table(ratings=ratings, mask=mask)
    weights = jnp.ones(jnp.shape(first)) if weights is None else jnp.asarray(weights, jnp.float32)
    checks.alike(first=first, second=second, weights=weights)
    checks.vectors(first=first, second=second)
    checks.integers(first=first, second=second)
    checks.within(len(mask), first=first, second=second)
    first, second, mask = jnp.asarray(first), jnp.asarray(second), jnp.asarray(mask)
    values = jnp.where(mask, ratings, 0).astype(jnp.float32)
    total, count = jnp.sum(values, axis=1, keepdims=True), jnp.sum(mask, axis=1, keepdims=True)
    both = mask[first] & mask[second]
    choice = jnp.where(both, jnp.sign(values[first] - values[second]), 0)
    asked = jnp.sum(both, axis=1).astype(jnp.float32)

    def share(hits: jax.Array, cases: jax.Array, of: jax.Array) -> jax.Array:
        """Over pairs, of which each counts the same however many ``of`` it has."""
        hits, cases = (jnp.where(of > 0, x / jnp.maximum(of, 1), 0) for x in (hits, cases))
        return jnp.sum(weights * hits) / jnp.sum(weights * cases)

    def with_mean(total: jax.Array, count: jax.Array) -> jax.Array:
        # The means' difference times both counts: without a division, equal means are equal. The
        # others of a rater who is alone are nobody, and make it 0.
        gap = total[first] * count[second] - total[second] * count[first]
        product = choice * jnp.sign(gap)
        return share(jnp.sum(product > 0, axis=1), jnp.sum(product != 0, axis=1), asked)

    ups, downs = jnp.sum(choice > 0, axis=1), jnp.sum(choice < 0, axis=1)
    agreeing, decided = ups * (ups - 1) + downs * (downs - 1), (ups + downs) * (ups + downs - 1)
    return PreferenceAgreement(
        two_raters=share(agreeing, decided, asked * (asked - 1)),
        rater_rest=with_mean(total - values, count - 1),
        rater_mean=with_mean(total, count),
        ties=share(asked - ups - downs, asked, asked),
    )


def retest_agreement(first: jax.Array, second: jax.Array, mask: jax.Array | None = None) -> Retest:
    r"""Whether raters say the same of the same items on another occasion (test-retest).

    Nobody agrees with others more than with themselves, so this is a ceiling of its own. It
    includes what they remember of the first occasion. For two occasions' categories beyond chance,
    give ``cohen_kappa`` their table.

    Args:
        first: ``number[..., N]``, one rater's answers about ``N`` items.
        second: ``number[..., N]``, the same rater's later answers about the same items.
        mask: ``bool[..., N]``, true on items that were answered twice; everywhere by default.

    Returns:
        ``Retest``, a value for each rater; NaN where there are fewer items than it takes, which is
        two for ``correlation`` and ``error``.

    Raises:
        ValueError: if the shapes differ, there is no axis of items, the mask is not boolean, or an
            answer that counts is not finite.

    Reference: Bland & Altman 1996, Measurement error, BMJ 312

    >>> found = retest_agreement(jnp.array([1., 2., 3., 4.]), jnp.array([1., 3., 3., 5.]))
    >>> found.same.item(), found.correlation.item(), found.shift.item(), found.error.item()
    (0.5, 0.948683, 0.5, 0.408248)
    """
    mask = jnp.ones(jnp.shape(first), bool) if mask is None else mask
    checks.alike(first=first, second=second, mask=mask)
    checks.booleans(mask=mask)
    if jnp.ndim(first) < 1:
        raise ValueError("first and second must be [..., N], not single numbers")
    checks.finite(mask, first=first, second=second)
    count = jnp.sum(mask, axis=-1)
    first, second = (jnp.where(mask, x, 0).astype(jnp.float32) for x in (first, second))

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, values, 0), axis=-1) / count

    def centred(values: jax.Array) -> jax.Array:
        # From the least: exactly 0 if all are equal.
        values = values - jnp.min(values, axis=-1, where=mask, initial=jnp.inf, keepdims=True)
        return jnp.where(mask, values - mean(values)[..., None], 0)

    one, two, change = centred(first), centred(second), second - first
    variances = mean(jnp.square(one)) * mean(jnp.square(two))
    squares = jnp.sum(jnp.square(centred(change)), axis=-1)
    return Retest(
        same=mean(first == second),
        correlation=mean(one * two) / jnp.sqrt(variances),
        shift=mean(change),
        error=jnp.sqrt(jnp.where(count > 1, squares, jnp.nan) / (2.0 * (count - 1))),
        count=count,
    )
