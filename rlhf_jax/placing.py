"""What the axes of an array inside a step are: on a mesh, the compiler then cuts them accordingly.

Models and losses say ``placed(x, "rows", None, "heads")`` at the few places where the compiler
would guess wrong, and know nothing of devices. On one device, under ``jax.pmap``, and wherever else
``parallel.shard_step`` has not named a mesh, that is ``x``, and the program the same as without.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

__all__ = ["ROW_AXES", "looked_up", "pieces", "placed"]

# The axes of a mesh over which a batch's rows are cut.
ROW_AXES = ("data", "fsdp")
_AXES = {"rows": ROW_AXES, "heads": ("tensor",), "words": ("tensor",), "width": ("fsdp",)}


def placed(x: jax.Array, *names: str | None) -> jax.Array:
    """An array whose axes have names, cut accordingly if there is a mesh.

    ``"rows"`` are a batch's, ``"heads"`` those of attention, ``"words"`` the vocabulary's,
    ``"width"`` that of a table which is only put together to be used. The gradient is cut as the
    array is.

    Args:
        x: ``[...]``.
        names: of its first axes; ``None`` for one that is whole, like those that are left out.

    Returns:
        ``x``. An axis that the mesh does not divide is whole; rows are then left to the compiler.

    >>> placed(jnp.arange(4), "rows").tolist()
    [0, 1, 2, 3]
    """
    if not _sizes():
        return x
    partition = [
        _cut(size, name) or (PartitionSpec.UNCONSTRAINED if name == "rows" else None)
        for size, name in zip(x.shape, names, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*partition))


def pieces(size: int, name: str) -> int:
    """Into how many pieces an axis of such a size and name is cut; 1 without a mesh."""
    sizes = _sizes()
    return math.prod(sizes[axis] for axis in _cut(size, name))


def looked_up(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows of a table, ``table[indices]``, which is not put together for it on a mesh.

    Left to itself, the compiler puts together the words of a table that is cut over them, and adds
    up the gradient of the whole table on every device. Here each device looks up the words that it
    has, for the rows of all that have another part of the width, and these exchange what they
    found.

    Args:
        table: ``dtype[V, D]``, cut over words and width.
        indices: ``int32[B, ...]``, whose rows are cut.

    Returns:
        ``dtype[B, ..., D]``, whose rows are cut.

    >>> looked_up(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[2, 0]])).tolist()
    [[[3.0], [1.0]]]
    """
    rows = _cut(indices.shape[0], "rows")
    words, width = _cut(table.shape[0], "words"), _cut(table.shape[1], "width")
    if not rows or not (words or width):
        return placed(jnp.take(table, indices, axis=0), "rows")

    def here(part: jax.Array, indices: jax.Array) -> jax.Array:
        if width:
            indices = jax.lax.all_gather(indices, width, axis=0, tiled=True)
        if words:
            own = indices - jax.lax.axis_index(words) * len(part)
            known = ((own >= 0) & (own < len(part)))[..., None]
            found = jnp.where(known, jnp.take(part, own, axis=0, mode="clip"), 0)
            found = jax.lax.psum(found, words)
        else:
            found = jnp.take(part, indices, axis=0)
        if width:
            found = jax.lax.all_to_all(found, width, 0, found.ndim - 1, tiled=True)
        return found

    cut, out = PartitionSpec(words or None, width or None), PartitionSpec(rows)
    return jax.shard_map(here, in_specs=(cut, out), out_specs=out)(table, indices)


def _sizes() -> dict[str, int]:
    """The axes of the mesh that arrays may be cut over; none without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {n: mesh.shape[n] for n, kind in kinds if kind == AxisType.Auto and mesh.shape[n] > 1}


def _cut(size: int, name: str | None) -> tuple[str, ...]:
    """The axes of the mesh that an axis is cut over: none if they do not divide it."""
    sizes = _sizes()
    axes = tuple(axis for axis in _AXES.get(name, ()) if axis in sizes)
    return () if size % math.prod(sizes[axis] for axis in axes) else axes
