"""How far raters agree beyond what chance would give: kappa and alpha.

All are 1 for always and 0 for as by chance, and NaN where nothing but one category (or value) was
ever given, or nothing at all: agreement by chance is then certain. For an interval, ``bootstrap``
over items, which are what was drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = ["cohen_kappa", "fleiss_kappa", "krippendorff_alpha", "krippendorff_alpha_of_counts"]

_LEVELS = ("nominal", "ordinal", "interval")


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
        ValueError: if the last two dimensions are not equal, or a count is negative or NaN.

    Reference: Cohen 1960, Educational and Psychological Measurement 20

    >>> cohen_kappa(jnp.array([[20, 5], [10, 15]])).item()
    0.4
    """
    if jnp.ndim(table) < 2 or table.shape[-1] != table.shape[-2]:
        raise ValueError(f"table must be [..., C, C], not {list(jnp.shape(table))}")
    _counted(table=table)
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
        ValueError: if ``counts`` is not ``[N, C]``, a count is negative or NaN, or its rows do not
            all sum to one number, at least 2 (none of which can be checked of an argument that is
            being traced).

    Reference: Fleiss 1971, Psychological Bulletin 76

    >>> fleiss_kappa(jnp.array([[2, 0], [0, 2], [1, 1]])).item()
    0.333333
    """
    if jnp.ndim(counts) != 2:
        raise ValueError(f"counts must be [N, C], not {list(jnp.shape(counts))}")
    _counted(counts=counts)
    if not isinstance(counts, jax.core.Tracer):
        rows = np.unique(np.sum(np.asarray(counts), axis=1))
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
        two ratings, or if a rating that counts is not finite and cannot be refused because it is
        being traced.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]``, the mask is not boolean, a rating
            that counts is not finite (a gap: give ``mask``), or there is no such level.

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
    sound = jnp.all(jnp.isfinite(values) | ~mask)
    if level == "ordinal":  # The metric is the difference of mid-ranks.
        values = _mid_ranks(values.ravel(), mask.ravel()).reshape(values.shape)
    if level != "nominal":
        # From 0 and to 1, if there is a difference: exactly 0 if not, and no square overflows.
        values = jnp.where(mask, values - jnp.min(values, where=mask, initial=jnp.inf), 0)
        values = values / jnp.maximum(jnp.max(values), jnp.finfo(jnp.float32).tiny)
    differences = _unequal_pairs if level == "nominal" else _squared_differences
    within = jax.vmap(differences)(values, mask)
    observed = jnp.sum(within / jnp.maximum(raters - 1, 1))
    alpha = 1 - (count - 1) * observed / differences(values.ravel(), mask.ravel())
    return jnp.where(sound, alpha, jnp.nan)


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
        ValueError: if ``counts`` is not ``[N, C]``, ``values`` not ``[C]``, or a count is negative
            or NaN.

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
    _counted(counts=counts)
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


def _counted(**counts: jax.Array) -> None:
    """All are numbers from 0 up; one that is being traced is taken on trust."""
    for name, count in counts.items():
        if isinstance(count, jax.core.Tracer):
            continue
        least = np.min(np.asarray(count), initial=0)
        if not least >= 0:
            raise ValueError(f"{name} must be counts, at least 0, not {least}")


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
