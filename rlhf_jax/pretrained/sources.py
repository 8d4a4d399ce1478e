"""What every kind of checkpoint is read as, before anything is made of it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.pretrained.architectures import Entry
from rlhf_jax.pretrained.tokenizers import Vocabulary

__all__ = ["Source", "StoredTensor", "listed", "own_shape", "read_json"]


class StoredTensor(NamedTuple):
    """A tensor in a file, not read yet.

    Attributes:
        shape: as Hugging Face has it.
        dtype: of what ``read`` returns.
        read: the tensor, which may lie in the mapped file and may not be written to.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Source(NamedTuple):
    """A checkpoint as Hugging Face would publish it, whatever it is stored as.

    Attributes:
        place: where it is, for messages.
        config: as in ``config.json``.
        tensors: by Hugging Face's names.
        vocabulary: reads its tokenizer with what belongs to it; ``None`` if there is none.
    """

    place: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    vocabulary: Callable[[], Vocabulary | None]


def own_shape(entry: Entry) -> tuple[int, ...]:
    """The shape of what goes into our parameter, or into one row of it.

    >>> own_shape(Entry("c_attn", (4, 12), ("layers", "key", "kernel"), 0, False, (4, 8)))
    (4, 4)
    """
    shape = tuple(entry.shape)
    if entry.columns is not None:
        shape = (*shape[:-1], entry.columns[1] - entry.columns[0])
    return shape[::-1] if entry.transpose else shape


def listed(problems: list[str], most: int = 8) -> str:
    """Problems as lines, the first few of many.

    >>> print(listed(["one", "two", "three"], most=2))
      one
      two
      and 1 more
    """
    lines = [*problems[:most], *([f"and {len(problems) - most} more"] if problems[most:] else [])]
    return "\n".join(f"  {line}" for line in lines)


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value
