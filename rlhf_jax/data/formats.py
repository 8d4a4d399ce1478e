"""Rows of text: one form for each kind of feedback, and TRL's formats, which are close to it.

A row is a plain ``dict`` with TRL's standard columns for its kind (``COLUMNS``) and, where the
source has them, ours (``EXTRAS``). A text is a ``str``, a conversation a list of ``{"role",
"content"}``. Nothing is taken on trust: what is wrong with a record is raised as a ``Fault``.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhf_jax.data.files import Fault, Record

__all__ = [
    "COLUMNS",
    "EXTRAS",
    "ROLES",
    "TRL",
    "Format",
    "Kind",
    "Messages",
    "Row",
    "answered",
    "boolean",
    "described",
    "different",
    "extras",
    "get",
    "items",
    "number",
    "preference",
    "said",
    "text",
]

Row = dict[str, Any]
Messages = list[dict[str, str]]
Kind = Literal[
    "preference",
    "unpaired",
    "rated",
    "stepwise",
    "prompt_only",
    "prompt_completion",
    "text",
    "messages",
]

# The columns that every row of a kind has.
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "rated": ("prompt", "completion", "rating"),
    "stepwise": ("prompt", "completions", "labels"),
    "prompt_only": ("prompt",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "messages": ("messages",),
}
# Those it has if the source says so. margin: rating of the chosen less that of the rejected, or how
# strong the preference is, in the source's unit (TRL's name). tied: the two were called equal, and
# which stands first means nothing. marks: 1 for a right step, 0 for a wrong one, 0.5 for neither,
# where labels know only two.
EXTRAS: dict[Kind, tuple[str, ...]] = {
    **dict.fromkeys(COLUMNS, ("rater", "source")),
    "preference": ("margin", "tied", "rater", "source"),
    "stepwise": ("marks", "rater", "source"),
}


class Format(NamedTuple):
    """What one format looks like and how its records become rows.

    Attributes:
        kind: of its rows.
        needs: the columns that make it out.
        convert: ``(record, attribute) -> rows and faults``; a fault that is raised ends the record.
        exact: whether it is only recognised if there is no column but those and our extras: without
            them, another format with one column misnamed would be taken for it.
        reads: the columns that are made use of where they are there.
        seems: what else the record must fulfil to be recognised.
    """

    kind: Kind
    needs: tuple[str, ...]
    convert: Callable[[Record, str | None], Iterator[Row | Fault]]
    exact: bool = False
    reads: tuple[str, ...] = ()
    seems: Callable[[Record], bool] = lambda record: True


def get(record: Any, name: str, where: str = "") -> Any:
    """``record[name]``; ``where`` is the path to the record, for the message."""
    if not isinstance(record, dict):
        raise Fault(f"{where.rstrip('.')} is {described(record)}, not a mapping")
    if name not in record:
        raise Fault(f"column {where}{name} is missing; there are {', '.join(map(str, record))}")
    value = record[name]
    return value.item() if isinstance(value, np.generic) else value


def described(value: Any) -> str:
    """A wrong value's type and beginning."""
    return "missing (null)" if value is None else f"{type(value).__name__} ({str(value)[:40]!r})"


