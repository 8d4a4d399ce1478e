"""Measures of how good, calibrated, varied and agreed upon things are, and of how sure that is."""

from rlhf_jax.measures.agreement import (
    PreferenceAgreement,
    Retest,
    preference_agreement,
    retest_agreement,
)
from rlhf_jax.measures.calibration import (
    Reliability,
    brier,
    expected_calibration_error,
    pair_accuracy,
    ranking_accuracy,
    reliability,
)
from rlhf_jax.measures.coefficients import (
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    krippendorff_alpha_of_counts,
)
from rlhf_jax.measures.crowds import (
    CrowdComparisons,
    CrowdLabels,
    CrowdRatings,
    crowd_bradley_terry,
    dawid_skene,
    one_factor,
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
from rlhf_jax.measures.raters import (
    RaterEffects,
    SuspectRaters,
    rater_effects,
    suspect_raters,
)

__all__ = [
    "CrowdComparisons",
    "CrowdLabels",
    "CrowdRatings",
    "Interval",
    "Peak",
    "PreferenceAgreement",
    "RaterEffects",
    "Reliability",
    "Retest",
    "SuspectRaters",
    "best_of_n_estimate",
    "best_of_n_gold",
    "best_of_n_gold_peak",
    "best_of_n_kl",
    "best_of_n_policy",
    "best_of_n_win_rate",
    "bootstrap",
    "brier",
    "cohen_kappa",
    "crowd_bradley_terry",
    "dawid_skene",
    "distinct_n",
    "expected_calibration_error",
    "fleiss_kappa",
    "krippendorff_alpha",
    "krippendorff_alpha_of_counts",
    "one_factor",
    "pair_accuracy",
    "preference_agreement",
    "ranking_accuracy",
    "rater_effects",
    "reliability",
    "retest_agreement",
    "rl_gold",
    "rl_gold_peak",
    "suspect_raters",
]
