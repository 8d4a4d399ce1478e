"""A step compiled for many devices; both ways give the numbers of one device.

Reference: https://docs.jax.dev/en/latest/migrate_pmap.html
"""

import functools
import hashlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax import trees
from rlhf_jax.parallel.meshes import batch_sharding, check_rows, row_devices, whole
from rlhf_jax.parallel.processes import check_agreement, global_batch, spread
from rlhf_jax.types import Batch, Metrics, PyTree, TrainState

__all__ = ["pmap_step", "shard_step"]

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def shard_step(
    step: Step,
    mesh: Mesh,
    *,
    state_shardings: PyTree | None = None,
    batch_axis: int = 0,
    local_rows: bool = False,
) -> Step:
    """Compiles a step, or a chunk of steps, for a mesh: the batch cut, the state too if asked.

    Args:
        step: ``(state, batch) -> (state, metrics)``, as it is for one device.
        mesh: as of ``make_mesh`` or ``data_mesh``.
        state_shardings: as of ``state_shardings``; ``None`` for the state whole on every device.
        batch_axis: which axis of the batch's arrays is cut; 1 for ``training.run_chunk``.
        local_rows: with several processes, whether each gives only its own rows (``rows_here``) of
            the batch. By default each gives the whole, all the same one, which is compared once.

    Returns:
        The compiled step, which takes its state over: it must not be used again. Its ``lower`` is
        that of ``jax.jit``. It raises a ``ValueError`` for a batch that cannot be cut evenly, and
        where the first batches of the processes differ.
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
        if jax.process_count() > 1:
            batch = joined(batch)
        check_rows(batch, row_devices(mesh), batch_axis)
        return compiled(state, batch)

    compared = False

    def joined(batch: Batch) -> Batch:
        """The batch of all processes."""
        nonlocal compared
        if local_rows:
            return global_batch(batch, mesh, batch_axis)
        if not compared:
            check_agreement("first batch", _digests(batch))
            compared = True
        check_rows(batch, row_devices(mesh), batch_axis)
        return spread(batch, mesh, batch_axis)

    sharded.lower = compiled.lower  # type: ignore[attr-defined]
    return sharded


def _digests(batch: Batch) -> dict[str, str]:
    """A digest of every array of a batch that is not spread already."""
    leaves = zip(trees.paths(batch), jax.tree.leaves(batch), strict=True)
    return {
        path: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]
        for path, x in leaves
        if not isinstance(x, jax.Array) or x.is_fully_addressable
    }


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
