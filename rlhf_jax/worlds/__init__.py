"""Small worlds in which everything is known: what people want, and what is optimal."""

from rlhf_jax.worlds.ascent import mirror_ascent
from rlhf_jax.worlds.bandit import Bandit, bandit
from rlhf_jax.worlds.comparisons import (
    BradleyTerryFit,
    bradley_terry_preferences,
    fit_bradley_terry,
    mean_loss,
    win_rates,
)
from rlhf_jax.worlds.finite import tilt, tilt_value
from rlhf_jax.worlds.language import TokenLanguage, token_language, word_values
from rlhf_jax.worlds.learning import reinforce
from rlhf_jax.worlds.maxent import (
    MaxEntFit,
    SoftSolution,
    maxent_irl,
    maxent_loss,
    shaped,
    soft_value_iteration,
    trajectory_log_probs,
)
from rlhf_jax.worlds.processes import corridor, corridor_start, corridor_view, dialogue, logged_task
from rlhf_jax.worlds.ratings import ridge, text_features
from rlhf_jax.worlds.tabular import (
    MDP,
    Solution,
    Trajectories,
    combination_lock,
    occupancy,
    rollouts,
    shutdown,
    value_iteration,
    visits,
)

__all__ = [
    "MDP",
    "Bandit",
    "BradleyTerryFit",
    "MaxEntFit",
    "SoftSolution",
    "Solution",
    "TokenLanguage",
    "Trajectories",
    "bandit",
    "bradley_terry_preferences",
    "combination_lock",
    "corridor",
    "corridor_start",
    "corridor_view",
    "dialogue",
    "fit_bradley_terry",
    "logged_task",
    "maxent_irl",
    "maxent_loss",
    "mean_loss",
    "mirror_ascent",
    "occupancy",
    "reinforce",
    "ridge",
    "rollouts",
    "shaped",
    "shutdown",
    "soft_value_iteration",
    "text_features",
    "tilt",
    "tilt_value",
    "token_language",
    "trajectory_log_probs",
    "value_iteration",
    "visits",
    "win_rates",
    "word_values",
]
