"""Judges of pairs: which of two answers is better, asked in both orders."""

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.feedback import Comparison, Pairs
from rlhf_jax.judges.common import (
    Ask,
    aligned_texts,
    answers_of,
    fields,
    filled,
    from_sequences,
    summary,
)
from rlhf_jax.judges.local import choice_log_odds, choice_tokens, joined
from rlhf_jax.types import JudgeFn, Key, LogitsFn, Params, Sequences

__all__ = ["COMPARE", "Judge", "Verdicts", "as_human", "pairwise", "preference_judge"]

COMPARE = """{rubric}

Question: {prompt}

Answer A: {first}

Answer B: {second}

Which answer is better? Reply with A or B only.
Answer:"""


class Verdicts(NamedTuple):
    """What a judge said of pairs, and how much of it was due to the order they were shown in.

    Attributes:
        comparison: a ``Comparison`` whose ``preference`` is the probability, debiased, that the
            first is better; 0.5 where ``answered`` is false, which is no tie: look there first.
        log_odds: ``float32[B]`` in nats, of the first against the second, debiased; plus or minus
            infinity from a judge that gives only its choice; nan where not answered.
        position_bias: ``float32[B]`` in nats, what standing first added to the log-odds; nan where
            not answered.
        swayed: ``bool[B]``, true where the judge chose the same place, and so another answer, when
            the two were exchanged.
        unanswered: why there is no answer, by row.
    """

    comparison: Comparison
    log_odds: jax.Array
    position_bias: jax.Array
    swayed: jax.Array
    unanswered: dict[int, str]


# pairs of Texts -> Verdicts
Judge = Callable[[Pairs], Verdicts]


def _debiased(forward, backward):
    """The log-odds of the first answer, and of the first place, from both orders.

    ``forward`` is of place A against place B as given, ``backward`` after the exchange. Infinities
    of the same sign, a judge that sticks to a place, leave nothing for the answer.
    """
    apart, together = (forward - backward) / 2, (forward + backward) / 2
    hard = jnp.isinf(forward) & jnp.isinf(backward)
    zero = jnp.zeros_like(forward)
    return (
        jnp.where(hard & (forward == backward), zero, apart),
        jnp.where(hard & (forward != backward), zero, together),
    )


def pairwise(
    ask: Ask, *, rubric: str, template: str = COMPARE, choices: tuple[str, str] = ("A", "B")
) -> Judge:
    r"""A language model as the judge of which of two answers is better.

    Each pair is shown in both orders. With ``z`` the log-odds of "A" against "B",

    .. math:: P(x \succ x') = \sigma\left(\tfrac{1}{2} (z(x, x') - z(x', x))\right), \qquad
              \text{bias} = \tfrac{1}{2} (z(x, x') + z(x', x))

    so a preference for a place that adds to the log-odds cancels exactly. A judge that gives only
    its choice prefers an answer if it chose it in both orders, and calls the two equal if it chose
    the same place twice.

    Args:
        ask: the model, from ``local_ask`` or ``endpoint``.
        rubric: by what the answers are to be judged: a sentence, a list, a constitution.
        template: what the model is shown, with the fields ``{rubric}``, ``{prompt}``, ``{first}``
            and ``{second}``. It cannot be checked whether an answer speaks to the judge.
        choices: what stands for the first and for the second in the template.

    Returns:
        ``judge(Pairs of Texts) -> Verdicts``. A pair is answered if both orders were. It raises a
        ``ValueError`` if the texts are not aligned strings or the two sides' prompts differ.

    Raises:
        ValueError: the template lacks a field.

    Reference: both orders, Zheng et al. 2023, https://arxiv.org/abs/2306.05685; soft labels from
    the choices' probabilities in both orders, Lee et al. 2023, https://arxiv.org/abs/2309.00267

    >>> from rlhf_jax.judges import Texts
    >>> judge = pairwise(lambda texts, choices: [1.0, -2.0], rubric="Be brief.")  # "A", then "B"
    >>> verdicts = judge(Pairs(Texts(["Why?"], ["So."]), Texts(["Why?"], ["Well, ..."])))
    >>> verdicts.log_odds.tolist(), verdicts.position_bias.tolist()
    ([1.5], [-0.5])
    >>> verdicts.comparison.preference.tolist()
    [0.817574]
    """
    parts = fields("template", template, ("rubric", "prompt", "first", "second"))
    parts = filled(parts, rubric=rubric)

    def question(prompt: str, first: str, second: str) -> str:
        return filled(parts, prompt=prompt, first=first, second=second)[0][0]

    def judge(pairs: Pairs) -> Verdicts:
        (prompts, first), (others, second) = pairs.first, pairs.second
        aligned_texts(prompts=prompts, first=first, second=second)
        aligned_texts(prompts=prompts, other_prompts=others)
        both = enumerate(zip(prompts, others, strict=True))
        differ = [f"row {row}" for row, (prompt, other) in both if prompt != other]
        if differ:
            raise ValueError(f"both answers of a pair must be to one prompt: {summary(differ)}")
        orders = [(first, second), (second, first)]
        questions = [question(*row) for x, y in orders for row in zip(prompts, x, y, strict=True)]
        log_odds, reasons = answers_of(ask, questions, choices)
        count = len(prompts)
        forward, backward = (jnp.asarray(x) for x in (log_odds[:count], log_odds[count:]))
        unanswered = {}
        for row in range(count):
            in_order = {"as given": row, "exchanged": row + count}
            failed = [f"{name}: {reasons[n]}" for name, n in in_order.items() if n in reasons]
            if failed:
                unanswered[row] = ", ".join(failed)
        better, bias = _debiased(forward, backward)
        answered = jnp.array([row not in unanswered for row in range(count)], bool)
        comparison = Comparison(
            preference=jnp.where(answered, jax.nn.sigmoid(better), 0.5), answered=answered
        )
        return Verdicts(comparison, better, bias, forward * backward > 0, unanswered)

    return judge


