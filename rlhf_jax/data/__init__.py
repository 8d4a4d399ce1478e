"""Data as arrays: feedback from files and the hub, the real ratings, text as tokens, batches."""

from rlhf_jax.data.batches import Batches, epochs, longest_response, shared_lengths, stacked
from rlhf_jax.data.checking import FeedbackError
from rlhf_jax.data.demonstrations import tokenise_prompts, tokenise_sequences
from rlhf_jax.data.feedback import (
    control_positions,
    mismatched,
    ranked,
    unpaired,
    with_control_tokens,
)
from rlhf_jax.data.loading import load_feedback, save_feedback
from rlhf_jax.data.packing import Packing, PackReport, pack
from rlhf_jax.data.ratings import DOMAINS, Ratings, as_dataset, fingerprint, load_ratings
from rlhf_jax.data.templates import chat_template, plain_template
from rlhf_jax.data.text import BOS, EOS, PAD, UNK, decode, encode, stream, train_tokenizer
from rlhf_jax.data.tokenising import (
    tokenise_preferences,
    tokenise_ranked,
    tokenise_rated,
    tokenise_steps,
)
from rlhf_jax.data.vectors import word_vectors

__all__ = [
    "BOS",
    "DOMAINS",
    "EOS",
    "PAD",
    "UNK",
    "Batches",
    "FeedbackError",
    "PackReport",
    "Packing",
    "Ratings",
    "as_dataset",
    "chat_template",
    "control_positions",
    "decode",
    "encode",
    "epochs",
    "fingerprint",
    "load_feedback",
    "load_ratings",
    "longest_response",
    "mismatched",
    "pack",
    "plain_template",
    "ranked",
    "save_feedback",
    "shared_lengths",
    "stacked",
    "stream",
    "tokenise_preferences",
    "tokenise_prompts",
    "tokenise_ranked",
    "tokenise_rated",
    "tokenise_sequences",
    "tokenise_steps",
    "train_tokenizer",
    "unpaired",
    "with_control_tokens",
    "word_vectors",
]
