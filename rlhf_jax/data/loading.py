"""Feedback from files and from the hub as checked rows of one form, and back to files."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf_jax.data.checking import (
    FORMATS,
    LoadReport,
    Place,
    Placed,
    alike,
    checked,
    converted,
    paired,
    peeked,
    recognise,
)
from rlhf_jax.data.files import SUFFIXES, Fault, Record, read_records, suffix, write_records
from rlhf_jax.data.formats import COLUMNS, EXTRAS, TRL, Kind, Row

if TYPE_CHECKING:
    import datasets

__all__ = ["Loaded", "load_feedback", "save_feedback"]

_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")


@dataclass(frozen=True)
class Loaded:
    """Checked rows of feedback.

    Attributes:
        kind: which columns the rows have; see ``data.formats.COLUMNS``.
        rows: a ``datasets.Dataset``, or of a stream an iterator, which can be walked once.
        report: what was read and what was not.
    """

    kind: Kind
    rows: "datasets.Dataset | Iterator[Row]"
    report: LoadReport

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def load_feedback(
    path_or_hub_name: str | os.PathLike[str],
    *,
    format: str | None = None,
    split: str = "train",
    streaming: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    pairs: bool = False,
    attribute: str | None = None,
    keep: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    config: str | None = None,
    data_dir: str | None = None,
    revision: str | None = None,
) -> Loaded:
    """Feedback as rows with TRL's standard columns, whatever columns it came in.

    TRL's formats and the raw columns of hh-rlhf, UltraFeedback (both), HelpSteer2 (both), SHP,
    PRM800K, Math-Shepherd and the comparisons of summarize-from-feedback are told apart by their
    columns.
    Beyond TRL's columns a row has, where the source says: ``rater``, who answered; ``margin``, the
    difference of the ratings, or how strong the preference is; ``tied``; ``marks`` of steps with
    the neutral as 0.5; ``source``, which part of the collection it is from (of HelpSteer2's
    preferences, which are one file, the split). Prompts are explicit: an implicit one is the
    longest common beginning, in whole words or messages (with a text it may be empty). The roles in
    conversations are those of ``data.formats.ROLES``, and answers begin with the assistant's.

    Args:
        path_or_hub_name: a file (jsonl, json, csv, parquet; all but parquet also as ``.gz``), a
            folder of such files, or else the name of a set on the hub, which the ``datasets``
            library loads. No code that comes with the data is run, and no pickle is read.
        format: the format's name, one of ``data.checking.FORMATS``; recognised if not given.
        split: which split of a set on the hub, or which of a folder's files, by their names (or
            else those of their folders): ``"train"`` are also files with ``train_prefs`` in their
            names, or those named after no split. A single file is read whatever its name.
        streaming: whether to read as the rows are asked for, for what does not fit in memory.
        on_error: ``"raise"`` stops at malformed records and lists the first ten problems;
            ``"skip"`` leaves them out, counts them in the report and warns.
        pairs: whether to compare the rated answers to each prompt, all with all, where they stand
            next to each other: HelpSteer2, UltraFeedback and ``rated`` then give preferences. Equal
            ratings give tied pairs, and answers that have no other beside them are problems.
        attribute: which rating to read: of HelpSteer2, ``"helpfulness"`` if not given; of
            UltraFeedback, the mean of the four aspects if not given.
        keep: further columns, which each row gets as they are.
        rename: for columns of other names, from theirs to the expected: ``{"answer":
            "completion"}``.
        config: the configuration of a set on the hub.
        data_dir: the folder in a set on the hub: ``"preference"`` in HelpSteer2, say.
        revision: the version of a set on the hub.

    Returns:
        ``Loaded``, to be iterated over; its ``rows`` are a ``datasets.Dataset``.

    Raises:
        FeedbackError: records are malformed and ``on_error`` is ``"raise"``, or all are. From a
            stream it comes when the rows are asked for.
        ValueError: no format fits (the message says what was found and what each needs), or an
            argument is wrong.
        FileNotFoundError: there is no such file, no file of the split, or no such set on the hub.
            Of a split that a set on the hub lacks, the ``datasets`` library gives the error.

    What it cannot know: whether the labels mean what their columns promise. Files on the hub are
    parsed by the ``datasets`` library, so of those that are broken as files it gives the error.

    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     post = {"history": "Why?", "human_ref_A": "So.", "human_ref_B": "Thus.", "labels": 0}
    ...     _ = Path(folder, "shp.json").write_text(json.dumps(post))
    ...     list(load_feedback(folder))[0]["chosen"]
    [{'role': 'assistant', 'content': 'Thus.'}]
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    files, ignored, records = _opened(
        path_or_hub_name, split, streaming, config, data_dir, revision
    )
    first = peeked(records)
    if not first:
        raise ValueError(f"there are no records in {', '.join(files)}")
    records = itertools.chain(first, records)
    if rename:
        seen = dict.fromkeys(
            name for _, record in first if isinstance(record, dict) for name in record
        )
        if seen and (lacking := [theirs for theirs in rename if theirs not in seen]):
            there = ", ".join(map(str, seen))
            raise ValueError(f"rename: no column {', '.join(lacking)}; there are {there}")
        records = ((place, _renamed(record, rename)) for place, record in records)
        first = list(itertools.islice(records, len(first)))
        records = itertools.chain(first, records)
    name = format or recognise(first)
    source = FORMATS[name]
    kind = "preference" if pairs else source.kind
    if pairs and source.kind != "rated":
        raise ValueError(f"pairs are made of ratings, and {name} is of the kind {source.kind}")
    if attribute is not None and name not in ("helpsteer2", "ultrafeedback"):
        raise ValueError(f"attribute is for helpsteer2 and ultrafeedback, not for {name}")
    doubled = [each for each in keep if each in (*COLUMNS[kind], *EXTRAS[kind])]
    if doubled:
        raise ValueError(f"keep names what the rows have anyway: {', '.join(doubled)}")

    report = LoadReport(name, files, ignored)
    rows = converted(records, source, attribute, keep, report)
    rows = alike(paired(rows) if pairs else rows, kind)
    rows = checked(rows, on_error, report, streaming=streaming)
    if streaming:
        return Loaded(kind, rows, report)
    return Loaded(kind, _dataset(list(rows), kind, keep), report)


