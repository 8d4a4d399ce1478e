"""Models: flax modules, handed on as pure functions of their parameters."""

from rlhf_jax.models.hashed import CLAUSE_ENDS, NEGATIONS, hashed_model
from rlhf_jax.models.heads import ScoreModel, ValueModel, score_model, value_model
from rlhf_jax.models.ngrams import NgramModel, ngram_model
from rlhf_jax.models.nnx import from_nnx
from rlhf_jax.models.transformer import (
    KVCache,
    LanguageModel,
    Transformer,
    TransformerConfig,
    language_model,
)

__all__ = [
    "CLAUSE_ENDS",
    "NEGATIONS",
    "KVCache",
    "LanguageModel",
    "NgramModel",
    "ScoreModel",
    "Transformer",
    "TransformerConfig",
    "ValueModel",
    "from_nnx",
    "hashed_model",
    "language_model",
    "ngram_model",
    "score_model",
    "value_model",
]
