"""Packed batches in the algorithms: the model reads rows, and everything else reads sequences.

What a model makes of a packed row, a log-probability or a score for every token, is cheap: it is
gathered into one row a sequence before any loss, and from there on nothing is packed any more.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.common import row_keys
from rlhf_jax.algorithms.feedback import Feedback, sides, together
from rlhf_jax.sequences import last_token, marked_log_probs, token_log_probs
from rlhf_jax.types import FactoredLogits, Key, Packed, Preferences, Ranked, Rated, Sequences

__all__ = ["Laid", "judgement_keys", "laid_out"]


class Laid(NamedTuple):
    """A batch, and how its sequences lie before the model.

    Attributes:
        batch: of ``B`` judgements, one sequence a row: as it came, or as if it had not been packed.
        text: its ``S`` sides of ``B`` sequences, one after the other.
        rows: what the model reads: ``text``, or the packed rows.
        packed: the batch if it came packed, else ``None``.
    """

    batch: Feedback | Sequences
    text: Sequences
    rows: Sequences
    packed: Packed | None

    def log_probs(
        self, logits: jax.Array | FactoredLogits, response_length: int | None = None
    ) -> jax.Array:
        """``float32[S * B, L]`` of the model's logits of ``rows``, in nats.

        With a ``response_length``, of the responses alone, so many tokens of a row at most.
        """
        tokens, marked = self.rows.tokens, self.rows.response_mask
        if response_length is None:
            log_probs = token_log_probs(logits, tokens)
        else:
            log_probs = marked_log_probs(logits, tokens, marked, response_length)
        if self.packed is None:
            return log_probs
        # A row's sequence before it does not predict a sequence's first token: nothing does.
        found = _split(self.packed, log_probs).at[:, 0].set(0)
        return found[: self.text.tokens.shape[0]]

    def scores(self, scores: jax.Array, mask: jax.Array) -> jax.Array:
        """``[S * B, ...]`` of a ``ScoreFn``'s scores of ``rows``, each at its last token.

        Args:
            scores: what the ``ScoreFn`` returned.
            mask: ``bool[S * B, L]``, the tokens that it could see.
        """
        if self.packed is None:
            return scores
        if scores.shape[:2] != self.rows.tokens.shape:
            raise ValueError(
                f"of packed rows {list(self.rows.tokens.shape)} score_fn must return a score at "
                f"every token, as models.score_model's does, not {list(scores.shape)}"
            )
        last = last_token(mask).reshape(*mask.shape, *[1] * (scores.ndim - 2))
        return jnp.sum(jnp.where(last, _split(self.packed, scores), 0), axis=1)

    def seen(self, mask: jax.Array) -> jax.Array:
        """The mask of ``rows`` where of the sequences only this is seen, ``bool[S * B, L]``."""
        if self.packed is None:
            return mask
        return jnp.where(_spread(self.packed, mask), self.rows.mask, 0)


def laid_out(
    batch: Feedback | Sequences | Packed, sides_of: Callable[..., list[Sequences]] = sides
) -> Laid:
    """How a batch lies before the model.

    Args:
        batch: packed or not.
        sides_of: which of its sequences are wanted: the first ``S`` of those that it has.

    Raises:
        TypeError: if ``sides_of`` knows no such batch.
    """
    packed = batch if isinstance(batch, Packed) else None
    batch = batch if packed is None else _unpacked(packed)
    text = together(sides_of(batch))
    return Laid(batch, text, text if packed is None else packed.rows, packed)


def judgement_keys(batch: Feedback | Packed, key: Key, axis_name: str | None) -> Key:
    """One key a judgement, ``key[B]`` or ``key[R, M]``: the same ones packed as not packed."""
    if not isinstance(batch, Packed):
        return row_keys(key, sides(batch)[0].mask.shape[0], axis_name)
    fold = jax.vmap(jax.vmap(lambda number: jax.random.fold_in(key, number)))
    return fold(batch.index.astype(jnp.uint32))


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
