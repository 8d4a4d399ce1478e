"""Models: flax modules, handed on as pure functions of their parameters."""

from rlhf_jax.models.heads import ScoreModel, ValueModel, score_model, value_model
from rlhf_jax.models.ngrams import NgramModel, ngram_model
from rlhf_jax.models.nnx import from_nnx
from rlhf_jax.models.raters import RaterScale, rater_scale
from rlhf_jax.models.transformer import (
    KVCache,
    LanguageModel,
    Transformer,
    TransformerConfig,
    language_model,
)

__all__ = [
    "KVCache",
    "LanguageModel",
    "NgramModel",
    "RaterScale",
    "ScoreModel",
    "Transformer",
    "TransformerConfig",
    "ValueModel",
    "from_nnx",
    "language_model",
    "ngram_model",
    "rater_scale",
    "score_model",
    "value_model",
]
