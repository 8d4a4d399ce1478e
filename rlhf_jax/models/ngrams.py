"""A bag of words and of neighbouring pairs: a reward model that trains in seconds."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.types import Key, Params, ScoreFn

__all__ = ["NgramModel", "ngram_model"]


class NgramModel(NamedTuple):
    """A linear reward model as pure functions.

    Attributes:
        init: ``(key, ...) -> params``, with what the model may be told before it is trained: word
            vectors ``[V, F]``, or unlabelled texts.
        score_fn: a ``ScoreFn``.
        trained: ``params -> params`` of booleans, false on what stays as it is: a mask
            for optax.
    """

    init: Callable[..., Params]
    score_fn: ScoreFn
    trained: Callable[[Params], Params]


def ngram_model(
    vocab_size: int,
    *,
    buckets: int = 2**18,
    bigram_weight: float = 0.5,
    presence: bool = False,
    special_tokens: int = 4,
) -> NgramModel:
    r"""Scores a text by its words and pairs of words, whatever their order otherwise.

    .. math:: r(x) = \frac1{\sqrt{n+1}} \left(\sum_t u_{x_t} + a \cdot e_{x_t}
              + w \sum_t b_{h(x_t, x_{t+1})}\right)

    where ``e`` are word vectors fixed beforehand (from unlabelled text, say; what is learnt about a
    word then holds for words used alike), ``h`` hashes a pair into a bucket, and ``n`` counts the
    tokens. Where the mask hides a token, the pairs it is part of are hidden too.

    Args:
        vocab_size: ``V``.
        buckets: how many weights the pairs share.
        bigram_weight: ``w``; below 1 it holds pairs back, of which most are rare.
        presence: whether a word or pair counts once a text, however often it is there: one that
            says the same thing over and over is then worth no more than one that says it once.
        special_tokens: token ids below this count for nothing.

    Returns:
        An ``NgramModel``. All its weights start at 0.

    Reference: presence against frequency, Pang, Lee and Vaithyanathan 2002, section 6,
    https://arxiv.org/abs/cs/0205070

    >>> model = ngram_model(10, buckets=64)
    >>> params = model.init(jax.random.key(0))
    >>> model.score_fn(params, jnp.array([[1, 5, 6]]), jnp.ones([1, 3], bool)).tolist()
    [0.0]
    """

    def init(key: Key, vectors: jax.Array | None = None) -> Params:
        del key  # Convex: nothing is gained by starting elsewhere than at 0.
        vectors = jnp.zeros([vocab_size, 0]) if vectors is None else jnp.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[0] != vocab_size:
            raise ValueError(f"vectors must be [{vocab_size}, F], not {vectors.shape}")
        return {
            "word": jnp.zeros(vocab_size),
            "pair": jnp.zeros(buckets),
            "direction": jnp.zeros(vectors.shape[1]),
            "vectors": vectors,
        }

    def score_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        vectors = jax.lax.stop_gradient(params["vectors"])
        words = params["word"] + vectors @ params["direction"]
        mask = mask & (tokens >= special_tokens)
        pairs = _bucket(tokens[:, :-1], tokens[:, 1:], buckets)
        counted = (mask, mask[:, :-1] & mask[:, 1:])
        if presence:
            counted = (_first(tokens, counted[0]), _first(pairs, counted[1]))
        total = jnp.sum(jnp.where(counted[0], words[tokens], 0), axis=-1)
        weighed = jnp.where(counted[1], params["pair"][pairs], 0)
        total += bigram_weight * jnp.sum(weighed, axis=-1)
        return total / jnp.sqrt(jnp.sum(mask, axis=-1) + 1)

    def trained(params: Params) -> Params:
        return {name: name != "vectors" for name in params}

    return NgramModel(init, score_fn, trained)


def _first(ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Those of ``mask[B, T]`` that no equal id of their row, that counts too, comes before."""
    same = (ids[:, :, None] == ids[:, None, :]) & mask[:, None, :]
    before = jnp.tril(jnp.ones([ids.shape[1]] * 2, bool), k=-1)
    return mask & ~jnp.any(same & before, axis=-1)


def _bucket(first: jax.Array, second: jax.Array, buckets: int) -> jax.Array:
    """Mixes a pair of ids by multiplication with odd constants, modulo 2^32."""
    first, second = first.astype(jnp.uint32), second.astype(jnp.uint32)
    mixed = first * jnp.uint32(2654435761) + second * jnp.uint32(2246822519)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822507)
    return (mixed ^ (mixed >> 13)) % jnp.uint32(buckets)
