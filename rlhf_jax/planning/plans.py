"""A plan: whether a step fits the chips, what it takes of them, and what to change if not."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlhf_jax import parallel
from rlhf_jax.configuration import plain
from rlhf_jax.planning import advice, memory, work
from rlhf_jax.planning.compiling import Compiled, compiled, sent, traffic
from rlhf_jax.planning.cutting import axes_of, check_mesh
from rlhf_jax.planning.programs import program
from rlhf_jax.planning.topologies import CHIPS, GIB, Topology
from rlhf_jax.planning.topologies import topology as topology_named
from rlhf_jax.planning.workloads import Workload

__all__ = ["Plan", "plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step of a workload takes on a topology.

    Attributes:
        workload: the step.
        topology: the chips, ``v5e:16x16``.
        mesh: sizes of its axes.
        chips: how many.
        limit: bytes that a program may use on a chip.
        parts: bytes of a chip by part (``memory.PARTS``).
        compiled: whether a compiler said so; else ``temporaries`` is an estimate, and ``cache`` and
            collectives are what shapes say.
        operations: floating-point operations of a step, of all chips, by phase.
        collectives: by kind, how often in a step and how many bytes a chip puts together by it;
            ``None`` if not compiled, or refused.
        roofline: seconds a step that peaks would allow; an estimate. ``None`` without peaks.
        changes: if it does not fit, changes of which each by itself would make it, the smallest
            first; by arithmetic, to be confirmed by another plan.
        notes: what is worth knowing of it, in words.
    """

    workload: Workload
    topology: str
    mesh: Mapping[str, int]
    chips: int
    limit: float
    parts: Mapping[str, int]
    compiled: bool
    operations: Mapping[str, float]
    collectives: Mapping[str, tuple[int, int]] | None = None
    roofline: work.Roofline | None = None
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes that a chip needs."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether they suffice."""
        return self.total <= self.limit

    def table(self) -> str:
        """Everything, for people."""
        how = "compiled" if self.compiled else "by arithmetic, not compiled"
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.items())
        lines = [
            f"{self.workload.algorithm} of {self.workload.name} on {self.topology}: "
            f"{self.chips} chips, {axes} ({how})",
            "",
            "GiB a chip",
        ]
        for name, size in self.parts.items():
            if size:
                lines.append(f"  {name:<12}{size / GIB:9.3f}   {memory.PARTS[name]}")
        verdict = "fits" if self.fits else "DOES NOT FIT"
        total = f"{self.total / GIB:9.3f}   of {self.limit / GIB:.2f}: {verdict}"
        lines.append(f"  {'together':<12}{total}")
        if self.changes:
            lines += ["", "any one of these would make it fit, by arithmetic:"]
            lines += [f"  {change}" for change in self.changes]
        elif not self.fits:
            lines += ["", "no change that this looks for would make it fit"]
        if self.collectives is not None:
            lines += ["", "collectives of a step, GiB that a chip puts together"]
            for kind, (times, size) in self.collectives.items():
                lines.append(f"  {kind:<20}{times:>9,} times{size / GIB:12.3f}")
        counted = ", ".join(f"{n} {x / 1e15:.3f}" for n, x in sorted(self.operations.items()))
        together = sum(self.operations.values())
        lines += ["", f"PFLOP a step {together / 1e15:.3f}: {counted}"]
        if self.roofline is not None:
            lines += _roofline_lines(self.roofline)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields = [f.name for f in dataclasses.fields(self.workload)]
        found["workload"] = {name: getattr(self.workload, name) for name in fields}
        found["workload"]["model"] = str(self.workload.model)
        found |= {"total": self.total, "fits": self.fits}
        if self.roofline is not None:
            found["roofline"] = plain(self.roofline) | {
                "least": self.roofline.least,
                "most": self.roofline.most,
            }
        return plain(found)


def _roofline_lines(roofline: work.Roofline) -> list[str]:
    links = "not compiled" if roofline.links is None else f"{roofline.links:.3g} s sending"
    rate = roofline.tokens / roofline.least if roofline.least else 0.0
    return [
        "roofline (an ESTIMATE from peaks; nothing was run): "
        f"{roofline.compute:.3g} s computing, {roofline.weights:.3g} s reading weights and cache "
        f"for generated tokens, {links}",
        f"  so no step below {roofline.least:.3g} s ({rate:,.0f} tokens a second at the very "
        f"best); {roofline.most:.3g} s if nothing overlaps",
    ]


