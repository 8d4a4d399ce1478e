"""What to change so that a step fits, and on how few chips it would; all by arithmetic."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from rlhf_jax.planning.cutting import axes_of
from rlhf_jax.planning.memory import arithmetic
from rlhf_jax.planning.topologies import CHIPS, GIB, Topology, topology
from rlhf_jax.planning.workloads import Workload

__all__ = ["changes", "smallest"]

# What it says, and the workload and the axes that it makes; of one kind the smaller ones first.
_Change = tuple[str, Workload, Mapping[str, int]]


def changes(
    workload: Workload,
    where: Topology,
    axes: Mapping[str, int],
    *,
    limit: float,
    scale: float = 1.0,
) -> tuple[str, ...]:
    """Which changes would make a step fit.

    Args:
        workload: the step that does not.
        where: the chips.
        axes: sizes of the mesh's axes.
        limit: bytes that a chip has.
        scale: by what the estimate of temporaries fell short of a compiler's.

    Returns:
        One line a kind of change that suffices by itself, with the bytes that a chip would need:
        those first that leave the numbers as they are (another mesh, remat, shared prompts,
        accumulation), then those that cost chips, then those that change what is learnt. If none
        suffices, those that do with the first kind taken together. Empty if nothing does.
    """
    kinds = _kinds(workload, where, axes)
    found = _sufficient(kinds, limit, scale)
    if found:
        return tuple(found)
    frugal, words = _frugal(workload, axes)
    if frugal == workload:
        return ()
    alone = _sufficient([iter([(words, frugal, axes)])], limit, scale)
    kinds = _kinds(frugal, where, axes)
    return tuple(alone or (f"{words} and {line}" for line in _sufficient(kinds, limit, scale)))


def _sufficient(kinds: list[Iterator[_Change]], limit: float, scale: float) -> list[str]:
    found = []
    for kind in kinds:
        for words, workload, axes in kind:
            needed = _needed(workload, axes, scale)
            if needed <= limit:
                found.append(f"{words} (about {needed / GIB:.1f} GiB a chip)")
                break
    return found


def _kinds(workload: Workload, where: Topology, axes: Mapping[str, int]) -> list[Iterator[_Change]]:
    def changed(words: str, **fields) -> Iterator[_Change]:
        if any(getattr(workload, name) != value for name, value in fields.items()):
            yield words, dataclasses.replace(workload, **fields), axes

    rows = axes["data"] * axes["fsdp"]

    def meshes() -> Iterator[_Change]:
        if axes["data"] > 1:
            other = axes | {"data": 1, "fsdp": rows}
            yield f"--mesh fsdp={rows},tensor={axes['tensor']}", workload, other

    def parts() -> Iterator[_Change]:
        for count in _doublings(workload.accumulate, workload.part // rows):
            yield from changed(f"--accumulate {count}", accumulate=count)

    def chips() -> Iterator[_Change]:
        for larger in where.larger:
            grown = larger.chips // axes["tensor"]
            for tensor in (axes["tensor"], 2 * axes["tensor"], 4 * axes["tensor"]):
                if larger.chips % tensor == 0:
                    grown = larger.chips // tensor
                    other = axes_of({"fsdp": grown, "tensor": tensor}, larger.chips)
                    words = f"--topology {larger.name} --mesh fsdp={grown},tensor={tensor}"
                    yield words, workload, other

    def smaller() -> Iterator[_Change]:
        count = workload.batch // 2
        while count >= rows and count % rows == 0:
            try:
                yield f"--batch {count}", dataclasses.replace(workload, batch=count), axes
            except ValueError:  # minibatches or accumulate no longer divide it
                return
            count //= 2

    def shared() -> Iterator[_Change]:
        # Its parts are of whole prompts, and perhaps too many.
        with contextlib.suppress(ValueError):
            if workload.answers > 1:
                yield from changed("--share-prompts", share_prompts=True)

    found = [
        meshes(),
        changed("--remat True", remat=True),
        shared(),
        parts(),
        changed("--momentum-bfloat16", momentum_bfloat16=True),
        chips(),
        smaller(),
    ]
    if workload.precision != "bfloat16":
        found.append(changed("--precision bfloat16", precision="bfloat16"))
    if workload.on_policy:
        found.append(changed("--reward shared", reward="shared"))
    if workload.lora_rank is None:
        found.append(changed("--lora-rank 16", lora_rank=16))
    return found


def _frugal(workload: Workload, axes: Mapping[str, int]) -> tuple[Workload, str]:
    """All that leaves the numbers as they are but for rounding, and how to ask for it."""
    rows = axes["data"] * axes["fsdp"]
    most = max(_doublings(workload.accumulate, workload.part // rows), default=workload.accumulate)
    frugal = dataclasses.replace(workload, remat=True, momentum_bfloat16=True, accumulate=most)
    return frugal, f"--remat True --accumulate {most} --momentum-bfloat16"


def _doublings(start: int, end: int) -> list[int]:
    """Twice ``start``, four times and so on, as long as they divide ``end``."""
    found, count = [], 2 * start
    while count <= end and end % count == 0:
        found.append(count)
        count *= 2
    return found


def smallest(
    workload: Workload, kind: str, *, memory_gib: float | None = None
) -> tuple[Workload, Topology, dict[str, int]]:
    """The fewest chips of a kind that a step fits, its batch cut into parts if need be.

    All meshes of ``fsdp`` and ``tensor`` are tried, and of those that fit the one that accumulates
    least, then the one that needs the least memory, is chosen. It is arithmetic, to be confirmed by
    ``plan``.

    Args:
        workload: the step; its ``accumulate`` is where the search begins.
        kind: a name of ``CHIPS``.
        memory_gib: usable memory of a chip, if other than the table's.

    Returns:
        The workload with the ``accumulate`` that it needs, the topology, and the mesh's axes.

    Raises:
        ValueError: if there is no such kind, or not even the largest topology would do.

    >>> step = Workload(algorithm="dpo", batch=64)
    >>> found, where, axes = smallest(step, "v5e")
    >>> found.accumulate, where.name, axes
    (2, 'v5e:4x4', {'data': 1, 'fsdp': 16, 'tensor': 1})
    """
    if kind not in CHIPS:
        raise ValueError(f"there is no chip {kind!r}: there are {', '.join(CHIPS)}")
    for size in CHIPS[kind].sizes:
        where = topology(f"{kind}:{size}", memory_gib)
        tensors = [1 << n for n in range(where.chips.bit_length()) if where.chips % (1 << n) == 0]
        meshes = [{"data": 1, "fsdp": where.chips // n, "tensor": n} for n in tensors]
        parts = [workload.accumulate, *_doublings(workload.accumulate, workload.part)]
        for count in parts:
            tried = dataclasses.replace(workload, accumulate=count)
            fitting = [
                (needed, axes)
                for axes in meshes
                if (needed := _needed(tried, axes)) <= where.chip.memory
            ]
            if fitting:
                return tried, where, min(fitting, key=lambda each: each[0])[1]
    raise ValueError(f"{workload.algorithm} of {workload.name} fits no topology of {kind}")


def _needed(workload: Workload, axes: Mapping[str, int], scale: float = 1.0) -> float:
    """Bytes of a chip; infinite if the workload cannot be cut so."""
    try:
        parts = arithmetic(workload, axes)
    except ValueError:
        return float("inf")
    rest = parts.pop("cache") + parts.pop("temporaries")
    return sum(parts.values()) + scale * rest
