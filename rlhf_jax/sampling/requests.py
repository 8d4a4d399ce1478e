"""What every sampler checks of what it is asked, and how it hands back what was said."""

import jax
import jax.numpy as jnp

from rlhf_jax.types import Decoder, Key, Prompts, Sequences

__all__ = ["answered", "check_settings", "samples_of"]


def check_settings(decoder: Decoder, max_new_tokens: int, eos_id: int | None, pad_id: int) -> None:
    """Refuses what no sampler can do."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    for name, token in (("eos_id", eos_id), ("pad_id", pad_id)):
        if token is not None and not 0 <= token < decoder.vocab_size:
            raise ValueError(f"{name} {token} is not in a vocabulary of {decoder.vocab_size}")


def samples_of(decoder: Decoder, max_new_tokens: int, prompts: Prompts, keys: Key) -> int:
    """How many samples of each prompt are asked for: so many keys there are for each."""
    batch, prompt_length = prompts.tokens.shape
    length = prompt_length + max_new_tokens
    if length > decoder.max_length:
        raise ValueError(
            f"prompts of {prompt_length} and responses of {max_new_tokens} tokens make {length}"
            f", but the model reads at most {decoder.max_length}"
        )
    if len(keys.shape) != 1 or not keys.size or keys.size % max(batch, 1):
        raise ValueError(
            f"one key a sequence, as many for each prompt: {batch} prompts, keys of shape "
            f"{keys.shape}"
        )
    return keys.size // batch


def answered(
    prompts: Prompts, tokens: jax.Array, mask: jax.Array, log_probs: jax.Array
) -> Sequences:
    """``B * K`` responses behind their prompts.

    Args:
        prompts: ``B`` rows.
        tokens: ``int32[B * K, R]``.
        mask: ``bool[B * K, R]``.
        log_probs: ``float32[B * K, R]``.
    """
    samples = tokens.shape[0] // prompts.tokens.shape[0]
    prompts = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)
    before = jnp.zeros_like(prompts.mask)
    return Sequences(
        tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
        mask=jnp.concatenate([prompts.mask, mask], axis=1),
        response_mask=jnp.concatenate([before, mask], axis=1),
        log_probs=jnp.concatenate([before.astype(jnp.float32), log_probs], axis=1),
    )