def as_human(
    judge: Judge,
    *,
    labels: Literal["soft", "hard", "sampled"] = "soft",
    decode: Callable[[list[int]], str] | None = None,
    rater: int = -1,
    cost: float | None = None,
) -> Callable[[Key, Pairs], Comparison]:
    """A judge as a human: ``(key, examples) -> feedback``.

    Args:
        judge: from ``pairwise``.
        labels: ``"soft"``, the probability that the first is better; ``"hard"``, 1 or 0 for the
            likelier (0.5 where they are equally likely); ``"sampled"``, 1 or 0 drawn with that
            probability.
        decode: ``list[int] -> str``, if the examples are ``Sequences``; ``None`` if ``Texts``.
        rater: the judge's number among the raters.
        cost: of a comparison, both orders together, in the unit of the study's budget.

    Returns:
        ``human(key, Pairs) -> Comparison``; the key matters to sampled labels alone. Pairs without
        an answer have ``answered`` false and a preference of 0.5, and a ``UserWarning`` says how
        many there are and why. It is Python and not to be traced: ``preference_judge`` is.

    Raises:
        ValueError: ``labels`` is none of these.
    """
    if labels not in ("soft", "hard", "sampled"):
        raise ValueError(f"labels must be 'soft', 'hard' or 'sampled', not {labels!r}")

    def human(key: Key, examples: Pairs) -> Comparison:
        if decode is not None:
            sides = (examples.first, examples.second)
            examples = Pairs(*(from_sequences(side, decode) for side in sides))
        verdicts = judge(examples)
        preference = verdicts.comparison.preference
        if verdicts.unanswered:
            warnings.warn(
                f"{len(verdicts.unanswered)} of {len(preference)} pairs were not judged: "
                f"{summary(verdicts.unanswered)}",
                stacklevel=2,
            )
        if labels == "hard":
            preference = 0.5 + 0.5 * jnp.sign(preference - 0.5)
        elif labels == "sampled":
            drawn = jax.random.uniform(key, preference.shape) < preference
            answered = verdicts.comparison.answered
            preference = jnp.where(answered, drawn.astype(jnp.float32), 0.5)
        return verdicts.comparison.replace(
            preference=preference,
            rater=jnp.full(preference.shape, rater, jnp.int32),
            cost=None if cost is None else jnp.full(preference.shape, cost, jnp.float32),
        )

    return human


def preference_judge(
    logits_fn: LogitsFn,
    *,
    encode: Callable[[str], list[int]],
    rubric: str,
    template: str = COMPARE,
    choices: tuple[str, str] = ("A", "B"),
    bos_id: int | None = None,
    hidden_ids: Sequence[int] = (),
) -> JudgeFn:
    """``pairwise`` on tokens instead of texts: pure, for use inside a compiled step.

    Args:
        logits_fn: of the judging model, which reads the same tokens as the one it judges.
        encode: ``str -> list[int]``, without special tokens.
        rubric: by what the answers are to be judged.
        template: with the fields ``{rubric}``, ``{prompt}``, ``{first}`` and ``{second}``.
        choices: what stands for the first and for the second in the template.
        bos_id: the token to begin with, if any.
        hidden_ids: tokens that the judge is not shown: end-of-text, say.

    Returns:
        ``judge_fn(params, first, second) -> probability[B]`` that the first is better, debiased.
        What stands before the response of ``first`` is the prompt of both, which is not checked.

    Raises:
        ValueError: the template lacks a field, or what ``choice_tokens`` raises.
    """
    parts = fields("template", template, ("rubric", "prompt", "first", "second"))
    parts = filled(parts, rubric=rubric)
    ids = choice_tokens(encode, choices)

    def judge_fn(params: Params, first: Sequences, second: Sequences) -> jax.Array:
        def shown(sequences: Sequences, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
            return sequences.tokens, mask & ~jnp.isin(sequences.tokens, jnp.array(hidden_ids, int))

        sides = [shown(sequences, sequences.response_mask) for sequences in (first, second)]
        prompt = shown(first, first.mask & ~first.response_mask)
        length = first.tokens.shape[1] + second.tokens.shape[1]
        orders = [
            joined(
                parts,
                encode,
                {"prompt": prompt, "first": one, "second": two},
                bos_id=bos_id,
                length=length,
            )
            for one, two in (sides, sides[::-1])
        ]
        tokens, mask = (jnp.concatenate(x) for x in zip(*orders, strict=True))
        log_odds, _ = choice_log_odds(logits_fn(params, tokens, mask), mask, *ids)
        return jax.nn.sigmoid(_debiased(*jnp.split(log_odds, 2))[0])

    return judge_fn
