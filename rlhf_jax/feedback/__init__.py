"""Feedback: what people say about texts, in every form, and what follows from one for another."""

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
]
