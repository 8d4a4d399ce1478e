"""Data as NumPy arrays: the real human ratings, text as tokens, and batches by number."""

from rlhf_jax.data.batches import Batches, epochs
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
    "decode",
    "encode",
    "epochs",
    "fingerprint",
    "load_ratings",
    "stream",
    "train_tokenizer",
    "word_vectors",
]
