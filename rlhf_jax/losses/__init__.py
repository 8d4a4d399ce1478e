"""Losses as pure functions of arrays: unreduced, and without parameters."""

from rlhf_jax.losses.anchored import (
    alternative_optimal_transport,
    apo_down,
    apo_zero,
    bco_pair,
    nca_pair,
    sppo_hard,
)
from rlhf_jax.losses.demonstration import airl, gail, maximum_entropy
from rlhf_jax.losses.language import (
    advantage_weighted,
    conditional,
    cross_entropy,
    filtered,
    reward_weighted,
    unlikelihood,
)
from rlhf_jax.losses.policy import ppo_clip, reinforce, sequence_clip, soft_gate
from rlhf_jax.losses.preference import (
    bradley_terry,
    discopop,
    exo_pair,
    exponential,
    hinge,
    smoothed,
    squared,
    thurstone,
    unbiased,
)
from rlhf_jax.losses.ranking import davidson, ordinal, plackett_luce, rao_kupper, rrhf
from rlhf_jax.losses.rating import (
    binary_cross_entropy,
    distributional,
    likelihood,
    squared_error,
)
from rlhf_jax.losses.unpaired import apo_zero_unpaired, kto
from rlhf_jax.losses.value import clipped_value, squared_value
from rlhf_jax.losses.weighted import awr, clipped_is, rwr, vespo

__all__ = [
    "advantage_weighted",
    "airl",
    "alternative_optimal_transport",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "awr",
    "bco_pair",
    "binary_cross_entropy",
    "bradley_terry",
    "clipped_is",
    "clipped_value",
    "conditional",
    "cross_entropy",
    "davidson",
    "discopop",
    "distributional",
    "exo_pair",
    "exponential",
    "filtered",
    "gail",
    "hinge",
    "kto",
    "likelihood",
    "maximum_entropy",
    "nca_pair",
    "ordinal",
    "plackett_luce",
    "ppo_clip",
    "rao_kupper",
    "reinforce",
    "reward_weighted",
    "rrhf",
    "rwr",
    "sequence_clip",
    "smoothed",
    "soft_gate",
    "sppo_hard",
    "squared",
    "squared_error",
    "squared_value",
    "thurstone",
    "unbiased",
    "unlikelihood",
    "vespo",
]
