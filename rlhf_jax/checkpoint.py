"""Saving a training state so that it comes back bit for bit, or not at all.

A checkpoint is an orbax checkpoint of two items: ``state``, the arrays by name, and ``record``, a
JSON description with a digest of every array (``digests``), the configuration and the caller's
metadata. Orbax takes any folder named like a step for a checkpoint, half-copied or not; the record
is what tells a good one from a damaged one. It guards against accidents, not against forgery.

With several processes all call ``save`` and ``restore``, of one folder that all see. Each reads and
writes what its own devices hold: no device, and no process, ever has the whole state.

The position in the data is the state's step, so there is nothing else to save.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rlhf_jax import digests
from rlhf_jax.configuration import Config, differences, plain
from rlhf_jax.types import Callback, PyTree, TrainState

__all__ = [
    "CheckpointError",
    "checkpoints",
    "digest",
    "restore",
    "save",
    "template",
]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none of those there can be read."""


class _Leaf(NamedTuple):
    """What is known of an array without its numbers."""

    shape: tuple[int, ...]
    dtype: str
    sharding: jax.sharding.Sharding | None

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def save(
    folder: str | os.PathLike[str],
    state: TrainState,
    *,
    config: Config,
    metadata: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> Path:
    """Write ``state`` as the checkpoint of its step; when this returns, it is there.

    The write is atomic: killed at any moment, it leaves the checkpoints before it as they were.
    What is left of such a write is cleared away, and a damaged checkpoint of this step or a later
    one (``restore`` fell back behind it) is renamed to ``<step>.damaged``.

    Args:
        folder: where the checkpoints of this run are; made if need be.
        state: the state, or any pytree of arrays with an integer ``step``.
        config: the configuration it belongs to, a dataclass or mapping of plain values.
        metadata: further plain values to keep with it.
        keep: how many of the newest checkpoints to keep, ``None`` for all.

    Returns:
        The folder of this checkpoint. If this state is there already, nothing is written.

    Raises:
        CheckpointError: if it cannot be written, or a good checkpoint of another state with this
            step or a later one is there.
        ValueError: if ``config`` or ``metadata`` hold something that JSON cannot.
    """
    folder = Path(folder).expanduser().absolute()
    step = int(state.step)
    arrays = {name: _data(leaf) for name, leaf in _named(state).items()}
    record = {
        "format": 1,
        "step": step,
        "config": plain(config),
        "metadata": plain(metadata or {}),
        "leaves": _describe(state, arrays),
    }
    items = ocp.args.Composite(
        # tensorstore cannot hold arrays without elements, and there is nothing of them to hold
        state=ocp.args.StandardSave(_nest({n: a for n, a in arrays.items() if a.size})),
        record=ocp.args.JsonSave({"record": record, "sha256": _record_digest(record)}),
    )
    try:
        with _manager(folder, keep=keep) as manager:
            for old in sorted(s for s in manager.all_steps() if s >= step):
                try:
                    there = _record(manager, old)
                    _arrays(manager, old, there)
                except Exception:
                    _set_aside(folder, old)
                    continue
                if _same(there, record, arrays):
                    return folder / str(step)
                raise CheckpointError(
                    f"{folder} holds step {old} already, so step {step} of another run was not "
                    "saved there: restore from that folder, or choose another"
                )
            manager.reload()
            if not manager.save(step, args=items, force=True):
                raise CheckpointError(f"orbax declined to save step {step} in {folder}")
    except OSError as error:
        raise CheckpointError(f"step {step} cannot be saved in {folder}: {error}") from error
    _clear_unfinished(folder)
    return folder / str(step)


def restore(
    folder: str | os.PathLike[str], like: TrainState, *, config: Config
) -> tuple[TrainState, dict[str, Any]] | None:
    """Read the newest good checkpoint, bit for bit; nothing on disk is changed.

    Args:
        folder: where the checkpoints are.
        like: a state of the same structure, of arrays or of ``jax.ShapeDtypeStruct``. Arrays come
            back where its arrays are, whatever devices they were saved from; those without a
            sharding, or not committed to a device, come back uncommitted on the default device.
        config: the configuration to go on with; ``differences`` to the saved one are refused.

    Returns:
        The state and the metadata saved with it, or ``None`` if no checkpoint was ever completed.

    Raises:
        ValueError: if the configuration differs (naming every field and both values), or the
            state's structure, shapes or dtypes do.
        CheckpointError: if there are checkpoints and every one is damaged.

    Warns:
        UserWarning: for each damaged checkpoint passed over.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        return None
    expected = {name: _leaf(leaf) for name, leaf in _named(like).items()}
    damaged: dict[int, str] = {}
    with _manager(folder, read_only=True) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                record = _record(manager, step)
                _refuse_other(folder, step, record, config, expected)
                arrays = _arrays(manager, step, record, expected)
            except _Refused as refused:
                raise ValueError(str(refused)) from None
            # Whatever a damaged file makes orbax, tensorstore or json raise.
            except Exception as error:
                damaged[step] = _one_line(error)
                warnings.warn(
                    f"checkpoint of step {step} in {folder} is damaged and passed over: "
                    f"{damaged[step]}",
                    stacklevel=2,
                )
                continue
            leaves = [_placed(arrays[n], leaf, record["leaves"][n]) for n, leaf in expected.items()]
            return jax.tree.unflatten(jax.tree.structure(like), leaves), record["metadata"]
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged: "
            + "; ".join(f"step {step}: {what}" for step, what in damaged.items())
            + ". Put back a good copy, or remove the folder to begin again"
        )
    return None


def checkpoints(
    folder: str | os.PathLike[str],
    *,
    config: Config,
    every: int,
    keep: int | None = 3,
    metadata: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
) -> Callback:
    """Build a callback that saves every ``every`` steps and at the end.

    A callback is called between chunks, so a step that falls inside a chunk is saved at its end.

    Args:
        folder: where to.
        config: the run's configuration.
        every: steps between checkpoints.
        keep: how many of the newest to keep, ``None`` for all.
        metadata: plain values to keep with each, or a function that gives them when it is saved.

    Returns:
        A callback. Put it behind those whose records must be on disk before the checkpoint is.

    Raises:
        ValueError: if ``every`` or ``keep`` is less than 1.
    """
    if every < 1 or (keep is not None and keep < 1):
        raise ValueError(f"every is {every} and keep is {keep}: both must be at least 1")
    saved: int | None = None

    def callback(state: TrainState, rows: list[Mapping[str, float]], last: bool) -> None:
        nonlocal saved
        due = last or any(int(row["step"]) % every == 0 for row in rows)
        if due and (step := int(state.step)) != saved:
            extra = metadata() if callable(metadata) else metadata
            save(folder, state, config=config, metadata=extra, keep=keep)
            saved = step

    return callback


def template(state: TrainState) -> TrainState:
    """Describe a state's shapes, dtypes and places without holding its arrays, for ``restore``."""

    def describe(leaf: PyTree) -> jax.ShapeDtypeStruct:
        shape, _, sharding = _leaf(leaf)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, state)


