"""Several sequences in one row, so that little of it is padding.

A batch is as wide as its longest sequence, and most are much shorter: of lengths distributed as in
real use three quarters of what is computed is padding. ``pack`` lays them out anew, once, before
training; the algorithms take what it makes like any other batch, and to rounding the losses, the
metrics and the gradients are those of the batch as it was.
"""

import bisect
import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.algorithms.feedback import Feedback, sides
from rlhf_jax.sequences import segmented
from rlhf_jax.types import Packed, Rated, Sequences

__all__ = ["PackReport", "Packing", "pack"]


@dataclass(frozen=True)
class PackReport:
    """What packing made of a batch.

    Attributes:
        sequences: how many were packed.
        rows: into how many rows.
        full: what share of these rows' tokens is no padding.
        full_before: the same of the batch as it was.
        most_per_row: the most judgements in a row; all rows have room for so many.
    """

    sequences: int
    rows: int
    full: float
    full_before: float
    most_per_row: int


class Packing(NamedTuple):
    """A packed batch, of NumPy arrays, and how full its rows are."""

    batch: Packed
    report: PackReport


def pack(batch: Sequences | Feedback, length: int, *, most_per_row: int | None = None) -> Packing:
    """Lays several sequences in each row, for ``supervised``, ``direct`` and ``reward_model``.

    Best fit, decreasing: from the longest judgement to the shortest, each goes into the row in
    which it leaves the least room. The sequences of a judgement, both of a pair or all of a
    ranking, share a row; so rows can be shuffled and cut as those of any batch: ``data.epochs``
    makes batches of so many *rows*, ``accumulate`` and a mesh cut them. Pack all data at once, as
    more of it fits better, and so that all batches are of one shape.

    Each batch's loss is still a mean over its judgements (or tokens), of which there are now more
    in one batch than in another. The rows should be no longer than it takes to fill them: in most
    implementations, ours included, the cost of attention grows with the length of the row, and the
    model must be able to read so many tokens (``max_length``).

    Args:
        batch: ``Sequences``, ``Preferences``, ``Rated`` or ``Ranked`` of ``B`` rows, as
            ``tokenise_preferences`` and the like make them. What is padding, rows without any
            response token, is left out.
        length: ``W``, tokens in a row.
        most_per_row: the most judgements to a row; by default as many as fit. It bounds ``M``, the
            room for them that every row has.

    Returns:
        ``Packing`` with a ``Packed`` batch and the report.

    Raises:
        ValueError: a judgement does not fit into a row (its sequences together must), nothing is
            left to pack, the batch is packed already, its arrays do not fit each other, it has
            ratings of single tokens, or an argument is below 1.
        TypeError: if the batch is of another type.

    >>> mask = np.arange(4) < np.array([[3], [2], [4], [1]])
    >>> text = Sequences(np.array([[5], [6], [7], [8]]) * mask, mask, mask)
    >>> packed, report = pack(text, 5)
    >>> packed.rows.tokens.tolist()
    [[7, 7, 7, 7, 8], [5, 5, 5, 6, 6]]
    >>> packed.rows.mask.tolist()
    [[1, 1, 1, 1, 2], [1, 1, 1, 2, 2]]
    >>> report.rows, report.full, report.full_before
    (2, 1.0, 0.625)
    """
    length = operator.index(length)
    for name, value in (("length", length), ("most_per_row", most_per_row)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    text, said = _taken_apart(batch)
    width, each = text.tokens.shape[-1], text.tokens.shape[1]
    lengths = text.mask.sum(axis=-1)
    kept = np.flatnonzero(text.response_mask.any(axis=(1, 2)))
    if not len(kept):
        raise ValueError(f"nothing to pack: none of {len(lengths)} rows has a response token")
    sizes = lengths.sum(axis=-1)
    if sizes[kept].max() > length:
        longest = kept[sizes[kept].argmax()]
        many = np.sum(sizes[kept] > length)
        raise ValueError(
            f"length must be at least {sizes[longest]}, not {length}: row {longest} of the batch "
            f"has so many tokens{'' if each == 1 else f' in its {each} sequences'}, and {many} "
            "of its rows do not fit; cut them when they are tokenised (max_length), or leave them "
            "out"
        )

    fitted = _best_fit(sizes[kept], length, most_per_row)
    most = max(map(len, fitted)) if most_per_row is None else most_per_row
    index = np.full([len(fitted), most], -1, np.int32)
    for row, judgements in enumerate(fitted):
        index[row, : len(judgements)] = kept[judgements]
    real = index >= 0
    each_length = np.where(real[..., None], lengths[index], 0).astype(np.int32)
    ends = each_length.reshape(len(fitted), -1).cumsum(axis=-1).reshape(each_length.shape)
    starts = np.where(each_length > 0, ends - each_length, 0).astype(np.int32)
    report = PackReport(
        sequences=int(np.count_nonzero(each_length)),
        rows=len(fitted),
        full=float(each_length.sum() / (len(fitted) * length)),
        full_before=float(lengths.sum() / text.mask.size),
        most_per_row=most,
    )
    packed = Packed(
        rows=_laid_in_rows(text, index, starts, each_length, length),
        starts=starts,
        lengths=each_length,
        index=index,
        # What stands where nothing was said does not count, but a loss must be able to read it.
        said=jax.tree.map(lambda x: np.asarray(x)[np.where(real, index, kept[0])], said),
        width=width,
    )
    return Packing(packed, report)


def _taken_apart(batch: Sequences | Feedback) -> tuple[Sequences, Sequences | Feedback]:
    """Its sequences, as arrays ``[B, S, T]`` whose padding is on the right; and all the rest."""
    every = [batch] if isinstance(batch, Sequences) else sides(batch)
    every = [jax.tree.map(np.asarray, side) for side in every]
    shape = every[0].tokens.shape
    for side in every:
        for name in ("tokens", "mask", "response_mask"):
            array = getattr(side, name)
            if array.ndim != 2 or array.shape != shape:
                found = f"{list(array.shape)} and {list(shape)}"
                raise ValueError(f"the batch's sequences must be of one shape, [B, T]: {found}")
        if segmented(side.mask):
            raise ValueError("mask must be boolean, but it holds segment ids: packed already?")
    if isinstance(batch, Rated) and np.shape(batch.ratings) == shape:
        raise ValueError("ratings of single tokens cannot be packed, only ratings of sequences")
    text = jax.tree.map(lambda *parts: np.stack(parts, axis=1), *every)
    order = np.argsort(~text.mask, axis=-1, kind="stable")
    text = jax.tree.map(lambda x: np.take_along_axis(x, order, axis=-1), text)
    # Every Sequences in it, without its arrays.
    said = jax.tree.map(
        lambda part: Sequences(None, None, None) if isinstance(part, Sequences) else part,
        batch,
        is_leaf=lambda part: isinstance(part, Sequences),
    )
    return text, said


def _best_fit(sizes: np.ndarray, length: int, most: int | None) -> list[list[int]]:
    """For each row the numbers of the sizes in it, largest first."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # Sorted: those of by_room that are not empty.
    for number in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[number])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del rooms[place]
        rows[row].append(number)
        left = room - size
        if left and (most is None or len(rows[row]) < most):
            if not by_room[left]:
                bisect.insort(rooms, left)
            by_room[left].append(row)
    return rows


def _laid_in_rows(
    text: Sequences, index: np.ndarray, starts: np.ndarray, lengths: np.ndarray, length: int
) -> Sequences:
    """The packed rows themselves: for each of their tokens, where it comes from."""
    rows, _, each = lengths.shape
    numbers = np.arange(1, lengths[0].size + 1, dtype=np.int32)
    segments = np.zeros([rows, length], np.int32)
    for row, in_row in enumerate(lengths.reshape(rows, -1)):
        segments[row, : in_row.sum()] = np.repeat(numbers, in_row)
    sequence = np.maximum(segments - 1, 0)
    judgement = np.take_along_axis(index, sequence // each, axis=1)
    start = np.take_along_axis(starts.reshape(rows, -1), sequence, axis=1)
    offset = np.minimum(np.arange(length) - start, text.tokens.shape[-1] - 1)
    taken = jax.tree.map(lambda x: x[judgement, sequence % each, offset], text)
    taken = jax.tree.map(lambda x: np.where(segments > 0, x, np.zeros((), x.dtype)), taken)
    return taken.replace(mask=segments)
