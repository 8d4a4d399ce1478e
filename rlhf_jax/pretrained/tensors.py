"""The safetensors format: a length, a JSON header, and the numbers.

Read and written here because that takes a page, and lets a tensor be mapped into memory, given back
as soon as it has been copied, and written without holding the others.

Reference: https://huggingface.co/docs/safetensors
"""

import json
import math
import operator
import os
import struct
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rlhf_jax.pretrained.sources import StoredTensor

__all__ = ["DTYPES", "read_tensors", "write_tensors"]

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_MAX_HEADER = 100_000_000  # bytes, as in the reference implementation


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; nothing but the header is read yet.

    Args:
        path: of a ``.safetensors`` file.

    Returns:
        Tensors whose ``read`` maps the part of the file that they are in.

    Raises:
        ValueError: the file is cut short or is not in this format.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"{path} is not a safetensors file, or is cut short: {size} bytes")
        try:
            header = json.loads(file.read(length))
            described = {
                name: (
                    value["dtype"],
                    [*map(operator.index, value["shape"])],
                    *value["data_offsets"],
                )
                for name, value in header.items()
                if name != "__metadata__"
            }
            spans = sorted(
                (operator.index(first), last) for _, _, first, last in described.values()
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has a damaged header: {error}") from error
    tensors = {
        name: _described(path, name, *value, start=8 + length) for name, value in described.items()
    }
    end = 8 + length + max((last for _, last in spans), default=0)
    if end != size:
        state = "cut short" if size < end else "damaged"
        raise ValueError(f"{path} is {state}: it has {size} bytes, and its header says {end}")
    if any(before[1] != after[0] for before, after in pairwise([[0, 0], *spans])):
        raise ValueError(f"{path} is damaged: its tensors overlap or leave gaps")
    return tensors


def _described(
    path: Path, name: str, kind: str, shape: list[int], first: int, last: int, *, start: int
) -> StoredTensor:
    """A tensor by its entry in the header."""
    if kind not in DTYPES:
        raise ValueError(
            f"{path}: {name} is of the type {kind}, which is not supported; what is: "
            f"{', '.join(DTYPES)}"
        )
    dtype, count = DTYPES[kind], math.prod(shape)
    if min([0, *shape]) < 0 or last - first != count * dtype.itemsize:
        raise ValueError(f"{path}: {name} {shape} of {kind} cannot be {last - first} bytes")
    read = partial(_mapped, path, dtype, start + first, tuple(shape))
    return StoredTensor(tuple(shape), dtype, read)


def _mapped(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A part of a file as an array: of memory, only what is used, and only as long as it is."""
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    # bfloat16 is not a name that a memmap knows.
    flat = np.memmap(path, np.uint8, "r", offset, (math.prod(shape) * dtype.itemsize,))
    return flat.view(dtype).reshape(shape)


def write_tensors(
    path: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]
) -> None:
    """Writes a file, one tensor after another.

    Args:
        path: of the file, which is not there yet.
        tensors: by name, the shape, the dtype, and what gives the values, called once, in order.

    Raises:
        ValueError: a dtype that is not supported.
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype, _) in tensors.items():
        if np.dtype(dtype) not in kinds:
            names = ", ".join(map(str, kinds))
            raise ValueError(f"{name} is {dtype}, which cannot be saved; what can: {names}")
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        kind = kinds[np.dtype(dtype)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape, dtype, read in tensors.values():
            array = np.ascontiguousarray(read(), dtype)
            assert array.shape == tuple(shape)
            file.write(array.reshape(-1).view(np.uint8))
        file.flush()
        os.fsync(file.fileno())
