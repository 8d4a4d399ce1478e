"""Real people, who rated items once and can now be asked again; and how each used the scale."""

from collections.abc import Callable

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import Comparison, Pairs, Rating
from rlhf_jax.types import Key

__all__ = [
    "RaterEffects",
    "fit_rater_effects",
    "rater_settings",
    "real_raters",
    "real_ratings",
    "same_batch_pairs",
]


def real_raters(
    ratings: jax.Array, mask: jax.Array, *, batch: jax.Array | None = None
) -> Callable[[Key, Pairs], Comparison]:
    """A human who is, for each pair, one of the raters in the data.

    For a pair ``(i, j)`` a column ``k`` is drawn uniformly among those that rated both items::

        preference = 1 if ratings[i, k] > ratings[j, k], 0 if it is less, 0.5 if they are equal

    So the noise in the labels is real: it is how much people differ. Whose it is depends on the
    data. In the movie ratings of Hutto & Gilbert a column appears to be one person within a
    consecutive batch of 30 items, so pairs from ``same_batch_pairs`` are one person's own
    comparisons. Any other pair compares two ratings by persons who may differ, which adds the
    differences between persons to the noise.

    Args:
        ratings: ``int[N, K]``, what column ``k`` thought of item ``n``; higher is better.
        mask: ``bool[N, K]``, true where there is a rating.
        batch: ``int[N]``, within which a column is one person, negative for none. With it the
            ``rater`` is ``batch * K + column``, or -1 for a pair that no one person need have
            rated; without it, only the number of a column.

    Returns:
        A pure function ``(key, Pairs of indices int[B]) -> Comparison`` that can be compiled and
        vmapped. A pair that no column rated both of is not answered: its rater is -1 and its
        preference 0.5. It cannot check that the indices are within ``N``.

    Raises:
        ValueError: the shapes differ or are not ``[N, K]`` and ``[N]``, or the mask is not boolean.
            The function returned raises it if the two sides are not both ``[B]``.

    >>> human = real_raters(jnp.array([[4, 3], [1, 3], [0, 0]]), jnp.ones((3, 2), bool))
    >>> human(jax.random.key(0), Pairs(jnp.array([0, 2]), jnp.array([2, 0]))).preference.tolist()
    [1.0, 0.0]
    """
    ratings, mask, batch = _checked(ratings, mask, batch)

    def human(key: Key, pairs: Pairs) -> Comparison:
        first, second = pairs.first, pairs.second
        checks.alike(first=first, second=second)
        checks.vectors(first=first)
        column, answered = _drawn(key, mask[first] & mask[second])
        gap = ratings[first, column].astype(jnp.int32) - ratings[second, column]
        rater = _rater(batch, first, column, ratings.shape[1])
        if batch is not None:
            rater = jnp.where(batch[first] == batch[second], rater, -1)
        return Comparison(
            preference=jnp.where(answered, 0.5 + 0.5 * jnp.sign(gap), 0.5).astype(jnp.float32),
            rater=jnp.where(answered, rater, -1).astype(jnp.int32),
            answered=answered,
        )

    return human


