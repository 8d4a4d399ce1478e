"""Prompts and responses as tokens that fit into a length; what had to be cut is counted."""

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.formats import COLUMNS, Kind, Messages, Row
from rlhf_jax.types import Sequences

__all__ = [
    "CutReport",
    "Encode",
    "Encoder",
    "Fitted",
    "Template",
    "Tokenised",
    "encoder_of",
    "numbered",
    "padded",
    "plain_template",
    "reported",
    "sequences_of",
]

# text -> tokens, without special tokens: those at the ends are put there here.
Encode = Callable[[str], Sequence[int]]
# messages, whether the beginning of an answer is to follow -> text
Template = Callable[[Messages, bool], str]


@dataclass(frozen=True)
class CutReport:
    """What did not fit, counted in rows.

    Attributes:
        rows: how many were given.
        prompts_cut: how many prompts lost their beginning.
        responses_cut: in how many a response lost its end.
        tied: pairs left out because they were tied.
        indistinct: pairs left out because, as tokens and cut, their sides are the same.
        unmarked: solutions left out because the cut left no marked step.
    """

    rows: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    tied: int = 0
    indistinct: int = 0
    unmarked: int = 0


class Tokenised(NamedTuple):
    """Rows as arrays.

    Attributes:
        batch: a pytree of NumPy arrays; its leading axis are the rows that were kept.
        index: ``int64[B]``, the number of each, from 0 on, among the rows given: by it the raters,
            say, are put beside the batch.
        report: what was cut and left out.
    """

    batch: Any
    index: np.ndarray
    report: CutReport


def plain_template(messages: Messages, begin_answer: bool) -> str:
    r"""Who said what, in plain words: for models that were taught no template of their own.

    >>> plain_template([{"role": "user", "content": "Hello"}], True)
    'User: Hello\n\nAssistant:'
    """
    said = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*said, "Assistant:"] if begin_answer else said)


class Fitted(NamedTuple):
    """A prompt and its responses as tokens that fit, and which of them had to be cut for that."""

    prompt: list[int]
    responses: list[list[int]]
    prompts_cut: bool
    responses_cut: bool


class Encoder(NamedTuple):
    """How every row of a call is encoded and fitted; what it takes is in ``tokenise_preferences``.

    ``place`` says which row it is, for messages.
    """

    encode: Encode
    max_length: int
    template: Template
    bos_id: int | None
    eos_id: int | None

    def tokens(self, text: str, place: str) -> list[int]:
        """One text as tokens."""
        tokens = [int(token) for token in self.encode(text)]
        if any(token < 0 for token in tokens):
            raise ValueError(f"{place}: encode gave a negative token")
        return tokens

    def texts(self, prompt: str | Messages, responses: list, place: str) -> tuple[str, list[str]]:
        """Conversations as text; what is text already as it is."""
        if isinstance(prompt, str):
            return prompt, responses
        opened = self.template(prompt, True)
        whole = [self.template(prompt + response, False) for response in responses]
        if not all(text.startswith(opened) for text in whole):
            raise ValueError(
                f"{place}: template(prompt, True) is not how template(prompt + answer, False) "
                f"begins, so nobody can tell where the answer starts; the prompt is {opened!r}"
            )
        return opened, [text[len(opened) :] for text in whole]

    def fitted(self, prompt: str | Messages, responses: list, place: str) -> Fitted:
        """All responses with the same prompt: cut differently, they would answer different ones."""
        opened, texts = self.texts(prompt, responses, place)
        return self.fit(opened, [self.tokens(text, place) for text in texts], place)

    def fit(self, prompt: str, responses: list[list[int]], place: str) -> Fitted:
        """The same with responses that are tokens already."""
        if not all(responses):
            raise ValueError(f"{place}: encode gave no token for a response")
        before = [] if self.bos_id is None else [self.bos_id]
        after = [] if self.eos_id is None else [self.eos_id]
        responses = [response + after for response in responses]
        asked = self.tokens(prompt, place)
        longest = max(map(len, responses), default=0)
        room = max(self.max_length - longest, self.max_length // 2) - len(before)
        start = max(len(asked) - room, 0)
        asked = before + asked[start:]
        left = self.max_length - len(asked)
        return Fitted(asked, [each[:left] for each in responses], start > 0, longest > left)


def encoder_of(
    encode: Encode, max_length: int, template: Template, bos_id: int | None, eos_id: int | None
) -> Encoder:
    """An ``Encoder``, if the arguments allow one."""
    if operator.index(max_length) < 4:
        raise ValueError(f"max_length must be at least 4, not {max_length}")
    return Encoder(encode, max_length, template, bos_id, eos_id)


def numbered(rows: Iterable[Row], *kinds: Kind) -> Iterator[tuple[int, Row]]:
    """The rows with their numbers, each checked to be of one of the kinds."""
    if isinstance(rows, Mapping | str):
        raise ValueError(f"rows must be several rows, not one {type(rows).__name__}")
    for number, row in enumerate(rows):
        if not any(set(COLUMNS[kind]) <= set(row) for kind in kinds):
            needs = " or ".join(", ".join(COLUMNS[kind]) for kind in kinds)
            advice = "; pairs=True makes pairs of ratings" if "rating" in row else ""
            raise ValueError(f"row {number} has {', '.join(row)}, not {needs}{advice}")
        yield number, row


def padded(
    rows: list[list[int]], pad_id: int, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens as one array, and its mask."""
    width = max(map(len, rows))
    tokens = np.full([len(rows), width], pad_id, np.int32)
    mask = np.zeros([len(rows), width], bool)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(len(row))
        tokens[number, columns], mask[number, columns] = row, True
    return tokens, mask


def sequences_of(rows: list[tuple[list[int], list[int]]], pad_id: int) -> Sequences:
    """Prompts with their responses."""
    tokens, mask = padded([prompt + response for prompt, response in rows], pad_id)
    start = np.array([len(prompt) for prompt, _ in rows])
    return Sequences(tokens, mask, mask & (np.arange(tokens.shape[1]) >= start[:, None]))


def reported(counts: Counter, index: list[int]) -> CutReport:
    """The report; an error if nothing is left, a warning if something is missing."""
    report = CutReport(**counts)
    told = ", ".join(f"{name} {counts[name]}" for name in counts if name != "rows" and counts[name])
    if not index:
        raise ValueError(f"no row is left of {report.rows} ({told or 'there were none'})")
    if told:
        # The caller's line: this function, then the tokenise_* that was called.
        warnings.warn(f"of {report.rows} rows: {told}", stacklevel=3)
    return report
