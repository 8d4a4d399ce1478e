"""What the axes of an array inside a step are, for the compiler to know where to cut them on a mesh.

Models and losses say ``placed(x, "rows", None, "heads", None)`` at the few places where the compiler
would guess wrong, and know nothing of devices. On one device, under ``jax.pmap``, and wherever else
``parallel.shard_step`` has not named a mesh, that is ``x``, and the program the same as without.
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

__all__ = ["ROW_AXES", "placed"]

# The axes of a mesh over which a batch's rows are cut.
ROW_AXES = ("data", "fsdp")
_AXES = {"rows": ROW_AXES, "heads": ("tensor",), "words": ("tensor",), "width": ("fsdp",)}


def placed(x: jax.Array, *names: str | None) -> jax.Array:
    """An array whose axes have names, cut accordingly if there is a mesh.

    ``"rows"`` are a batch's, ``"heads"`` those of attention (or other columns of its matrices),
    ``"words"`` the vocabulary's, ``"width"`` a matrix's that is only put together to be used. The
    gradient is cut as the array is.

    Args:
        x: ``[...]``.
        names: of its first axes; ``None`` for one that is whole, like those that are left out.

    Returns:
        ``x``. An axis that the mesh does not divide is whole; rows are then left to the compiler.

    >>> placed(jax.numpy.arange(4), "rows").tolist()
    [0, 1, 2, 3]
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = {name for name, kind in kinds.items() if kind == AxisType.Auto and mesh.shape[name] > 1}
    if not free:
        return x

    def cut(size: int, name: str | None):
        axes = tuple(axis for axis in _AXES.get(name, ()) if axis in free)
        if size % math.prod(mesh.shape[axis] for axis in axes):
            return PartitionSpec.UNCONSTRAINED if name == "rows" else None
        return axes or None

    partition = [cut(size, name) for size, name in zip(x.shape, names, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*partition))
