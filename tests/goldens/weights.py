"""Invented weights of a checkpoint, the same wherever they are made: nothing of them is stored."""

import zlib

import numpy as np


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor by its name; large enough for every part of a model to matter."""
    # This generator's numbers are promised not to change.
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return (0.35 * draw + (len(shape) == 1)).astype(np.float32)
