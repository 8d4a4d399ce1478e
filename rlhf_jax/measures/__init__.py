"""Measures of how good, how calibrated and how varied things are, and of how sure that is."""

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

__all__ = [
    "Interval",
    "Reliability",
    "bootstrap",
    "brier",
    "distinct_n",
    "expected_calibration_error",
    "pair_accuracy",
    "ranking_accuracy",
    "reliability",
]
