"""Rows of text as padded batches of tokens, with any tokenizer."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Literal

import jax
import numpy as np

from rlhf_jax import feedback
from rlhf_jax.data.fitting import (
    Encode,
    Template,
    Tokenised,
    encoder_of,
    numbered,
    padded,
    plain_template,
    reported,
    sequences_of,
)
from rlhf_jax.data.formats import Row
from rlhf_jax.types import Preferences, Prompts, Rated

__all__ = ["tokenise_preferences", "tokenise_prompts", "tokenise_rated", "tokenise_steps"]


def tokenise_preferences(
    rows: Iterable[Row],
    encode: Encode,
    *,
    max_length: int,
    template: Template = plain_template,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int = 0,
    ties: Literal["drop", "keep", "ignore"] = "drop",
) -> Tokenised:
    """Preference rows as ``Preferences``: prompt, response, padding.

    A pair that is too long loses the beginning of its prompt, of which at least half of
    ``max_length`` stays, and then the end of the response, ``eos_id`` included. Both sides keep the
    same prompt.

    Args:
        rows: with ``prompt``, ``chosen``, ``rejected`` (``load_feedback``); all of them are held.
        encode: text to tokens, without special tokens: it is called on the prompt and on the
            response by themselves.
        max_length: the most tokens in a row, those at the ends included.
        template: conversations to text. Of a Hugging Face tokenizer: ``lambda messages, begin:
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)``.
        bos_id: the token to begin with, unless ``template`` writes it.
        eos_id: the token to end responses with, unless ``template`` writes it. Without either a
            model does not learn to stop.
        pad_id: what the padding on the right holds.
        ties: what becomes of tied pairs: ``"drop"``; ``"keep"``, with ``tied`` in the batch, for
            losses that know ties; ``"ignore"``, as if the first were preferred.

    Returns:
        ``Tokenised`` with ``Preferences`` of ``B`` rows, as wide as the longest. Anything cut or
        left out is counted in the report and warned of.

    Raises:
        ValueError: a row has no such columns, a response no tokens, no row is left, or an argument
            is wrong. ``encode`` is not checked to be free of special tokens.

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
    kept, tied, index, counts = [], [], [], Counter()
    for number, row in numbered(rows, "preference"):
        counts["rows"] += 1
        level = bool(row.get("tied"))
        if level and ties == "drop":
            counts["tied"] += 1
            continue
        fitted = encoder.fitted(row["prompt"], [row["chosen"], row["rejected"]], f"row {number}")
        if fitted.responses[0] == fitted.responses[1]:
            counts["indistinct"] += 1
            continue
        counts.update(prompts_cut=fitted.prompts_cut, responses_cut=fitted.responses_cut)
        kept.append(fitted)
        tied.append(level)
        index.append(number)
    report = reported(counts, index)
    # Both sides at once, so that they are of one width.
    both = [(each.prompt, each.responses[side]) for side in (0, 1) for each in kept]
    sequences, rows_each = sequences_of(both, pad_id), len(kept)
    chosen = jax.tree.map(lambda array: array[:rows_each], sequences)
    rejected = jax.tree.map(lambda array: array[rows_each:], sequences)
    batch = Preferences(chosen, rejected, np.array(tied) if ties == "keep" else None)
    return Tokenised(batch, np.array(index), report)


def tokenise_rated(
    rows: Iterable[Row],
    encode: Encode,
    *,
    max_length: int,
    template: Template = plain_template,
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


def tokenise_steps(
    rows: Iterable[Row],
    encode: Encode,
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
        fitted = encoder.fit(row["prompt"] + separator, [list(chain(*steps))], place)
        given = row.get("marks")
        given = row["labels"] if given is None else given
        if len(given) != len(steps):
            raise ValueError(f"{place} has {len(steps)} completions and {len(given)} marks")
        end = len(fitted.prompt) - 1 + np.cumsum([len(step) for step in steps])
        end = end[end < len(fitted.prompt) + len(fitted.responses[0])]
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


def tokenise_prompts(
    rows: Iterable[Row],
    encode: Encode,
    *,
    max_length: int,
    template: Template = plain_template,
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
