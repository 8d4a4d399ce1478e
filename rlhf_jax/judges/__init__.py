"""AI feedback: language models that compare, rate, criticise and revise."""

from rlhf_jax.judges.common import Ask, Assistant, Generate, Texts, Unanswered, from_sequences
from rlhf_jax.judges.constitution import (
    Principle,
    Revised,
    Round,
    critique_and_revise,
    preferred,
)
from rlhf_jax.judges.endpoint import endpoint
from rlhf_jax.judges.local import local_ask, local_generate
from rlhf_jax.judges.pairwise import Judge, Verdicts, as_human, pairwise, preference_judge
from rlhf_jax.judges.specification import specification_reward, specification_scores

__all__ = [
    "Ask",
    "Assistant",
    "Generate",
    "Judge",
    "Principle",
    "Revised",
    "Round",
    "Texts",
    "Unanswered",
    "Verdicts",
    "as_human",
    "critique_and_revise",
    "endpoint",
    "from_sequences",
    "local_ask",
    "local_generate",
    "pairwise",
    "preference_judge",
    "preferred",
    "specification_reward",
    "specification_scores",
]
