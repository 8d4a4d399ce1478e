"""Losses as pure functions of arrays: unreduced, and without parameters."""

from rlhf_jax.losses.language import cross_entropy
from rlhf_jax.losses.policy import ppo_clip, reinforce
from rlhf_jax.losses.preference import bradley_terry, hinge, squared
from rlhf_jax.losses.value import clipped_value, squared_value

__all__ = [
    "bradley_terry",
    "clipped_value",
    "cross_entropy",
    "hinge",
    "ppo_clip",
    "reinforce",
    "squared",
    "squared_value",
]
