"""Over what a workload is cut: the axes of a mesh, and what they must divide."""

from collections.abc import Mapping

import jax

from rlhf_jax.parallel import check_model
from rlhf_jax.planning.workloads import Workload

__all__ = ["AXES", "axes_of", "check_mesh"]

AXES = ("data", "fsdp", "tensor")


def axes_of(mesh: str | Mapping[str, int] | None, chips: int) -> dict[str, int]:
    """Sizes of the axes ``data``, ``fsdp`` and ``tensor``.

    Args:
        mesh: ``"fsdp=16,tensor=16"`` or a mapping; an axis left out is 1, but ``data`` is what is
            left. ``None``: all chips are ``fsdp``.
        chips: how many there are.

    Returns:
        All three.

    Raises:
        ValueError: if it cannot be read, or does not make that many chips.

    >>> axes_of("fsdp=4,tensor=2", 16)
    {'data': 2, 'fsdp': 4, 'tensor': 2}
    >>> axes_of("fsdp=3", 16)
    Traceback (most recent call last):
    ValueError: mesh fsdp=3 cannot be made of 16 chips: fsdp * tensor = 3 does not divide 16
    """
    if not mesh:
        return {"data": 1, "fsdp": chips, "tensor": 1}
    given = dict(mesh) if isinstance(mesh, Mapping) else {}
    if isinstance(mesh, str):
        for piece in mesh.split(","):
            name, equals, size = piece.strip().partition("=")
            if not equals or not size.isdecimal() or name in given:
                raise ValueError(
                    f"mesh {mesh!r} cannot be read at {piece.strip()!r}: write fsdp=16,tensor=16, "
                    f"of the axes {', '.join(AXES)}, each once"
                )
            given[name] = int(size)
    for name, size in given.items():
        if name not in AXES or size < 1:
            raise ValueError(
                f"mesh has {name}={size}: its axes are {', '.join(AXES)}, each at least 1"
            )
    spelt = ", ".join(f"{name}={size}" for name, size in given.items())
    inner = given.get("fsdp", 1) * given.get("tensor", 1)
    if chips % inner:
        raise ValueError(
            f"mesh {spelt} cannot be made of {chips} chips: fsdp * tensor = {inner} does not "
            f"divide {chips}"
        )
    sizes = {"data": chips // inner, "fsdp": 1, "tensor": 1} | given
    sizes = {name: sizes[name] for name in AXES}
    if sizes["data"] * inner != chips:
        raise ValueError(
            f"mesh {spelt} makes {sizes['data'] * inner} devices, but there are {chips} chips"
        )
    return sizes


def check_mesh(workload: Workload, axes: Mapping[str, int]) -> list[str]:
    """Whether a mesh divides heads and batch.

    Returns:
        What is worth knowing and no mistake, in words.

    Raises:
        ValueError: if it does not.
    """
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    notes = check_model(workload.config, mesh)
    rows = axes["data"] * axes["fsdp"]
    if workload.batch % rows:
        raise ValueError(
            f"batch={workload.batch} must be a multiple of data * fsdp = {rows}, over which its "
            "rows are cut"
        )
    each = workload.part
    if each % (workload.accumulate * rows):
        raise ValueError(
            f"accumulate={workload.accumulate} cuts the {each} rows of an update into parts of "
            f"{each // workload.accumulate}, which data * fsdp = {rows} does not divide"
        )
    return notes
