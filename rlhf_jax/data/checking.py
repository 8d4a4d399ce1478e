"""From records to checked rows: recognise the format, convert, compare, report what is malformed.

Faults go along with the rows, each in its place, and are dealt with in the last step, ``checked``.
"""

import difflib
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rlhf_jax.data.files import Fault, Record
from rlhf_jax.data.formats import COLUMNS, EXTRAS, TRL, Format, Kind, Row, get
from rlhf_jax.data.published import PUBLISHED

__all__ = [
    "FORMATS",
    "FeedbackError",
    "LoadReport",
    "Place",
    "Placed",
    "Problem",
    "alike",
    "checked",
    "converted",
    "paired",
    "peeked",
    "recognise",
]

FORMATS: dict[str, Format] = {**PUBLISHED, **TRL}

_LISTED = 10  # problems in an error message
_KEPT = 10_000  # problems in a report; more are only counted
_AHEAD = 1000  # records looked at for further problems when a stream stops
_PEEK = 20  # records by which a format is recognised


class Place(NamedTuple):
    """Where a record stands; see ``Problem``."""

    file: str
    row: int | None


Placed = Iterator[tuple[Place, Row | Fault]]


@dataclass(frozen=True)
class Problem:
    """Why something was not loaded.

    Attributes:
        file: the file, or the name and split of a set from the hub.
        row: the line of jsonl, or the record of other files (csv: the header does not count), from
            1 on; ``None`` for the file as a whole.
        reason: what is wrong with it.
    """

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.row is None else f', row {self.row}'}: {self.reason}"


class FeedbackError(ValueError):
    """Feedback is malformed; the message lists the first ten problems.

    Attributes:
        problems: those that were found before the reading stopped, ten at most.
    """

    def __init__(self, problems: Sequence[Problem], advice: str):
        lines = "".join(f"\n  {problem}" for problem in problems)
        more = "the first " if len(problems) == _LISTED else ""
        super().__init__(f"{more}{len(problems)} problem(s):{lines}\n{advice}")
        self.problems = tuple(problems)


@dataclass
class LoadReport:
    """What became of everything that was read; of a stream, of what has been read so far.

    Attributes:
        format: the format's name.
        files: what was read, in this order.
        ignored_files: what else lay in the folder.
        unused_columns: columns that the rows were not made from, and that were not to be kept.
        records: how many were read.
        rows: how many rows came of them.
        skipped: how many problems there were.
        problems: the first 10,000 of them.
    """

    format: str
    files: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    records: int = 0
    rows: int = 0
    skipped: int = 0
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = Counter(re.sub(r"'.*'|\d+", "…", problem.reason) for problem in self.problems)
        commonest = "".join(f"\n  {count} x {kind}" for kind, count in kinds.most_common(_LISTED))
        first = f"; the first: {self.problems[0]}" if self.problems else ""
        head = f"{self.records} records ({self.format}), {self.rows} rows, {self.skipped} problems"
        return head + first + commonest


def peeked(records: Placed) -> list[tuple[Place, Record | Fault]]:
    """Enough from the beginning to recognise the format by."""
    taken, readable = [], 0
    for place, record in itertools.islice(records, _KEPT):
        taken.append((place, record))
        readable += isinstance(record, dict)
        if readable == _PEEK:
            break
    return taken


def recognise(first: Sequence[tuple[Place, Record | Fault]]) -> str:
    """The name of the format that most of the first records have.

    Raises:
        FeedbackError: none of them could be read.
        ValueError: there are none, or none is in a known format.
    """
    records = [record for _, record in first if isinstance(record, dict)]
    if not records:
        problems = [Problem(*place, str(fault)) for place, fault in first[:_LISTED]]
        if not problems:
            raise ValueError("there are no records, so no format can be recognised")
        raise FeedbackError(problems, "no record could be read, so no format can be recognised")

    def fits(record: Record, each: Format) -> bool:
        rest = set(record) - set(each.needs)
        if len(record) - len(rest) < len(each.needs):
            return False
        return each.seems(record) and not (each.exact and rest - set(EXTRAS[each.kind]))

    fitting = Counter(
        next((name for name, each in FORMATS.items() if fits(record, each)), None)
        for record in records
    )
    if not any(fitting):
        columns = [str(name) for name in records[0]]
        expected = sorted({name for each in FORMATS.values() for name in each.needs})
        close = (
            (column, difflib.get_close_matches(column, expected, n=1, cutoff=0.75))
            for column in columns
            if column not in expected
        )
        hints = "".join(
            f"\n'{column}' is close to '{match[0]}'." for column, match in close if match
        )
        needs = "".join(f"\n  {name}: {', '.join(each.needs)}" for name, each in FORMATS.items())
        raise ValueError(
            f"{first[0][0].file} is in no known format. Its columns: {', '.join(columns)}.{hints}\n"
            f"Columns that each format needs:{needs}\n"
            "Say which it is with format=..., or rename={'theirs': 'expected'}. Without format, "
            "those that are part of another are only recognised without any further columns."
        )
    return next(name for name, _ in fitting.most_common() if name)