def text(value: Any, name: str) -> str:
    """A text that says something. ``name``, here and below: what the file calls the value."""
    if not isinstance(value, str):
        raise Fault(f"{name} is {described(value)}, not text")
    if not value.strip():
        raise Fault(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Fault(f"{name} is not valid Unicode: it has half a surrogate pair") from None
    return value


# Who speaks in a conversation. A template would leave out a misspelt one, or write it as it is.
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def said(value: Any, name: str) -> str | Messages:
    """A text, or a conversation reduced to who said what."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, str) or not isinstance(value, list):
        return text(value, name)
    if not value:
        raise Fault(f"{name} is empty: no message")
    messages = []
    for index, message in enumerate(value):
        where = f"{name}[{index}]."
        role = text(get(message, "role", where), f"{where}role")
        if role not in ROLES:
            raise Fault(f"{where}role is {role!r}: an unknown role, none of {', '.join(ROLES)}")
        content = text(get(message, "content", where), f"{where}content")
        messages.append({"role": role, "content": content})
    return messages


def answered(value: str | Messages, name: str) -> str | Messages:
    """An answer: of a conversation it begins with what the assistant says."""
    if isinstance(value, list) and value[0]["role"] != "assistant":
        raise Fault(f"{name} begins with the {value[0]['role']}, not with the assistant's answer")
    return value


def number(value: Any, name: str) -> float:
    """A finite number, or a text that spells one, as in csv and in UltraFeedback."""
    try:
        if isinstance(value, bool) or value is None:
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Fault(f"{name} is {described(value)}, not a number") from None
    if not np.isfinite(found):
        raise Fault(f"{name} is {found}, not a finite number")
    return found


def boolean(value: Any, name: str) -> bool:
    """True or false, also as 1 or 0 or spelt out."""
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    label = known.get(str(value).strip().lower())
    if label is None:
        raise Fault(f"{name} is {described(value)}: an unknown label, neither true nor false")
    return label


def items(value: Any, name: str) -> list:
    """A list that is not empty."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list):
        raise Fault(f"{name} is {described(value)}, not a list")
    if not value:
        raise Fault(f"{name} is empty")
    return value


def extras(record: Record, **names: str) -> Row:
    """Our own columns, each from the one named or the one of its own name; absent if null."""
    row = {}
    for ours in ("margin", "tied", "marks", "rater", "source"):
        name = names.get(ours, ours)
        value = record.get(name)
        # pandas writes a missing name as nan; of a number that would be a fault.
        if value is None or (ours in ("rater", "source") and value != value):
            continue
        if ours == "margin":
            row[ours] = number(value, name)
        elif ours == "tied":
            row[ours] = boolean(value, name)
        elif ours == "marks":
            row[ours] = [number(each, name) for each in items(value, name)]
        else:
            row[ours] = _called(value, name)
    return row


def _called(value: Any, name: str) -> str:
    """A name, which may be a number. Where some are missing, pandas writes 3 as 3.0."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Fault(f"{name} is {described(value)}, not a name")
    whole = isinstance(value, float) and value.is_integer()
    return text(str(int(value) if whole else value), name)


def different(row: Row) -> Row:
    """The row, if its sides differ."""
    if row["chosen"] == row["rejected"]:
        raise Fault("chosen and rejected are equal")
    return row


def preference(record: Record, _: str | None = None) -> Iterator[Row]:
    """TRL's preference with an explicit prompt."""
    prompt, chosen, rejected = (
        said(get(record, name), name) for name in ("prompt", "chosen", "rejected")
    )
    kinds = [isinstance(each, str) for each in (prompt, chosen, rejected)]
    if kinds == [True, False, False]:
        # As HuggingFaceH4 writes it: the prompt is a text, and is said again in both conversations.
        asked, chosen, rejected = _split(chosen, rejected)
        if not asked or asked[-1]["content"].strip() != prompt.strip():
            raise Fault("chosen and rejected do not both begin with the prompt")
        prompt = asked
    elif len(set(kinds)) > 1:
        raise Fault("prompt, chosen and rejected must all be texts or all be conversations")
    elif isinstance(prompt, list):
        repeated = all(side[: len(prompt)] == prompt for side in (chosen, rejected))
        if repeated and min(len(chosen), len(rejected)) > len(prompt):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    sides = {"chosen": answered(chosen, "chosen"), "rejected": answered(rejected, "rejected")}
    yield different({"prompt": prompt} | sides) | extras(record)


def _split(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The common beginning and the two rests, of which neither is empty."""
    most = min(len(chosen), len(rejected)) - 1
    common = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if isinstance(chosen, str):
        # Between words: cut inside one, the rests would be odd tokens.
        while common and not (chosen[common].isspace() and rejected[common].isspace()):
            common -= 1
    return chosen[:common], chosen[common:], rejected[common:]


def _implicit(record: Record, _: str | None) -> Iterator[Row]:
    sides = [said(get(record, name), name) for name in ("chosen", "rejected")]
    if isinstance(sides[0], str) != isinstance(sides[1], str):
        raise Fault("chosen and rejected must both be texts or both be conversations")
    different({"chosen": sides[0], "rejected": sides[1]})
    prompt, chosen, rejected = _split(*sides)
    if isinstance(chosen, str):
        text(chosen, "chosen after the common beginning")
        text(rejected, "rejected after the common beginning")
    elif not prompt:
        raise Fault("chosen and rejected have no first message in common that would be the prompt")
    sides = {
        name: answered(side, f"{name} after the common beginning")
        for name, side in (("chosen", chosen), ("rejected", rejected))
    }
    yield {"prompt": prompt} | sides | extras(record)


def _answer(record: Record, _: str | None) -> Iterator[Row]:
    row = {name: said(get(record, name), name) for name in ("prompt", "completion")}
    if isinstance(row["prompt"], str) != isinstance(row["completion"], str):
        raise Fault("prompt and completion must both be texts or both be conversations")
    answered(row["completion"], "completion")
    yield row | extras(record)


def _unpaired(record: Record, _: str | None) -> Iterator[Row]:
    for row in _answer(record, None):
        yield row | {"label": boolean(get(record, "label"), "label")}


def _rated(record: Record, _: str | None) -> Iterator[Row]:
    for row in _answer(record, None):
        yield row | {"rating": number(get(record, "rating"), "rating")}


def _stepwise(record: Record, _: str | None) -> Iterator[Row]:
    steps = items(get(record, "completions"), "completions")
    labels = items(get(record, "labels"), "labels")
    marks = record.get("marks")
    for name, found in (("labels", labels), ("marks", labels if marks is None else marks)):
        if len(found) != len(steps):
            raise Fault(f"there are {len(steps)} completions and {len(found)} {name}")
    yield {
        "prompt": text(get(record, "prompt"), "prompt"),
        "completions": [text(step, f"completions[{i}]") for i, step in enumerate(steps)],
        "labels": [boolean(label, f"labels[{i}]") for i, label in enumerate(labels)],
    } | extras(record)


def _prompt_only(record: Record, _: str | None) -> Iterator[Row]:
    yield {"prompt": said(get(record, "prompt"), "prompt")} | extras(record)


def _plain(record: Record, _: str | None) -> Iterator[Row]:
    yield {"text": text(get(record, "text"), "text")} | extras(record)


def _messages(record: Record, _: str | None) -> Iterator[Row]:
    messages = items(get(record, "messages"), "messages")
    yield {"messages": said(messages, "messages")} | extras(record)


# The first that fits is taken, so what needs more stands before what needs less. "rated" is ours.
TRL: dict[str, Format] = {
    "stepwise": Format("stepwise", COLUMNS["stepwise"], _stepwise),
    "unpaired": Format("unpaired", COLUMNS["unpaired"], _unpaired),
    "rated": Format("rated", COLUMNS["rated"], _rated),
    "preference": Format("preference", COLUMNS["preference"], preference),
    "preference_implicit": Format("preference", ("chosen", "rejected"), _implicit, exact=True),
    "prompt_completion": Format(
        "prompt_completion", COLUMNS["prompt_completion"], _answer, exact=True
    ),
    "prompt_only": Format("prompt_only", COLUMNS["prompt_only"], _prompt_only, exact=True),
    "text": Format("text", COLUMNS["text"], _plain, exact=True),
    "messages": Format("messages", COLUMNS["messages"], _messages, exact=True),
}
