"""Models: flax modules, handed on as pure functions of their parameters."""

from rlhf_jax.models import lora
from rlhf_jax.models.attention import RopeScaling
from rlhf_jax.models.cache import KVCache
from rlhf_jax.models.configuration import TransformerConfig
from rlhf_jax.models.hashed import CLAUSE_ENDS, NEGATIONS, hashed_model
from rlhf_jax.models.heads import (
    Head,
    ScoreModel,
    ValueModel,
    feature_values,
    last_score,
    linear_head,
    score_model,
    shared_trunk,
    token_score_model,
    trunk_scores,
    value_model,
)
from rlhf_jax.models.layouts import join_layers, split_layers
from rlhf_jax.models.ngrams import NgramModel, ngram_model
from rlhf_jax.models.nnx import from_nnx
from rlhf_jax.models.raters import RaterScale, rater_scale
from rlhf_jax.models.resources import activation_bytes, choose_remat, compute_dtype
from rlhf_jax.models.transformer import (
    LanguageModel,
    Transformer,
    language_model,
)

__all__ = [
    "CLAUSE_ENDS",
    "NEGATIONS",
    "Head",
    "KVCache",
    "LanguageModel",
    "NgramModel",
    "RaterScale",
    "RopeScaling",
    "ScoreModel",
    "Transformer",
    "TransformerConfig",
    "ValueModel",
    "activation_bytes",
    "choose_remat",
    "compute_dtype",
    "feature_values",
    "from_nnx",
    "hashed_model",
    "join_layers",
    "language_model",
    "last_score",
    "linear_head",
    "lora",
    "ngram_model",
    "rater_scale",
    "score_model",
    "shared_trunk",
    "split_layers",
    "token_score_model",
    "trunk_scores",
    "value_model",
]