def plan(
    workload: Workload | None = None,
    *,
    topology: str | Topology = "v5e:16x16",
    mesh: str | Mapping[str, int] | None = None,
    memory_gib: float | None = None,
    compile: bool = True,
    **settings: Any,
) -> Plan:
    """Whether a step fits, and what it takes: compiled for chips that need not be there.

    Args:
        workload: the step; or give its fields by keyword: ``plan(model="llama-3-8b",
            algorithm="dpo", batch=64)``.
        topology: the chips, ``v5e:16x16``, ``h100:1x1x8`` or ``cpu:8``; or a kind alone, ``v5e``,
            for the fewest that would do, with the mesh and ``accumulate`` that they need.
        mesh: ``"fsdp=16,tensor=16"`` or a mapping; by default all chips are ``fsdp``.
        memory_gib: usable memory of a chip, if other than the table's.
        compile: whether to compile (a minute or more of CPU time); else it is arithmetic.
        **settings: fields of ``Workload``, or to change in the one given.

    Returns:
        A ``Plan``.

    Raises:
        ValueError: if a setting is impossible, a mesh does not divide, a topology does not exist,
            or the software for it is not installed.

    >>> found = plan(algorithm="dpo", batch=64, topology="v5e:8x8", compile=False)
    >>> found.fits, round(found.parts["optimiser"] / 2**30, 3)
    (True, 0.937)
    """
    workload = dataclasses.replace(workload or Workload(), **settings)
    if topology in CHIPS:
        if mesh:
            raise ValueError(f"a mesh needs a size: topology {topology}:..., or no mesh")
        workload, where, axes = advice.smallest(workload, topology, memory_gib=memory_gib)
    else:
        where = _where(topology, memory_gib)
        axes = axes_of(mesh, where.chips)
    notes = check_mesh(workload, axes)
    # Before anything is traced: once JAX has looked at its devices, no more can be simulated.
    devices = parallel.make_mesh(**axes, devices=where.devices()) if compile else None
    shapes = program(workload)
    parts = memory.arithmetic(workload, axes, shapes)
    estimate = parts["cache"] + parts["temporaries"]
    limit, found = where.chip.memory, None
    if compile:
        found = compiled(shapes, devices, tokens=workload.response_length)
        parts, limit = _read(parts, found, limit)
    measured = (parts["cache"] + parts["temporaries"]) / estimate
    seen = found is not None and not found.refused
    weights = parts["parameters"] * axes["fsdp"] * workload.dtype.dtype.itemsize
    weights /= workload.param_dtype.dtype.itemsize
    if workload.on_policy and axes["fsdp"] > 1:
        notes.append(
            f"every generated token puts the policy together over fsdp={axes['fsdp']}, "
            f"{weights / GIB:.2f} GiB a chip, {workload.response_length} times a step; what tensor "
            "cuts stays where it is"
        )
    result = Plan(
        workload=workload,
        topology=where.name,
        mesh=axes,
        chips=where.chips,
        limit=limit,
        parts=parts,
        compiled=compile,
        operations=work.operations(workload),
        collectives=traffic(found.collectives) if seen else None,
        roofline=work.roofline(
            workload,
            where.chip,
            where.chips,
            weights=weights,
            cache=parts["cache"],
            sent=sent(found.collectives) if seen else None,
        ),
        notes=tuple(notes),
    )
    if result.fits:
        return result
    changes = advice.changes(workload, where, axes, limit=limit, scale=measured)
    return dataclasses.replace(result, changes=changes)


def _where(given: str | Topology, memory_gib: float | None) -> Topology:
    return given if isinstance(given, Topology) else topology_named(given, memory_gib)


def _read(parts: dict[str, int], found: Compiled, limit: float) -> tuple[dict[str, int], float]:
    """The parts with what the compiler says, in which the cache is among the temporaries."""
    held = sum(size for name, size in parts.items() if name not in ("cache", "temporaries"))
    if found.together is not None:
        rest = found.together - held
    else:
        rest = found.temporaries + (0 if found.arguments is None else found.arguments - held)
    cache = min(parts["cache"], max(rest, 0))
    return parts | {"cache": cache, "temporaries": max(rest - cache, 0)}, found.limit or limit
