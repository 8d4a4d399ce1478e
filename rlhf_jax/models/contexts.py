"""Where each token is and what it may see, of rows that lie in any of the ways that a mask says."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.models import cache as caches
from rlhf_jax.models.attention import near
from rlhf_jax.models.cache import KVCache
from rlhf_jax.models.configuration import TransformerConfig
from rlhf_jax.sequences import positions, segmented
from rlhf_jax.types import Forked

__all__ = ["Context", "context_of"]


class Context(NamedTuple):
    """What all layers are told of the tokens: where each is, and what it may see.

    ``seen`` and ``near`` are ``bool[B, S, T]``: of the tokens among themselves, or of the columns
    of the cache into which they go; ``before`` and ``before_near`` of what they continue, the
    cache's prefix or, if the rows are forked, the prompt, whose own context is ``prompt``. ``near``
    and ``before_near`` are of the layers that slide.
    """

    positions: jax.Array
    seen: jax.Array
    near: jax.Array | None = None
    cache: KVCache | None = None
    before: jax.Array | None = None
    before_near: jax.Array | None = None
    prompt: "Context | None" = None


def context_of(
    config: TransformerConfig, mask: jax.Array | Forked, cache: KVCache | None
) -> Context:
    """What the layers are to know of rows with such a mask, behind what a cache holds.

    Args:
        config: the model's shape.
        mask: ``bool[B, S]``, segment ids ``int32[B, S]``, or ``Forked``.
        cache: of the tokens before, or ``None``.

    Raises:
        ValueError: if there is a cache and a row is of several sequences.
    """
    if isinstance(mask, Forked):
        if cache is not None:
            raise ValueError("a cache is of one sequence a row: mask must be boolean")
        return _forked(config, mask)
    new, window = mask.shape[1], config.sliding_window
    places = positions(mask)
    seen = jnp.tril(jnp.ones([new, new], bool))
    if segmented(mask):
        if cache is not None:
            raise ValueError("a cache is of one sequence a row: mask must be boolean")
        seen = seen & (mask[:, :, None] == mask[:, None, :]) & (mask > 0)[:, None, :]
    else:
        seen = seen & mask[:, None, :]
    if cache is None:
        close = None if window is None else seen & near(places, places, window)
        return Context(places, seen, close)
    cache, places = caches.marked(cache, mask)
    seen, close = caches.seen_by(places, cache, window)
    if cache.prefix is None:
        return Context(places, seen, close, cache)
    before = caches.seen_by(places, cache.prefix, window)
    return Context(places, seen, close, cache, *before)


def _forked(config: TransformerConfig, forked: Forked) -> Context:
    """Of the answers, that of their prompts inside; ``positions`` are of the rows as they lie."""
    mask, samples, start = forked.mask, forked.samples, forked.prompt_length
    prompt = context_of(config, mask[:, :start], None)
    answers = context_of(config, mask[:, start:].reshape(mask.shape[0] * samples, -1), None)
    read = jnp.repeat(jnp.sum(mask[:, :start], axis=1), samples)
    places = answers.positions + read[:, None]
    before = jnp.repeat(mask[:, None, :start], samples, axis=0)
    before = jnp.broadcast_to(before, (*places.shape, start))
    close = None
    if config.sliding_window is not None:
        ahead = jnp.repeat(prompt.positions, samples, axis=0)
        close = before & near(places, ahead, config.sliding_window)
    rows = jnp.concatenate([prompt.positions, places.reshape(mask.shape[0], -1)], axis=1)
    return answers._replace(positions=rows, before=before, before_near=close, prompt=prompt)
