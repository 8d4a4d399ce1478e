"""Text to imitate, and prompts to answer, as padded batches of tokens, with any tokenizer."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from rlhf_jax.data.fitting import (
    Encode,
    Tokenised,
    encoder_of,
    numbered,
    padded,
    reported,
    sequences_of,
)
from rlhf_jax.data.formats import Messages, Row
from rlhf_jax.data.templates import Template, plain_template
from rlhf_jax.types import Prompts

__all__ = ["tokenise_prompts", "tokenise_sequences"]


def tokenise_sequences(
    rows: Iterable[Row],
    encode: Encode | Any,
    *,
    max_length: int,
    template: Template | Any = plain_template,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int = 0,
) -> Tokenised:
    r"""Texts, conversations, and prompts with completions as ``Sequences`` to imitate.

    In ``response_mask``, and so to be learnt, are a text's tokens, a completion's, or what the
    assistant says in a conversation, in all of its turns; for the rest of one as well, replace it
    by ``mask``. A conversation's prompt is what stands before the first answer. Cut is as in
    ``tokenise_preferences``, so a text loses its end. What stands behind the last answer is left
    out: nothing that is learnt depends on it.

    Args:
        rows: with ``text``, with ``messages``, or with ``prompt`` and ``completion``; of preference
            rows the chosen, say: ``{"prompt": row["prompt"], "completion": row["chosen"]}``.
        encode: see ``tokenise_preferences``, as of the others.
        max_length: the most tokens in a row.
        template: conversations to text.
        bos_id: the token to begin with. Without it a text's first token, which nothing predicts, is
            not in ``response_mask``.
        eos_id: the token to end with.
        pad_id: what the padding on the right holds.

    Returns:
        ``Tokenised`` with ``Sequences`` of ``B`` rows, for ``algorithms.supervised``. Rows without
        an answer or with nothing to learn are left out, and counted as ``unmarked``.

    Raises:
        ValueError: as ``tokenise_preferences``.

    >>> said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    >>> messages = [{"role": role, "content": content} for role, content in said]
    >>> template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}"
    >>> template += "{% if add_generation_prompt %}a{% endif %}"
    >>> rows = [{"messages": messages}]
    >>> batch, _, _ = tokenise_sequences(rows, str.encode, max_length=9, template=template)
    >>> bytes(batch.tokens[0].tolist()), bytes(batch.tokens[batch.response_mask].tolist())
    (b'uaabucad', b'bd')
    """
    encoder = encoder_of(encode, max_length, template, bos_id, eos_id)
    kept, index, counts = [], [], Counter()
    for number, row in numbered(rows, "text", "messages", "prompt_completion"):
        counts["rows"] += 1
        prompt, completion = _asked_and_answered(row)
        if not completion:
            counts["unmarked"] += 1
            continue
        fitted = encoder.fitted(prompt, [completion], f"row {number}")
        answer = fitted.responses[0]
        if not fitted.prompt:
            answer = answer._replace(written=[False, *answer.written[1:]])
        if not any(answer.written):
            counts["unmarked"] += 1
            continue
        counts.update(prompts_cut=fitted.prompts_cut, responses_cut=fitted.responses_cut)
        kept.append((fitted.prompt, answer))
        index.append(number)
    report = reported(counts, index)
    return Tokenised(sequences_of(kept, pad_id), np.array(index), report)


def _asked_and_answered(row: Row) -> tuple[str | Messages, str | Messages]:
    """What is given and what is to be learnt of a row, which may be nothing."""
    if {"prompt", "completion"} <= set(row):
        return row["prompt"], row["completion"]
    if "messages" not in row:
        return "", row["text"]
    messages = row["messages"]
    answers = [place for place, each in enumerate(messages) if each["role"] == "assistant"]
    if not answers:
        return messages, []
    return messages[: answers[0]], messages[answers[0] : answers[-1] + 1]


def tokenise_prompts(
    rows: Iterable[Row],
    encode: Encode | Any,
    *,
    max_length: int,
    template: Template | Any = plain_template,
    bos_id: int | None = None,
    pad_id: int = 0,
) -> Tokenised:
    """The prompts of any rows that have one as ``Prompts``, padded on the left.

    Args:
        rows: with ``prompt``.
        encode: see ``tokenise_preferences``, as of the others.
        max_length: the most tokens in a prompt; a longer one loses its beginning.
        template: conversations to text.
        bos_id: the token to begin with.
        pad_id: what the padding holds.

    Returns:
        ``Tokenised`` with ``Prompts`` of ``B`` rows.

    Raises:
        ValueError: as ``tokenise_preferences``; or a prompt is empty.

    >>> rows = [{"prompt": "ab"}, {"prompt": "c"}]
    >>> tokenise_prompts(rows, str.encode, max_length=8).batch.tokens.tolist()
    [[97, 98], [0, 99]]
    """
    encoder = encoder_of(encode, max_length, template, bos_id, None)
    kept, counts = [], Counter()
    for number, row in numbered(rows, "prompt_only"):
        counts["rows"] += 1
        opened, _ = encoder.texts(row["prompt"], [], f"row {number}")
        fitted = encoder.fit(opened, [], f"row {number}")
        if not fitted.prompt:
            raise ValueError(f"row {number}: encode gave no token for the prompt")
        counts.update(prompts_cut=fitted.prompts_cut)
        kept.append(fitted.prompt)
    index = list(range(len(kept)))
    report = reported(counts, index)
    return Tokenised(Prompts(*padded(kept, pad_id, left=True)), np.array(index), report)
