"""rlhf_jax: reinforcement learning from human feedback as pure functions in JAX.

After Casper et al. 2023, *Open Problems and Fundamental Limitations of RLHF*,
https://arxiv.org/abs/2307.15217. Human feedback, reward fitting and policy optimisation are
functions passed by keyword; everything that changes is an explicit pytree.
"""

from rlhf_jax import (
    advantages,
    aggregates,
    algorithms,
    assets,
    callbacks,
    checkpoint,
    checks,
    configuration,
    data,
    divergences,
    evaluation,
    feedback,
    humans,
    implicit_rewards,
    losses,
    measures,
    models,
    parallel,
    queries,
    report,
    rewards,
    runs,
    sampling,
    sequences,
    training,
    types,
    worlds,
)

__version__ = "0.1.0"

__all__ = [
    "advantages",
    "aggregates",
    "algorithms",
    "assets",
    "callbacks",
    "checkpoint",
    "checks",
    "configuration",
    "data",
    "divergences",
    "evaluation",
    "feedback",
    "humans",
    "implicit_rewards",
    "losses",
    "measures",
    "models",
    "parallel",
    "queries",
    "report",
    "rewards",
    "runs",
    "sampling",
    "sequences",
    "training",
    "types",
    "worlds",
]
