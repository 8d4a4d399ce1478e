"""A reward from a specification in words: does the text do what is asked, yes or no?"""

import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.judges.common import Ask, aligned_texts, answers_of, fields, filled, summary
from rlhf_jax.judges.local import choice_log_odds, choice_tokens, joined
from rlhf_jax.types import LogitsFn, Params, RewardFn, Sequences

__all__ = ["MEETS", "specification_reward", "specification_scores"]

MEETS = """Specification: {specification}

Text: {text}

Does the text meet the specification? Reply with yes or no only.
Answer:"""


def specification_scores(
    ask: Ask,
    *,
    specification: str,
    template: str = MEETS,
    choices: tuple[str, str] = ("yes", "no"),
    bound: float | None = None,
) -> Callable[[Sequence[str]], jax.Array]:
    r"""The reward that a specification in words implies, asked of a language model.

    .. math:: r(x) = \log p(\text{yes} \mid s, x) - \log p(\text{no} \mid s, x)

    It has the unit of a Bradley-Terry reward. A model inclined to say yes adds a constant to it,
    which changes no preference between texts.

    Args:
        ask: the model, from ``local_ask`` or ``endpoint``.
        specification: what the text should be like.
        template: what the model is shown, with the fields ``{specification}`` and ``{text}``.
        choices: the words for "it does" and "it does not".
        bound: rewards are limited to plus and minus this, in nats. A model that gives no
            probabilities answers with infinities, which are no rewards without it.

    Returns:
        ``scores(texts) -> float32[B]`` in nats. A text without an answer has nan, and a
        ``UserWarning`` says how many there are and why. It raises a ``ValueError`` if an answer
        is infinite and there is no ``bound``.

    Raises:
        ValueError: the template lacks a field, or ``bound`` is not positive.

    Reference: Kwon et al. 2023, https://arxiv.org/abs/2303.00001, who take the word itself, 1 for
    yes and 0 for no, and not its probability

    >>> scores = specification_scores(lambda texts, choices: [1.5], specification="Be polite.")
    >>> scores(["Thank you."]).tolist()
    [1.5]
    """
    parts = fields("template", template, ("specification", "text"))
    parts = filled(parts, specification=specification)
    if bound is not None:
        checks.positive(bound=bound)

    def scores(texts: Sequence[str]) -> jax.Array:
        aligned_texts(texts=texts)
        questions = [filled(parts, text=text)[0][0] for text in texts]
        log_odds, unanswered = answers_of(ask, questions, choices)
        if bound is None and np.isinf(log_odds).any():
            raise ValueError(
                f"row {int(np.argmax(np.isinf(log_odds)))}: the model gave its choice without a "
                "probability, an infinite reward; give bound"
            )
        if unanswered:
            warnings.warn(
                f"{len(unanswered)} of {len(texts)} texts were not judged: {summary(unanswered)}",
                stacklevel=2,
            )
        return jnp.asarray(log_odds if bound is None else np.clip(log_odds, -bound, bound))

    return scores


def specification_reward(
    logits_fn: LogitsFn,
    *,
    encode: Callable[[str], list[int]],
    specification: str,
    template: str = MEETS,
    choices: tuple[str, str] = ("yes", "no"),
    whole: bool = False,
    bos_id: int | None = None,
    hidden_ids: Sequence[int] = (),
) -> RewardFn:
    r"""``specification_scores`` on tokens instead of texts: pure, for use inside a compiled step.

    Args:
        logits_fn: of the judging model, which reads the same tokens as the one it judges.
        encode: ``str -> list[int]``, without special tokens.
        specification: what the text should be like.
        template: with the fields ``{specification}`` and ``{text}``; ``{text}`` is filled with
            tokens, the rest is encoded around it.
        choices: the words for "it does" and "it does not".
        whole: whether the text is prompt and response, or the response alone.
        bos_id: the token to begin with, if any.
        hidden_ids: tokens that the judge is not shown: end-of-text, say.

    Returns:
        ``reward_fn(params, sequences) -> float32[B]`` in nats; 0 for a row without a response,
        which is padding.

    Raises:
        ValueError: the template lacks a field, or what ``choice_tokens`` raises.

    Reference: Kwon et al. 2023, https://arxiv.org/abs/2303.00001

    >>> reward_fn = specification_reward(
    ...     lambda params, tokens, mask: jax.nn.one_hot(tokens, 128) * params,
    ...     encode=lambda text: list(text.encode()),
    ...     specification="",
    ...     template="{specification}Ends in Y?{text}",
    ...     choices=("Y", "N"),
    ... )
    >>> rows, mask = jnp.array([[97, ord("Y")], [97, ord("N")]]), jnp.ones([2, 2], bool)
    >>> reward_fn(3.0, Sequences(rows, mask, mask)).tolist()
    [3.0, -3.0]
    """
    parts = fields("template", template, ("specification", "text"))
    parts = filled(parts, specification=specification)
    yes, no = choice_tokens(encode, choices)

    def reward_fn(params: Params, sequences: Sequences) -> jax.Array:
        hidden = jnp.isin(sequences.tokens, jnp.array(hidden_ids, int))
        shown = (sequences.mask if whole else sequences.response_mask) & ~hidden
        text = {"text": (sequences.tokens, shown)}
        tokens, mask = joined(parts, encode, text, bos_id=bos_id, length=sequences.tokens.shape[1])
        log_odds, _ = choice_log_odds(logits_fn(params, tokens, mask), mask, yes, no)
        return jnp.where(jnp.any(sequences.response_mask, axis=1), log_odds, 0)

    return reward_fn
