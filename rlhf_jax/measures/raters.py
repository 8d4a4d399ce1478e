"""What each rater is like beside the others: bias, slope, noise, and who is careless.

Nothing here knows the truth: raters are judged by each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = ["RaterEffects", "SuspectRaters", "rater_effects", "suspect_raters"]


class RaterEffects(NamedTuple):
    """How each rater's ratings depend on the mean of all others' ratings of the same items.

    Row ``g`` and column ``k`` are one rater, who gave column ``k`` of the items of batch ``g``. All
    are NaN where they are not defined, ``count`` aside.

    Attributes:
        bias: ``float32[G, K]``, the mean of rating less others' mean.
        intercept: ``float32[G, K]``, of the regression line: its value at 0.
        slope: ``float32[G, K]``, of the regression line: 1 for one who used the scale as the others
            did, near 0 for one who did not look, below 0 for one who turned it round.
        correlation: ``float32[G, K]``, Pearson's; NaN if the rater always gave one rating.
        noise: ``float32[G, K]``, SD of the residuals, of which there are 2 fewer than items.
        slope_error: ``float32[G, K]``, standard error of the slope.
        centre: ``float32[G, K]``, the mean of the others' means.
        count: ``int32[G, K]``, items that the rater and at least one other rated.
    """

    bias: jax.Array
    intercept: jax.Array
    slope: jax.Array
    correlation: jax.Array
    noise: jax.Array
    slope_error: jax.Array
    centre: jax.Array
    count: jax.Array


class SuspectRaters(NamedTuple):
    """Whose answers to look at, or to leave out.

    Attributes:
        careless: ``bool[...]``, hardly or not related to what others say.
        inverted: ``bool[...]``, the opposite of what others say; all of these are careless too.
    """

    careless: jax.Array
    inverted: jax.Array


def rater_effects(
    ratings: jax.Array,
    mask: jax.Array,
    batch: jax.Array | None = None,
    *,
    batches: int | None = None,
) -> RaterEffects:
    r"""Each rater's bias, slope and noise, from a regression on the mean of the others.

    .. math::
        r_{nk} = a_k + s_k \, \bar r_{n,-k} + \varepsilon_{nk}, \qquad
        \text{bias}_k = \overline{r_{nk} - \bar r_{n,-k}}

    by least squares, within each batch of items, in which a column is taken for one person. The
    mean of the others is itself noisy, so that slopes come out smaller than they would be on the
    truth, by about ``1 - v / (n V)`` for ``n`` others, where ``v`` is the variance between raters
    of one item and ``V`` that of the means; correlations are too small as well and the noise is too
    large (``one_factor`` allows for that). Each estimate from few items is uncertain: their spread
    over raters overstates how much people differ.

    Args:
        ratings: ``number[N, K]``, items by raters.
        mask: ``bool[N, K]``, true where there is a rating.
        batch: ``int[N]``, the batch of each item; items of a negative one are left out. By default
            all are of one batch.
        batches: how many batches there are, ``G``, above all of ``batch``; by default one more than
            the largest number in it, which must then not be traced.

    Returns:
        ``RaterEffects`` of arrays ``[G, K]``; ``count`` is 0 where a column is nobody.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]`` and ``[N]``, the mask is not boolean,
            ``batch`` is not integers or is traced without ``batches``, or ``batches`` does not
            exceed all of it.

    >>> truth = jnp.array([-2.0, 0.0, 2.0])
    >>> ratings = jnp.stack([truth, truth, 1 + 0.5 * truth], axis=1)
    >>> found = rater_effects(ratings, jnp.ones((3, 3), bool))
    >>> found.bias[0].tolist(), found.slope[0, 2].item()
    ([-0.5, -0.5, 1.0], 0.5)
    """
    checks.table(ratings=ratings, mask=mask)
    mask = jnp.asarray(mask)
    if batch is None:
        batch, batches = jnp.zeros(ratings.shape[0], jnp.int32), 1
    checks.integers(batch=batch)
    if jnp.shape(batch) != ratings.shape[:1]:
        found = f"{list(jnp.shape(batch))} beside ratings {list(ratings.shape)}"
        raise ValueError(f"batch must be [N], one number an item, not {found}")
    if not isinstance(batch, jax.core.Tracer):
        found = int(np.max(batch, initial=-1)) + 1
        batches = found if batches is None else batches
        if batches < found:
            raise ValueError(f"batches must be at least {found}, as batch has it, not {batches}")
    elif batches is None:
        raise ValueError("batches must be given where batch is being traced")
    # Past the end, which is dropped: a negative index would count from the end.
    batch = jnp.where(jnp.asarray(batch) < 0, batches, batch)
    values = jnp.where(mask, ratings, 0).astype(jnp.float32)
    raters = jnp.sum(mask, axis=1, keepdims=True)
    mask = mask & (raters > 1)
    rest = (jnp.sum(values, axis=1, keepdims=True) - values) / jnp.maximum(raters - 1, 1)

    def total(array: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(jnp.where(mask, array, 0), batch, num_segments=batches)

    count = total(jnp.ones_like(values))
    mean_value, mean_rest = total(values) / count, total(rest) / count
    own, other = values - mean_value[batch], rest - mean_rest[batch]
    own_squares = _nothing_to_zero(total(jnp.square(own)), total(jnp.square(values)))
    rest_squares = _nothing_to_zero(total(jnp.square(other)), total(jnp.square(rest)))
    products = total(own * other)
    # Beside a 0 that rounding would have made something else, so are the products such a something.
    slope = _ratio(products, rest_squares)
    residuals = total(jnp.square(own - slope[batch] * other))
    noise = jnp.sqrt(_ratio(residuals, jnp.maximum(count - 2, 0)))
    return RaterEffects(
        bias=mean_value - mean_rest,
        intercept=mean_value - slope * mean_rest,
        slope=slope,
        correlation=_ratio(products, jnp.sqrt(own_squares * rest_squares)),
        noise=noise,
        slope_error=_ratio(noise, jnp.sqrt(rest_squares)),
        centre=mean_rest,
        count=count.astype(jnp.int32),
    )


def suspect_raters(
    effects: RaterEffects,
    *,
    careless_below: float = 0.2,
    inverted_below: float = 0.0,
    least: int = 10,
) -> SuspectRaters:
    r"""Careless and inverted raters, by their correlation with the others.

    Someone who answers at random about ``n`` items has a correlation of 0 with a standard error of
    :math:`1 / \sqrt{n - 1}`, 0.19 for 30 items: with the defaults most of those are found, and half
    of them are called inverted.

    Args:
        effects: what ``rater_effects`` returned.
        careless_below: the correlation below which a rater is careless.
        inverted_below: the correlation below which one is inverted.
        least: how many items it takes to judge a rater; others are never suspect.

    Returns:
        ``SuspectRaters``. One who always gave the same rating is careless.

    Raises:
        ValueError: if ``inverted_below`` is above ``careless_below``.

    >>> truth = jnp.arange(12.0)
    >>> ratings = jnp.stack([truth, truth, truth, -truth, 0 * truth], axis=1)
    >>> found = suspect_raters(rater_effects(ratings, jnp.ones((12, 5), bool)))
    >>> found.careless[0].tolist(), found.inverted[0].tolist()
    ([False, False, False, True, True], [False, False, False, True, False])
    """
    if inverted_below > careless_below:
        raise ValueError(
            f"inverted_below must be at most careless_below, not {inverted_below} above "
            f"{careless_below}: who is inverted is careless too"
        )
    judged = effects.count >= least
    # Not "below": a correlation that is NaN is one that is not there.
    return SuspectRaters(
        careless=judged & ~(effects.correlation >= careless_below),
        inverted=judged & (effects.correlation < inverted_below),
    )


def _nothing_to_zero(squares: jax.Array, size: jax.Array) -> jax.Array:
    """Sums of squared deviations, where rounding alone can be all that is left of them: then 0."""
    return jnp.where(squares > 1e-10 * size, squares, 0)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """NaN where the denominator is 0, whatever rounding left of the numerator."""
    return jnp.where(denominator > 0, numerator / denominator, jnp.nan)
