"""Fewer rows than responses: where a response ends, the next prompt takes its place.

In a batch that begins together, all wait for the longest response. Here ``S`` slots serve all
sequences: every prompt is read beforehand, in one pass; when a response ends, its slot is given the
cache of the next prompt, inside the compiled loop and without the host. What a slot costs then is
what is said in it, but for the last responses, behind which nothing comes.

Reference: Yu et al. 2022 (iteration-level scheduling),
https://www.usenix.org/conference/osdi22/presentation/yu
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.sampling.draws import chances, drawer
from rlhf_jax.sampling.requests import answered, check_settings, samples_of
from rlhf_jax.types import Decoder, Key, Params, Prompts, PyTree, SampleFn, Sequences

__all__ = ["refilling_sampler"]


class _Slots(NamedTuple):
    """What stands in the ``S`` slots, and what ``N`` sequences have said.

    Attributes:
        cache: of ``S`` rows.
        sequence: ``int32[S]``, whose response is in the slot; ``N`` where there is none.
        said: ``int32[S]``, how many of its tokens are drawn.
        newest: ``int32[S]``, the last of them.
        started: ``int32[]``, how many of the queue have had a slot.
        tokens: ``int32[N, R]``.
        log_probs: ``float32[N, R]``.
        lengths: ``int32[N]``.
    """

    cache: PyTree
    sequence: jax.Array
    said: jax.Array
    newest: jax.Array
    started: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array


def refilling_sampler(
    decoder: Decoder,
    *,
    slots: int,
    max_new_tokens: int,
    eos_id: int | None = None,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    refill_at: int | None = None,
) -> SampleFn:
    """``sampling.sampler`` with ``slots`` rows, in which one response follows the other.

    It says what ``sampler`` says with the same keys, in less time where responses have unequal
    lengths: the more so, the shorter they are on average than the longest, and the more of them
    each slot serves. While one token of each is read, the caches of all prompts are kept, and what
    is said only in the slots.

    Args:
        decoder: what generation needs of the model; it must have ``fork`` and ``refill``.
        slots: ``S``, how many responses are written at a time. As many as keep the machine busy.
        max_new_tokens: ``R``, as of ``sampler``, like all that follow but the last.
        eos_id: the token that ends a response.
        pad_id: what stands behind the end.
        temperature: of the draws.
        top_k: sample among the ``k`` most likely tokens only.
        top_p: sample among the most likely tokens that make up probability ``p`` only.
        refill_at: how many slots must be free before the next prompts take them, all at once; by
            default an eighth of them. More means fewer interruptions and more empty slots.

    Returns:
        A ``SampleFn``, as ``sampler``'s.

    Raises:
        ValueError: as ``sampler``; if ``slots`` is below 1, ``refill_at`` is not from 1 to
            ``slots``, or the decoder cannot refill.

    >>> from rlhf_jax.models import TransformerConfig, language_model
    >>> model = language_model(TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1))
    >>> sample = refilling_sampler(model.decoder, slots=2, max_new_tokens=3, eos_id=1)
    >>> prompts = Prompts(jnp.array([[3, 4], [5, 6]]), jnp.ones([2, 2], bool))
    >>> keys = jax.random.split(jax.random.key(0), 6)
    >>> jax.jit(sample)(model.init(jax.random.key(0)), prompts, keys).tokens.shape
    (6, 5)
    """
    check_settings(decoder, max_new_tokens, eos_id, pad_id)
    if slots < 1:
        raise ValueError(f"slots must be at least 1, not {slots}")
    if refill_at is not None and not 1 <= refill_at <= slots:
        raise ValueError(f"refill_at must be from 1 to slots ({slots}), not {refill_at}")
    if decoder.fork is None or decoder.refill is None:
        raise ValueError("refilling needs a decoder with fork and refill")
    draw = drawer(temperature, top_k, top_p)

    def sample(params: Params, prompts: Prompts, keys: Key) -> Sequences:
        samples = samples_of(decoder, max_new_tokens, prompts, keys)
        total, rows = keys.size, min(slots, keys.size)
        at_once = min(refill_at or max(1, slots // 8), rows)
        batch, prompt_length = prompts.tokens.shape

        # All prompts are read, and the first token of every response is drawn.
        read = decoder.init_cache(batch, prompt_length)
        logits, read = decoder.apply(params, prompts.tokens, prompts.mask, read)
        chance = chances(keys, max_new_tokens)
        first, first_log_probs = draw(chance[:, 0], jnp.repeat(logits, samples, axis=0))
        wanted = max_new_tokens > 1 if eos_id is None else (first != eos_id) & (max_new_tokens > 1)
        wanted = jnp.broadcast_to(wanted, [total])
        queue = jnp.argsort(~wanted, stable=True).astype(jnp.int32)
        queue = jnp.pad(queue, (0, at_once), constant_values=total)
        queued = jnp.sum(wanted)

        cache = decoder.init_cache(rows, prompt_length)
        cache = decoder.fork(cache, 1, max(max_new_tokens - 1, 1))
        prepared, cache = decoder.prepare(params, cache)
        shape = (total, max_new_tokens)
        state = _Slots(
            cache=cache,
            sequence=jnp.full([rows], total, jnp.int32),
            said=jnp.zeros([rows], jnp.int32),
            newest=jnp.full([rows], pad_id, jnp.int32),
            started=jnp.int32(0),
            tokens=jnp.full(shape, pad_id, jnp.int32).at[:, 0].set(first),
            log_probs=jnp.zeros(shape, jnp.float32).at[:, 0].set(first_log_probs),
            lengths=jnp.ones([total], jnp.int32),
        )

        def refilled(state: _Slots) -> _Slots:
            """The next of the queue in free slots, up to ``at_once``."""
            (places,) = jnp.nonzero(state.sequence == total, size=at_once, fill_value=rows)
            coming = jax.lax.dynamic_slice_in_dim(queue, state.started, at_once)
            number = state.started + jnp.arange(at_once)
            real = (places < rows) & (number < queued)
            places = jnp.where(real, places, rows)  # A slot that there is not is left out.
            return state._replace(
                cache=decoder.refill(state.cache, places, read, coming // samples),
                sequence=state.sequence.at[places].set(coming, mode="drop"),
                said=state.said.at[places].set(1, mode="drop"),
                newest=state.newest.at[places].set(
                    jnp.take(first, coming, mode="clip"), mode="drop"
                ),
                started=state.started + jnp.sum(real),
            )

        def token(state: _Slots) -> _Slots:
            """One more token in every slot that is taken."""
            taken = state.sequence < total
            logits, cache = decoder.apply(
                prepared, state.newest[:, None], taken[:, None], state.cache
            )
            where = (state.sequence, state.said)
            drawn, log_probs = draw(chance.at[where].get(mode="clip"), logits)
            said = state.said + 1
            over = said == max_new_tokens
            over = over if eos_id is None else over | (drawn == eos_id)
            return state._replace(
                cache=cache,
                sequence=jnp.where(over, total, state.sequence),
                said=said,
                newest=drawn,
                tokens=state.tokens.at[where].set(drawn, mode="drop"),
                log_probs=state.log_probs.at[where].set(log_probs, mode="drop"),
                lengths=state.lengths.at[state.sequence].set(said, mode="drop"),
            )

        def enough_free(state: _Slots) -> jax.Array:
            waiting = queued - state.started
            free = jnp.sum(state.sequence == total)
            return (waiting > 0) & (free >= jnp.minimum(at_once, waiting))

        def unfinished(state: _Slots) -> jax.Array:
            return (state.started < queued) | jnp.any(state.sequence < total)

        def go_on(state: _Slots) -> jax.Array:
            return jnp.any(state.sequence < total) & ~enough_free(state)

        def round_of(state: _Slots) -> _Slots:
            return jax.lax.while_loop(go_on, token, refilled(state))

        state = jax.lax.while_loop(unfinished, round_of, state)
        mask = jnp.arange(max_new_tokens) < state.lengths[:, None]
        return answered(prompts, state.tokens, mask, state.log_probs)

    return sample
