"""Digests of arrays, to know them again: SHA-256, or a sum where no process has the whole array.

SHA-256 reads the bytes in order, so it needs them in one place. The sum is of mixed numbers, each
of an element's bits and its position; it is the same however the array is cut, and every device
adds up its own part. Both tell a damaged array from a good one; only the first stands up to
forgery.

Reference: the mixing is the finaliser of MurmurHash3, https://github.com/aappleby/smhasher
"""

import hashlib
from collections.abc import Mapping
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["differing", "of_arrays", "sha256"]

Array = jax.Array | np.ndarray
# How much of an array is gathered, or mixed, at a time.
_SLAB = 2**26
_ODD = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5)


def of_arrays(arrays: Mapping[str, Array]) -> dict[str, dict[str, str]]:
    """A digest of each array: ``{"sha256": ...}``, or ``{"sum": ...}`` of one cut over processes.

    >>> found = of_arrays({"x": np.arange(3)})
    >>> differing({"x": np.arange(3)}, found), differing({"x": np.arange(3) + 1}, found)
    ([], ['x'])
    """
    cut = {name: array for name, array in arrays.items() if _is_cut(array)}
    sums = _sums(cut)
    return {
        name: {"sum": sums[name]} if name in cut else {"sha256": sha256(array)}
        for name, array in arrays.items()
    }


def differing(arrays: Mapping[str, Array], digests: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The names of those arrays whose digests are not these, of either kind."""
    sums = _sums({name: array for name, array in arrays.items() if "sum" in digests[name]})
    found = {name: sums[name] if name in sums else sha256(array) for name, array in arrays.items()}
    return [name for name, value in found.items() if value not in digests[name].values()]


def sha256(array: Array) -> str:
    """SHA-256 of an array's bytes; of one cut over processes, put together a slab at a time."""
    if not _is_cut(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            array = array.addressable_data(0)
        return hashlib.sha256(_bytes(np.asarray(array))).hexdigest()
    digest = hashlib.sha256()
    for slab in _slabs(array):
        digest.update(_bytes(multihost_utils.process_allgather(slab, tiled=True)))
    return digest.hexdigest()


def _is_cut(array: Array) -> bool:
    """Whether no process has the whole of it."""
    return (
        isinstance(array, jax.Array)
        and not array.is_fully_addressable
        and not array.is_fully_replicated
    )


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _slabs(array: Array) -> list[Array]:
    """An array in pieces of its first axis."""
    rows = max(1, _SLAB * len(array) // max(array.nbytes, 1))
    return [array[start : start + rows] for start in range(0, len(array), rows)]


def _sums(arrays: Mapping[str, Array]) -> dict[str, str]:
    cut = {name: array for name, array in arrays.items() if _is_cut(array)}
    found = {name: _sum_here(np.asarray(a)) for name, a in arrays.items() if name not in cut}
    if cut:
        whole = NamedSharding(next(iter(cut.values())).sharding.mesh, PartitionSpec())
        mixed = jax.jit(lambda xs: [_mixed(jnp, x) for x in xs], out_shardings=whole)
        sums = jax.device_get(mixed(list(cut.values())))
        found |= dict(zip(cut, sums, strict=True))
    return {name: "".join(f"{int(lane):08x}" for lane in lanes) for name, lanes in found.items()}


def _sum_here(array: np.ndarray) -> list[np.ndarray]:
    """As ``_mixed`` of the whole, a slab at a time."""
    if array.ndim == 0:  # As one of one element: NumPy warns of the overflow of scalars.
        return _sum_here(array.reshape(1))
    total, start = np.zeros(2, np.uint32), 0
    for slab in _slabs(array):
        total += np.array(_mixed(np, slab, start), np.uint32)
        start += len(slab)
    return list(total)


def _mixed(xp: ModuleType, array: Array, start: int = 0) -> list[Array]:
    """Two sums, modulo 2^32, of numbers made of every element and where it stands."""
    position = xp.zeros(array.shape, np.uint32)
    for axis, size in enumerate(array.shape):
        index = xp.arange(size, dtype=np.uint32) + np.uint32(start if axis == 0 else 0)
        shape = [size if n == axis else 1 for n in range(array.ndim)]
        position = position + (index * np.uint32(_ODD[axis % len(_ODD)])).reshape(shape)
    first = _finalised(_finalised(_bits(xp, array) + np.uint32(_ODD[5])) ^ position)
    second = _finalised(first + np.uint32(_ODD[6]))
    return [xp.sum(lane, dtype=np.uint32) for lane in (first, second)]


def _bits(xp: ModuleType, array: Array) -> Array:
    """Every element's bits as a ``uint32``; of one of 64, both halves mixed."""
    size = array.dtype.itemsize
    if size == 8:
        halves = np.ascontiguousarray(array).view(np.uint32).reshape(*array.shape, 2)
        return _finalised(halves[..., 0]) ^ halves[..., 1]
    if array.dtype == bool:
        return array.astype(np.uint32)
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
    if xp is np:
        return np.ascontiguousarray(array).view(kind).reshape(array.shape).astype(np.uint32)
    return jax.lax.bitcast_convert_type(array, kind).astype(np.uint32)


def _finalised(x: Array) -> Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
