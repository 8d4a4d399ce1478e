"""Many devices: the same step, its batch cut along a mesh.

``shard_step`` is the default: ``jax.jit`` with shardings, a global view, any step unchanged.
``pmap_step`` is the second path, for code that has pmap already; the step must have been built with
``axis_name``, over which it sums. Both give the numbers of one device.

Reference: https://docs.jax.dev/en/latest/migrate_pmap.html
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.types import Batch, Metrics, PyTree, TrainState

__all__ = ["data_mesh", "place", "pmap_step", "shard_step"]

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, ``data``.

    Args:
        devices: by default all.

    Returns:
        The mesh, its axis ``Auto``: the compiler finds the sharding of everything inside a step.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def place(tree: PyTree, mesh: Mesh, batch_axis: int | None = None) -> PyTree:
    """Puts arrays on a mesh: whole on every device, or cut along their batch.

    Args:
        tree: arrays.
        mesh: with an axis ``data``.
        batch_axis: which axis of every array is the batch; ``None`` for no cut.

    Returns:
        The arrays, placed.

    Raises:
        ValueError: if a batch is not divisible by the mesh's ``data`` axis.
    """
    if batch_axis is not None:
        _check_divisible(tree, mesh.shape["data"], batch_axis)
    return jax.device_put(tree, _sharding(mesh, batch_axis))


def shard_step(step: Step, mesh: Mesh, *, batch_axis: int = 0) -> Step:
    """Compiles a step, or a chunk of steps, for a mesh: the state whole, the batch cut.

    Args:
        step: ``(state, batch) -> (state, metrics)``, as it is for one device.
        mesh: with an axis ``data``.
        batch_axis: which axis of the batch's arrays is cut; 1 for ``training.run_chunk``.

    Returns:
        The compiled step, which takes its state over: it must not be used again.
    """
    whole, cut = _sharding(mesh, None), _sharding(mesh, batch_axis)
    compiled = jax.jit(
        step, in_shardings=(whole, cut), out_shardings=(whole, whole), donate_argnums=0
    )

    def sharded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_divisible(batch, mesh.shape["data"], batch_axis)
        return compiled(state, batch)

    return sharded


def pmap_step(
    step: Step,
    *,
    axis_name: str = "data",
    batch_axis: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Step:
    """Compiles a step, or a chunk of steps, with ``jax.pmap``.

    Args:
        step: of an algorithm built with the same ``axis_name``: it must sum over it.
        axis_name: the pmapped axis.
        batch_axis: which axis of the batch's arrays is cut; 1 for ``training.run_chunk``.
        devices: by default all.

    Returns:
        The compiled step; state and metrics are whole on every device, going in and coming out.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    mapped = jax.pmap(
        step,
        axis_name=axis_name,
        in_axes=(None, batch_axis),
        out_axes=(None, None),
        devices=devices,
    )

    def cut(x: jax.Array) -> jax.Array:
        rows = x.shape[batch_axis] // count
        return x.reshape(*x.shape[:batch_axis], count, rows, *x.shape[batch_axis + 1 :])

    def pmapped(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_divisible(batch, count, batch_axis)
        return mapped(state, jax.tree.map(cut, batch))

    return pmapped


def _sharding(mesh: Mesh, batch_axis: int | None) -> NamedSharding:
    spec = () if batch_axis is None else (*[None] * batch_axis, "data")
    return NamedSharding(mesh, PartitionSpec(*spec))


def _check_divisible(batch: Batch, devices: int, batch_axis: int) -> None:
    for array in jax.tree.leaves(batch):
        rows = array.shape[batch_axis]
        if rows % devices:
            raise ValueError(
                f"a batch of {rows} cannot be cut evenly over {devices} devices: "
                f"use a multiple of {devices}"
            )