def real_ratings(
    ratings: jax.Array, mask: jax.Array, *, batch: jax.Array | None = None
) -> Callable[..., Rating]:
    """A human who gives, for each item, the rating of one of those who rated it.

    Args:
        ratings: ``int[N, K]``, what column ``k`` thought of item ``n``.
        mask: ``bool[N, K]``, true where there is a rating.
        batch: ``int[N]``, within which a column is one person, negative for none; ``rater`` is as
            in ``real_raters``.

    Returns:
        A pure function ``(key, indices int[B]) -> Rating``; with a third argument
        ``rater: int[B]``, as an earlier answer named them, those answer (it is how ``comparing``
        asks one person twice). An item that nobody rated, or not the one asked, is not answered: 0
        by rater -1. It cannot check that the indices are within ``N``.

    Raises:
        ValueError: the shapes differ or are not ``[N, K]`` and ``[N]``, or the mask is not boolean.
            The function returned raises it if the indices are not ``[B]``.

    >>> human = real_ratings(jnp.array([[4, 4], [1, 3]]), jnp.array([[True, True], [False, True]]))
    >>> human(jax.random.key(0), jnp.array([0, 1])).value.tolist()
    [4.0, 3.0]
    """
    ratings, mask, batch = _checked(ratings, mask, batch)
    columns = ratings.shape[1]

    def human(key: Key, examples: jax.Array, rater: jax.Array | None = None) -> Rating:
        checks.vectors(examples=examples)
        valid = mask[examples]
        if rater is not None:
            checks.alike(examples=examples, rater=rater)
            wanted = jnp.asarray(rater)[:, None]
            every = jnp.broadcast_to(jnp.arange(columns), valid.shape)
            named = _rater(batch, jnp.asarray(examples)[:, None], every, columns)
            valid = valid & (named == wanted) & (wanted >= 0)
        column, answered = _drawn(key, valid)
        value = jnp.where(answered, ratings[examples, column], 0).astype(jnp.float32)
        who = _rater(batch, examples, column, columns)
        who = jnp.where(answered, who, -1).astype(jnp.int32)
        return Rating(value=value, rater=who, answered=answered)

    return human


def same_batch_pairs(key: Key, batch: jax.Array, count: int) -> Pairs:
    """Pairs of distinct items of one batch, whose raters are the same persons.

    The first item is uniform over items with company in their batch, the second uniform over that
    company. Pairs are drawn independently, so one may come up twice.

    Args:
        key: a key.
        batch: ``int[N]``, the batch of each item; negative for items of none, which are not drawn.
        count: how many pairs, ``B``.

    Returns:
        ``Pairs`` of ``int32[B]``, indices into ``batch``.

    Raises:
        ValueError: ``batch`` is not ``int[N]``, or no batch has two items (which cannot be checked
            of an argument that is being traced: both indices are then -1).

    >>> pairs = same_batch_pairs(jax.random.key(0), jnp.array([0, 1, 1, -1, -1]), 3)
    >>> (pairs.first + pairs.second).tolist()
    [3, 3, 3]
    """
    chex.assert_rank(batch, 1, exception_type=ValueError)
    chex.assert_type(batch, int, exception_type=ValueError)
    batch = jnp.asarray(batch)
    order = jnp.argsort(batch, stable=True).astype(jnp.int32)
    ordered = batch[order]
    start = jnp.searchsorted(ordered, ordered, side="left")
    size = jnp.searchsorted(ordered, ordered, side="right") - start
    # eligible[m] items with company come at or before place m of the order.
    eligible = jnp.cumsum((ordered >= 0) & (size > 1))
    any_eligible = eligible[-1] > 0 if batch.size else jnp.array(False)
    if not isinstance(any_eligible, jax.core.Tracer) and not any_eligible:
        raise ValueError("no batch has two items, so there is no pair to draw")
    first_key, second_key = jax.random.split(key)
    nth = jax.random.randint(first_key, (count,), 0, jnp.maximum(eligible[-1], 1))
    place = jnp.searchsorted(eligible, nth, side="right")
    company = jax.random.randint(second_key, (count,), 0, jnp.maximum(size[place] - 1, 1))
    # Step over the first item itself.
    other = start[place] + company + (company >= place - start[place])
    first, second = order[place], order[jnp.minimum(other, len(batch) - 1)]
    return Pairs(jnp.where(any_eligible, first, -1), jnp.where(any_eligible, second, -1))


@flax.struct.dataclass
class RaterEffects:
    """How each rater used the scale: ``rating = bias + slope * (consensus - centre) + noise``.

    Row ``g`` and column ``k`` are one rater, the person who wrote column ``k`` in batch ``g``.

    Attributes:
        bias: ``float32[G, K]``, how much higher than the others they rated the same items, on
            average.
        slope: ``float32[G, K]``, by how much their rating rose with the others' mean: 1 if they
            used the scale as the others did, near 0 for one who did not look, below 0 for one who
            turned it round.
        noise: ``float32[G, K]``, standard deviation of what that leaves unexplained.
        slope_error: ``float32[G, K]``, standard error of the slope.
        correlation: ``float32[G, K]`` of their ratings with the others' mean.
        items: ``int32[G, K]``, how many of their ratings were compared.
        centre: ``float32[G, K]``, mean of the others' means of these items.
        mask: ``bool[G, K]``, true where there were three ratings or more and the others' means of
            the items differ; all else is 0 elsewhere, and the correlation is 0 too of someone who
            rated all items the same.
    """

    bias: jax.Array
    slope: jax.Array
    noise: jax.Array
    slope_error: jax.Array
    correlation: jax.Array
    items: jax.Array
    centre: jax.Array
    mask: jax.Array


