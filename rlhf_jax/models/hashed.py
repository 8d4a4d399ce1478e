"""Words, pairs of words and pieces of words, each as weighty as it is rare: a linear reward model.

Of the models here that know nothing but the ratings it is the best one, and it trains in seconds.
"""

import zlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.models.ngrams import NgramModel, _bucket, _first
from rlhf_jax.types import Key, Params

__all__ = ["CLAUSE_ENDS", "NEGATIONS", "hashed_model"]

# English, in lower case, as data.train_tokenizer takes words apart.
NEGATIONS = (
    *("not", "n't", "no", "never", "nothing", "nobody", "none", "neither", "nor", "cannot"),
    *("without", "hardly", "barely", "lack", "lacks", "lacking"),
)
CLAUSE_ENDS = (".", ",", ";", ":", "!", "?", "but")

# Letters in a piece, and the most pieces that are kept of a word.
_PIECE_SIZES, _MOST_PIECES = (3, 4, 5), 24
# Texts that are looked through at a time for how common things are.
_BLOCK = 512


def hashed_model(
    vocabulary: Sequence[str],
    *,
    outputs: int | None = None,
    buckets: int = 2**19,
    pair_weight: float = 0.6,
    piece_weight: float = 0.35,
    negations: Sequence[str] = NEGATIONS,
    clause_ends: Sequence[str] = CLAUSE_ENDS,
    special_tokens: int = 4,
) -> NgramModel:
    r"""Scores a text by which words, pairs of neighbours and pieces of words are in it.

    .. math:: r(x) = b + \frac{\sum_{f \in x} a_f s_f \, w_{h(f)}}
              {\sqrt{\sum_{f \in x} a_f^2 s_f^2}}, \qquad
              s_f = \log \frac{N + 1}{\min(n_f, N) + 1}

    A feature counts once, however often it is there; ``a`` weighs its kind and ``s`` its rarity
    (``n`` of ``N`` unlabelled texts have it), and ``h`` hashes it into a bucket. Pieces are a
    word's three to five letters in a row, its ends marked: what is learnt of ``tedious`` is then
    half known of ``tediously``. A word between a negation and the end of the clause is another word
    than by itself. On ratings of film reviews each of these is worth half a point of accuracy on
    pairs, or more (``experiments/reward_models.py`` is made of this model).

    The score is linear in what is trained, so ``squared_error`` of ratings or ``bradley_terry`` has
    one minimum under any L2. Adam with a learning rate around 0.05, batches of about a thousand
    texts and a token dropout around 0.3 come to it in some hundred steps.

    Args:
        vocabulary: the ``V`` words, in the order of their tokens.
        outputs: how many numbers the score is made of, for a ``Distribution``; one by default.
        buckets: how many weights all features share.
        pair_weight: ``a`` of a pair; a word's is 1.
        piece_weight: ``a`` of a piece; 0 does without.
        negations: the words that turn those after them round; none does without.
        clause_ends: the words up to which they do.
        special_tokens: token ids below this count for nothing.

    Returns:
        An ``NgramModel`` whose ``init`` is ``(key, tokens[N, T] or None, mask[N, T] or None)``: the
        unlabelled texts that say what is rare (by default all is alike). All its weights start at
        0. Its ``score_fn`` gives ``float32[B]``, or ``[B, outputs]``.

    Raises:
        ValueError: if ``vocabulary`` is one string, or ``buckets`` or ``outputs`` below 1; from
            ``init``, if the tokens' and the mask's shapes differ.

    Reference: rarity, Sparck Jones 1972, Journal of Documentation 28(1); hashing, Weinberger et al.
    2009, https://arxiv.org/abs/0902.2206; pieces, Bojanowski et al. 2017,
    https://arxiv.org/abs/1607.04606; marking what is negated, Pang, Lee and Vaithyanathan 2002,
    https://arxiv.org/abs/cs/0205070

    >>> words = ["<pad>", "<bos>", "<eos>", "<unk>", "good", "not"]
    >>> model = hashed_model(words, buckets=64)
    >>> params = model.init(jax.random.key(0))
    >>> model.score_fn(params, jnp.array([[5, 4]]), jnp.ones([1, 2], bool)).tolist()
    [0.0]
    """
    if isinstance(vocabulary, str):
        raise ValueError("vocabulary must be several words, not one string")
    for name, number in (("buckets", buckets), ("outputs", 1 if outputs is None else outputs)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    negates, ends = (np.isin(np.array(vocabulary), x) for x in (negations, clause_ends))
    # Of the vocabulary and never trained: no parameters.
    pieces = _pieces(vocabulary, buckets, special_tokens) if piece_weight else None

    def marked(tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Twice the token, and one more where it is negated."""
        place = jnp.arange(tokens.shape[1])

        def latest(words: np.ndarray) -> jax.Array:
            return jax.lax.cummax(jnp.where(mask & jnp.asarray(words)[tokens], place, -1), axis=1)

        before = jnp.pad(latest(negates), ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        return 2 * tokens + (before > latest(ends))

    def features(
        tokens: jax.Array, mask: jax.Array
    ) -> Iterator[tuple[jax.Array, jax.Array, float]]:
        """Buckets, which of them count, and their weight: of words, then of pairs."""
        words = marked(tokens, mask)
        ids = _bucket(words, jnp.zeros_like(words), buckets)
        yield ids, _first(ids, mask), 1.0
        ids = _bucket(words[:, :-1], words[:, 1:], buckets)
        yield ids, _first(ids, mask[:, :-1] & mask[:, 1:]), pair_weight

    def rarity(tokens: jax.Array, mask: jax.Array) -> jax.Array:
        texts, length = tokens.shape
        spare = ((0, -texts % _BLOCK), (0, 0))
        blocks = [jnp.pad(x, spare).reshape(-1, _BLOCK, length) for x in (tokens, mask)]

        def count(total: jax.Array, block: list[jax.Array]) -> tuple[jax.Array, None]:
            tokens, mask = block[0], block[1] & (block[0] >= special_tokens)
            for ids, counted, _ in features(tokens, mask):
                total = total.at[ids].add(counted)
            if pieces is not None:
                having = jnp.zeros(len(vocabulary)).at[tokens].add(_first(tokens, mask))
                total = total.at[pieces].add(jnp.where(pieces >= 0, having[:, None], 0))
            return total, None

        total, _ = jax.lax.scan(count, jnp.zeros(buckets), blocks)
        return jnp.log((texts + 1) / (jnp.minimum(total, texts) + 1))

    def init(key: Key, tokens: jax.Array | None = None, mask: jax.Array | None = None) -> Params:
        del key  # Convex: nothing is gained by starting elsewhere than at 0.
        if tokens is not None:
            checks.alike(tokens=tokens, mask=mask)
        kinds = () if outputs is None else (outputs,)
        return {
            "weight": jnp.zeros((buckets, *kinds)),
            "bias": jnp.zeros(kinds),
            "scale": jnp.ones(buckets) if tokens is None else rarity(tokens, mask),
        }

    def score_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        scale = jax.lax.stop_gradient(params["scale"])
        weight = params["weight"].reshape(buckets, -1)
        mask = mask & (tokens >= special_tokens)
        total, square = 0.0, 0.0
        for ids, counted, kind in features(tokens, mask):
            strength = jnp.where(counted, kind * scale[ids], 0)
            total += jnp.einsum("bt,bto->bo", strength, weight[ids])
            square += jnp.sum(jnp.square(strength), axis=1)
        if pieces is not None:
            # Of every word once, and not of every word of every text.
            strength = jnp.where(pieces >= 0, piece_weight * scale[pieces], 0)
            worth = jnp.einsum("vg,vgo->vo", strength, weight[pieces])
            there = _first(tokens, mask)
            total += jnp.einsum("bt,bto->bo", there, worth[tokens])
            square += jnp.sum(jnp.where(there, jnp.sum(strength**2, axis=1)[tokens], 0), axis=1)
        scores = total / jnp.sqrt(jnp.maximum(square, 1e-6))[:, None]
        return scores.reshape(len(tokens), *params["bias"].shape) + params["bias"]

    def trained(params: Params) -> Params:
        return {name: name != "scale" for name in params}

    return NgramModel(init, score_fn, trained)


def _pieces(vocabulary: Sequence[str], buckets: int, special_tokens: int) -> np.ndarray:
    """``int32[V, 24]``, the buckets of each word's pieces, -1 for none."""
    table = np.full((len(vocabulary), _MOST_PIECES), -1, np.int32)
    for row, word in enumerate(vocabulary[special_tokens:], start=special_tokens):
        word = f"<{word}>"
        found = {word[i : i + n]: None for n in _PIECE_SIZES for i in range(len(word) - n + 1)}
        # Not Python's own hash, which is another in every process.
        ids = [zlib.crc32(piece.encode()) % buckets for piece in found][:_MOST_PIECES]
        table[row, : len(ids)] = ids
    return table