def save_feedback(
    rows: Iterable[Row], path: str | os.PathLike[str], *, format: str | None = None
) -> int:
    r"""Write rows to a file in one of TRL's formats; ``load_feedback`` gives the same rows again.

    Our own columns and any others go with them. TRL knows no ``tied``, so leave tied pairs out if
    it is to learn from them. In ``preference_implicit`` the prompt is put before both sides; what
    comes back may have a longer prompt, if the answers begin alike.

    Args:
        rows: rows such as ``load_feedback`` gives, of one kind.
        path: where to; ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``. A file that is there is
            replaced.
        format: the name of TRL's format; that of the rows if not given.

    Returns:
        The number of rows.

    Raises:
        FeedbackError: a row is malformed, or of another kind; nothing is written then.
        ValueError: no rows, or an unknown format or suffix.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "pairs.jsonl")
    ...     save_feedback([{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}], path)
    ...     path.read_text()
    1
    '{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}\n'
    """
    if format is not None and format not in TRL:
        raise ValueError(f"format must be one of {', '.join(TRL)}, not {format!r}")
    rows = [dict(row) for row in rows]
    if not rows:
        raise ValueError(f"there are no rows to save to {path}")
    if format is None:
        kinds = [name for name, each in TRL.items() if set(each.needs) <= set(rows[0])]
        format = kinds[0] if kinds else recognise([(Place("rows", 1), rows[0])])
    if format == "preference_implicit":
        rows = [_joined(row) for row in rows]
    places = [Place("rows", number) for number in range(1, len(rows) + 1)]
    good = converted(zip(places, rows, strict=True), TRL[format], None, (), LoadReport(format))
    good = alike(good, TRL[format].kind)
    good = list(checked(good, "raise", LoadReport(format), streaming=False))
    if format != "preference_implicit":
        rows = [row | checked_row for row, checked_row in zip(rows, good, strict=True)]
    columns = dict.fromkeys(name for row in rows for name in row)
    write_records(Path(path), [{name: row.get(name) for name in columns} for row in rows])
    return len(rows)


def _joined(row: Row) -> Row:
    """With the prompt before both sides. Malformed rows are left to be found malformed."""
    rest = {name: value for name, value in row.items() if name != "prompt"}
    for side in ("chosen", "rejected"):
        if isinstance(row.get("prompt"), str | list) and type(row.get(side)) is type(row["prompt"]):
            rest[side] = row["prompt"] + row[side]
    return rest


# What is read.


