"""Many devices and many processes: the same step, its state and batch cut along a mesh.

``shard_step`` is the default: ``jax.jit`` with shardings, a global view, any step unchanged. What
is cut, and how, is data (``rules``). ``pmap_step`` is the second path, for code that has pmap.
"""

from rlhf_jax.parallel.collectives import Collective, collectives
from rlhf_jax.parallel.meshes import check_model, data_mesh, make_mesh, place
from rlhf_jax.parallel.rules import TRANSFORMER_RULES, Rules, describe_sharding, state_shardings
from rlhf_jax.parallel.steps import pmap_step, shard_step

__all__ = [
    "TRANSFORMER_RULES",
    "Collective",
    "Rules",
    "check_model",
    "collectives",
    "data_mesh",
    "describe_sharding",
    "make_mesh",
    "place",
    "pmap_step",
    "shard_step",
    "state_shardings",
]
