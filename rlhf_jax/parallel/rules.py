"""How a state is cut over a mesh: rules from the paths of its arrays to the axes they are cut over.

A rule is a pattern of paths, as of ``trees``, and a partition: which axes of the mesh the array's
*last* axes are cut over. What stands before them (the layers of a scanned transformer, the members
of an ensemble) is whole. The first rule that matches counts. Optimiser states hold the parameters'
paths inside their own (``opt_state/0/mu/layers/query/kernel``), so the same rules cut them.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax import trees
from rlhf_jax.models import TransformerConfig
from rlhf_jax.parallel.meshes import AXES, check_model
from rlhf_jax.types import PyTree

__all__ = ["TRANSFORMER_RULES", "Rules", "describe_sharding", "rules_for", "state_shardings"]

Axis = str | tuple[str, ...] | None
Rules = tuple[tuple[str, tuple[Axis, ...]], ...]

# Inputs are cut over fsdp and outputs over tensor (heads, the inner width), and the other way about
# where the cut inputs come together again. Words are cut over tensor. What is small is whole.
TRANSFORMER_RULES: Rules = (
    # The rows' and columns' sums of Adafactor, which lack one of the parameter's axes.
    ("*v_row/*", ()),
    ("*v_col/*", ()),
    ("*position_embed/embedding", ()),
    ("*embed/embedding", ("tensor", "fsdp")),
    ("*unembed", ("fsdp", "tensor")),
    ("*layers/attention_out/kernel", ("tensor", "fsdp")),
    ("*layers/down/kernel", ("tensor", "fsdp")),
    ("*layers/*/kernel", ("fsdp", "tensor")),
    ("*layers/attention_out/bias", ()),
    ("*layers/down/bias", ()),
    ("*layers/*_norm/*", ()),
    ("*layers/*/bias", ("tensor",)),
    ("*layers/attention_out/lora_a", ("tensor", None)),
    ("*layers/down/lora_a", ("tensor", None)),
    ("*layers/*/lora_a", ("fsdp", None)),
    ("*layers/attention_out/lora_b", (None, "fsdp")),
    ("*layers/down/lora_b", (None, "fsdp")),
    ("*layers/*/lora_b", (None, "tensor")),
    # Heads, norms, scalars, keys, and whatever else no rule names.
    ("*", ()),
)


def rules_for(config: TransformerConfig, mesh: Mesh) -> Rules:
    """``TRANSFORMER_RULES`` for a model; a vocabulary that ``tensor`` does not divide stays whole.

    Args:
        config: the model's shape.
        mesh: the mesh.

    Returns:
        The rules.

    Raises:
        ValueError: as ``check_model``.

    >>> mesh = jax.sharding.AbstractMesh((2,), ("tensor",))
    >>> rules = rules_for(TransformerConfig(vocab_size=17, hidden_size=8, num_heads=2), mesh)
    >>> dict(rules)["*unembed"]
    ('fsdp', None)
    """
    check_model(config, mesh)
    if config.vocab_size % mesh.shape.get("tensor", 1) == 0:
        return TRANSFORMER_RULES
    words = {"*embed/embedding": (None, "fsdp"), "*unembed": ("fsdp", None)}
    return tuple((pattern, words.get(pattern, cut)) for pattern, cut in TRANSFORMER_RULES)


def state_shardings(state: PyTree, mesh: Mesh, rules: Rules = TRANSFORMER_RULES) -> PyTree:
    """Where every array of a state belongs on a mesh.

    Args:
        state: a ``TrainState``, or any tree of arrays or of ``jax.ShapeDtypeStruct``.
        mesh: an axis that it lacks counts as 1.
        rules: the first whose pattern matches an array's path counts; an array that none matches is
            whole. To change one thing, put a rule before the others:
            ``(("params/embed/*", ()), *TRANSFORMER_RULES)``.

    Returns:
        The same tree of ``NamedSharding``: for ``shard_step``, ``jax.device_put``,
        ``jax.eval_shape`` and ``checkpoint.restore``.

    Raises:
        ValueError: if a rule matches nothing (those of ``TRANSFORMER_RULES`` may), names an axis
            that no mesh has, or an array cannot be cut evenly as its rule says.

    >>> shapes = {"layers": {"gate": {"kernel": jax.ShapeDtypeStruct((2, 8, 24), jnp.float32)}}}
    >>> mesh = jax.sharding.AbstractMesh((2, 4), ("fsdp", "tensor"))
    >>> state_shardings(shapes, mesh)["layers"]["gate"]["kernel"].spec
    P(None, 'fsdp', 'tensor')
    """
    rows = _rows(state, mesh, rules)
    shardings = [NamedSharding(mesh, PartitionSpec(*row.partition)) for row in rows]
    return jax.tree.structure(state).unflatten(shardings)


def describe_sharding(state: PyTree, mesh: Mesh, rules: Rules = TRANSFORMER_RULES) -> str:
    """A table for people: every array, how it is cut, and what a device holds of it.

    Args:
        state: as of ``state_shardings``, like the others.
        mesh: the mesh.
        rules: the rules.

    Returns:
        One line an array, and the totals, in bytes.

    Raises:
        ValueError: as ``state_shardings``.

    >>> shapes = {"layers": {"gate": {"kernel": jax.ShapeDtypeStruct((2, 8, 24), jnp.float32)}}}
    >>> mesh = jax.sharding.AbstractMesh((2, 4), ("fsdp", "tensor"))
    >>> print(describe_sharding(shapes, mesh))
    fsdp=2, tensor=4: 8 devices
    path                array              partition        bytes a device
    layers/gate/kernel  float32[2, 8, 24]  -, fsdp, tensor             192
    together            1,536 bytes                                    192
    """
    rows = _rows(state, mesh, rules)
    table = [("path", "array", "partition", "bytes a device")]
    for row in rows:
        cut = [", ".join(map(_axis, row.partition)), "whole"][not any(row.partition)]
        table.append((row.path, row.array, cut, f"{row.bytes // row.parts:,}"))
    total, here = sum(r.bytes for r in rows), sum(r.bytes // r.parts for r in rows)
    table.append(("together", f"{total:,} bytes", "", f"{here:,}"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            [
                *(c.ljust(w) for c, w in zip(line, widths[:-1], strict=False)),
                line[-1].rjust(widths[-1]),
            ]
        )
        for line in table
    ]
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return "\n".join([f"{axes}: {mesh.size} devices", *lines])


class _Row(NamedTuple):
    """One array of a state, and how it is cut."""

    path: str
    array: str
    partition: tuple[Axis, ...]
    bytes: int
    parts: int


def _rows(state: PyTree, mesh: Mesh, rules: Rules) -> list[_Row]:
    among = trees.paths(state)
    partitions: list[tuple[Axis, ...] | None] = [None] * len(among)
    usual = dict(TRANSFORMER_RULES)
    for pattern, partition in rules:
        _check_names(pattern, partition)
        hits = _hits(among, pattern, pattern in usual)
        partitions = [
            partition if hit and before is None else before
            for hit, before in zip(hits, partitions, strict=True)
        ]
    leaves = jax.tree.leaves(state)
    return [
        _row(path, leaf, partition or (), mesh)
        for path, leaf, partition in zip(among, leaves, partitions, strict=True)
    ]


def _check_names(pattern: str, partition: tuple[Axis, ...]) -> None:
    names = [name for axis in partition for name in _names(axis)]
    for name in names:
        if name not in AXES:
            raise ValueError(
                f"the rule {pattern!r} cuts over {name!r}, but a mesh's axes are data, fsdp and "
                "tensor"
            )
    for name in set(names):
        if names.count(name) > 1:
            raise ValueError(f"the rule {pattern!r} cuts over {name!r} twice: {_spelt(partition)}")


def _hits(among: list[str], pattern: str, usual: bool) -> list[bool]:
    """Which paths match; only of a rule that somebody has written must there be one."""
    if usual:
        try:
            return trees.matches(among, pattern)
        except ValueError:
            return [False] * len(among)
    return trees.matches(among, pattern, name="the rule")


def _row(path: str, leaf: Any, partition: tuple[Axis, ...], mesh: Mesh) -> _Row:
    shape, dtype = tuple(jnp.shape(leaf)), jnp.result_type(leaf)
    array = f"{dtype}{list(shape)}"
    if math.prod(shape) == 1:  # Scalars, and what optax puts where it keeps nothing.
        partition = ()
    if len(partition) > len(shape):
        raise ValueError(
            f"{path} is {array}, but its rule cuts {len(partition)} axes: {_spelt(partition)}"
        )
    full = (None,) * (len(shape) - len(partition)) + tuple(partition)
    kept, parts = [], 1
    for index, (size, axis) in enumerate(zip(shape, full, strict=True)):
        here = tuple(name for name in _names(axis) if mesh.shape.get(name, 1) > 1)
        count = math.prod(mesh.shape[name] for name in here)
        if size % count:
            raise ValueError(
                f"{path} is {array}: axis {index}, of {size}, cannot be cut evenly over "
                f"{' and '.join(f'{n}={mesh.shape[n]}' for n in here)}. Choose a mesh whose axis "
                f"divides {size}, or leave the array whole by a rule before the others, "
                f"({path!r}, ())"
            )
        kept.append(here[0] if len(here) == 1 else here or None)
        parts *= count
    key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    each = 8 if key else dtype.itemsize
    return _Row(path, array, tuple(kept), math.prod(shape) * each, parts)


def _names(axis: Axis) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else axis or ()


def _axis(axis: Axis) -> str:
    return "*".join(_names(axis)) or "-"


def _spelt(partition: tuple[Axis, ...]) -> str:
    return ", ".join(map(_axis, partition))