class _Refused(Exception):
    """The checkpoint is good but not what was asked for."""


def _refuse_other(
    folder: Path, step: int, record: dict[str, Any], config: Config, expected: dict[str, _Leaf]
) -> None:
    """Raise ``_Refused`` if a checkpoint is of another configuration or another structure."""
    if different := differences(record["config"], config):
        raise _Refused(
            f"the checkpoints in {folder} are of another configuration: " + "; ".join(different)
        )
    saved = {
        name: str(_Leaf(tuple(leaf["shape"]), leaf["dtype"], None))
        for name, leaf in record["leaves"].items()
    }
    wanted = {name: str(leaf) for name, leaf in expected.items()}
    wrong = [
        f"{name}: {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} now"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise _Refused(
            f"the checkpoint of step {step} in {folder} is of a state of another form: "
            + "; ".join(wrong[:6])
            + more
        )


@contextlib.contextmanager
def _manager(
    folder: Path, keep: int | None = None, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """An orbax manager for one use. Synchronous: the caller may donate the state right after."""
    logger = logging.getLogger("absl")  # orbax's, which reports on every file it misses
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=not read_only,
            read_only=read_only,
        )
        with ocp.CheckpointManager(folder, options=options) as manager:
            yield manager
    finally:
        logger.setLevel(level)


def _record(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """A checkpoint's record, if it is what was written."""
    args = ocp.args.Composite(record=ocp.args.JsonRestore())
    stored = manager.restore(step, args=args)["record"]
    record = stored["record"]
    if stored["sha256"] != _record_digest(record):
        raise CheckpointError("its record is not what was saved")
    if record["format"] != 1 or record["step"] != step:
        raise CheckpointError(f"its record is of step {record['step']}, format {record['format']}")
    return record


def _digests(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The digests of a record's arrays, of whichever kind they are."""
    kinds = ("sha256", "sum")
    return {name: {k: x[k] for k in kinds if k in x} for name, x in record["leaves"].items()}


def _same(there: dict[str, Any], record: dict[str, Any], arrays: dict[str, Any]) -> bool:
    """Whether a record is of these arrays, on whatever devices it was written."""
    bare = [
        {n: {k: x[k] for k in ("shape", "dtype", "key")} for n, x in r["leaves"].items()}
        for r in (there, record)
    ]
    if bare[0] != bare[1] or any(there[k] != record[k] for k in ("step", "config")):
        return False
    return not digests.differing(arrays, _digests(there))


def _arrays(
    manager: ocp.CheckpointManager,
    step: int,
    record: dict[str, Any],
    expected: dict[str, _Leaf] | None = None,
) -> dict[str, jax.Array | np.ndarray]:
    """A checkpoint's arrays, verified: on the expected devices where given, else in NumPy."""
    targets, arrays = {}, {}
    for name, leaf in record["leaves"].items():
        shape, dtype = tuple(leaf["data_shape"]), jnp.dtype(leaf["data_dtype"])
        sharding = expected[name].sharding if expected else None
        if math.prod(shape) == 0:
            arrays[name] = np.zeros(shape, dtype)
        elif sharding is not None:
            targets[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        else:  # an array of this shape that takes no memory
            targets[name] = np.broadcast_to(np.zeros((), dtype), shape)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(_nest(targets)))
    arrays |= _named(manager.restore(step, args=args)["state"], encoded=True)
    if wrong := digests.differing(arrays, _digests(record)):
        raise CheckpointError(f"{wrong[0]} is not what was saved")
    return arrays


def _placed(
    array: jax.Array | np.ndarray, leaf: _Leaf, saved: dict[str, Any]
) -> jax.Array | np.ndarray:
    """A restored array as a leaf of the state: a key if it was one, on the device it belongs to."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array  # of 64 bits, which jax would cut in half: it was NumPy's and stays so
    if not isinstance(array, jax.Array):
        # A copy in jax's own memory, which may be donated.
        array = jnp.array(array, copy=True)
        if leaf.sharding is not None:
            array = jax.device_put(array, leaf.sharding)
    return jax.random.wrap_key_data(array, impl=saved["key"]) if saved["key"] else array


def _describe(state: PyTree, arrays: dict[str, jax.Array | np.ndarray]) -> dict[str, Any]:
    """The record's entry for every leaf."""
    found = digests.of_arrays(arrays)
    return {
        name: {
            "shape": list(np.shape(leaf)),
            "dtype": _leaf(leaf).dtype,
            "key": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
            "data_shape": list(arrays[name].shape),
            "data_dtype": str(arrays[name].dtype),
            **found[name],
        }
        for name, leaf in _named(state).items()
    }


def _leaf(leaf: PyTree) -> _Leaf:
    """A leaf's shape, dtype and place; no place if jax is free to move it."""
    free = isinstance(leaf, jax.Array) and not leaf.committed
    sharding = None if free else getattr(leaf, "sharding", None)
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return _Leaf(tuple(np.shape(leaf)), str(dtype), sharding)


def _is_key(leaf: PyTree) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: PyTree) -> jax.Array | np.ndarray:
    """The numbers of a leaf, of a typed key the numbers inside it."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def digest(tree: PyTree) -> str:
    """SHA-256 of the bytes of all arrays of a tree, in its order: equal if and only if they are.

    Args:
        tree: arrays, typed keys included.

    Returns:
        64 hexadecimal digits.

    >>> digest({"a": jnp.zeros(2)}) == digest({"a": jnp.zeros(2)}) != digest({"a": jnp.ones(2)})
    True
    """
    parts = (digests.sha256(_data(leaf)) for leaf in jax.tree.leaves(tree))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _named(tree: PyTree, encoded: bool = False) -> dict[str, PyTree]:
    """A tree's leaves by path, ``params/dense/kernel``, in the tree's order."""

    def part(key: Any) -> str:
        name = str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
        # Orbax joins names with dots, so that "a.b" and "b" in "a" would be one file.
        return name if encoded else quote(name, safe="").replace(".", "%2E")

    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(part(key) for key in path): leaf for path, leaf in paths}


def _nest(named: dict[str, PyTree]) -> dict[str, Any]:
    """The inverse of ``_named``, in plain dicts: what orbax stores needs no class to be read."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, own = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[own] = leaf
    return tree


def _set_aside(folder: Path, step: int) -> None:
    """Rename a damaged checkpoint so that it neither hides a good one nor counts as one."""
    if jax.process_index() == 0:
        names = (f"{step}.damaged" + (f"-{n}" if n else "") for n in range(1000))
        (folder / str(step)).rename(next(folder / n for n in names if not (folder / n).exists()))
    multihost_utils.sync_global_devices("checkpoint set aside")


def _clear_unfinished(folder: Path) -> None:
    """Remove what killed saves have left."""
    if jax.process_index() == 0:
        for path in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