def converted(
    records: Iterable[tuple[Place, Record | Fault]],
    chosen: Format,
    attribute: str | None,
    keep: Sequence[str],
    report: LoadReport,
) -> Placed:
    """Each record's rows, which may be none or several, with the columns to keep."""
    used = {*chosen.needs, *chosen.reads, *EXTRAS[chosen.kind], *keep}
    for place, record in records:
        if isinstance(record, Fault):
            yield place, record
            continue
        report.records += 1
        unused = [name for name in record if name not in used]
        used.update(unused)
        report.unused_columns += tuple(map(str, unused))
        try:
            kept = {name: get(record, name) for name in keep}
            for row in chosen.convert(record, attribute):
                yield place, row if isinstance(row, Fault) else row | kept
        except Fault as fault:
            yield place, fault


def paired(rows: Placed) -> Placed:
    """Rated answers to one prompt that stand next to each other, each compared with each."""
    group: list[tuple[Place, Row]] = []
    for place, row in rows:
        if isinstance(row, Fault):
            yield place, row
            continue
        if group and row["prompt"] != group[0][1]["prompt"]:
            yield from _compared(group)
            group = []
        group.append((place, row))
    yield from _compared(group)


def _compared(group: list[tuple[Place, Row]]) -> Placed:
    if len(group) == 1:
        yield group[0][0], Fault("the only rated answer to its prompt here: nothing to compare")
    for (_, one), (place, other) in itertools.combinations(group, 2):
        better, worse = (other, one) if other["rating"] > one["rating"] else (one, other)
        if better["completion"] == worse["completion"]:
            yield place, Fault("chosen and rejected are equal")
            continue
        further = {name: value for name, value in better.items() if name not in COLUMNS["rated"]}
        if better.get("rater") != worse.get("rater"):
            further.pop("rater", None)  # Nobody compared these two.
        yield (
            place,
            {
                "prompt": better["prompt"],
                "chosen": better["completion"],
                "rejected": worse["completion"],
                "margin": better["rating"] - worse["rating"],
                "tied": better["rating"] == worse["rating"],
            }
            | further,
        )


def alike(rows: Placed, kind: Kind) -> Placed:
    """All texts or all conversations, as the first: a column has one type."""
    leading, expected = COLUMNS[kind][0], None
    for place, row in rows:
        if isinstance(row, Fault):
            yield place, row
            continue
        found = type(row[leading])
        expected = expected or found
        if found is not expected:
            words = {str: "a text", list: "a conversation"}
            row = Fault(
                f"{leading} is {words[found]}, and was {words[expected]} in the rows before"
            )
        yield place, row


def checked(
    rows: Placed, on_error: Literal["raise", "skip"], report: LoadReport, *, streaming: bool
) -> Iterator[Row]:
    """The rows alone; of the faults a report, and an error or a warning."""
    for place, row in rows:
        if not isinstance(row, Fault):
            report.rows += 1
            yield row
            continue
        report.skipped += 1
        problem = Problem(*place, str(row))
        if len(report.problems) < _KEPT:
            report.problems.append(problem)
        if on_error == "raise":
            ahead = itertools.islice(rows, _AHEAD if streaming else None)
            further = (Problem(*place, str(row)) for place, row in ahead if isinstance(row, Fault))
            problems = [problem, *itertools.islice(further, _LISTED - 1)]
            raise FeedbackError(problems, "on_error='skip' leaves such rows out and counts them.")
    if not report.rows:
        if not report.problems:
            raise ValueError(f"there are no rows in {', '.join(report.files)}")
        raise FeedbackError(report.problems[:_LISTED], "no row is left")
    if report.skipped:
        # In the caller's name: of a stream that is the loop, else the caller of load_feedback.
        warnings.warn(f"malformed rows are left out: {report}", stacklevel=2 if streaming else 3)
