"""What the devices of a compiled program send each other, read off its text."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Collective", "collectives"]

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_BYTES = {"pred": 1, "token": 0, "opaque": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|\w+_computations?)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_CONSTANT = re.compile(r"^[su]\d+\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_OPERAND = r"[^%,()]*%?([\w.\-]+)"
_BELOW = re.compile(
    rf" compare\([^,]*, {_OPERAND}\), direction=LT| compare\({_OPERAND},[^)]*\), direction=GT"
)
_TRIPS = re.compile(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)')


class Collective(NamedTuple):
    """One instruction by which devices exchange arrays.

    Attributes:
        kind: ``"all-gather"``, ``"all-reduce"``, ``"reduce-scatter"``, ``"all-to-all"`` ...
        bytes: of what a device holds put together: of an all-gather what comes out, of a
            reduce-scatter what goes in.
        times: how often a run of the program executes it, inside of loops.
        group: how many devices take part in each exchange; 0 if the text does not say.
    """

    kind: str
    bytes: int
    times: int
    group: int


def collectives(compiled: Any, *, unknown_trips: int = 1) -> list[Collective]:
    """The collective instructions of a compiled program, the largest first.

    Args:
        compiled: as of ``jax.jit(f).lower(...).compile()``, or its ``as_text()``.
        unknown_trips: how often a loop is taken to run whose length the text does not say, such as
            sampling's, which ends when all sequences have. A loop that goes on while a number is
            below a constant, as a scan does, is taken to count from 0.

    Returns:
        One entry an instruction. An asynchronous pair (start and done) is one, and so are the
        fusions among which a TPU's compiler divides one to hide it behind other work.

    >>> text = '''HloModule m
    ... ENTRY %main (x: f32[2]) -> f32[8] {
    ...   %x = f32[2]{0} parameter(0)
    ...   ROOT %all-gather = f32[8]{0} all-gather(%x), replica_groups=[1,4]<=[4], dimensions={0}
    ... }'''
    >>> collectives(text)
    [Collective(kind='all-gather', bytes=32, times=1, group=4)]
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    sizes: dict[str, int] = {}
    found: list[tuple[str, str, str, str]] = []  # computation, kind, result's type, rest of line
    fused: set[str] = set()
    calls: dict[str, list[tuple[str, int | str]]] = {}
    constants: dict[str, int] = {}
    limits: dict[str, str] = {}  # of conditions: the name of what a number is to stay below
    entry, here = "", ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            here = header[2]
            entry = here if header[1] else entry
            continue
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        name, rest = instruction.groups()
        if number := _CONSTANT.search(rest):
            constants[name] = int(number[1])
        if line.lstrip().startswith("ROOT") and (below := _BELOW.search(rest)):
            limits[here] = below[1] or below[2]
        operation = _OPERATION.search(rest)
        if not operation:
            continue
        kind, result = operation[1], rest[: operation.start()]
        sizes[name] = sum(_arrays(result))
        trips: int | str = 1
        if kind == "while":
            # A TPU's compiler does not write how often, so that the condition is to be asked.
            known, condition = _TRIPS.search(rest), _CONDITION.search(rest)
            trips = int(known[1]) if known else condition[1] if condition else ""
        if kind == "fusion":
            fused.update(one for _, one in _CALLED.findall(rest))
        for several, one in _CALLED.findall(rest):
            calls.setdefault(here, []).extend(
                (inner.strip().lstrip("%"), trips) for inner in (several or one).split(",")
            )
        if kind.removesuffix("-start") in _KINDS:
            found.append((here, kind, result, rest[operation.end() :]))
    lengths = {name: constants.get(limit, unknown_trips) for name, limit in limits.items()}
    times = _times(entry, calls, lambda trips: lengths.get(trips, unknown_trips))
    listed: dict[Any, Collective] = {}
    for number, (computation, kind, result, rest) in enumerate(found):
        channel = _CHANNEL.search(rest) if computation in fused else None
        # What of it does not run as often is the beginning, before a loop, or the end.
        name, count = channel[1] if channel else number, times.get(computation, 0)
        if count > (listed[name].times if name in listed else 0):
            size = _put_together(kind, result, rest, sizes)
            listed[name] = Collective(kind.removesuffix("-start"), size, count, _group(rest))
    return sorted(listed.values(), key=lambda c: (-c.bytes, c.kind))


def _arrays(types: str) -> list[int]:
    """The bytes of every array in a type."""
    return [
        math.prod(int(n.lstrip("<=").strip()) for n in shape.split(",") if n.strip())
        * _element(dtype)
        for dtype, shape in _ARRAY.findall(types)
    ]


def _element(dtype: str) -> int:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.search(r"\d+", dtype)
    return -(-int(bits[0]) // 8) if bits else 0


def _put_together(kind: str, result: str, rest: str, sizes: dict[str, int]) -> int:
    operands = rest.split(")")[0]
    given = sum(_arrays(operands)) or sum(
        sizes.get(name.strip().lstrip("%"), 0) for name in operands.split(",")
    )
    made = _arrays(result)
    if kind.endswith("-start") and kind != "all-reduce-start":
        # A tuple of what goes in and what comes out.
        return max(given, sum(made) - given)
    return max(given, sum(made))


def _group(rest: str) -> int:
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=", rest):
        return int(iota[1].split(",")[-1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    return 0


def _times(
    entry: str, calls: dict[str, list[tuple[str, int | str]]], length: Callable[[str], int]
) -> dict[str, int]:
    """How often each computation is run, loops within loops multiplied.

    Of a loop whose trips are not said there is the condition's name, of which ``length`` knows.
    """
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for inner, trips in calls.get(name, ()):
            visit(inner, count * (length(trips) if isinstance(trips, str) else trips))

    visit(entry, 1)
    return times
