"""Small worlds in which everything is known: what people want, and what is optimal."""

from rlhf_jax.worlds.comparisons import (
    BradleyTerryFit,
    bradley_terry_preferences,
    fit_bradley_terry,
    mean_loss,
    win_rates,
)
from rlhf_jax.worlds.finite import tilt, tilt_value
from rlhf_jax.worlds.tabular import MDP, Solution, shutdown, value_iteration

__all__ = [
    "MDP",
    "BradleyTerryFit",
    "Solution",
    "bradley_terry_preferences",
    "fit_bradley_terry",
    "mean_loss",
    "shutdown",
    "tilt",
    "tilt_value",
    "value_iteration",
    "win_rates",
]
