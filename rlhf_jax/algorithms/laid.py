"""How the sequences of a batch lie before the model: one a row, packed, or behind a shared prompt.

What a model makes of a row, a log-probability or a score for every token, is cheap: it is brought
into one row a sequence before any loss, and from there on nothing is packed or shared any more.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.common import row_keys
from rlhf_jax.algorithms.feedback import Feedback, sides, together
from rlhf_jax.forks import fork, unfork
from rlhf_jax.sequences import last_token, marked_log_probs, token_log_probs
from rlhf_jax.types import (
    FactoredLogits,
    Forked,
    Key,
    Packed,
    Preferences,
    Ranked,
    Rated,
    Sequences,
)

__all__ = ["Laid", "judgement_keys", "laid_out"]


def laid_out(
    batch: Feedback | Sequences | Packed,
    sides_of: Callable[..., list[Sequences]] = sides,
    *,
    prompt_length: int | None = None,
    response_length: int | None = None,
) -> "Laid":
    """How a batch lies before the model.

    Args:
        batch: packed or not.
        sides_of: which of its sequences are wanted: the first ``S`` of those that it has.
        prompt_length: how many tokens stand before a response at most. If this is known, and the
            sides of a judgement are several, their prompt is read once for all of them.
        response_length: how many response tokens a row has at most; behind a shared prompt, how
            many tokens from the first of them on.

    Raises:
        TypeError: if ``sides_of`` knows no such batch.
        ValueError: if a length is below 1, or there is a ``prompt_length`` without a
            ``response_length`` or with a packed batch.
    """
    for name, length in (("prompt", prompt_length), ("response", response_length)):
        if length is not None and length < 1:
            raise ValueError(f"{name}_length must be at least 1, not {length}")
    if prompt_length is not None and response_length is None:
        raise ValueError(f"prompt_length={prompt_length} needs a response_length beside it")
    if isinstance(batch, Packed):
        if prompt_length is not None:
            raise ValueError(
                f"prompt_length must be None for a packed batch, not {prompt_length}: its rows are "
                "read as they are"
            )
        return _PackedRows.of(batch, sides_of, response_length)
    every = sides_of(batch)
    if prompt_length is not None and len(every) > 1:
        return _SharedPrompts.of(batch, every, prompt_length, response_length)
    text = together(every)
    return Laid(batch, text, text, response_length)


def judgement_keys(batch: Feedback | Packed, key: Key, axis_name: str | None) -> Key:
    """One key a judgement, ``key[B]`` or ``key[R, M]``: the same ones packed as not packed."""
    if not isinstance(batch, Packed):
        return row_keys(key, sides(batch)[0].mask.shape[0], axis_name)
    fold = jax.vmap(jax.vmap(lambda number: jax.random.fold_in(key, number)))
    return fold(batch.index.astype(jnp.uint32))


@dataclasses.dataclass(frozen=True)
class Laid:
    """A batch whose sequences have a row each; the other layouts answer the same questions.

    Attributes:
        batch: of ``B`` judgements, one sequence a row: as it came, or as if it had not been packed.
        text: its ``S`` sides of ``B`` sequences, one after the other.
        rows: what the model reads, here ``text``.
        response_length: as of ``laid_out``.
    """

    batch: Feedback | Sequences
    text: Sequences
    rows: Sequences
    response_length: int | None

    def log_probs(self, logits: jax.Array | FactoredLogits) -> jax.Array:
        """``float32[S * B, L]`` of the model's logits of ``rows``, in nats.

        With a ``response_length``, of the responses alone, so many tokens of a row at most.
        """
        tokens, marked = self.rows.tokens, self.rows.response_mask
        if self.response_length is None:
            return token_log_probs(logits, tokens)
        try:
            return marked_log_probs(logits, tokens, marked, self.response_length)
        except ValueError as error:  # It calls the number by another name.
            raise ValueError(f"response_length={self.response_length}: {error}") from error

    def scores(self, scores: jax.Array, mask: jax.Array) -> jax.Array:
        """``[S * B, ...]`` of a ``ScoreFn``'s scores of ``rows``, each at its last token.

        Args:
            scores: what the ``ScoreFn`` returned.
            mask: ``bool[S * B, L]``, the tokens that it could see.
        """
        return scores

    def seen(self, mask: jax.Array) -> jax.Array | Forked:
        """The mask of ``rows`` where of the sequences only this is seen, ``bool[S * B, L]``."""
        return mask


def _last(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """``[B, T, ...]`` at the last token of a row: ``[B, ...]``."""
    last = last_token(mask).reshape(*mask.shape, *[1] * (scores.ndim - 2))
    return jnp.sum(jnp.where(last, scores, 0), axis=1)


def _check_tokenwise(scores: jax.Array, tokens: jax.Array, rows: str) -> None:
    if scores.shape[:2] != tokens.shape:
        raise ValueError(
            f"of {rows} {list(tokens.shape)} score_fn must return a score at every token, as "
            f"models.score_model's does, not {list(scores.shape)}"
        )


@dataclasses.dataclass(frozen=True)
class _SharedPrompts(Laid):
    """A row a judgement: its prompt, in ``P`` columns, and its ``S`` answers, in ``R`` each.

    Attributes:
        column: ``int32[B * S, L]``, where in the ``P + R`` columns of a sequence by itself each of
            its tokens is.
        predicted: ``bool[B * S, L]``, whether there is a token, and one before it.
        right: ``bool[B * S]``, whether the sequence is as was promised: its prompt that of the
            first side, and neither part too long.
    """

    column: jax.Array
    predicted: jax.Array
    right: jax.Array

    @classmethod
    def of(cls, batch, every, prompt_length, response_length):
        count = len(every)
        # One side beside the other, and not behind all of it: on a mesh nothing travels.
        text = jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *every)
        rank = jnp.cumsum(text.mask, axis=1) - 1
        total = rank[:, -1] + 1
        start = jnp.min(jnp.where(text.response_mask, rank, total[:, None]), axis=1)
        order = jnp.argsort(~text.mask, axis=1, stable=True)  # real tokens before padding

        def part(first, length):
            """``length`` of each row's real tokens: which, and what of them is real and marked."""
            ranks = first[:, None] + jnp.arange(length)
            real = (ranks >= 0) & (ranks < total[:, None])
            columns = jnp.take_along_axis(order, jnp.where(real, ranks, 0), axis=1)
            tokens = jnp.take_along_axis(text.tokens, columns, axis=1)
            marked = jnp.take_along_axis(text.response_mask, columns, axis=1)
            return jnp.where(real, tokens, 0), real, real & marked

        def of_one_prompt(x):
            x = x.reshape(-1, count, prompt_length)
            return jnp.all(x == x[:, :1], axis=-1).reshape(-1)

        prompts, answers = part(start - prompt_length, prompt_length), part(start, response_length)
        short = (start <= prompt_length) & (total - start <= response_length)
        alike = of_one_prompt(prompts[0]) & of_one_prompt(prompts[1])
        # Without an answer on its first side a judgement is padding, whatever else it is.
        empty = ~jnp.any(text.response_mask, axis=1).reshape(-1, count)[:, :1]
        right = (short & alike) | jnp.repeat(empty[:, 0], count)
        if not isinstance(right, jax.core.Tracer) and not right.all():
            counts = {
                "prompt": (prompt_length, start),
                "response": (response_length, total - start),
            }
            for name, (length, count) in counts.items():
                if (most := int(jnp.max(jnp.where(right, 0, count)))) > length:
                    raise ValueError(f"{name}_length={length} must be at least {most}")
            raise ValueError("with prompt_length the sides of a judgement must have one prompt")
        whole = (jnp.concatenate(parts, axis=1) for parts in zip(prompts, answers, strict=True))
        tokens, real, marked = (fork(x, count, prompt_length) for x in whole)
        rows = Sequences(tokens, Forked(real, count, prompt_length), marked)
        column = jnp.maximum(rank + (prompt_length - start)[:, None], 0)
        predicted = text.mask & (rank > 0)
        laid = (batch, together(every), rows, response_length)
        return cls(*laid, column=column, predicted=predicted, right=right)

    def apart(self, values):
        """``[B, P + S * R, ...]`` as ``[B * S, P + R, ...]``."""
        return unfork(values, self.rows.mask.samples, self.rows.mask.prompt_length)

    def by_sides(self, found):
        """``[B * S, ...]`` as ``[S * B, ...]``, NaN where something is not as was promised."""
        found = jnp.where(self.right.reshape(-1, *[1] * (found.ndim - 1)), found, jnp.nan)
        pairs = found.reshape(-1, self.rows.mask.samples, *found.shape[1:])
        return pairs.swapaxes(0, 1).reshape(found.shape)

    def log_probs(self, logits):
        factored = isinstance(logits, FactoredLogits)
        hidden = self.apart(logits.hidden if factored else logits)
        logits = logits.replace(hidden=hidden) if factored else hidden
        tokens, start = self.apart(self.rows.tokens), self.rows.mask.prompt_length
        found = token_log_probs(logits, tokens, start=start)
        found = jnp.take_along_axis(found, self.column, axis=1, mode="clip")
        return self.by_sides(jnp.where(self.predicted, found, 0))

    def scores(self, scores, mask):
        _check_tokenwise(scores, self.rows.tokens, "rows with a shared prompt")
        return self.by_sides(_last(self.apart(scores), self.apart(self.rows.mask.mask)))

    def seen(self, mask):
        return self.rows.mask


