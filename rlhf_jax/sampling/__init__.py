"""Compiled generation with a key-value cache.

The prompts are read at once, then one token at a time in a ``lax.while_loop`` that ends when all
sequences have. Each sequence has a key of its own and draws token ``t`` with ``fold_in(key, t)``:
what it says does not depend on who else is in the batch, or on which device. ``refilling_sampler``
is ``sampler`` for responses of unequal lengths.
"""

from rlhf_jax.sampling.draws import filter_logits
from rlhf_jax.sampling.mixture import geometric_mixture
from rlhf_jax.sampling.plain import sampler
from rlhf_jax.sampling.refilling import refilling_sampler

__all__ = ["filter_logits", "geometric_mixture", "refilling_sampler", "sampler"]
