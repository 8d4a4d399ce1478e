"""Measures of how good, calibrated, varied and agreed upon things are, and of how sure that is."""

from rlhf_jax.measures.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from rlhf_jax.measures.calibration import (
    Reliability,
    brier,
    expected_calibration_error,
    pair_accuracy,
    ranking_accuracy,
    reliability,
)
from rlhf_jax.measures.diversity import distinct_n
from rlhf_jax.measures.intervals import Interval, bootstrap
from rlhf_jax.measures.overoptimisation import (
    Peak,
    best_of_n_estimate,
    best_of_n_gold,
    best_of_n_gold_peak,
    best_of_n_kl,
    best_of_n_policy,
    best_of_n_win_rate,
    rl_gold,
    rl_gold_peak,
)

__all__ = [
    "Interval",
    "Peak",
    "Reliability",
    "best_of_n_estimate",
    "best_of_n_gold",
    "best_of_n_gold_peak",
    "best_of_n_kl",
    "best_of_n_policy",
    "best_of_n_win_rate",
    "bootstrap",
    "brier",
    "cohen_kappa",
    "distinct_n",
    "expected_calibration_error",
    "fleiss_kappa",
    "krippendorff_alpha",
    "pair_accuracy",
    "ranking_accuracy",
    "reliability",
    "rl_gold",
    "rl_gold_peak",
]