def fit_rater_effects(
    ratings: jax.Array, mask: jax.Array, batch: jax.Array, *, batches: int | None = None
) -> RaterEffects:
    r"""Bias, slope and noise of each rater, by least squares on the mean of the other raters.

    .. math::
        m_{ik} = \operatorname{mean}_{l \ne k} y_{il}, \qquad
        b_k = \bar y_k - \bar m_k, \qquad
        s_k = \frac{\sum_i (m_{ik} - \bar m_k)(y_{ik} - \bar y_k)}{\sum_i (m_{ik} - \bar m_k)^2}

    The noise has ``n - 2`` degrees of freedom. The mean of the others is itself an estimate, so the
    slope comes out smaller than it would be on the truth, by about ``1 - v / (n_others V)``, where
    ``v`` is the variance between raters of an item and ``V`` that of the means. From the mean of
    all ``K`` raters of the items a bias is ``(K - 1) / K`` of what it is from the others'. Of
    thirty ratings, each of the three is uncertain: their spread over raters overstates how much
    people differ; ``rater_settings`` takes that off.

    Args:
        ratings: ``number[N, K]``.
        mask: ``bool[N, K]``, true where there is a rating.
        batch: ``int[N]``, within which column ``k`` is one person; rows that are negative are left
            out.
        batches: ``G``, above all of ``batch``; needed where ``batch`` is traced.

    Returns:
        ``RaterEffects`` of ``[G, K]``.

    Raises:
        ValueError: the shapes differ or are not ``[N, K]`` and ``[N]``, the mask is not boolean, or
            ``batches`` does not exceed all of ``batch``.

    >>> ratings = jnp.array([[1, 2, 4], [2, 3, 6], [3, 4, 8]])
    >>> effects = fit_rater_effects(ratings, jnp.ones((3, 3), bool), jnp.zeros(3, int))
    >>> effects.bias.tolist(), effects.slope.tolist()
    ([[-2.5, -1.0, 3.5]], [[0.667, 0.667, 2.0]])
    """
    ratings, mask, batch = _checked(ratings, mask, batch)
    if not isinstance(batch, jax.core.Tracer):
        found = int(np.max(np.asarray(batch), initial=-1)) + 1
        batches = max(found, 1) if batches is None else batches
        if batches < found:
            raise ValueError(f"batches must be at least {found}, as batch has it, not {batches}")
    elif batches is None:
        raise ValueError("batches must be given where batch is traced")
    values = jnp.where(mask, ratings, 0).astype(jnp.float32)
    others = mask.sum(axis=1, keepdims=True) - 1
    counted = mask & (others > 0) & (batch >= 0)[:, None]
    mean = (values.sum(axis=1, keepdims=True) - values) / jnp.maximum(others, 1)

    def total(array):
        group = jnp.where(batch >= 0, batch, batches)  # A group of its own, cut off.
        return jax.ops.segment_sum(jnp.where(counted, array, 0), group, batches + 1)[:batches]

    items = total(jnp.ones_like(values))
    at_least_one = jnp.maximum(items, 1)
    centre, level = total(mean) / at_least_one, total(values) / at_least_one
    # From the means, where there is no cancellation.
    x, y = mean - centre[batch], values - level[batch]
    xx, xy, yy = total(x * x), total(x * y), total(y * y)
    fitted = (items >= 3) & (xx > 1e-6)
    slope = xy / jnp.where(fitted, xx, 1)
    residual = jnp.maximum(yy - slope * xy, 0) / jnp.maximum(items - 2, 1)
    varied = fitted & (yy > 1e-6)
    correlation = xy / jnp.sqrt(jnp.where(varied, xx * yy, 1))
    columns = {"bias": level - centre, "slope": slope, "noise": jnp.sqrt(residual)}
    columns["slope_error"] = jnp.sqrt(residual / jnp.where(fitted, xx, 1))
    columns = {name: jnp.where(fitted, column, 0) for name, column in columns.items()}
    return RaterEffects(
        **columns,
        correlation=jnp.where(varied, correlation, 0),
        items=items.astype(jnp.int32),
        centre=jnp.where(fitted, centre, 0),
        mask=fitted,
    )


