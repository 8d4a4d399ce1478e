"""All prompts begin together, and the loop ends with the longest response."""

import jax
import jax.numpy as jnp

from rlhf_jax.sampling.draws import chances, drawer
from rlhf_jax.sampling.requests import answered, check_settings, samples_of
from rlhf_jax.types import Decoder, Key, Params, Prompts, SampleFn, Sequences

__all__ = ["sampler"]


def sampler(
    decoder: Decoder,
    *,
    max_new_tokens: int,
    eos_id: int | None = None,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> SampleFn:
    """Builds a function that lets a policy answer prompts.

    Args:
        decoder: what generation needs of the model.
        max_new_tokens: ``R``, the longest response, end-of-text included.
        eos_id: the token that ends a response, itself part of it; ``None``: all have ``R`` tokens.
        pad_id: what stands behind the end.
        temperature: 1 samples from the policy itself; 0 is greedy. The policy-gradient losses
            assume the policy that sampled to be the one that is trained: give them the same
            temperature, and leave ``top_k`` and ``top_p`` alone.
        top_k: sample among the ``k`` most likely tokens only.
        top_p: sample among the most likely tokens that make up probability ``p`` only.

    Returns:
        ``sample(params, prompts of B rows, keys[B * K]) -> Sequences`` of ``B * K`` rows, of which
        ``K`` neighbours answer each prompt, and ``P + R`` columns, the response in the last ``R``.
        Each prompt is read once for its ``K`` samples. ``log_probs`` are those of the distribution
        that was sampled from, tempered and truncated. Without end-of-text, temperature or
        truncation they are ``sequences.token_log_probs`` of the uncached model, up to rounding.

    Raises:
        ValueError: if a setting is impossible, prompt and response are longer than the model reads,
            or the keys are not as many for each prompt.
    """
    check_settings(decoder, max_new_tokens, eos_id, pad_id)
    draw = drawer(temperature, top_k, top_p)

    def sample(params: Params, prompts: Prompts, keys: Key) -> Sequences:
        samples = samples_of(decoder, max_new_tokens, prompts, keys)
        logits, cache = _read(decoder, params, prompts, samples, max_new_tokens - 1)
        prepared, cache = decoder.prepare(params, cache)
        shape = (keys.size, max_new_tokens)
        tokens = jnp.full(shape, pad_id, jnp.int32)
        mask, log_probs = jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32)
        alive = jnp.ones(shape[:1], bool)
        chance = chances(keys, max_new_tokens)

        def emit(index, logits, alive, tokens, mask, log_probs):
            """Draws token ``index`` of every sequence that has not ended."""
            now = jax.lax.dynamic_index_in_dim(chance, index, axis=1, keepdims=False)
            drawn, drawn_log_probs = draw(now, logits)
            drawn = jnp.where(alive, drawn, pad_id)
            tokens = tokens.at[:, index].set(drawn)
            mask = mask.at[:, index].set(alive)
            log_probs = log_probs.at[:, index].set(jnp.where(alive, drawn_log_probs, 0))
            still = alive if eos_id is None else alive & (drawn != eos_id)
            return still, tokens, mask, log_probs

        def go_on(loop):
            index, _, alive, *_ = loop
            return (index < max_new_tokens) & jnp.any(alive)

        def body(loop):
            index, cache, alive, tokens, mask, log_probs = loop
            newest = jax.lax.dynamic_slice_in_dim(tokens, index - 1, 1, axis=1)
            logits, cache = decoder.apply(prepared, newest, alive[:, None], cache)
            return index + 1, cache, *emit(index, logits, alive, tokens, mask, log_probs)

        first = emit(jnp.int32(0), logits, alive, tokens, mask, log_probs)
        if max_new_tokens > 1:
            first = jax.lax.while_loop(go_on, body, (jnp.int32(1), cache, *first))[2:]
        return answered(prompts, *first[1:])

    return sample


def _read(
    decoder: Decoder, params: Params, prompts: Prompts, samples: int, length: int
) -> tuple[jax.Array, object]:
    """The prompts' logits, ``samples`` of each, and a cache with room for ``length`` more."""
    if decoder.fork is None:  # Each sample reads the prompt itself.
        prompts = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)
    batch, prompt_length = prompts.tokens.shape
    room = length if decoder.fork is None else 0
    cache = decoder.init_cache(batch, prompt_length + room)
    logits, cache = decoder.apply(params, prompts.tokens, prompts.mask, cache)
    if decoder.fork is None:
        return logits, cache
    # The last token drawn is never read, hence one column less than tokens.
    return jnp.repeat(logits, samples, axis=0), decoder.fork(cache, samples, length)
