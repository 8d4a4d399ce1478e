"""What a policy says to the same prompts, and what several judges make of it."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rlhf_jax import measures
from rlhf_jax.divergences import kl_k1
from rlhf_jax.sequences import token_log_probs
from rlhf_jax.types import Key, LogitsFn, Params, Prompts, RewardFn, SampleFn, Sequences

__all__ = ["Evaluation", "policy_evaluation"]

# policy, reference, judges' parameters by name, prompts of B rows, key -> answers, measures
Evaluation = Callable[
    [Params, Params, Mapping[str, Params], Prompts, Key], tuple[Sequences, dict[str, jax.Array]]
]


def policy_evaluation(
    logits_fn: LogitsFn, sample_fn: SampleFn, judges: Mapping[str, RewardFn]
) -> Evaluation:
    """Builds a compiled function that samples from a policy and measures the samples.

    Args:
        logits_fn: the policy's and the reference's.
        sample_fn: the same policy generating.
        judges: reward functions by name.

    Returns:
        ``evaluate(policy, reference, params_of_judges, prompts, key)``: the answers, and by name
        ``float32[B]`` of each judge, ``kl`` (nats a sequence, estimated as the log-ratio of the
        sample) and ``length`` (tokens), and ``distinct_2``, ``float32[]``. The same key gives the
        same draws, whatever the policy.
    """

    @jax.jit
    def evaluate(policy, reference, params, prompts, key):
        keys = jax.random.split(key, prompts.tokens.shape[0])
        answers = sample_fn(policy, prompts, keys)
        logits = logits_fn(reference, answers.tokens, answers.mask)
        ratio = kl_k1(answers.log_probs, token_log_probs(logits, answers.tokens))
        measured = {name: judge(params[name], answers) for name, judge in judges.items()}
        return answers, measured | {
            "kl": jnp.sum(jnp.where(answers.response_mask, ratio, 0), axis=-1),
            "length": jnp.sum(answers.response_mask, axis=-1).astype(jnp.float32),
            "distinct_2": measures.distinct_n(answers.tokens, answers.response_mask, 2),
        }

    return evaluate
