"""Chips, the topologies they come in, and their devices without having any.

======  ==========  ==========  ============  ===============  ================================
chip    usable GiB  GB/s (HBM)  TFLOP/s bf16  GB/s to others   source
======  ==========  ==========  ============  ===============  ================================
v4      30.75       1,200       275           300              docs.cloud.google.com/tpu/docs/v4
v5e     15.75       819         197           400              docs.cloud.google.com/tpu/docs/v5e
v5p     95.74       2,765       459           1,200            docs.cloud.google.com/tpu/docs/v5p
v6e     31.25       1,638       918           800              docs.cloud.google.com/tpu/docs/v6e
h100    71.2        3,352       989           900              NVIDIA H100 data sheet (SXM5)
======  ==========  ==========  ============  ===============  ================================

Usable is what XLA's TPU compiler allows a program of the nominal 32, 16, 95 and 32 GB; of a GPU's
79.1 GiB, nine tenths (``XLA_PYTHON_CLIENT_MEM_FRACTION=0.9``; JAX takes three quarters unless told
so). To others: both directions and all links of one chip together; v4's is of six links of 50 GB/s
(Jouppi et al. 2023, https://arxiv.org/abs/2304.01433). TFLOP/s are without sparsity. These are
peaks: nothing here was measured.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np

__all__ = ["CHIPS", "Chip", "Topology", "topology"]

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip has.

    Attributes:
        name: as in a topology.
        platform: ``"tpu"``, ``"cuda"`` or ``"cpu"``.
        memory: bytes that a program may use.
        flops: bfloat16 operations a second at peak; 0 if nobody says.
        bandwidth: bytes a second to its own memory; 0 likewise.
        link: bytes a second to other chips, both directions together; 0 likewise.
        sizes: the topologies there are, from small to large.
    """

    name: str
    platform: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    sizes: tuple[str, ...]


_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_HOSTS = ("1x1x1", "1x1x2", "1x1x4", *(f"1x{hosts}x8" for hosts in (1, 2, 4, 8, 16, 32, 64)))

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 30.75 * GIB, 275e12, 1200e9, 300e9, _CUBE),
        Chip("v5e", "tpu", 15.75 * GIB, 197e12, 819e9, 400e9, _PLANE),
        Chip("v5p", "tpu", 95.74 * GIB, 459e12, 2765e9, 1200e9, (*_CUBE, "8x16x16", "16x16x16")),
        Chip("v6e", "tpu", 31.25 * GIB, 918e12, 1638e9, 800e9, _PLANE),
        Chip("h100", "cuda", 0.9 * 84_929_347_584, 989e12, 3352e9, 900e9, _HOSTS),
        # Simulated devices: there is no such chip, so it has 16 GiB unless told otherwise.
        Chip("cpu", "cpu", 16 * GIB, 0.0, 0.0, 0.0, ("1", "2", "4", "8", "16", "32", "64")),
    )
}

_EXTRAS = {
    "tpu": (("libtpu",), "rlhf_jax[plan-tpu]"),
    "cuda": (("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"), "rlhf_jax[plan-cuda]"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of a kind.

    Attributes:
        chip: the kind.
        size: ``"16x16"``, as a name of ``Chip.sizes``.
    """

    chip: Chip
    size: str

    @property
    def name(self) -> str:
        """``"v5e:16x16"``."""
        return f"{self.chip.name}:{self.size}"

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(map(int, self.size.split("x")))

    @property
    def larger(self) -> list["Topology"]:
        """The topologies of the same kind with more chips, from small to large."""
        all_sizes = [Topology(self.chip, size) for size in self.chip.sizes]
        return [other for other in all_sizes if other.chips > self.chips]

    def devices(self) -> Sequence[Any]:
        """The devices, for a mesh: nothing can run on them (but on ``cpu``).

        Raises:
            ValueError: if the software for them is not installed, and what to install; or if more
                simulated devices are wanted than this process has.
        """
        platform = self.chip.platform
        if platform == "cpu":
            return _simulated(self.chips)
        from jax.experimental import topologies

        _check_installed(platform)
        if platform == "tpu":
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # There is no machine to ask.
            os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
            os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
            os.environ.setdefault("TPU_WORKER_ID", "0")
            settings = {"topology_name": self.name}
            if self.chip.name == "v4":  # Otherwise each of its cores is a device.
                settings["chip_config_name"] = "megacore"
        else:
            folder = resources.files("rlhf_jax.planning") / "targets"
            target = (folder / f"{self.chip.name}.textproto").read_text()
            settings = {"topology": self.size, "target_config": target}
        found = topologies.get_topology_desc(platform=platform, **settings).devices
        if len(found) != self.chips:
            raise ValueError(f"{self.name} should have {self.chips} devices, not {len(found)}")
        return found


def topology(name: str, memory: float | None = None) -> Topology:
    """A topology by its name.

    Args:
        name: ``v5e:16x16``, ``v5p:4x4x4``, ``h100:1x1x8`` (slices, hosts, GPUs) or ``cpu:8``.
        memory: usable GiB a chip, if other than the table's.

    Returns:
        The ``Topology``; nothing is loaded yet.

    Raises:
        ValueError: if there is none of that name.

    >>> topology("v5e:16x16").chips
    256
    >>> topology("v5e:16x17")
    Traceback (most recent call last):
    ValueError: topology 'v5e:16x17' does not exist; of v5e there are v5e:1x1, v5e:2x2, v5e:2x4, \
v5e:4x4, v5e:4x8, v5e:8x8, v5e:8x16, v5e:16x16
    """
    kind, _, size = str(name).partition(":")
    if kind not in CHIPS:
        listed = "; ".join(f"{chip.name}: {', '.join(chip.sizes)}" for chip in CHIPS.values())
        raise ValueError(f"topology {name!r} does not exist; write chip:size, of {listed}")
    chip = CHIPS[kind]
    simulated = chip.platform == "cpu" and re.fullmatch("[1-9][0-9]*", size)
    if size not in chip.sizes and not simulated:
        listed = ", ".join(f"{kind}:{size}" for size in chip.sizes)
        raise ValueError(f"topology {name!r} does not exist; of {kind} there are {listed}")
    if memory is not None:
        if memory <= 0:
            raise ValueError(f"memory must be above 0 GiB, not {memory}")
        chip = dataclasses.replace(chip, memory=memory * GIB)
    return Topology(chip, size)


def _simulated(count: int) -> Sequence[Any]:
    try:  # Possible until JAX has looked at its devices.
        if jax.config.jax_num_cpu_devices < count and "device_count" not in os.environ.get(
            "XLA_FLAGS", ""
        ):
            jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass
    found = jax.devices("cpu")
    if len(found) < count:
        raise ValueError(
            f"cpu:{count} needs {count} simulated devices, but this process has begun with "
            f"{len(found)}: start another with XLA_FLAGS=--xla_force_host_platform_device_count="
            f"{count}"
        )
    return np.asarray(found)[:count].tolist()


def _check_installed(platform: str) -> None:
    modules, extra = _EXTRAS[platform]
    if not any(map(_installed, modules)):
        raise ValueError(
            f"to compile for {platform} without having one, {' or '.join(modules)} must be "
            f"installed: pip install '{extra}'; or add up shapes only, with compile=False "
            "(--no-compile)"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False
