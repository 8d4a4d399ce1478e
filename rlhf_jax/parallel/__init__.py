"""Many devices and many processes: the same step, its state and batch cut along a mesh.

``shard_step`` is the default: ``jax.jit`` with shardings, a global view, any step unchanged. What
is cut, and how, is data (``rules``). ``pmap_step`` is the second path, for code that has pmap.
"""

from rlhf_jax.parallel.collectives import Collective, collectives
from rlhf_jax.parallel.meshes import check_model, data_mesh, make_mesh, mesh_axes, place, put
from rlhf_jax.parallel.processes import (
    Processes,
    check_agreement,
    first_does,
    global_batch,
    initialise,
    is_first,
    rows_here,
    whole_here,
)
from rlhf_jax.parallel.rules import (
    TRANSFORMER_RULES,
    Rules,
    describe_sharding,
    rules_for,
    state_shardings,
)
from rlhf_jax.parallel.steps import pmap_step, shard_step

__all__ = [
    "TRANSFORMER_RULES",
    "Collective",
    "Processes",
    "Rules",
    "check_agreement",
    "check_model",
    "collectives",
    "data_mesh",
    "describe_sharding",
    "first_does",
    "global_batch",
    "initialise",
    "is_first",
    "make_mesh",
    "mesh_axes",
    "place",
    "pmap_step",
    "put",
    "rows_here",
    "rules_for",
    "shard_step",
    "state_shardings",
    "whole_here",
]
