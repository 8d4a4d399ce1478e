"""Humans: pure functions that answer questions about examples, ``(key, examples) -> feedback``."""

from rlhf_jax.humans.raters import real_raters, same_batch_pairs

__all__ = ["real_raters", "same_batch_pairs"]
