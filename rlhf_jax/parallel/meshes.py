"""Devices in a mesh of named axes, and where a batch lies on it.

Three axes, any of which may be 1: over ``data`` only the batch is cut; over ``fsdp`` the batch, and
the state with it, every layer's parameters being put together when it is computed; over ``tensor``
the parameters and the computation with them (heads, the inner width, the vocabulary).

Reference: fsdp, Rajbhandari et al. 2019 (ZeRO), https://arxiv.org/abs/1910.02054; tensor, Shoeybi
et al. 2019, https://arxiv.org/abs/1909.08053
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.models import TransformerConfig
from rlhf_jax.placing import ROW_AXES
from rlhf_jax.types import Batch, PyTree

__all__ = [
    "AXES",
    "batch_sharding",
    "check_model",
    "check_rows",
    "data_mesh",
    "is_global",
    "make_mesh",
    "mesh_axes",
    "place",
    "put",
    "row_devices",
    "whole",
]

AXES = ("data", "fsdp", "tensor")


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, ``data``.

    Args:
        devices: by default all.

    Returns:
        The mesh, its axis ``Auto``: the compiler finds the sharding of everything inside a step.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def make_mesh(
    data: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of three axes, ``data``, ``fsdp`` and ``tensor``.

    Neighbours along ``tensor`` are the nearest to each other, as they have the most to say. Where
    devices are of several slices, which only the data-centre network joins, ``data`` goes over the
    slices.

    Args:
        data: parts of the batch with a whole copy of the state each; ``None`` for as many as the
            devices make.
        fsdp: parts of the batch that share one copy of the state.
        tensor: parts of every matrix, which work on the same rows together.
        devices: by default all, of all processes.

    Returns:
        The mesh, its axes ``Auto``: the compiler finds the sharding of everything inside a step.

    Raises:
        ValueError: if an axis is below 1, or the axes do not make the number of devices.

    >>> make_mesh(fsdp=jax.device_count()).shape["fsdp"] == jax.device_count()
    True
    """
    devices = list(jax.devices() if devices is None else devices)
    given = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in given.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} is {size}: an axis of a mesh is at least 1")
    if data is None:
        data = max(len(devices) // (fsdp * tensor), 1)
    if data * fsdp * tensor != len(devices):
        wanted = ", ".join(f"{n}={s}" for n, s in given.items() if s is not None)
        raise ValueError(
            f"{len(devices)} devices cannot make a mesh of {wanted}: the product of its axes must "
            f"{'divide' if given['data'] is None else 'be'} {len(devices)}"
        )
    shape, kinds = (data, fsdp, tensor), (AxisType.Auto,) * 3
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and data % slices == 0:
        from jax.experimental import mesh_utils

        inside = (data // slices, fsdp, tensor)
        ordered = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices)
        return Mesh(ordered, AXES, axis_types=kinds)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def mesh_axes(text: str) -> dict[str, int]:
    """A mesh as a person writes it, for ``make_mesh``.

    Args:
        text: ``"fsdp=4,tensor=2"``; an axis that is left out is 1, but ``data`` what is left.

    Returns:
        The axes' sizes.

    Raises:
        ValueError: if it cannot be read.

    >>> mesh_axes("fsdp=4,tensor=2")
    {'fsdp': 4, 'tensor': 2}
    """
    pairs = [part.strip().partition("=") for part in text.split(",")]
    names = [name for name, _, _ in pairs]
    if not all(
        name in AXES and size.isdigit() and names.count(name) == 1 for name, _, size in pairs
    ):
        raise ValueError(
            f"a mesh is {text!r}: it must be some of data, fsdp and tensor with their sizes, such "
            "as data=2,fsdp=4,tensor=2"
        )
    return {name: int(size) for name, _, size in pairs}


def check_model(config: TransformerConfig, mesh: Mesh) -> list[str]:
    """Whether a transformer's heads can be cut over a mesh: what its arrays' shapes do not tell.

    Args:
        config: the model's shape.
        mesh: as of ``make_mesh``.

    Returns:
        What is worth knowing and no mistake, in words.

    Raises:
        ValueError: if ``tensor`` does not divide the heads.

    >>> config = TransformerConfig(16, 8, num_heads=4, num_kv_heads=2)
    >>> check_model(config, jax.sharding.AbstractMesh((4,), ("tensor",)))[0][:45]
    'tensor=4 does not divide the 2 heads of keys '
    """
    tensor, heads, kv_heads = mesh.shape.get("tensor", 1), config.num_heads, config.num_kv_heads
    if heads % tensor:
        divisors = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"num_heads is {heads}, which cannot be cut evenly over tensor={tensor}: use "
            f"{', '.join(divisors[:-1])} or {divisors[-1]}"
        )
    if kv_heads % tensor:
        return [
            f"tensor={tensor} does not divide the {kv_heads} heads of keys and values: their "
            "matrices are cut, but keys and values are put together on every device of tensor, "
            "and so is the key-value cache; tensor of "
            f"{max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and heads % n == 0)} "
            "at most would cut them"
        ]
    return []


def row_devices(mesh: Mesh) -> int:
    """Over how many devices a batch's rows are cut."""
    return math.prod(mesh.shape.get(name, 1) for name in ROW_AXES)


def whole(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, batch_axis: int = 0) -> NamedSharding:
    """The sharding of a batch's arrays: their rows over ``data`` and ``fsdp`` together.

    Args:
        mesh: with an axis ``data`` or ``fsdp`` or both.
        batch_axis: which axis is the rows; 1 for the batches of a chunk of steps.

    Returns:
        The sharding.
    """
    rows = tuple(name for name in ROW_AXES if name in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(*[None] * batch_axis, rows))


def place(tree: PyTree, mesh: Mesh, batch_axis: int | None = None) -> PyTree:
    """Puts arrays on a mesh: whole on every device, or cut along their batch.

    Args:
        tree: arrays.
        mesh: as of ``make_mesh`` or ``data_mesh``.
        batch_axis: which axis of every array is the batch; ``None`` for no cut.

    Returns:
        The arrays, placed.

    Raises:
        ValueError: if a batch cannot be cut evenly.
    """
    if batch_axis is not None:
        check_rows(tree, row_devices(mesh), batch_axis)
    sharding = whole(mesh) if batch_axis is None else batch_sharding(mesh, batch_axis)
    return put(tree, jax.tree.map(lambda _: sharding, tree))


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every process has whole, each part on the devices that are to hold it.

    ``jax.device_put`` for several processes. Nothing but its parts comes to a device.

    Args:
        tree: arrays, of NumPy or of this process; global ones are cut anew.
        shardings: as of ``state_shardings``.

    Returns:
        The arrays, placed.
    """

    def each(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if sharding.is_fully_addressable or is_global(leaf):
            return jax.device_put(leaf, sharding)
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            data = each(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(each, tree, shardings)


def is_global(leaf: Any) -> bool:
    """Whether an array is spread over several processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def check_rows(batch: Batch, devices: int, batch_axis: int) -> None:
    """Raises a ``ValueError`` if a batch's rows cannot be cut evenly over so many devices."""
    for array in jax.tree.leaves(batch):
        rows = array.shape[batch_axis]
        if rows % devices:
            raise ValueError(
                f"a batch of {rows} cannot be cut evenly over {devices} devices: "
                f"use a multiple of {devices}"
            )
