"""Prompts and responses as tokens that fit into a length; what had to be cut is counted."""

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.formats import COLUMNS, Kind, Messages, Row
from rlhf_jax.data.templates import Part, Template, as_template, parts
from rlhf_jax.types import Sequences

__all__ = [
    "Answer",
    "CutReport",
    "Encode",
    "Encoder",
    "Fitted",
    "Tokenised",
    "encoder_of",
    "numbered",
    "padded",
    "reported",
    "sequences_of",
]

# text -> tokens, without special tokens: those at the ends are put there here.
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class CutReport:
    """What did not fit, counted in rows.

    Attributes:
        rows: how many were given.
        prompts_cut: how many prompts lost their beginning.
        responses_cut: in how many a response lost its end.
        tied: pairs left out because they were tied.
        indistinct: pairs and rankings left out because, as tokens and cut, two sides are the same.
        unmarked: rows left out because there is nothing to learn in them: no message by the
            assistant, or no marked step that was not cut.
        incomplete: rankings left out because of the number of their answers.
    """

    rows: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    tied: int = 0
    indistinct: int = 0
    unmarked: int = 0
    incomplete: int = 0


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


class Answer(NamedTuple):
    """A response as tokens, of each of which it is said whether the assistant wrote it."""

    tokens: list[int]
    written: list[bool]


class Fitted(NamedTuple):
    """A prompt and its responses as tokens that fit, and which of them had to be cut for that."""

    prompt: list[int]
    responses: list[Answer]
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

    def texts(
        self, prompt: str | Messages, responses: Sequence[str | Messages], place: str
    ) -> tuple[str, list[list[Part]]]:
        """Conversations as text; what is text already as it is."""
        if isinstance(prompt, str):
            return prompt, [[(response, True)] for response in responses]
        split = [parts(self.template, prompt, response, place) for response in responses or [[]]]
        return split[0][0], [answer for _, answer in split] if responses else []

    def answer(self, said: list[Part], place: str) -> Answer:
        """A response as tokens: each part by itself, as the prompt when a model is asked."""
        encoded = [(self.tokens(text, place), by) for text, by in said]
        tokens = [token for part, _ in encoded for token in part]
        return Answer(tokens, [by for part, by in encoded for _ in part])

    def fitted(
        self, prompt: str | Messages, responses: Sequence[str | Messages], place: str
    ) -> Fitted:
        """All responses with the same prompt: cut differently, they would answer different ones."""
        opened, texts = self.texts(prompt, responses, place)
        return self.fit(opened, [self.answer(said, place) for said in texts], place)

    def fit(self, prompt: str, responses: list[Answer], place: str) -> Fitted:
        """The same with responses that are tokens already."""
        if not all(any(response.written) for response in responses):
            raise ValueError(f"{place}: encode gave no token for a response")
        before = [] if self.bos_id is None else [self.bos_id]
        asked = self.tokens(prompt, place)
        if before and asked[:1] == before:
            raise ValueError(
                f"{place} begins with the token {self.bos_id} already: leave bos_id out if the "
                "template writes it, and let encode add no special tokens"
            )
        if self.eos_id is not None:
            responses = [self._ended(response, place) for response in responses]
        longest = max((len(response.tokens) for response in responses), default=0)
        room = max(self.max_length - longest, self.max_length // 2) - len(before)
        start = max(len(asked) - room, 0)
        asked = before + asked[start:]
        left = self.max_length - len(asked)
        cut = [Answer(tokens[:left], written[:left]) for tokens, written in responses]
        return Fitted(asked, cut, start > 0, longest > left)

    def _ended(self, response: Answer, place: str) -> Answer:
        # A template may have written a line break behind it.
        if self.eos_id in response.tokens[-2:]:
            raise ValueError(
                f"{place} ends with the token {self.eos_id} already: leave eos_id out if the "
                "template writes it, and let encode add no special tokens"
            )
        # Who spoke last ended.
        return Answer([*response.tokens, self.eos_id], [*response.written, response.written[-1]])


def encoder_of(
    encode: Any, max_length: int, template: Any, bos_id: int | None, eos_id: int | None
) -> Encoder:
    """An ``Encoder``, if the arguments allow one."""
    if operator.index(max_length) < 4:
        raise ValueError(f"max_length must be at least 4, not {max_length}")
    if not callable(encode) and not hasattr(encode, "encode"):
        kind = type(encode).__name__
        raise ValueError(f"encode must be a function or a tokenizer, not {kind}")
    return Encoder(_encode_of(encode), max_length, as_template(template), bos_id, eos_id)


def _encode_of(tokenizer: Any) -> Encode:
    """A tokenizer's, of ``tokenizers`` or of ``transformers``; a function as it is."""
    if not hasattr(tokenizer, "encode"):
        return tokenizer

    def encode(text: str) -> Sequence[int]:
        found = tokenizer.encode(text, add_special_tokens=False)
        return getattr(found, "ids", found)

    return encode


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


def sequences_of(rows: Iterable[tuple[list[int], Answer]], pad_id: int) -> Sequences:
    """Prompts with their responses."""
    rows = list(rows)
    tokens, mask = padded([prompt + answer.tokens for prompt, answer in rows], pad_id)
    written = np.zeros(tokens.shape, bool)
    for number, (prompt, answer) in enumerate(rows):
        written[number, len(prompt) : len(prompt) + len(answer.written)] = answer.written
    return Sequences(tokens, mask, written)


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
