"""Real people, who rated items once and can now be asked again; and people made after them.

``fit_rater_effects`` is ``measures.rater_effects``: here that name is taken by the simulated raters
who get its numbers, by way of ``rater_settings``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import Comparison, Pairs, Rating
from rlhf_jax.humans.common import refuse
from rlhf_jax.measures import RaterEffects
from rlhf_jax.measures import rater_effects as fit_rater_effects
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
        ratings: ``number[N, K]``, what column ``k`` thought of item ``n``; higher is better.
        mask: ``bool[N, K]``, true where there is a rating.
        batch: ``int[N]``, within which a column is one person, negative for none. With it the
            ``rater`` is ``batch * K + column``, or -1 for a pair that no one person need have
            rated; without it, only the number of a column.

    Returns:
        A pure function ``(key, Pairs of indices int[B]) -> Comparison`` that can be compiled and
        vmapped. A pair that no column rated both of is not answered: its rater is -1 and its
        preference 0.5. While it is traced it cannot check that the indices are within ``N``.

    Raises:
        ValueError: the shapes differ or are not ``[N, K]`` and ``[N]``, or the mask is not boolean.
            The function returned raises it if the two sides are not both integers ``[B]``, from 0
            to ``N - 1``.

    >>> human = real_raters(jnp.array([[4, 3], [1, 3], [0, 0]]), jnp.ones((3, 2), bool))
    >>> human(jax.random.key(0), Pairs(jnp.array([0, 2]), jnp.array([2, 0]))).preference.tolist()
    [1.0, 0.0]
    """
    ratings, mask, batch = _checked(ratings, mask, batch)

    def human(key: Key, pairs: Pairs) -> Comparison:
        first, second = pairs.first, pairs.second
        checks.alike(first=first, second=second)
        _check_items(len(mask), first=first, second=second)
        column, answered = _drawn(key, mask[first] & mask[second])
        gap = ratings[first, column].astype(jnp.float32) - ratings[second, column]
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
        ratings: ``number[N, K]``, what column ``k`` thought of item ``n``.
        mask: ``bool[N, K]``, true where there is a rating.
        batch: ``int[N]``, within which a column is one person, negative for none; ``rater`` is as
            in ``real_raters``.

    Returns:
        A pure function ``(key, indices int[B]) -> Rating``; with a third argument
        ``rater: int[B]``, as an earlier answer named them, those answer (it is how ``comparing``
        asks one person twice). An item that nobody rated, or not the one asked, is not answered: 0
        by rater -1. While it is traced it cannot check that the indices are within ``N``.

    Raises:
        ValueError: the shapes differ or are not ``[N, K]`` and ``[N]``, or the mask is not boolean.
            The function returned raises it if the indices are not integers ``[B]``, from 0 to
            ``N - 1``.

    >>> human = real_ratings(jnp.array([[4, 4], [1, 3]]), jnp.array([[True, True], [False, True]]))
    >>> human(jax.random.key(0), jnp.array([0, 1])).value.tolist()
    [4.0, 3.0]
    """
    ratings, mask, batch = _checked(ratings, mask, batch)
    columns = ratings.shape[1]

    def human(key: Key, examples: jax.Array, rater: jax.Array | None = None) -> Rating:
        _check_items(len(mask), examples=examples)
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
    checks.vectors(batch=batch)
    checks.integers(batch=batch)
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


def rater_settings(effects: RaterEffects) -> dict[str, np.ndarray]:
    r"""What ``rater_effects`` needs to make up raters who differ as the measured ones do.

    The measured slopes differ more than the raters do, since each is an estimate from a few
    ratings. They are therefore drawn towards their mean, all by the same factor, so that their
    variance is what is left without that of the errors (moment estimate, empirical Bayes):

    .. math:: \tilde s_k = \bar s + (s_k - \bar s)
              \sqrt{\max(0, 1 - \overline{\mathrm{se}^2} / \operatorname{var} s)}

    Biases likewise. Rounding to whole steps adds a variance of 1/12 of its own, which is taken off
    the noise. What remains unlike: that people mean more by the ends of a scale, and agree by item.

    Args:
        effects: what ``fit_rater_effects`` (it is ``measures.rater_effects``) returned of ratings
            in whole steps.

    Returns:
        ``bias``, ``slope`` and ``noise``, ``float32[R]`` of the ``R`` raters whose slope has a
        standard error, which takes three items: NumPy, since ``R`` depends on the ratings. The
        utility to go with them is the mean rating.

    Raises:
        ValueError: if there is no such rater.

    >>> ratings = jnp.array([[1, 2, 4], [2, 3, 7], [3, 4, 8], [4, 4, 9]])
    >>> effects = fit_rater_effects(ratings, jnp.ones((4, 3), bool))
    >>> {name: column.shape for name, column in rater_settings(effects).items()}
    {'bias': (3,), 'slope': (3,), 'noise': (3,)}
    """
    effects = jax.device_get(effects)
    known = np.isfinite(effects.slope_error)
    if not known.any():
        raise ValueError(
            "effects has no rater of three items or more whose slope is known: nobody to be like"
        )
    effects = RaterEffects(*(column[known] for column in effects))

    def drawn_in(values, errors):
        spread = np.var(values)
        left = np.sqrt(max(0.0, 1 - np.mean(errors) / spread)) if spread > 0 else 0.0
        return np.mean(values) + (values - np.mean(values)) * left

    slope = drawn_in(effects.slope, np.square(effects.slope_error))
    bias = drawn_in(effects.bias, np.square(effects.noise) / effects.count)
    settings = {
        # From where the ratings are to where the consensus is 0.
        "bias": bias + (1 - slope) * effects.centre,
        "slope": slope,
        "noise": np.sqrt(np.maximum(np.square(effects.noise) - 1 / 12, 0)),
    }
    return {name: column.astype(np.float32) for name, column in settings.items()}


def _checked(ratings, mask, batch):
    checks.table(ratings=ratings, mask=mask)
    if batch is not None:
        checks.integers(batch=batch)
        if jnp.shape(batch) != jnp.shape(ratings)[:1]:
            found = f"{list(jnp.shape(batch))}, the ratings {list(jnp.shape(ratings))}"
            raise ValueError(f"batch must be [N] as the ratings are [N, K], but it is {found}")
        batch = jnp.asarray(batch)
    return jnp.asarray(ratings), jnp.asarray(mask), batch


def _check_items(count: int, **indices: jax.Array) -> None:
    checks.vectors(**indices)
    checks.integers(**indices)
    for name, index in indices.items():
        wrong = (jnp.asarray(index) < 0) | (jnp.asarray(index) >= count)
        refuse(f"item of {name}", index, wrong, f"from 0 to {count - 1}")


def _drawn(key: Key, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A valid column of each row, each equally often, and whether there is one."""
    # The largest of independent uniform numbers is at each valid column equally often.
    lottery = jax.random.uniform(key, valid.shape)
    return jnp.argmax(jnp.where(valid, lottery, -1.0), axis=1), valid.any(axis=1)


def _rater(batch, items, column, columns):
    if batch is None:
        return column
    return jnp.where(batch[items] < 0, -1, batch[items] * columns + column)
