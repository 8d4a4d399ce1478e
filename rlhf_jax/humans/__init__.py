"""Humans: pure functions that answer questions about examples, ``(key, examples) -> feedback``."""

from rlhf_jax.humans.raters import decided, real_raters, same_batch_pairs

__all__ = ["decided", "real_raters", "same_batch_pairs"]
