"""Data as arrays: the real human ratings, text as tokens, batches by number, forms of feedback."""

from rlhf_jax.data.batches import Batches, epochs
from rlhf_jax.data.feedback import (
    control_positions,
    mismatched,
    ranked,
    unpaired,
    with_control_tokens,
)
from rlhf_jax.data.ratings import DOMAINS, Ratings, as_dataset, fingerprint, load_ratings
from rlhf_jax.data.text import BOS, EOS, PAD, UNK, decode, encode, stream, train_tokenizer
from rlhf_jax.data.vectors import word_vectors

__all__ = [
    "BOS",
    "DOMAINS",
    "EOS",
    "PAD",
    "UNK",
    "Batches",
    "Ratings",
    "as_dataset",
    "control_positions",
    "decode",
    "encode",
    "epochs",
    "fingerprint",
    "load_ratings",
    "mismatched",
    "ranked",
    "stream",
    "train_tokenizer",
    "unpaired",
    "with_control_tokens",
    "word_vectors",
]
