"""How far raters agree: beyond what chance would give, and about which of two is better.

Ratings are ``[N, K]``, items by raters, with a mask, as ``data.load_ratings`` has them. For an
interval, ``bootstrap`` over items, which are what was drawn.

Coefficients (kappa, alpha) are 1 for always and 0 for as by chance, and NaN where nothing but one
category (or value) was ever given: agreement by chance is then certain.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = [
    "PreferenceAgreement",
    "Retest",
    "cohen_kappa",
    "fleiss_kappa",
    "krippendorff_alpha",
    "krippendorff_alpha_of_counts",
    "preference_agreement",
    "retest_agreement",
]

_LEVELS = ("nominal", "ordinal", "interval")


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


def cohen_kappa(table: jax.Array) -> jax.Array:
    r"""Agreement of two raters about categories, from the table of what they said.

    .. math::
        \kappa = \frac{p_o - p_e}{1 - p_e}, \qquad
        p_o = \sum_c p_{cc}, \quad p_e = \sum_c p_{c\cdot} \, p_{\cdot c}

    Args:
        table: ``number[..., C, C]``; ``table[i, j]`` counts the items that the first rater put
            into category ``i`` and the second into ``j``.

    Returns:
        ``float32[...]``, at most 1.

    Raises:
        ValueError: if the last two dimensions are not equal.

    Reference: Cohen 1960, Educational and Psychological Measurement 20

    >>> cohen_kappa(jnp.array([[20, 5], [10, 15]])).item()
    0.4
    """
    if jnp.ndim(table) < 2 or table.shape[-1] != table.shape[-2]:
        raise ValueError(f"table must be [..., C, C], not {list(jnp.shape(table))}")
    table = jnp.asarray(table, jnp.float32)
    shares = table / jnp.sum(table, axis=(-2, -1), keepdims=True)
    observed = jnp.trace(shares, axis1=-2, axis2=-1)
    expected = jnp.sum(jnp.sum(shares, axis=-1) * jnp.sum(shares, axis=-2), axis=-1)
    return (observed - expected) / (1 - expected)


def fleiss_kappa(counts: jax.Array) -> jax.Array:
    r"""Agreement of equally many raters an item about categories.

    .. math::
        \kappa = \frac{\bar P - \bar P_e}{1 - \bar P_e}, \qquad
        \bar P = \frac1N \sum_i \frac{\sum_c n_{ic}^2 - n}{n (n - 1)}, \quad
        \bar P_e = \sum_c \left(\frac1{Nn} \sum_i n_{ic}\right)^2

    The raters of one item need not be those of another. Where items have unequal numbers of
    ratings, or ratings have an order, use ``krippendorff_alpha``.

    Args:
        counts: ``number[N, C]``, how many of the ``n`` raters put item ``i`` into category ``c``.

    Returns:
        ``float32[]``, at most 1.

    Raises:
        ValueError: if ``counts`` is not ``[N, C]``, or its rows do not all sum to one number, at
            least 2 (which cannot be checked of an argument that is being traced).

    Reference: Fleiss 1971, Psychological Bulletin 76

    >>> fleiss_kappa(jnp.array([[2, 0], [0, 2], [1, 1]])).item()
    0.333333
    """
    if jnp.ndim(counts) != 2:
        raise ValueError(f"counts must be [N, C], not {list(jnp.shape(counts))}")
    if not isinstance(counts, jax.core.Tracer):
        rows = np.unique(np.sum(counts, axis=1))
        if len(rows) != 1 or rows[0] < 2:
            found = f"{rows.min()} to {rows.max()}" if len(rows) else "no items"
            raise ValueError(f"counts needs items with one number of raters, 2 or more: {found}")
    counts = jnp.asarray(counts, jnp.float32)
    raters = jnp.sum(counts[0])
    agreeing = (jnp.sum(jnp.square(counts), axis=1) - raters) / (raters * (raters - 1))
    observed = jnp.mean(agreeing)
    expected = jnp.sum(jnp.square(jnp.mean(counts, axis=0) / raters))
    return (observed - expected) / (1 - expected)


def krippendorff_alpha(
    ratings: jax.Array, mask: jax.Array | None = None, *, level: str = "nominal"
) -> jax.Array:
    r"""Agreement of any raters about any items, gaps allowed, on the scale that ratings have.

    .. math::
        \alpha = 1 - \frac{D_o}{D_e}, \qquad
        D_o = \frac1n \sum_i \sum_{j \ne k} \frac{\delta^2(r_{ij}, r_{ik})}{m_i - 1}, \quad
        D_e = \frac1{n (n - 1)} \sum_{a \ne b} \delta^2(r_a, r_b)

    The first sum is over pairs of the :math:`m_i` ratings of an item, the second over pairs of all
    :math:`n` ratings; items with fewer than two are left out. ``delta`` is, by ``level``:

    * ``"nominal"``: 0 if equal, 1 if not, for categories;
    * ``"ordinal"``: how many ratings lie between the two, each of the two categories by half, for
      ratings whose order counts and nothing else;
    * ``"interval"``: the difference, for ratings whose steps are equal.

    No pair is formed, so time and memory grow with the number of ratings (times its logarithm, for
    the first two). May be compiled and vmapped.

    Args:
        ratings: ``number[N, K]``, items by raters. Integers above 2^24 are not told apart.
        mask: ``bool[N, K]``, true where there is a rating; everywhere by default.
        level: ``"nominal"``, ``"ordinal"`` or ``"interval"``.

    Returns:
        ``float32[]``, at most 1; negative if raters differ more than by chance. NaN if no item has
        two ratings.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]``, the mask is not boolean, or there is
            no such level.

    Reference: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability,
    https://repository.upenn.edu/asc_papers/43

    >>> ratings = jnp.array([[1, 1, 2], [3, 3, 3], [1, 2, 0]])
    >>> mask = jnp.array([[True, True, True], [True, True, True], [True, True, False]])
    >>> krippendorff_alpha(ratings, mask, level="interval").item()
    0.708333
    """
    mask = jnp.ones(jnp.shape(ratings), bool) if mask is None else mask
    checks.table(ratings=ratings, mask=mask)
    if level not in _LEVELS:
        raise ValueError(f"level must be one of {', '.join(_LEVELS)}, not {level!r}")
    raters = jnp.sum(mask, axis=1)
    mask = jnp.asarray(mask) & (raters >= 2)[:, None]
    count = jnp.sum(mask)
    values = jnp.asarray(ratings).astype(jnp.float32)  # NaN, perhaps, where masked out.
    if level == "ordinal":  # The metric is the difference of mid-ranks.
        values = _mid_ranks(values.ravel(), mask.ravel()).reshape(values.shape)
    if level != "nominal":
        # From 0 and to 1, if there is a difference: exactly 0 if not, and no square overflows.
        values = jnp.where(mask, values - jnp.min(values, where=mask, initial=jnp.inf), 0)
        values = values / jnp.maximum(jnp.max(values), jnp.finfo(jnp.float32).tiny)
    differences = _unequal_pairs if level == "nominal" else _squared_differences
    within = jax.vmap(differences)(values, mask)
    observed = jnp.sum(within / jnp.maximum(raters - 1, 1))
    return 1 - (count - 1) * observed / differences(values.ravel(), mask.ravel())


def krippendorff_alpha_of_counts(
    counts: jax.Array, *, values: jax.Array | None = None
) -> jax.Array:
    r"""``krippendorff_alpha`` from how many raters gave each item each of a few ratings.

    The same number, nominal or interval, at a cost that does not grow with the raters: to be
    resampled for an interval, ``bootstrap(counts, key=key, statistic=...)``.

    Args:
        counts: ``number[N, C]``, how many gave item ``i`` the rating ``c``.
        values: ``number[C]``, what the ratings are worth, for the interval level; ``None`` for
            categories, the nominal level.

    Returns:
        ``float32[]``, at most 1.

    Raises:
        ValueError: if ``counts`` is not ``[N, C]`` or ``values`` not ``[C]``.

    Reference: as ``krippendorff_alpha``.

    >>> counts = jnp.array([[0, 2, 1, 0], [0, 0, 0, 3], [0, 1, 1, 0]])
    >>> krippendorff_alpha_of_counts(counts, values=jnp.arange(4.0)).item()
    0.708333
    """
    if jnp.ndim(counts) != 2:
        raise ValueError(f"counts must be [N, C], not {list(jnp.shape(counts))}")
    if values is not None and jnp.shape(values) != counts.shape[1:]:
        found = f"{list(jnp.shape(values))} beside counts {list(counts.shape)}"
        raise ValueError(f"values must be [C], one a rating, not {found}")
    counts = jnp.asarray(counts, jnp.float32)
    raters = jnp.sum(counts, axis=1)
    counts = jnp.where(raters[:, None] >= 2, counts, 0)
    pooled = jnp.sum(counts, axis=0)
    count = jnp.sum(pooled)

    def differences(counts: jax.Array) -> jax.Array:
        """Of all ordered pairs, summed: squared, or how many are unequal."""
        total = jnp.sum(counts, axis=-1, keepdims=True)
        if values is None:
            return jnp.sum(counts * (total - counts), axis=-1)
        mean = jnp.sum(counts * values, axis=-1, keepdims=True) / jnp.maximum(total, 1)
        return 2 * total[..., 0] * jnp.sum(counts * jnp.square(values - mean), axis=-1)

    observed = jnp.sum(differences(counts) / jnp.maximum(raters - 1, 1))
    return 1 - (count - 1) * observed / differences(pooled)


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
        second: ``int[P]``, the other. A pair of an item with itself is all ties. It cannot be
            checked that the indices are within ``N``.
        weights: ``number[P]``, how much each pair counts; all the same by default.

    Returns:
        ``PreferenceAgreement``; NaN where no pair has what it takes.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]`` and ``[P]``, the mask is not boolean,
            or the indices are not integers.

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
        ValueError: if the shapes differ, there is no axis of items, or the mask is not boolean.

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
        error=jnp.sqrt(squares / (2.0 * (count - 1))),
        count=count,
    )


def _rank_bounds(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each of ``values[K]``, how many that count are less, and how many are not greater."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    return tuple(jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))


def _mid_ranks(values: jax.Array, mask: jax.Array) -> jax.Array:
    less, not_greater = _rank_bounds(values, mask)
    return jnp.where(mask, 0.5 * (less + not_greater), 0)


def _unequal_pairs(values: jax.Array, mask: jax.Array) -> jax.Array:
    """How many ordered pairs of values that count are unequal."""
    less, not_greater = _rank_bounds(values, mask)
    return jnp.sum(jnp.where(mask, jnp.sum(mask) - (not_greater - less), 0).astype(jnp.float32))


def _squared_differences(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The squared differences of all ordered pairs of values that count, summed."""
    count = jnp.sum(mask)
    mean = jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)
    return 2.0 * count * jnp.sum(jnp.where(mask, jnp.square(values - mean), 0))
