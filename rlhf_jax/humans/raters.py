"""Real people, who rated sentences once and can now be asked which of two is better."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Comparison, Key

__all__ = ["decided", "real_raters", "same_batch_pairs"]


def real_raters(
    ratings: jax.Array, mask: jax.Array
) -> Callable[[Key, jax.Array, jax.Array], Comparison]:
    """A human who is, for each pair, one of the raters in the data.

    For a pair ``(i, j)`` a column ``k`` is drawn uniformly among those that rated both items::

        preference = 1 if ratings[i, k] > ratings[j, k], 0 if it is less, 0.5 if they are equal

    So the noise in the labels is real: it is how much people differ. Whose it is depends on the
    data. In the movie ratings of Hutto & Gilbert a column appears to be one person within a
    consecutive batch of 30 items, so pairs from ``same_batch_pairs`` are one person's own
    comparisons. Any other pair compares two ratings by persons who may differ, which adds the
    differences between persons to the noise; ``rater`` is then only the number of a column.

    Args:
        ratings: ``int[N, K]``, what column ``k`` thought of item ``n``; higher is better.
        mask: ``bool[N, K]``, true where there is a rating.

    Returns:
        A pure function ``(key, first: int[B], second: int[B]) -> Comparison`` that can be compiled
        and vmapped. A pair that no column rated both of has rater -1 and preference 0.5. It cannot
        check that the indices are within ``N``.

    Raises:
        ValueError: the shapes differ or are not ``[N, K]``, or the mask is not boolean. The
            function returned raises it if ``first`` and ``second`` are not both ``[B]``.

    >>> human = real_raters(jnp.array([[4, 3], [1, 3], [0, 0]]), jnp.ones((3, 2), bool))
    >>> human(jax.random.key(0), jnp.array([0, 2]), jnp.array([2, 0])).preference.tolist()
    [1.0, 0.0]
    """
    chex.assert_rank([ratings, mask], 2, exception_type=ValueError)
    chex.assert_equal_shape([ratings, mask], exception_type=ValueError)
    chex.assert_type([ratings, mask], [int, bool], exception_type=ValueError)
    ratings, mask = jnp.asarray(ratings), jnp.asarray(mask)

    def human(key: Key, first: jax.Array, second: jax.Array) -> Comparison:
        chex.assert_rank([first, second], 1, exception_type=ValueError)
        chex.assert_equal_shape([first, second], exception_type=ValueError)
        rated_both = mask[first] & mask[second]
        # The largest of independent uniform numbers is at each valid column equally often.
        lottery = jax.random.uniform(key, rated_both.shape)
        column = jnp.argmax(jnp.where(rated_both, lottery, -1.0), axis=1)
        answerable = rated_both.any(axis=1)
        gap = ratings[first, column].astype(jnp.int32) - ratings[second, column]
        return Comparison(
            first=jnp.asarray(first, jnp.int32),
            second=jnp.asarray(second, jnp.int32),
            preference=jnp.where(answerable, 0.5 + 0.5 * jnp.sign(gap), 0.5).astype(jnp.float32),
            rater=jnp.where(answerable, column, -1).astype(jnp.int32),
        )

    return human


def same_batch_pairs(key: Key, batch: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Pairs of distinct items of one batch, whose raters are the same persons.

    The first item is uniform over items with company in their batch, the second uniform over that
    company. Pairs are drawn independently, so one may come up twice.

    Args:
        key: a key.
        batch: ``int[N]``, the batch of each item; negative for items of none, which are not drawn.
        count: how many pairs, ``B``.

    Returns:
        ``first`` and ``second``, ``int32[B]``, indices into ``batch``.

    Raises:
        ValueError: ``batch`` is not ``int[N]``, or no batch has two items (which cannot be checked
            of an argument that is being traced: both indices are then -1).

    >>> first, second = same_batch_pairs(jax.random.key(0), jnp.array([0, 1, 1, -1, -1]), 3)
    >>> (first + second).tolist()
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
    return jnp.where(any_eligible, first, -1), jnp.where(any_eligible, second, -1)


def decided(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """The items preferred and the items not preferred, pairs with a tie left out.

    What is lost is that the tied pairs were close; a loss for ties would use it.

    Args:
        comparison: a human's answers.

    Returns:
        chosen ``int32[D]`` and rejected ``int32[D]``, NumPy since their length depends on the data.

    >>> columns = [4, 5, 6], [7, 8, 9], [1.0, 0.5, 0.0], [0, 0, 0]
    >>> answers = Comparison(*map(np.array, columns))
    >>> [side.tolist() for side in decided(answers)]
    [[4, 9], [7, 6]]
    """
    first, second, preference, _ = (np.asarray(x) for x in jax.tree.leaves(comparison))
    chosen = np.where(preference == 1, first, second)
    rejected = np.where(preference == 1, second, first)
    return chosen[preference != 0.5], rejected[preference != 0.5]
