"""Humans: pure functions that answer questions about examples, ``(key, examples) -> feedback``."""

from rlhf_jax.humans.raters import (
    RaterEffects,
    fit_rater_effects,
    real_raters,
    real_ratings,
    same_batch_pairs,
)

__all__ = ["RaterEffects", "fit_rater_effects", "real_raters", "real_ratings", "same_batch_pairs"]
