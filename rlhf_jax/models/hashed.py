"""Words, pairs of words and parts of words, weighed by rarity: the best small reward model here."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.ngrams import NgramModel, _bucket, _first
from rlhf_jax.types import Key, Params

__all__ = ["hashed_model", "word_pieces"]

# How much a pair and a piece of a word weigh against a word, before their rarity.
_PAIR, _PIECE = 0.6, 0.35


def hashed_model(
    vocab_size: int,
    *,
    outputs: int | None = None,
    buckets: int = 2**19,
    distances: Sequence[int] = (1, 2),
    negators: Sequence[int] = (),
    stops: Sequence[int] = (),
    special_tokens: int = 4,
) -> NgramModel:
    flags = {"negators": negators, "stops": stops}
    is_negator, is_stop = (
        np.isin(np.arange(vocab_size), np.asarray(list(ids), int)) for ids in flags.values()
    )

    def negated(tokens, mask):
        place = jnp.arange(tokens.shape[1])
        last = lambda which: jax.lax.cummax(jnp.where(which & mask, place, -1), axis=1)
        negator = jnp.pad(last(jnp.asarray(is_negator)[tokens])[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return negator > last(jnp.asarray(is_stop)[tokens])

    def found(tokens, mask):
        mask = mask & (tokens >= special_tokens)
        words = 2 * tokens + negated(tokens, mask)
        yield _bucket(words, jnp.zeros_like(words), buckets), mask, 1.0
        for apart in distances:
            first, second = (tokens if apart > 1 else words)[:, :-apart], (tokens if apart > 1 else words)[:, apart:]
            yield _bucket(first + apart * 7919 * vocab_size, second, buckets), mask[:, :-apart] & mask[:, apart:], _PAIR

    def listed(params, tokens, mask):
        real = mask & (tokens >= special_tokens)
        out = []
        for ids, counted, weight in found(tokens, mask):
            out.append((ids, _first(ids, counted), weight))
        return out, _first(tokens, real)

    def init(key: Key, tokens=None, mask=None, pieces=None) -> Params:
        del key
        pieces = jnp.full([vocab_size, 0], -1, jnp.int32) if pieces is None else jnp.asarray(pieces)
        shape = [buckets] if outputs is None else [buckets, outputs]
        params = {"weight": jnp.zeros(shape), "bias": jnp.zeros(shape[1:]), "scale": jnp.ones(buckets), "pieces": pieces}
        if tokens is None:
            return params

        def count(total, rows):
            feats, words = listed(params, *rows)
            for ids, counted, _ in feats:
                total = total.at[ids].add(counted)
            of_word = jnp.zeros(vocab_size).at[rows[0]].add(words)
            there = pieces >= 0
            return total.at[pieces].add(jnp.where(there, of_word[:, None], 0)), None

        rows = len(tokens)
        pad = -rows % 1024
        blocks = [jnp.pad(jnp.asarray(x), ((0, pad), (0, 0))).reshape(-1, 1024, x.shape[1]) for x in (tokens, mask)]
        total, _ = jax.lax.scan(count, jnp.zeros(buckets), tuple(blocks))
        return params | {"scale": jnp.log((rows + 1) / (1 + jnp.minimum(total, rows)))}

    def score_fn(params, tokens, mask):
        scale, pieces = (jax.lax.stop_gradient(params[n]) for n in ("scale", "pieces"))
        weight = params["weight"] if outputs is not None else params["weight"][:, None]
        feats, words = listed(params, tokens, mask)
        total, square = 0.0, 0.0
        for ids, counted, kind in feats:
            s = jnp.where(counted, kind * scale[ids], 0)
            total += jnp.einsum("bt,btk->bk", s, weight[ids])
            square += jnp.sum(s * s, axis=-1)
        if pieces.shape[1]:
            s = jnp.where(pieces >= 0, _PIECE * scale[pieces], 0)
            value = jnp.einsum("vg,vgk->vk", s, weight[pieces])
            norm = jnp.sum(s * s, axis=-1)
            total += jnp.einsum("bt,btk->bk", words, value[tokens])
            square += jnp.sum(jnp.where(words, norm[tokens], 0), axis=-1)
        score = total / jnp.sqrt(jnp.maximum(square, 1e-6))[:, None] + params["bias"]
        return score if outputs is not None else score[:, 0]

    def trained(params):
        return {name: name in ("weight", "bias") for name in params}

    return NgramModel(init, score_fn, trained)


def word_pieces(words: Sequence[str], *, buckets: int, sizes: Sequence[int] = (3, 4, 5), most: int = 24) -> np.ndarray:
    table = np.full((len(words), most), -1, np.int32)
    for row, word in enumerate(words):
        marked = f"<{word}>"
        pieces = [marked[i : i + n] for n in sizes for i in range(len(marked) - n + 1)]
        ids = list(dict.fromkeys(zlib.crc32(piece.encode()) % buckets for piece in pieces))[:most]
        table[row, : len(ids)] = ids
    return table
