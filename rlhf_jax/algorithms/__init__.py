"""Algorithms: pairs of pure functions ``init`` and ``step``, composed of losses.

``supervised``, ``direct`` (with all that are made of it) and ``reward_model`` take batches as they
are padded, or as ``data.pack`` packs them.

Memory: ``accumulate=`` reads a batch in parts. ``optax.adam(..., mu_dtype=jnp.bfloat16)`` halves
Adam's first moment. The second must stay float32: a step changes it by about a thousandth, which
bfloat16 rounds away. ``optax.adafactor`` keeps a row and a column of it instead.
"""

from rlhf_jax.algorithms import presets
from rlhf_jax.algorithms.direct import direct
from rlhf_jax.algorithms.ensemble import ensemble
from rlhf_jax.algorithms.inverse_rl import (
    Demonstrated,
    PolicyAndReward,
    airl,
    gail,
    guided_cost_learning,
    inverse_rl,
    maxent_irl,
)
from rlhf_jax.algorithms.mixture import Groups, group_posterior, mixture
from rlhf_jax.algorithms.online import nash_md, online_dpo
from rlhf_jax.algorithms.policy_gradient import policy_gradient
from rlhf_jax.algorithms.presets import (
    cdpo,
    cispo,
    cpo,
    dapo,
    dpo,
    dr_grpo,
    grpo,
    gspo,
    ipo,
    kto,
    orpo,
    ppo,
    raft,
    rdpo,
    reinforce,
    reinforce_plus_plus,
    remax,
    rloo,
    rrhf,
    simpo,
    slic,
)
from rlhf_jax.algorithms.reward_model import reward_model
from rlhf_jax.algorithms.supervised import supervised

__all__ = [
    "Demonstrated",
    "Groups",
    "PolicyAndReward",
    "airl",
    "cdpo",
    "cispo",
    "cpo",
    "dapo",
    "direct",
    "dpo",
    "dr_grpo",
    "ensemble",
    "gail",
    "group_posterior",
    "grpo",
    "gspo",
    "guided_cost_learning",
    "inverse_rl",
    "ipo",
    "kto",
    "maxent_irl",
    "mixture",
    "nash_md",
    "online_dpo",
    "orpo",
    "policy_gradient",
    "ppo",
    "presets",
    "raft",
    "rdpo",
    "reinforce",
    "reinforce_plus_plus",
    "remax",
    "reward_model",
    "rloo",
    "rrhf",
    "simpo",
    "slic",
    "supervised",
]
