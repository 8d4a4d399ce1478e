"""Feedback: what people say about texts, in every form, and what follows from one for another."""

from rlhf_jax.feedback.batches import (
    decided,
    preferences,
    ranked,
    rated,
    to_batch,
    token_rewards,
)
from rlhf_jax.feedback.conversions import (
    averaged,
    comparison_from_correction,
    comparisons_from_ratings,
    majority,
    pairs_from_ranking,
    rating_from_attributes,
    rating_from_steps,
)
from rlhf_jax.feedback.forms import (
    Attributes,
    Comparison,
    Correction,
    Critique,
    Demonstration,
    Feedback,
    Label,
    Pairs,
    Ranking,
    Rating,
    Spans,
    Steps,
)
from rlhf_jax.feedback.process import segment_labels, step_labels

__all__ = [
    "Attributes",
    "Comparison",
    "Correction",
    "Critique",
    "Demonstration",
    "Feedback",
    "Label",
    "Pairs",
    "Ranking",
    "Rating",
    "Spans",
    "Steps",
    "averaged",
    "comparison_from_correction",
    "comparisons_from_ratings",
    "decided",
    "majority",
    "pairs_from_ranking",
    "preferences",
    "ranked",
    "rated",
    "rating_from_attributes",
    "rating_from_steps",
    "segment_labels",
    "step_labels",
    "to_batch",
    "token_rewards",
]
