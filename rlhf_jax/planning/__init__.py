"""Planning: does a step fit chips that are not here, and what would it take of them?

``plan`` compiles the real step of an algorithm ahead of time for a TPU or GPU topology, or, with
``compile=False``, adds up its shapes. The command is ``rlhf-jax plan``. For TPUs it needs
``pip install 'rlhf_jax[plan-tpu]'`` and for GPUs ``'rlhf_jax[plan-cuda]'``; ``cpu:8`` are eight
simulated devices, for trying.
"""

from rlhf_jax.planning.advice import smallest
from rlhf_jax.planning.plans import Plan, plan
from rlhf_jax.planning.programs import Program, float32_moments, program
from rlhf_jax.planning.shapes import SHAPES, parameter_count, shape
from rlhf_jax.planning.topologies import CHIPS, Chip, Topology, topology
from rlhf_jax.planning.work import Roofline, operations
from rlhf_jax.planning.workloads import ALGORITHMS, Workload

__all__ = [
    "ALGORITHMS",
    "CHIPS",
    "SHAPES",
    "Chip",
    "Plan",
    "Program",
    "Roofline",
    "Topology",
    "Workload",
    "float32_moments",
    "operations",
    "parameter_count",
    "plan",
    "program",
    "shape",
    "smallest",
    "topology",
]
