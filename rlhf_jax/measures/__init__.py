"""Measures of how good, calibrated, varied and agreed upon things are, and of how sure that is."""

from rlhf_jax.measures.agreement import (
    PreferenceAgreement,
    Retest,
    preference_agreement,
    retest_agreement,
)
from rlhf_jax.measures.calibration import (
    Reliability,
    auroc,
    brier,
    expected_calibration_error,
    pair_accuracy,
    ranking_accuracy,
    reliability,
    selective_accuracy,
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
from rlhf_jax.measures.generalisation import (
    SubsetTable,
    Transfer,
    relearning_gap,
    subset_table,
    transfer,
)
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
from rlhf_jax.measures.pareto import hypervolume, non_dominated
from rlhf_jax.measures.probes import (
    LengthBias,
    LengthGain,
    Probe,
    length_bias,
    length_gain,
    nuisance_share,
    probe,
)
from rlhf_jax.measures.raters import (
    RaterEffects,
    SuspectRaters,
    rater_effects,
    suspect_raters,
)
from rlhf_jax.measures.robust import (
    influence_cap,
    log_odds_weights,
    rater_accuracy,
    trimmed_mean,
    trimmed_vote,
)
from rlhf_jax.measures.triggers import TriggerScan, trigger_scan

__all__ = [
    "CrowdComparisons",
    "CrowdLabels",
    "CrowdRatings",
    "Interval",
    "LengthBias",
    "LengthGain",
    "Peak",
    "PreferenceAgreement",
    "Probe",
    "RaterEffects",
    "Reliability",
    "Retest",
    "SubsetTable",
    "SuspectRaters",
    "Transfer",
    "TriggerScan",
    "auroc",
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
    "hypervolume",
    "influence_cap",
    "krippendorff_alpha",
    "krippendorff_alpha_of_counts",
    "length_bias",
    "length_gain",
    "log_odds_weights",
    "non_dominated",
    "nuisance_share",
    "one_factor",
    "pair_accuracy",
    "preference_agreement",
    "probe",
    "ranking_accuracy",
    "rater_accuracy",
    "rater_effects",
    "relearning_gap",
    "reliability",
    "retest_agreement",
    "rl_gold",
    "rl_gold_peak",
    "selective_accuracy",
    "subset_table",
    "suspect_raters",
    "transfer",
    "trigger_scan",
    "trimmed_mean",
    "trimmed_vote",
]