@dataclasses.dataclass(frozen=True)
class _PackedRows(Laid):
    """Rows of several sequences each, as ``data.pack`` made them."""

    packed: Packed

    @classmethod
    def of(cls, packed, sides_of, response_length):
        batch = _unpacked(packed)
        return cls(batch, together(sides_of(batch)), packed.rows, response_length, packed)

    def log_probs(self, logits):
        # A row's sequence before it does not predict a sequence's first token: nothing does.
        found = _split(self.packed, super().log_probs(logits)).at[:, 0].set(0)
        return found[: self.text.tokens.shape[0]]

    def scores(self, scores, mask):
        _check_tokenwise(scores, self.rows.tokens, "packed rows")
        return _last(_split(self.packed, scores), mask)

    def seen(self, mask):
        return jnp.where(_spread(self.packed, mask), self.rows.mask, 0)


def _unpacked(packed: Packed) -> Feedback | Sequences:
    """The batch before it was packed, in another order: ``B = R * M``, some of them padding."""
    real = packed.rows.replace(mask=packed.rows.mask > 0)
    text = jax.tree.map(lambda x: _split(packed, x), real)
    count = packed.index.size
    every = [
        jax.tree.map(lambda x, n=n: x[n : n + count], text)
        for n in range(0, text.tokens.shape[0], count)
    ]
    said = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), packed.said)
    if isinstance(said, Preferences):
        return said.replace(chosen=every[0], rejected=every[1])
    if isinstance(said, Rated):
        unrelated = every[1] if len(every) > 1 else None
        return said.replace(sequences=every[0], unrelated=unrelated)
    if isinstance(said, Ranked):
        return said.replace(sequences=jax.tree.map(lambda *x: jnp.stack(x, axis=1), *every))
    return every[0]