def rater_settings(effects: RaterEffects) -> dict[str, np.ndarray]:
    r"""What ``rater_effects`` needs to make up raters who differ as the fitted ones do.

    The fitted slopes differ more than the raters do, since each is an estimate from a few ratings.
    They are therefore drawn towards their mean, all by the same factor, so that their variance is
    what is left without that of the errors (moment estimate, empirical Bayes):

    .. math:: \tilde s_k = \bar s + (s_k - \bar s)
              \sqrt{\max(0, 1 - \overline{\mathrm{se}^2} / \operatorname{var} s)}

    Biases likewise. Rounding to whole steps adds a variance of 1/12 of its own, which is taken off
    the noise. What remains unlike: that people mean more by the ends of a scale, and agree by item.

    Args:
        effects: what ``fit_rater_effects`` returned of ratings in whole steps.

    Returns:
        ``bias``, ``slope`` and ``noise``, ``float32[R]`` of the ``R`` raters that were fitted:
        NumPy, since ``R`` depends on the ratings. The utility to go with them is the mean rating.

    Raises:
        ValueError: if no rater was fitted.

    >>> ratings = jnp.array([[1, 2, 4], [2, 3, 7], [3, 4, 8], [4, 4, 9]])
    >>> effects = fit_rater_effects(ratings, jnp.ones((4, 3), bool), jnp.zeros(4, int))
    >>> {name: column.shape for name, column in rater_settings(effects).items()}
    {'bias': (3,), 'slope': (3,), 'noise': (3,)}
    """
    effects = jax.device_get(effects)
    fitted = effects.mask
    if not fitted.any():
        raise ValueError("effects has no fitted rater: there is nobody to be like")
    bias, slope, noise = effects.bias[fitted], effects.slope[fitted], effects.noise[fitted]
    centre, items = effects.centre[fitted], effects.items[fitted]
    bias_error = np.square(noise) / items
    slope_error = np.square(effects.slope_error[fitted])

    def drawn_in(values, errors):
        spread = np.var(values)
        left = np.sqrt(max(0.0, 1 - np.mean(errors) / spread)) if spread > 0 else 0.0
        return np.mean(values) + (values - np.mean(values)) * left

    slope = drawn_in(slope, slope_error)
    bias = drawn_in(bias, bias_error) + (1 - slope) * centre
    noise = np.sqrt(np.maximum(np.square(noise) - 1 / 12, 0))
    columns = {"bias": bias, "slope": slope, "noise": noise}
    return {name: column.astype(np.float32) for name, column in columns.items()}


def _checked(ratings, mask, batch):
    chex.assert_rank([ratings, mask], 2, exception_type=ValueError)
    chex.assert_equal_shape([ratings, mask], exception_type=ValueError)
    checks.booleans(mask=mask)
    if batch is not None:
        checks.integers(batch=batch)
        if jnp.shape(batch) != jnp.shape(ratings)[:1]:
            found = f"{list(jnp.shape(batch))}, the ratings {list(jnp.shape(ratings))}"
            raise ValueError(f"batch must be [N] as the ratings are [N, K], but it is {found}")
        batch = jnp.asarray(batch)
    return jnp.asarray(ratings), jnp.asarray(mask), batch


def _drawn(key: Key, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A valid column of each row, each equally often, and whether there is one."""
    # The largest of independent uniform numbers is at each valid column equally often.
    lottery = jax.random.uniform(key, valid.shape)
    return jnp.argmax(jnp.where(valid, lottery, -1.0), axis=1), valid.any(axis=1)


def _rater(batch, items, column, columns):
    if batch is None:
        return column
    return jnp.where(batch[items] < 0, -1, batch[items] * columns + column)
