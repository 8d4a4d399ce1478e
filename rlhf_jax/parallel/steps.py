"""A step compiled for many devices; both ways give the numbers of one device.

Reference: https://docs.jax.dev/en/latest/migrate_pmap.html
"""

import functools
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from rlhf_jax.parallel.meshes import batch_sharding, check_rows, row_devices, whole
from rlhf_jax.types import Batch, Metrics, PyTree, TrainState

__all__ = ["pmap_step", "shard_step"]

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def shard_step(
    step: Step, mesh: Mesh, *, state_shardings: PyTree | None = None, batch_axis: int = 0
) -> Step:
    """Compiles a step, or a chunk of steps, for a mesh: the batch cut, the state too if asked.

    Args:
        step: ``(state, batch) -> (state, metrics)``, as it is for one device.
        mesh: as of ``make_mesh`` or ``data_mesh``.
        state_shardings: as of ``state_shardings``; ``None`` for the state whole on every device.
        batch_axis: which axis of the batch's arrays is cut; 1 for ``training.run_chunk``.

    Returns:
        The compiled step, which takes its state over: it must not be used again. Its ``lower`` is
        that of ``jax.jit``.
    """
    everywhere = whole(mesh)
    state = everywhere if state_shardings is None else state_shardings

    @functools.wraps(step)
    def meshed(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for placing.placed
            return step(state, batch)

    compiled = jax.jit(
        meshed,
        in_shardings=(state, batch_sharding(mesh, batch_axis)),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )

    def sharded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        check_rows(batch, row_devices(mesh), batch_axis)
        return compiled(state, batch)

    sharded.lower = compiled.lower  # type: ignore[attr-defined]
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
        check_rows(batch, count, batch_axis)
        return mapped(state, jax.tree.map(cut, batch))

    return pmapped