def _opened(path_or_hub_name, split, streaming, config, data_dir, revision):
    """``(files, ignored files, records with their places)``."""
    path = Path(path_or_hub_name).expanduser()
    if path.is_dir():
        files, ignored = _of_split(path, split)
    elif path.is_file():
        if not suffix(path):
            raise ValueError(f"{path} is not one of {', '.join(SUFFIXES)} (nor .gz of them)")
        files, ignored = [path], []
    elif suffix(path) or not re.fullmatch(r"[\w.-]*\w(/[\w.-]*\w)?", str(path_or_hub_name)):
        raise FileNotFoundError(f"there is no file or folder {path}")
    else:
        return _from_hub(str(path_or_hub_name), split, streaming, config, data_dir, revision)
    for name, value in (("config", config), ("data_dir", data_dir), ("revision", revision)):
        if value is not None:
            raise ValueError(f"{name} is for sets on the hub, and {path} is on this machine")

    def records() -> Placed:
        for file in files:
            for number, record in read_records(file):
                yield Place(str(file), number), record

    return tuple(map(str, files)), tuple(map(str, ignored)), records()


def _of_split(folder: Path, split: str) -> tuple[list[Path], list[Path]]:
    """A folder's files of a split, and what else is there."""
    inside = {
        path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()
    }

    # What the datasets library writes about a set is no part of it, nor are hidden files.
    def known(path: Path) -> bool:
        hidden = any(part.startswith(".") for part in inside[path].parts)
        return bool(suffix(path)) and not hidden and not path.stem.startswith("dataset_info")

    def named(path: Path) -> set[str]:
        """Splits that its name tells, or else the folder that it is in, or that one's folder."""
        for part in reversed(inside[path].parts):
            words = {
                word
                for word in (split, *_SPLITS)
                if re.search(rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9])", part.lower())
            }
            if words:
                return words
        return set()

    splits = {path: named(path) for path in inside if known(path)}
    files = [path for path, words in splits.items() if split in words]
    if not files and split == "train":
        files = [path for path, words in splits.items() if not words]
    if not files:
        there = [path.as_posix() for path in inside.values()]
        raise FileNotFoundError(
            f"no file in {folder} is of the split {split!r} and one of {', '.join(SUFFIXES)}; "
            f"there are: {', '.join(there[:20]) or 'none'}"
        )
    return files, [path for path in inside if path not in files]


def _from_hub(name, split, streaming, config, data_dir, revision):
    import datasets  # It is slow to import and few need it.

    try:
        rows = datasets.load_dataset(
            name, config, data_dir=data_dir, split=split, streaming=streaming, revision=revision
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is no file or folder here, nor could it be loaded from the hub: {error}"
        ) from error
    where = f"{name}[{split}]"
    records = ((Place(where, number), record) for number, record in enumerate(rows, start=1))
    return (where,), (), records


def _renamed(record: Record | Fault, rename: Mapping[str, str]) -> Record | Fault:
    if isinstance(record, Fault):
        return record
    renamed = {rename.get(name, name): value for name, value in record.items()}
    if len(renamed) < len(record):
        return Fault(f"rename makes two columns one; there are {', '.join(record)}")
    return renamed


def _dataset(rows: list[Row], kind: Kind, keep: Sequence[str]) -> "datasets.Dataset":
    import datasets

    text, number = datasets.Value("string"), datasets.Value("float64")
    types = {
        **dict.fromkeys(("rater", "source", "text"), text),
        **dict.fromkeys(("margin", "rating"), number),
        **dict.fromkeys(("tied", "label"), datasets.Value("bool")),
        "labels": datasets.List(datasets.Value("bool")),
        "marks": datasets.List(number),
        "completions": datasets.List(text),
    }
    conversation = datasets.List({"role": text, "content": text})
    present = set().union(*rows)
    columns = [name for name in (*COLUMNS[kind], *EXTRAS[kind]) if name in present]
    for name in columns:
        if name not in types:
            types[name] = text if isinstance(rows[0][name], str) else conversation
    data = {name: [row.get(name) for row in rows] for name in columns}
    features = datasets.Features({name: types[name] for name in columns})
    dataset = datasets.Dataset.from_dict(data, features=features)
    for name in keep:
        try:
            dataset = dataset.add_column(name, [row[name] for row in rows])
        except (ValueError, TypeError) as error:  # Arrow's are both.
            raise ValueError(f"keep: {name} cannot be one column of a Dataset: {error}") from None
    return dataset
