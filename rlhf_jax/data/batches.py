"""Batches by number: which rows are in batch ``step`` depends on the seed and ``step`` alone."""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlhf_jax.sequences import segmented
from rlhf_jax.types import Batch, PyTree, Sequences

__all__ = ["Batches", "epochs", "longest_response", "shared_lengths", "stacked"]

# step -> batch. It has no state: to resume at a step is to ask for that step.
Batches = Callable[[int], Batch]


def epochs(arrays: PyTree, batch_size: int, *, seed: int) -> Batches:
    """Endless shuffled batches, addressed by number.

    Batch ``step`` is rows ``step * batch_size`` to ``(step + 1) * batch_size - 1`` of an endless
    run of epochs, each a permutation of all rows that depends on ``(seed, epoch)`` alone. A batch
    may straddle two epochs (and then hold a row twice), so no row is left out of an epoch and all
    batches have one shape.

    Args:
        arrays: a pytree of arrays with one leading axis in common, such as ``Sequences`` or
            ``Preferences``; they are kept as NumPy arrays on the host.
        batch_size: rows in a batch.
        seed: a non-negative whole number.

    Returns:
        A pure function ``step -> batch``, a pytree like ``arrays`` of NumPy arrays. Its rows do not
        change with the version of NumPy.

    Raises:
        ValueError: there are no arrays or rows, the arrays' lengths differ, or ``batch_size`` is
            not between 1 and the number of rows. The function returned raises it for a negative
            step.

    >>> batches = epochs({"x": np.arange(5)}, 2, seed=0)
    >>> sorted(np.concatenate([batches(step)["x"] for step in range(5)]).tolist())
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    >>> bool((batches(3)["x"] == epochs({"x": np.arange(5)}, 2, seed=0)(3)["x"]).all())
    True
    """
    arrays = jax.tree.map(np.asarray, arrays)
    shapes = {
        jax.tree_util.keystr(path) or "the array": leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
    if not shapes or any(not shape for shape in shapes.values()):
        raise ValueError(f"every array needs a leading axis of rows; the shapes are {shapes}")
    if len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"the arrays differ in their number of rows; the shapes are {shapes}")
    rows = next(iter(shapes.values()))[0]
    batch_size, seed = operator.index(batch_size), operator.index(seed)
    if not 1 <= batch_size <= rows:
        raise ValueError(f"batch_size must be from 1 to the number of rows, {rows}: {batch_size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative: {seed}")

    # A memo and not a state: it saves sorting again at every step.
    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        # Sorting raw bits: NumPy promises these for ever, and Generator.permutation's order not.
        bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(rows)
        return np.argsort(bits, kind="stable")

    def batch(step: int) -> Batch:
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"step must not be negative: {step}")
        epoch, offset = divmod(step * batch_size, rows)
        index = permutation(epoch)[offset : offset + batch_size]
        if len(index) < batch_size:
            index = np.concatenate([index, permutation(epoch + 1)[: batch_size - len(index)]])
        return jax.tree.map(lambda leaf: leaf[index], arrays)

    return batch


def longest_response(batch: PyTree) -> int:
    """The most response tokens in any row, for the ``response_length`` of an algorithm.

    Args:
        batch: one batch, or all data of which they will be: ``Sequences``, whatever is made of
            them, or what ``pack`` makes of that (then of the packed rows).

    Returns:
        How many, at least 1.

    Raises:
        ValueError: if there are no sequences.

    >>> mask = np.array([[False, True, True], [False, False, True]])
    >>> longest_response(Sequences(np.ones((2, 3), int), mask | True, mask))
    2
    """
    counts = [np.asarray(x.response_mask).sum(axis=-1) for x in _sequences_of(batch)]
    return max(1, *(int(count.max(initial=0)) for count in counts))


def shared_lengths(batch: PyTree) -> dict[str, int]:
    """The lengths that let the sides of a judgement share their prompt in an algorithm.

    Args:
        batch: one batch, or all data of which they will be: ``Preferences``, ``Ranked`` and so on,
            not packed.

    Returns:
        ``prompt_length``, the most tokens before a row's first response token, and
        ``response_length``, the most from there on, each at least 1: for ``algorithms.direct`` and
        its relatives and ``algorithms.reward_model``.

    Raises:
        ValueError: if there are no sequences, or they are packed.

    >>> mask = np.array([[False, True, True], [False, False, True]])
    >>> shared_lengths(Sequences(np.ones((2, 3), int), mask | True, mask))
    {'prompt_length': 2, 'response_length': 2}
    """
    before, behind = [1], [1]
    for sequences in _sequences_of(batch):
        mask, response = np.asarray(sequences.mask), np.asarray(sequences.response_mask)
        if segmented(mask):
            raise ValueError("batch must not be packed: its rows do not share prompts")
        started = np.logical_or.accumulate(response, axis=-1)
        answered = started[..., -1:]  # Where nothing is a response, a row is padding.
        before.append((mask & ~started & answered).sum(axis=-1).max(initial=0))
        behind.append((mask & started).sum(axis=-1).max(initial=0))
    return {"prompt_length": int(max(before)), "response_length": int(max(behind))}


def _sequences_of(batch: PyTree) -> list[Sequences]:
    """All that a batch holds; else a ``ValueError``."""
    leaves = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, Sequences))
    # In what is packed, those without an array stand for sequences that are in the rows.
    found = [x for x in leaves if isinstance(x, Sequences) and x.response_mask is not None]
    if not found:
        raise ValueError(f"batch must hold Sequences; a {type(batch).__name__} holds none")
    return found


def stacked(batches: Sequence[Batches]) -> Batches:
    """Batches for ``algorithms.ensemble(..., own_batches=True)``: each member has an order its own.

    Args:
        batches: one for each of the ``M`` members, all of one shape.

    Returns:
        A pure function ``step -> batch``, whose arrays are ``[M, B, ...]``.

    Raises:
        ValueError: there are none, or (from the function returned) their shapes differ.

    >>> orders = [epochs(np.arange(4), 2, seed=seed) for seed in range(3)]
    >>> stacked(orders)(0).shape
    (3, 2)
    """
    if not batches:
        raise ValueError("batches must be of at least one member")
    return lambda step: jax.tree.map(lambda *leaves: np.stack(leaves), *[b(step) for b in batches])
