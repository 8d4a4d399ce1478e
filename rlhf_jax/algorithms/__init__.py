"""Algorithms: pairs of pure functions ``init`` and ``step``, composed of losses."""

from rlhf_jax.algorithms.direct import direct
from rlhf_jax.algorithms.online import nash_md, online_dpo
from rlhf_jax.algorithms.policy_gradient import policy_gradient
from rlhf_jax.algorithms.reward_model import reward_model
from rlhf_jax.algorithms.supervised import supervised

__all__ = ["direct", "nash_md", "online_dpo", "policy_gradient", "reward_model", "supervised"]
