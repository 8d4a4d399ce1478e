"""Humans: pure functions that answer questions about examples, ``(key, examples) -> feedback``."""

from rlhf_jax.humans.biases import (
    near_ties,
    persuadable,
    with_bias,
    with_position_bias,
    with_ties,
)
from rlhf_jax.humans.choices import (
    choosing,
    correcting,
    criticising,
    demonstrating,
    plackett_luce,
)
from rlhf_jax.humans.common import Human, Rate, Utility
from rlhf_jax.humans.comparisons import (
    boltzmann,
    bpref_teacher,
    comparing,
    oracle,
    preferring,
    thurstone,
)
from rlhf_jax.humans.effort import budgeted, with_effort, with_fatigue, with_skips
from rlhf_jax.humans.judgements import (
    approval,
    attributes,
    linear_scale,
    marking_spans,
    marking_steps,
    ordinal,
    rater_effects,
)
from rlhf_jax.humans.mistakes import Wrong, opposite, panel, poisoned, with_mistakes
from rlhf_jax.humans.raters import (
    RaterEffects,
    fit_rater_effects,
    rater_settings,
    real_raters,
    real_ratings,
    same_batch_pairs,
)
from rlhf_jax.humans.wishes import (
    drifting,
    hidden_context,
    limited_checker,
    partial_observer,
    population,
)

__all__ = [
    "Human",
    "Rate",
    "RaterEffects",
    "Utility",
    "Wrong",
    "approval",
    "attributes",
    "boltzmann",
    "bpref_teacher",
    "budgeted",
    "choosing",
    "comparing",
    "correcting",
    "criticising",
    "demonstrating",
    "drifting",
    "fit_rater_effects",
    "hidden_context",
    "limited_checker",
    "linear_scale",
    "marking_spans",
    "marking_steps",
    "near_ties",
    "opposite",
    "oracle",
    "ordinal",
    "panel",
    "partial_observer",
    "persuadable",
    "plackett_luce",
    "poisoned",
    "population",
    "preferring",
    "rater_effects",
    "rater_settings",
    "real_raters",
    "real_ratings",
    "same_batch_pairs",
    "thurstone",
    "with_bias",
    "with_effort",
    "with_fatigue",
    "with_mistakes",
    "with_position_bias",
    "with_skips",
    "with_ties",
]
