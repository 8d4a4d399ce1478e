"""The smallest models with everything the algorithms need: a bigram table, a bag of words."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.types import Decoder, Preferences, Prompts, Ranked, Rated, Sequences

VOCAB, EOS = 11, 1


def bigram_params(seed=0):
    return {"table": 0.5 * jax.random.normal(jax.random.key(seed), [VOCAB, VOCAB])}


def bigram_logits(params, tokens, mask):
    return params["table"][tokens]


BIGRAM = Decoder(
    init_cache=lambda batch, length: (),
    apply=lambda params, tokens, mask, cache: (params["table"][tokens[:, -1]], cache),
    vocab_size=VOCAB,
    max_length=64,
)


def bag_params(seed=0):
    return {"weights": 0.1 * jax.random.normal(jax.random.key(seed), [VOCAB])}


def bag_scores(params, tokens, mask):
    return jnp.sum(jnp.where(mask, params["weights"][tokens], 0), axis=-1)


def bag_values(params, tokens, mask):
    before = jnp.cumsum(jnp.where(mask, params["weights"][tokens], 0), axis=-1)
    return jnp.pad(before[:, :-1], ((0, 0), (1, 0)))


def bag_reward(params, sequences):
    return bag_scores(params, sequences.tokens, sequences.response_mask)


def sequences(rows, length=7, seed=0, empty=()):
    """Text of unequal lengths, its first two tokens a prompt; rows in ``empty`` are padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, [rows, length]).astype(np.int32)
    mask = np.arange(length) < rng.integers(4, length + 1, [rows, 1])
    mask[list(empty)] = False
    return Sequences(np.where(mask, tokens, 0), mask, mask & (np.arange(length) >= 2))


def preferences(rows, seed=0, empty=()):
    """The chosen have more large tokens."""
    chosen, rejected = sequences(rows, seed=seed, empty=empty), sequences(rows, 7, seed + 1, empty)
    higher = np.where(chosen.response_mask, np.minimum(chosen.tokens + 4, VOCAB - 1), 0)
    return Preferences(
        chosen.replace(tokens=np.where(chosen.response_mask, higher, chosen.tokens)), rejected
    )


def ties(rows, seed=0, empty=()):
    """Every third pair was called equal."""
    return preferences(rows, seed, empty).replace(tied=np.arange(rows) % 3 == 0)


def rated(rows, seed=0, empty=()):
    """Good where the first word is even; answers to other prompts with it."""
    text = sequences(rows, seed=seed, empty=empty)
    return Rated(text, text.tokens[:, 2] % 2 == 0, sequences(rows, seed=seed + 1, empty=empty[:1]))


def ranked(rows, answers=3, seed=0, empty=()):
    """The answers to a prompt, ranked by their first word."""
    sides = [sequences(rows, seed=seed + n, empty=empty) for n in range(answers)]
    stacked = jax.tree.map(lambda *x: np.stack(x, axis=1), *sides)
    return Ranked(stacked, np.argsort(-stacked.tokens[:, :, 2], axis=1).astype(np.int32))


def prompts(rows, length=3, seed=0, empty=()):
    """Padded on the left."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) >= rng.integers(0, length, [rows, 1])
    mask[list(empty)] = False
    tokens = rng.integers(2, VOCAB, [rows, length]).astype(np.int32)
    return Prompts(np.where(mask, tokens, 0), mask)


def sample_fn(new_tokens=5, eos_id=EOS, **settings):
    return sampling.sampler(BIGRAM, max_new_tokens=new_tokens, eos_id=eos_id, **settings)


def mixture_fn(reference_weight=0.25, new_tokens=5, eos_id=EOS):
    mixture = sampling.geometric_mixture(BIGRAM, reference_weight=reference_weight)
    return sampling.sampler(mixture, max_new_tokens=new_tokens, eos_id=eos_id)