def _split(packed: Packed, values: jax.Array) -> jax.Array:
    """``[R, W, ...]`` to ``[S * R * M, L, ...]``: a sequence a row, 0 behind its end."""
    rows, further = values.shape[0], values.shape[2:]
    inside = jnp.arange(packed.width) < packed.lengths[..., None]
    columns = jnp.where(inside, packed.starts[..., None] + jnp.arange(packed.width), 0)
    columns = columns.reshape(rows, -1, *[1] * len(further))
    found = jnp.take_along_axis(values, columns, axis=1, mode="clip")
    found = found.reshape(*inside.shape, *further)
    inside = inside.reshape(*inside.shape, *[1] * len(further))
    found = jnp.where(inside, found, jnp.zeros((), found.dtype))
    return jnp.moveaxis(found, 2, 0).reshape(-1, packed.width, *further)


def _spread(packed: Packed, values: jax.Array) -> jax.Array:
    """``[S * R * M, L]`` back to ``[R, W]``; on padding anything."""
    rows, most, each = packed.starts.shape
    values = jnp.moveaxis(values.reshape(each, rows, most, -1), 0, 2).reshape(rows, -1)
    sequence = jnp.maximum(packed.rows.mask - 1, 0)
    starts = jnp.take_along_axis(packed.starts.reshape(rows, -1), sequence, axis=1)
    offset = jnp.arange(sequence.shape[1]) - starts
    return jnp.take_along_axis(values, sequence * packed.width + offset, axis=1, mode="clip")
