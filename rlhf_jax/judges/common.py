"""What judges share: the two questions one can put to a language model, and the texts of them.

A model that can judge is one function, ``Ask``; one that can write is another, ``Generate``. A
model of this process (``local_ask``, ``local_generate``) and one behind an address (``endpoint``)
come in the same form, and everything else here is built on these two.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.types import Sequences

__all__ = [
    "Ask",
    "Assistant",
    "Generate",
    "Texts",
    "Unanswered",
    "aligned_texts",
    "answers_of",
    "fields",
    "filled",
    "from_sequences",
    "spellings",
    "summary",
]


class Unanswered(NamedTuple):
    """Stands where an answer would, and says why there is none.

    Attributes:
        reason: in words.
    """

    reason: str


# questions, (first choice, second choice) -> for each question the log-odds of the first choice
# against the second in nats, or why there is no answer. A judge that gives no probabilities, only
# its choice, answers with plus or minus infinity.
Ask = Callable[[Sequence[str], tuple[str, str]], list[float | Unanswered]]
# questions -> texts, or why there is none
Generate = Callable[[Sequence[str]], Sequence[str | Unanswered]]


class Assistant(NamedTuple):
    """A language model that others use: the same whether it runs here or behind an address.

    Attributes:
        ask: ``(questions, (choice, choice)) -> log-odds``.
        generate: ``questions -> texts``.
    """

    ask: Ask
    generate: Generate


class Texts(NamedTuple):
    """Answers to prompts, as text: the examples that a judge looks at.

    Attributes:
        prompts: ``B`` strings.
        answers: ``B`` strings, each the answer to its prompt.
    """

    prompts: Sequence[str]
    answers: Sequence[str]


def from_sequences(sequences: Sequences, decode: Callable[[list[int]], str]) -> Texts:
    """Token sequences as the texts that a judge reads.

    Args:
        sequences: ``B`` rows, concrete (not being traced).
        decode: ``list[int] -> str``, which should leave special tokens out.

    Returns:
        ``Texts`` of ``B`` rows.

    >>> mask = np.array([[True, True, True, False]])
    >>> rows = Sequences(np.array([[1, 2, 3, 0]]), mask, mask & (np.arange(4) >= 2))
    >>> from_sequences(rows, lambda ids: " ".join(map(str, ids)))
    Texts(prompts=['1 2'], answers=['3'])
    """
    tokens, mask = np.asarray(sequences.tokens), np.asarray(sequences.mask)
    responses = np.asarray(sequences.response_mask)

    def texts(chosen: np.ndarray) -> list[str]:
        return [decode(row[own].tolist()) for row, own in zip(tokens, chosen, strict=True)]

    return Texts(texts(mask & ~responses), texts(responses))


def aligned_texts(**columns: Sequence[str]) -> None:
    """All are sequences of strings, equally long.

    >>> aligned_texts(prompts=["Why?"], answers=[None])
    Traceback (most recent call last):
    ValueError: answers must be strings: row 0 is None
    """
    for name, column in columns.items():
        if isinstance(column, str):
            raise ValueError(f"{name} must be several strings, not one: {column[:40]!r}")
        wrong = [f"row {row} is {x!r}" for row, x in enumerate(column) if not isinstance(x, str)]
        if wrong:
            raise ValueError(f"{name} must be strings: {summary(wrong)}")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"there must be equally many of each, not {lengths}")


def fields(name: str, template: str, wanted: Sequence[str]) -> list[tuple[str, str | None]]:
    """A template as literal texts, each with the field that follows it (or ``None``).

    Each field must be there once, as it is: without one the judge would not see what it is to
    judge.

    >>> fields("template", "Is {text} good?", ["text"])
    [('Is ', 'text'), (' good?', None)]
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{name} is no template ({error}): write {{{{ for a brace") from None
    parts = [(before, field) for before, field, _, _ in parsed]
    found = [field for _, field in parts if field is not None]
    if formatted := [field for _, field, how, conversion in parsed if how or conversion]:
        raise ValueError(f"{name} must have its fields as they are, without ! and :, {formatted}")
    if sorted(found) != sorted(wanted):
        right = ", ".join(f"{{{field}}}" for field in wanted)
        raise ValueError(f"{name} must have each of {right} once, not {found}")
    return parts


def filled(
    template: Sequence[tuple[str, str | None]], **texts: str
) -> list[tuple[str, str | None]]:
    """A template from ``fields`` with some of its fields filled in.

    >>> filled(fields("template", "{rule} Is {text} good?", ["rule", "text"]), rule="Be kind.")
    [('Be kind. Is ', 'text'), (' good?', None)]
    """
    parts, text = [], ""
    for before, field in template:
        text += before
        if field in texts:
            text += texts[field]
        elif field is not None:
            parts.append((text, field))
            text = ""
    return [*parts, (text, None)]


def spellings(choice: str) -> list[str]:
    """The tokens that mean a choice: with or without a capital, with or without a space before it.

    >>> spellings("yes")
    ['yes', ' yes', 'Yes', ' Yes']
    """
    words = dict.fromkeys([choice, choice[:1].upper() + choice[1:]])
    return [space + word for word in words for space in ("", " ")]


def answers_of(
    ask: Ask, questions: Sequence[str], choices: tuple[str, str]
) -> tuple[np.ndarray, dict[int, str]]:
    """Asks; the log-odds ``float32[B]``, nan where there are none, and the reasons by row.

    >>> answers_of(lambda questions, choices: [0.5, Unanswered("timed out")], "??", ("A", "B"))
    (array([0.5, nan], dtype=float32), {1: 'timed out'})
    """
    rows = ask(questions, choices)
    if len(rows) != len(questions):
        raise ValueError(f"ask gave {len(rows)} answers to {len(questions)} questions")
    reasons = {row: x.reason for row, x in enumerate(rows) if isinstance(x, Unanswered)}
    values = np.array([np.nan if row in reasons else x for row, x in enumerate(rows)], np.float32)
    for row in np.flatnonzero(np.isnan(values)).tolist():
        reasons.setdefault(row, "the log-odds are nan")
    return values, dict(sorted(reasons.items()))


def summary(reasons: Sequence[str] | Mapping[int, str], limit: int = 10) -> str:
    """The first reasons, and how many more there are.

    >>> summary({3: "timed out", 5: "status 500"}, limit=1)
    'row 3: timed out; and 1 more'
    """
    if isinstance(reasons, Mapping):
        reasons = [f"row {row}: {reason}" for row, reason in reasons.items()]
    more = [f"and {len(reasons) - limit} more"] if len(reasons) > limit else []
    return "; ".join([*reasons[:limit], *more])
