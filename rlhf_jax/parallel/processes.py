"""Several processes, each with devices of its own, that run one program together.

Every process runs the same script. Each is given the rows of a batch that its devices hold, all
write checkpoints together, and the first alone writes logs and other files. What they must agree on
is compared before they begin, as a disagreement would otherwise be a wrong result or a hang.

Reference: https://docs.jax.dev/en/latest/multi_process.html
"""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from rlhf_jax.configuration import differences, plain
from rlhf_jax.parallel.meshes import batch_sharding, check_rows, is_global, put, row_devices
from rlhf_jax.types import Batch, PyTree

__all__ = [
    "Processes",
    "check_agreement",
    "first_does",
    "global_batch",
    "initialise",
    "is_first",
    "rows_here",
    "spread",
    "whole_here",
]

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class Processes(NamedTuple):
    """Which of how many processes this is.

    Attributes:
        index: from 0.
        count: 1 where there is no other.
    """

    index: int
    count: int


def initialise(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: int = 300,
) -> Processes:
    """Joins this process to the others of its run; does nothing where there are none.

    On a TPU pod slice, under SLURM, Open MPI and in an indexed Kubernetes job JAX finds the others
    by itself. Anywhere else give the arguments, or set ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. It comes first in a script, before anything that
    uses a device.

    Args:
        coordinator: ``host:port`` of the first process, which all can reach.
        count: how many processes there are.
        index: which of them this is, from 0.
        timeout: seconds to wait for the others.

    Returns:
        Which of how many processes this is.

    Raises:
        ValueError: if only some of the three are given, or they cannot be.
        RuntimeError: if a device has been used already, or the others are not found; the message
            says which and what to look at.

    >>> initialise()
    Processes(index=0, count=1)
    """
    if jax.distributed.is_initialized():
        return Processes(jax.process_index(), jax.process_count())
    given = _given(coordinator, count, index)
    several = _several_stated()
    if given is None and several is False:
        return Processes(0, 1)
    settings = {} if given is None else dict(zip(_ARGUMENTS, given, strict=True))
    try:
        jax.distributed.initialize(initialization_timeout=timeout, **settings)
    except ValueError as error:
        if given is None and "should be defined" in str(error):
            return Processes(0, 1)  # JAX finds no cluster either.
        raise
    except Exception as error:
        if "before any JAX" in str(error):
            if given is None and not several:
                return Processes(0, 1)
            raise RuntimeError(
                "parallel.initialise() must come before anything that uses a device: at the top of "
                "the script's main"
            ) from error
        where = (
            "as the cluster says" if given is None else "process {2} of {1} at {0}".format(*given)
        )
        raise RuntimeError(
            f"the processes of this run did not find each other ({where}, {timeout} s): is each of "
            "them started, with the same coordinator and count and an index of its own, and can "
            f"all reach the coordinator's port? {type(error).__name__}: {error}"
        ) from error
    return Processes(jax.process_index(), jax.process_count())


_ARGUMENTS = ("coordinator_address", "num_processes", "process_id")


def _given(
    coordinator: str | None, count: int | None, index: int | None
) -> tuple[str, int, int] | None:
    """The three settings from the arguments or the environment; ``None`` if there are none."""
    stated = [os.environ.get(name) for name in _VARIABLES]
    found = [
        stated[n] if argument is None else argument
        for n, argument in enumerate((coordinator, count, index))
    ]
    if all(x is None for x in found):
        return None
    if None in found:
        known = ", ".join(
            f"{n}={x}" for n, x in zip(_VARIABLES, found, strict=True) if x is not None
        )
        raise ValueError(
            f"coordinator, count and index go together, but there is only {known}: give all three, "
            f"as arguments or as {', '.join(_VARIABLES)}"
        )
    try:
        address, number, which = str(found[0]), int(found[1]), int(found[2])
    except ValueError:
        raise ValueError(
            f"the number of processes is {found[1]!r} and the index {found[2]!r}: both must be "
            "whole numbers"
        ) from None
    if not 0 <= which < number:
        raise ValueError(
            f"index is {which}: of {number} processes it must be from 0 to {number - 1}"
        )
    if not address.rpartition(":")[2].isdigit() or ":" not in address:
        raise ValueError(f"coordinator is {address!r}: it must be host:port, such as 10.0.0.1:8476")
    return address, number, which


def _several_stated() -> bool | None:
    """Whether the environment says that there are several processes; ``None`` if it does not say.

    JAX would ask Kubernetes of any pod, but only those of an indexed job have an index.
    """
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if name in os.environ:
            return os.environ[name] != "1"
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        if name in os.environ:
            return "," in os.environ[name]
    if "JOB_COMPLETION_INDEX" in os.environ:
        return True
    return False if "KUBERNETES_SERVICE_HOST" in os.environ else None


