"""What a run shows people: figures, and a page that discloses how it was made."""

from rlhf_jax.report.page import report_page
from rlhf_jax.report.plots import (
    COLOURS,
    new_figure,
    plot_diversity,
    plot_overoptimisation,
    plot_reliability,
    plot_reward_model,
    save_figure,
)
from rlhf_jax.report.policy import policy_report, show
from rlhf_jax.report.raters import plot_agreement, plot_groups, plot_rater_effects
from rlhf_jax.report.reward_models import (
    plot_reward_models,
    reward_model_tables,
    reward_models_page,
)
from rlhf_jax.report.transparency import NOT_DISCLOSED, samples_page, table, transparency_table

__all__ = [
    "COLOURS",
    "NOT_DISCLOSED",
    "new_figure",
    "plot_agreement",
    "plot_diversity",
    "plot_groups",
    "plot_overoptimisation",
    "plot_rater_effects",
    "plot_reliability",
    "plot_reward_model",
    "plot_reward_models",
    "policy_report",
    "report_page",
    "reward_model_tables",
    "reward_models_page",
    "samples_page",
    "save_figure",
    "show",
    "table",
    "transparency_table",
]
