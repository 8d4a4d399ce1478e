"""What people said of texts as padded batches of tokens, with any tokenizer."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain, combinations, groupby
from typing import Any, Literal

import jax
import numpy as np

from rlhf_jax import feedback
from rlhf_jax.data.fitting import (
    Answer,
    Encode,
    Tokenised,
    encoder_of,
    numbered,
    reported,
    sequences_of,
)
from rlhf_jax.data.formats import Row
from rlhf_jax.data.templates import Template, plain_template
from rlhf_jax.types import Preferences, Ranked, Rated

__all__ = [
    "tokenise_preferences",
    "tokenise_ranked",
    "tokenise_rated",
    "tokenise_steps",
]


def tokenise_preferences(
    rows: Iterable[Row],
    encode: Encode | Any,
    *,
    max_length: int,
    template: Template | Any = plain_template,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int = 0,
    ties: Literal["drop", "keep", "ignore"] = "drop",
    margins: bool = False,
) -> Tokenised:
    """Preference rows as ``Preferences``: prompt, response, padding.

    A pair that is too long loses the beginning of its prompt, of which at least half of
    ``max_length`` stays, and then the end of the response, ``eos_id`` included. Both sides keep the
    same prompt.

    Args:
        rows: with ``prompt``, ``chosen``, ``rejected`` (``load_feedback``); all of them are held.
        encode: text to tokens, without special tokens, or a tokenizer of ``tokenizers`` or
            ``transformers``: it is called on the prompt and on the response by themselves.
        max_length: the most tokens in a row, those at the ends included.
        template: conversations to text: a function, jinja, or a Hugging Face tokenizer; see
            ``chat_template``. Where others speak in a response, only the assistant's tokens are in
            ``response_mask``, those that a template writes behind them included.
        bos_id: the token to begin with, unless ``template`` writes it.
        eos_id: the token to end responses with, unless ``template`` writes it. Without either a
            model does not learn to stop.
        pad_id: what the padding on the right holds.
        ties: what becomes of tied pairs: ``"drop"``; ``"keep"``, with ``tied`` in the batch, for
            losses that know ties; ``"ignore"``, as if the first were preferred.
        margins: whether the rows' ``margin``, in whatever unit it is, goes into the batch, so that
            the loss asks for it.

    Returns:
        ``Tokenised`` with ``Preferences`` of ``B`` rows, as wide as the longest. Anything cut or
        left out is counted in the report and warned of.

    Raises:
        ValueError: a row has no such columns, a response no tokens, no row is left, or an argument
            is wrong; or a template writes a conversation otherwise once it goes on, or a token that
            ``bos_id`` or ``eos_id`` would write again.

    >>> rows = [{"prompt": "ab", "chosen": "c", "rejected": "de"}]
    >>> batch, index, report = tokenise_preferences(rows, str.encode, max_length=8, eos_id=1)
    >>> batch.chosen.tokens.tolist(), batch.rejected.tokens.tolist()
    ([[97, 98, 99, 1, 0]], [[97, 98, 100, 101, 1]])
    >>> batch.chosen.response_mask.tolist()
    [[False, False, True, True, False]]
    """
    if ties not in ("drop", "keep", "ignore"):
        raise ValueError(f"ties must be 'drop', 'keep' or 'ignore', not {ties!r}")
    encoder = encoder_of(encode, max_length, template, bos_id, eos_id)
    kept, tied, margin, index, counts = [], [], [], [], Counter()
    for number, row in numbered(rows, "preference"):
        counts["rows"] += 1
        if margins and row.get("margin") is None:
            raise ValueError(f"row {number} has no margin: leave out margins=True, or that row")
        level = bool(row.get("tied"))
        if level and ties == "drop":
            counts["tied"] += 1
            continue
        fitted = encoder.fitted(row["prompt"], [row["chosen"], row["rejected"]], f"row {number}")
        if fitted.responses[0].tokens == fitted.responses[1].tokens:
            counts["indistinct"] += 1
            continue
        counts.update(prompts_cut=fitted.prompts_cut, responses_cut=fitted.responses_cut)
        kept.append(fitted)
        tied.append(level)
        margin.append(row.get("margin"))
        index.append(number)
    report = reported(counts, index)
    # Both sides at once, so that they are of one width.
    both = [(each.prompt, each.responses[side]) for side in (0, 1) for each in kept]
    sequences, rows_each = sequences_of(both, pad_id), len(kept)
    chosen = jax.tree.map(lambda array: array[:rows_each], sequences)
    rejected = jax.tree.map(lambda array: array[rows_each:], sequences)
    batch = Preferences(
        chosen,
        rejected,
        tied=np.array(tied) if ties == "keep" else None,
        margin=np.array(margin, np.float32) if margins else None,
    )
    return Tokenised(batch, np.array(index), report)


def tokenise_rated(
    rows: Iterable[Row],
    encode: Encode | Any,
    *,
    max_length: int,
    template: Template | Any = plain_template,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int = 0,
) -> Tokenised:
    """Unpaired and rated rows as ``Rated``: ``bool`` ratings of labels, ``float32`` of ratings.

    Args:
        rows: with ``prompt``, ``completion`` and ``label`` or, all of them, ``rating``.
        encode: see ``tokenise_preferences``, as of the others.
        max_length: the most tokens in a row.
        template: conversations to text.
        bos_id: the token to begin with.
        eos_id: the token to end responses with.
        pad_id: what the padding on the right holds.

    Returns:
        ``Tokenised`` with ``Rated`` of ``B`` rows.

    Raises:
        ValueError: as ``tokenise_preferences``.

    >>> rows = [{"prompt": "ab", "completion": "c", "label": True}]
    >>> batch, _, _ = tokenise_rated(rows, str.encode, max_length=8)
    >>> batch.sequences.tokens.tolist(), batch.ratings.tolist()
    ([[97, 98, 99]], [True])
    """
    encoder = encoder_of(encode, max_length, template, bos_id, eos_id)
    kept, ratings, index, counts, name = [], [], [], Counter(), None
    for number, row in numbered(rows, "unpaired", "rated"):
        counts["rows"] += 1
        name = name or ("label" if "label" in row else "rating")
        if name not in row:
            raise ValueError(f"row {number} has no {name}, which the rows before have")
        fitted = encoder.fitted(row["prompt"], [row["completion"]], f"row {number}")
        counts.update(prompts_cut=fitted.prompts_cut, responses_cut=fitted.responses_cut)
        kept.append((fitted.prompt, fitted.responses[0]))
        ratings.append(row[name])
        index.append(number)
    report = reported(counts, index)
    values = np.array(ratings, bool if name == "label" else np.float32)
    return Tokenised(Rated(sequences_of(kept, pad_id), values), np.array(index), report)


def tokenise_ranked(
    rows: Iterable[Row],
    encode: Encode | Any,
    *,
    max_length: int,
    answers: int | None = None,
    template: Template | Any = plain_template,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int = 0,
    ties: Literal["drop", "ignore"] = "drop",
) -> Tokenised:
    """Rated answers to one prompt, where they stand next to each other, as ``Ranked``.

    Args:
        rows: with ``prompt``, ``completion`` and ``rating``: UltraFeedback's, for instance.
        encode: see ``tokenise_preferences``, as of the others.
        max_length: the most tokens in a row.
        answers: ``N``, how many each prompt must have; as many as most have, if not given.
        template: conversations to text.
        bos_id: the token to begin with.
        eos_id: the token to end responses with.
        pad_id: what the padding on the right holds.
        ties: what becomes of prompts with equal ratings, as a ranking knows no ties: ``"drop"``; or
            ``"ignore"``, as if the first of the equal ones were better.

    Returns:
        ``Tokenised`` with ``Ranked`` of ``B`` prompts, its ``index`` being ``int64[B, N]``. Prompts
        with another number of answers are left out, and counted as ``incomplete``.

    Raises:
        ValueError: as ``tokenise_preferences``; or ``answers`` is below 2.

    >>> rows = [{"prompt": "a", "completion": text, "rating": len(text)} for text in ("b", "cd")]
    >>> batch, index, _ = tokenise_ranked(rows, str.encode, max_length=8)
    >>> batch.sequences.tokens.tolist(), batch.rankings.tolist(), index.tolist()
    ([[[97, 98, 0], [97, 99, 100]]], [[1, 0]], [[0, 1]])
    """
    if ties not in ("drop", "ignore"):
        raise ValueError(f"ties must be 'drop' or 'ignore', not {ties!r}")
    if answers is not None and answers < 2:
        raise ValueError(f"answers must be at least 2, not {answers}")
    encoder = encoder_of(encode, max_length, template, bos_id, eos_id)
    together = groupby(numbered(rows, "rated"), key=lambda each: each[1]["prompt"])
    groups = [(prompt, *zip(*group, strict=True)) for prompt, group in together]
    if answers is None:
        sizes = Counter(len(given) for _, _, given in groups if len(given) > 1)
        answers = max(sizes, key=sizes.get, default=2)
    kept, ratings, index, counts = [], [], [], Counter()
    for prompt, numbers, given in groups:
        counts["rows"] += len(given)
        values = [float(row["rating"]) for row in given]
        if len(given) != answers:
            counts["incomplete"] += 1
            continue
        if ties == "drop" and len(set(values)) < answers:
            counts["tied"] += 1
            continue
        completions = [row["completion"] for row in given]
        fitted = encoder.fitted(prompt, completions, f"row {numbers[0]}")
        if any(one.tokens == two.tokens for one, two in combinations(fitted.responses, 2)):
            counts["indistinct"] += 1
            continue
        counts.update(prompts_cut=fitted.prompts_cut, responses_cut=fitted.responses_cut)
        kept += [(fitted.prompt, response) for response in fitted.responses]
        ratings.append(values)
        index.append(numbers)
    report = reported(counts, index)
    sequences = jax.tree.map(
        lambda array: array.reshape(len(index), answers, -1), sequences_of(kept, pad_id)
    )
    order = np.argsort(-np.array(ratings), axis=1, kind="stable").astype(np.int32)
    return Tokenised(Ranked(sequences, order), np.array(index), report)


def tokenise_steps(
    rows: Iterable[Row],
    encode: Encode | Any,
    *,
    max_length: int,
    separator: str = "\n",
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int = 0,
) -> Tokenised:
    r"""Stepwise rows as ``Sequences`` and, beside them, ``feedback.Steps``.

    Each step is encoded by itself and ends with the separator, on whose last token its mark is. A
    solution that is too long loses its last steps; what is left of one that was cut through has no
    mark.

    Args:
        rows: with ``prompt``, ``completions``, ``labels``, and ``marks`` where there are neutral
            ones, which otherwise are wrong ones.
        encode: see ``tokenise_preferences``, as of the others.
        max_length: the most tokens in a row.
        separator: what stands between the prompt and the first step, and behind every step.
        bos_id: the token to begin with.
        eos_id: the token to end solutions with.
        pad_id: what the padding on the right holds.

    Returns:
        ``Tokenised`` with the pair ``(Sequences, Steps)``: ``S`` is the most steps of a solution.

    Raises:
        ValueError: as ``tokenise_preferences``.

    >>> rows = [{"prompt": "q", "completions": ["a", "bc"], "labels": [True, False]}]
    >>> (sequences, steps), _, _ = tokenise_steps(rows, str.encode, max_length=9)
    >>> bytes(sequences.tokens[0].tolist())
    b'q\na\nbc\n'
    >>> steps.ends.tolist(), steps.marks.tolist()
    ([[3, 6]], [[1.0, 0.0]])
    """
    encoder = encoder_of(encode, max_length, plain_template, bos_id, eos_id)
    kept, ends, marks, index, counts = [], [], [], [], Counter()
    for number, row in numbered(rows, "stepwise"):
        counts["rows"] += 1
        place = f"row {number}"
        steps = [encoder.tokens(step + separator, place) for step in row["completions"]]
        if not all(steps):
            raise ValueError(f"{place}: encode gave no token for a step")
        tokens = list(chain(*steps))
        answer = Answer(tokens, [True] * len(tokens))
        fitted = encoder.fit(row["prompt"] + separator, [answer], place)
        given = row.get("marks")
        given = row["labels"] if given is None else given
        if len(given) != len(steps):
            raise ValueError(f"{place} has {len(steps)} completions and {len(given)} marks")
        end = len(fitted.prompt) - 1 + np.cumsum([len(step) for step in steps])
        end = end[end < len(fitted.prompt) + len(fitted.responses[0].tokens)]
        if not len(end):
            counts["unmarked"] += 1
            continue
        counts.update(prompts_cut=fitted.prompts_cut, responses_cut=fitted.responses_cut)
        kept.append((fitted.prompt, fitted.responses[0]))
        ends.append(end)
        marks.append(given[: len(end)])
        index.append(number)
    report = reported(counts, index)
    shape = [len(kept), max(map(len, ends))]
    columns, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    mask = np.arange(shape[1]) < np.array([len(end) for end in ends])[:, None]
    columns[mask], values[mask] = np.concatenate(ends), np.concatenate(marks)
    steps = feedback.Steps(marks=values, ends=columns, mask=mask)
    return Tokenised((sequences_of(kept, pad_id), steps), np.array(index), report)