def is_first() -> bool:
    """Whether this process is the one that writes logs and files."""
    return jax.process_index() == 0


def rows_here(rows: int, mesh: Mesh) -> slice:
    """Which rows of a global batch this process's devices hold.

    Args:
        rows: of the whole batch.
        mesh: of all processes' devices.

    Returns:
        The slice. Processes that hold other parts of the same rows (``tensor`` goes over them) have
        the same.

    Raises:
        ValueError: if the rows cannot be cut evenly, or those of this process are not neighbours.
    """
    check_rows(jax.ShapeDtypeStruct((rows,), np.int32), row_devices(mesh), 0)
    parts = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    ranges = sorted({part[0].indices(rows)[:2] for part in parts})
    if any(a[1] != b[0] for a, b in itertools.pairwise(ranges)):
        raise ValueError(
            "the rows of this process are not neighbours on this mesh: order its devices by "
            "process, or feed whole batches"
        )
    return slice(ranges[0][0], ranges[-1][1])


def global_batch(local: Batch, mesh: Mesh, batch_axis: int = 0) -> Batch:
    """One batch of all processes, of which each gives its own rows.

    Args:
        local: NumPy arrays with the rows of ``rows_here``.
        mesh: of all processes' devices.
        batch_axis: which axis is the rows; 1 for the batches of a chunk of steps.

    Returns:
        Global arrays, cut over the mesh.

    Raises:
        ValueError: if a process has another number of rows than its share.
    """
    sharding, count = batch_sharding(mesh, batch_axis), row_devices(mesh)

    def joined(x: np.ndarray) -> jax.Array:
        x = np.asarray(x)
        share = rows_here(count, mesh)
        pieces = share.stop - share.start
        rows = x.shape[batch_axis]
        if rows % pieces:
            raise ValueError(
                f"process {jax.process_index()} feeds {rows} rows to {pieces} of the batch's "
                f"{count} parts: use a multiple of {pieces}"
            )
        shape = list(x.shape)
        shape[batch_axis] = rows // pieces * count
        return jax.make_array_from_process_local_data(sharding, x, tuple(shape))

    return jax.tree.map(joined, local)


def spread(batch: Batch, mesh: Mesh, batch_axis: int = 0) -> Batch:
    """A batch that every process has whole, cut over the mesh: each takes its rows of it."""
    return put(batch, jax.tree.map(lambda _: batch_sharding(mesh, batch_axis), batch))


def whole_here(tree: PyTree) -> PyTree:
    """Arrays, each whole in this process's memory where it was cut over processes.

    Args:
        tree: arrays; those of this process alone come back as they are.

    Returns:
        The tree. Every process must ask at the same time.
    """

    def each(leaf: Any) -> Any:
        if not is_global(leaf):
            return leaf
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(each, tree)


def check_agreement(what: str, values: Mapping[str, Any]) -> None:
    """Every process calls this, and all go on if all have the same values.

    Args:
        what: what the values are, for the message: ``"configuration"``.
        values: plain values, as of ``configuration.plain``.

    Raises:
        ValueError: on every process, if one has other values than the first: it names that process,
            each field and both values.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(plain(values), sort_keys=True).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    facts = np.concatenate([digest, np.frombuffer(np.int64(len(text)).tobytes(), np.uint8)])
    everyones = np.asarray(multihost_utils.process_allgather(facts)).reshape(-1, len(facts))
    if (everyones[:, :32] == everyones[0, :32]).all():
        return
    lengths = [int(np.frombuffer(row[32:].tobytes(), np.int64)[0]) for row in everyones]
    padded = np.frombuffer(text.ljust(max(lengths)), np.uint8)
    texts = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    first, *others = (
        json.loads(row.tobytes()[:size]) for row, size in zip(texts, lengths, strict=True)
    )
    wrong = [
        field.replace(" there, ", " in process 0, ").removesuffix("now") + f"in process {index}"
        for index, other in enumerate(others, 1)
        for field in differences(first, other)
    ]
    raise ValueError(
        f"the processes disagree on the {what}: " + "; ".join(wrong[:6]) + ". Start all of them "
        "with the same command, code and data"
    )


def first_does(action: Any) -> Any:
    """The first process does something while the others wait; if it fails, all do.

    Args:
        action: a function without arguments, whose result is a plain value.

    Returns:
        Its result, on every process.

    Raises:
        ValueError: the ``ValueError`` (of its own class on the first process) that it raised.
    """
    if jax.process_count() == 1:
        return action()
    raised: ValueError | None = None
    said = {}
    if is_first():
        try:
            said = {"result": plain(action())}
        except ValueError as error:
            raised, said = error, {"error": str(error)}
    text = json.dumps(said).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.frombuffer(text.ljust(size)[:size], np.uint8)
    said = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    if raised is not None:
        raise raised
    if "error" in said:
        raise ValueError(f"process 0: {said['error']}")
    return said["result"]
