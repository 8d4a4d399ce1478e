"""Compiling a step for devices that are not there, and reading what the compiler says."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import jax

from rlhf_jax import parallel
from rlhf_jax.parallel import Collective
from rlhf_jax.planning.programs import Program

__all__ = ["Compiled", "compiled", "exhausted", "needed", "sent", "traffic"]

# Both are of all together. What the second calls temporaries has arguments and results among it: of
# a program that doubles 4 GiB which it may overwrite, libtpu 0.0.42 says 4.00G, and 8.00G if not.
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_TEMPORARIES = re.compile(
    r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler says of a step, for one chip.

    Attributes:
        arguments: bytes of state and batch; ``None`` where it does not say.
        temporaries: bytes besides, at once, the cache included; likewise.
        together: bytes of both, where it says no more.
        limit: bytes that it allows, where it says so, as it does when they do not suffice.
        collectives: what the chips send each other; empty where the program was refused.
        refused: whether it did not fit.
    """

    arguments: int | None
    temporaries: int | None
    together: int | None = None
    limit: int | None = None
    collectives: tuple[Collective, ...] = ()
    refused: bool = False


def compiled(program: Program, mesh: jax.sharding.Mesh, *, tokens: int) -> Compiled:
    """Compiles a step for a mesh, of devices that may only exist on paper.

    Args:
        program: step and shapes.
        mesh: the devices.
        tokens: how often the loop of generation is taken to run: to its end.

    Returns:
        What the compiler says, also where it refuses for want of memory.

    Raises:
        Exception: whatever else the compiler raises.
    """
    shardings = parallel.state_shardings(program.state, mesh)
    step = parallel.shard_step(program.step, mesh, state_shardings=shardings)
    lowered = step.lower(program.state, program.batch)
    try:
        found = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = exhausted(str(error))
        if refusal is None:
            raise
        return refusal
    return dataclasses.replace(
        needed(found.memory_analysis(), mesh.devices.flat[0].platform),
        collectives=tuple(parallel.collectives(found, unknown_trips=max(tokens - 1, 1))),
    )


def needed(memory: Any, platform: str) -> Compiled:
    """What a compiler's own analysis says that a program needs.

    A TPU's compiler refuses what does not fit, by the most that is in use at any time; the sum of
    its arguments and temporaries is more than that, and programs are accepted in which it is more
    than a chip has. Elsewhere temporaries are one block, set aside beside the arguments.
    """
    if platform == "tpu":
        return Compiled(None, None, together=memory.peak_memory_in_bytes)
    # What comes out beside the state, which takes its old place.
    fresh = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
    return Compiled(memory.argument_size_in_bytes, memory.temp_size_in_bytes + fresh)


def exhausted(message: str) -> Compiled | None:
    """What a compiler says that refuses for want of memory; ``None`` if it says something else.

    >>> text = "RESOURCE_EXHAUSTED: Ran out of memory. Used 17.96G of 15.75G hbm."
    >>> refusal = exhausted(text)
    >>> round(refusal.together / 2**30, 2), round(refusal.limit / 2**30, 2)
    (17.96, 15.75)
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = _USED.search(message) or _TEMPORARIES.search(message)
    if found is None:
        return None
    together, limit = _pair(found)
    return Compiled(None, None, together, limit, refused=True)


def _pair(found: re.Match) -> tuple[int, int]:
    """Two sizes in bytes."""
    return tuple(int(float(found[n]) * _UNITS[found[n + 1]]) for n in (1, 3))


def traffic(collectives: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """How often each kind is executed in a step, and how many bytes a chip puts together by it.

    >>> traffic([Collective("all-gather", 100, 3, 4), Collective("all-gather", 10, 1, 4)])
    {'all-gather': (4, 310)}
    """
    found: dict[str, tuple[int, int]] = {}
    for each in collectives:
        times, total = found.get(each.kind, (0, 0))
        found[each.kind] = (times + each.times, total + each.bytes * each.times)
    return dict(sorted(found.items()))


def sent(collectives: Iterable[Collective]) -> float:
    """Bytes that a chip sends and receives in a step, if every exchange goes around a ring.

    Of ``n`` chips each sends and receives ``(n - 1) / n`` of what is put together, and twice that
    where it is summed for all of them.

    >>> sent([Collective("all-gather", 80, 1, 8), Collective("all-reduce", 80, 1, 8)])
    420.0
    """
    total = 0.0
    for each in collectives:
        share = (each.group - 1) / each.group if each.group > 1 else 1.0
        if each.kind == "all-reduce":
            share *= 2
        total += 2 * share * each.bytes * each.times
    return total
