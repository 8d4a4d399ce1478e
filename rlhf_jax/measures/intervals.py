"""How sure a number is."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from rlhf_jax import checks
from rlhf_jax.types import Key

__all__ = [
    "Interval",
    "Verdict",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_pairs",
    "clopper_pearson",
    "verdict",
]

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Interval(NamedTuple):
    """An estimate and an interval around it.

    Attributes:
        estimate: the statistic of the data themselves.
        low: the interval's lower end.
        high: its upper end.
    """

    estimate: jax.Array
    low: jax.Array
    high: jax.Array


def bootstrap(
    values: jax.Array,
    *,
    key: Key,
    statistic: Callable[[jax.Array], jax.Array] = jnp.mean,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """A percentile bootstrap interval.

    Rows are drawn with replacement, as many as there are, ``resamples`` times; the interval lies
    between quantiles of the statistic. For two arms on the same seeds or pairs, give their
    *differences*, or both to ``bootstrap_difference``. Rows must be independent: give one row a
    seed and not one a step. For the mean of few rows it is too narrow: by a fifth at 10 rows, a
    tenth at 20.

    Args:
        values: ``float[N, ...]``, one row an observation.
        key: a key.
        statistic: from ``[N, ...]`` to an array; it is traced.
        resamples: how many times to draw.
        level: the interval's nominal coverage, between 0 and 1.

    Returns:
        An ``Interval`` of arrays shaped like the statistic.

    Raises:
        ValueError: there are no rows, or ``resamples`` or ``level`` is out of range.

    Reference: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.

    >>> interval = bootstrap(jnp.arange(100.0), key=jax.random.key(0))
    >>> bool(interval.low < interval.estimate < interval.high)
    True
    """
    values = jnp.asarray(values)
    if values.ndim < 1 or values.shape[0] < 1:
        raise ValueError(f"bootstrap needs rows of values, got the shape {values.shape}")
    _check(resamples, level)
    return _bootstrap(values, key, statistic, resamples, level)


# Otherwise compiled anew at every call, operation by operation: many are made in a row.
@partial(jax.jit, static_argnums=(2, 3, 4))
def _bootstrap(
    values: jax.Array, key: Key, statistic: Callable, resamples: int, level: float
) -> Interval:
    rows = len(values)

    def resample(key: Key) -> jax.Array:
        return statistic(values[jax.random.randint(key, (rows,), 0, rows)])

    # In blocks, so that no more than 100 resamples are in memory at a time.
    drawn = jax.lax.map(resample, jax.random.split(key, resamples), batch_size=100)
    return _between(statistic(values), drawn, level)


def bootstrap_difference(
    values: jax.Array,
    others: jax.Array,
    *,
    key: Key,
    statistic: Callable[[jax.Array], jax.Array] = jnp.mean,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """By how much a statistic differs between two arms on the same seeds: a paired bootstrap.

    The same rows are drawn of both arms, so that what a seed does to both cancels. Of means it is
    the same as a ``bootstrap`` of the differences; a median, a slope or a fit is not.

    Args:
        values: ``float[N, ...]``, one row a seed (or another unit that both arms share).
        others: ``float[N, ...]``, what they are held against, in the same order.
        key: a key.
        statistic: from ``[N, ...]`` to an array; it is traced.
        resamples: how many times to draw.
        level: the interval's nominal coverage, between 0 and 1.

    Returns:
        An ``Interval`` of the statistic of ``values`` less that of ``others``.

    Raises:
        ValueError: the arms are not of one shape, there are no rows, or ``resamples`` or ``level``
            is out of range.

    >>> values = jax.random.normal(jax.random.key(0), (50,))
    >>> key = jax.random.key(1)
    >>> found = bootstrap_difference(values + 1, values, key=key, statistic=jnp.median)
    >>> found.low.item(), found.high.item()
    (1.0, 1.0)
    """
    values, others = jnp.asarray(values), jnp.asarray(others)
    checks.alike(values=values, others=others)
    if values.ndim < 1:
        raise ValueError("bootstrap_difference needs rows of values, got numbers")
    both = jnp.stack([values, others], axis=1)
    return bootstrap(
        both,
        key=key,
        statistic=lambda rows: statistic(rows[:, 0]) - statistic(rows[:, 1]),
        resamples=resamples,
        level=level,
    )


def bootstrap_pairs(
    values: jax.Array,
    *,
    key: Key,
    where: jax.Array | None = None,
    statistic: Callable[[jax.Array], jax.Array] = lambda means: means,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    r"""An interval for a mean over all pairs of items: the items are drawn, not the pairs.

    .. math:: \bar v = \frac{\sum_{i \ne j} n_i n_j w_{ij} v_{ij}}
              {\sum_{i \ne j} n_i n_j w_{ij}}, \qquad n \sim \operatorname{Multinomial}(N, 1/N)

    Two pairs that share an item are not independent, and an interval that draws pairs is much too
    narrow. To compare two models, give the difference of their values.

    Args:
        values: ``float[..., N, N]``, of each ordered pair; the diagonal does not count.
        key: a key; the same one gives the same resamples.
        where: ``bool[N, N]``, which pairs count; ``None`` for all.
        statistic: of the means ``[...]``, to an array; a calibration error, say, sums how far each
            bin's mean is from 0.
        resamples: how many times to draw.
        level: the interval's nominal coverage, between 0 and 1.

    Returns:
        An ``Interval`` of arrays shaped like the statistic.

    Raises:
        ValueError: a shape is wrong, no pair counts, or ``resamples`` or ``level`` is out of range.

    >>> scores, truth = jnp.array([0.1, 0.4, 0.3, 0.9]), jnp.arange(4.0)
    >>> right = jnp.sign(scores[:, None] - scores) == jnp.sign(truth[:, None] - truth)
    >>> float(bootstrap_pairs(right, key=jax.random.key(0)).estimate)  # 5 of 6 pairs
    0.8333
    """
    values = jnp.asarray(values, jnp.float32)
    if values.ndim < 2 or values.shape[-1] != values.shape[-2]:
        raise ValueError(f"values must be [..., N, N], not {list(values.shape)}")
    _check(resamples, level)
    items = values.shape[-1]
    counts = ~jnp.eye(items, dtype=bool)
    if where is not None:
        if where.shape != counts.shape:
            raise ValueError(f"where must be [{items}, {items}], not {list(where.shape)}")
        counts &= where
    if not isinstance(counts, jax.core.Tracer) and not jnp.any(counts):
        raise ValueError(f"no pair of {items} items counts")
    # How often each item is drawn: once in the first row, at random in the others.
    rows = jax.random.randint(key, (resamples, items), 0, items)
    drawn = jax.vmap(lambda row: jnp.bincount(row, length=items))(rows)
    drawn = jnp.concatenate([jnp.ones((1, items), jnp.float32), drawn.astype(jnp.float32)])

    means = _pair_means(values.reshape(-1, items, items), counts, drawn)
    found = jax.vmap(statistic)(means.reshape(-1, *values.shape[:-2]))
    return _between(found[0], found[1:], level)


@jax.jit  # Otherwise compiled anew at every call: it is called for many models in a row.
def _pair_means(values: jax.Array, counts: jax.Array, drawn: jax.Array) -> jax.Array:
    """Means of ``values[M, N, N]`` where ``counts``, ``[R, M]`` for ``R`` rows of ``drawn``."""

    def total(matrix: jax.Array) -> jax.Array:
        return jnp.sum((drawn @ jnp.where(counts, matrix, 0)) * drawn, axis=1)

    # One matrix at a time: a product of matrices is all that a resample costs.
    totals = jax.lax.map(total, values)
    return (totals / jnp.maximum(total(jnp.float32(1)), 1)).T


def clopper_pearson(
    successes: int | np.ndarray, trials: int | np.ndarray, *, level: float = 0.95
) -> Interval:
    r"""The exact interval of a probability, from how often something happened.

    .. math:: \Big[B_{\alpha / 2}(k, n - k + 1), \; B_{1 - \alpha / 2}(k + 1, n - k)\Big]

    the quantiles of beta distributions. It covers at least as often as it says, whatever the
    probability: also where an attack never worked. Of 0 in ``n``, the upper end at 95% is
    ``1 - 0.025 ** (1 / n)``, about 3.7 / n. (The rule of three, 3 / n, is the one-sided bound, the
    upper end at ``level=0.9``.) Computed by SciPy, so not of what is traced.

    Args:
        successes: ``int[...]``, how often it happened.
        trials: ``int[...]``, of how many independent trials, at least 1.
        level: the interval's coverage, between 0 and 1.

    Returns:
        An ``Interval`` of ``float64[...]``.

    Raises:
        ValueError: if there are more successes than trials or fewer than 0, there is no trial, or
            ``level`` is out of range.

    Reference: Clopper and Pearson 1934, Biometrika 26

    >>> print([round(float(x), 4) for x in clopper_pearson(8, 10)])
    [0.8, 0.4439, 0.9748]
    """
    checks.integers(successes=np.asarray(successes), trials=np.asarray(trials))
    successes, trials = np.broadcast_arrays(successes, trials)
    if np.any(trials < 1):
        raise ValueError(f"trials must be at least 1, not {trials}")
    if np.any((successes < 0) | (successes > trials)):
        raise ValueError(f"successes must be from 0 to trials ({trials}), not {successes}")
    _check(1, level)
    tail = (1.0 - level) / 2.0
    # SciPy's quantiles are NaN where a parameter is 0: there the end is 0 or 1.
    low = scipy.stats.beta.ppf(tail, successes, trials - successes + 1)
    high = scipy.stats.beta.ppf(1.0 - tail, successes + 1, trials - successes)
    low, high = np.where(successes == 0, 0.0, low), np.where(successes == trials, 1.0, high)
    return Interval(successes / trials, low, high)


def verdict(interval: Interval, *, null: float, threshold: float) -> Verdict:
    """What an interval says of the claim that something is at least a threshold.

    Args:
        interval: of a number.
        null: what the number is if there is no effect, at most ``threshold``.
        threshold: fixed before measuring.

    Returns:
        ``"PASS"`` if the estimate reaches the threshold and the interval lies above the null,
        ``"FAIL"`` if the interval lies below the threshold (or below the null), and
        ``"INCONCLUSIVE"`` otherwise, also where something is not a number.

    Raises:
        ValueError: if ``null`` is above ``threshold``.

    >>> verdict(Interval(0.78, 0.76, 0.79), null=0.5, threshold=0.77)
    'PASS'
    """
    if null > threshold:
        raise ValueError(f"null ({null}) must not be above threshold ({threshold})")
    estimate, low, high = map(float, interval)
    if estimate >= threshold and low > null:
        return "PASS"
    return "FAIL" if high < threshold or high <= null else "INCONCLUSIVE"


def _check(resamples: int, level: float) -> None:
    if operator.index(resamples) < 1:
        raise ValueError(f"resamples must be at least 1: {resamples}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1: {level}")


def _between(estimate: jax.Array, drawn: jax.Array, level: float) -> Interval:
    """The percentile interval of ``drawn[resamples, ...]``."""
    tail = (1.0 - level) / 2.0
    low, high = jnp.quantile(drawn, jnp.array([tail, 1.0 - tail]), axis=0)
    return Interval(estimate, low, high)
