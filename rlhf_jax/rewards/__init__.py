"""Reward functions: what a policy is trained on. Of whole texts, of their parts, or in Python."""

from rlhf_jax.rewards.dense import (
    EndsFn,
    Running,
    at_ends,
    ends_after,
    fine_grained,
    from_steps,
    running_last,
    running_minimum,
    running_product,
    whole_answer,
)
from rlhf_jax.rewards.python import RewardError, deferred, from_python
from rlhf_jax.rewards.scores import (
    Standardised,
    ensemble,
    from_scores,
    judge,
    several,
    standardised,
)

__all__ = [
    "EndsFn",
    "RewardError",
    "Running",
    "Standardised",
    "at_ends",
    "deferred",
    "ends_after",
    "ensemble",
    "fine_grained",
    "from_python",
    "from_scores",
    "from_steps",
    "judge",
    "running_last",
    "running_minimum",
    "running_product",
    "several",
    "standardised",
    "whole_answer",
]
