"""Records in files: jsonl, json, csv and parquet, read one by one and written whole.

Here a record is a plain ``dict`` and means nothing yet. What cannot be read is not raised but
handed on in the record's place, as a ``Fault``, so that one bad line does not hide the next.
"""

import csv
import gzip
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["SUFFIXES", "Fault", "Record", "read_records", "suffix", "write_records"]

Record = dict[str, Any]

# .json is an array or, as often on the hub, one object a line; .gz may follow all but .parquet.
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_WRITTEN = (".jsonl", ".json", ".csv", ".parquet")
# A csv cell is text. In these columns it never means text, so there it is read as JSON.
_JSON_COLUMNS = frozenset(
    ["completions", "labels", "marks", "info", "summaries", "extra", "question", "models"]
)
_BATCH = 1024
# How a cell begins that holds messages: what then is no JSON is no text either.
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")
# How files begin that are not what their names say.
_DISGUISED = {
    b"PAR1": "the file is parquet; name it .parquet",
    b"\x1f\x8b": "the file is compressed by gzip; add .gz to its name",
    b"PK\x03\x04": "the file is a zip archive; unpack it",
    b"\xff\xfe": "the file is UTF-16; save it as UTF-8",
    b"\xfe\xff": "the file is UTF-16; save it as UTF-8",
}


class Fault(ValueError):
    """What is wrong with one record, in words; the message does not say where it is."""


def suffix(path: Path) -> str:
    """The suffix that tells what a file is, ``.gz`` left out; empty if it is nothing known.

    >>> suffix(Path("train.jsonl.gz")), suffix(Path("model.pkl"))
    ('.jsonl', '')
    """
    suffixes = [each.lower() for each in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    found = (suffixes[:-1] if zipped else suffixes)[-1:]
    known = [each for each in found if each in SUFFIXES and not (zipped and each == ".parquet")]
    return known[0] if known else ""


def read_records(path: Path) -> Iterator[tuple[int | None, Record | Fault]]:
    r"""The records of a file, each with its number.

    Args:
        path: a file with one of ``SUFFIXES``. All are read piece by piece but a ``.json`` file that
            is one array, which is read whole.

    Yields:
        The number, from 1 on, and the record or what is wrong with it: of jsonl the line, of others
        the record (csv: the header does not count). ``None`` is the file as a whole.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "rows.jsonl")
    ...     _ = path.write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n')
    ...     [(number, str(record)) for number, record in read_records(path)]
    [(1, "{'text': 'a'}"), (2, 'text is there twice')]
    """
    kind = suffix(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(path, "rb") as file:
            start = file.read(4)
            wrong = [why for magic, why in _DISGUISED.items() if start.startswith(magic)]
            if wrong:
                yield None, Fault(wrong[0])
                return
            file.seek(3 if start[:3] == b"\xef\xbb\xbf" else 0)
            if not _first(file):
                yield None, Fault("the file is empty")
                return
            if kind == ".csv":
                yield from _csv(file)
            elif kind == ".json" and _first(file) == b"[":
                yield from _array(file.read())
            else:
                yield from _lines(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield None, Fault(f"the compressed file is damaged or cut short ({error})")
    except OSError as error:
        yield None, Fault(f"the file cannot be read ({error})")


def _first(file: IO[bytes]) -> bytes:
    """The next byte that is no white space, without going on to it; nothing at the end."""
    start = file.tell()
    while (byte := file.read(1)).isspace():
        pass
    file.seek(start)
    return byte


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise Fault(f"not UTF-8: byte 0x{byte:02x} at offset {error.start}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would take the last of two values in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise Fault(f"{twice} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _why(error: ValueError | RecursionError) -> str:
    """What is wrong with a text that is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, Fault):
        return str(error)
    return f"not JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


def _object(value: Any) -> Record | Fault:
    if isinstance(value, dict):
        return value
    return Fault(f"not a JSON object but {type(value).__name__}")


def _lines(file: IO[bytes]) -> Iterator[tuple[int, Record | Fault]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield number, _object(_DECODER.decode(_text(line)))
        except (ValueError, RecursionError) as error:
            yield number, Fault(_why(error))


def _array(data: bytes) -> Iterator[tuple[int | None, Record | Fault]]:
    """One after the other, so that a truncated array still gives what stands before the cut."""
    try:
        text = _text(data)
    except Fault as fault:
        yield None, fault
        return
    number, at = 0, text.index("[") + 1
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == "]" and number == 0:
            break
        number += 1
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield number, Fault(f"{_why(error)}; nor can anything behind it be read")
            return
        yield number, _object(value)
        at = _skip(text, at)
        mark = text[at : at + 1]
        at += 1
        if mark == "]":
            break
        if mark != ",":
            yield number + 1, Fault(f"the array is cut short or damaged at character {at}")
            return
    if text[_skip(text, at) :].strip("] \t\r\n"):
        yield None, Fault("there is something behind the array")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv(file: IO[bytes]) -> Iterator[tuple[int | None, Record | Fault]]:
    # The standard limit of 128 KiB a cell is below the length of real dialogues.
    csv.field_size_limit(2**31 - 1)
    # What is not UTF-8 becomes surrogates, so that only the record it is in is lost.
    lines = (line.decode(errors="surrogateescape") for line in file)
    reader = csv.reader(lines, strict=True)
    number, header = 0, None
    try:
        for cells in reader:
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    yield None, _doubled(header)
                    return
                continue
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                yield number, Fault(f"{len(cells)} cells under {len(header)} column names")
                continue
            try:
                pairs = zip(header, cells, strict=True)
                yield number, {name: _from_cell(name, cell) for name, cell in pairs}
            except Fault as fault:
                yield number, fault
    except csv.Error as error:
        yield number + 1, Fault(f"not csv, nor can anything behind it be read: {error}")


def _doubled(header: Sequence[str]) -> Fault:
    return Fault(f"two columns have one name: {', '.join(header)}")


def _from_cell(name: str, cell: str) -> Any:
    if any("\ud800" <= character <= "\udfff" for character in cell):
        raise Fault(f"{name} is not UTF-8")
    if not cell:
        return None
    if cell[0] not in "[{":
        return cell
    try:
        value = _DECODER.decode(cell)
    except (ValueError, RecursionError) as error:
        if name in _JSON_COLUMNS or _MESSAGES.match(cell):
            raise Fault(f"in {name}: {_why(error)}") from None
        return cell
    messages = isinstance(value, list) and value and all(map(_is_message, value))
    return value if messages or name in _JSON_COLUMNS else cell


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= set(value)


def _parquet(path: Path) -> Iterator[tuple[int | None, Record | Fault]]:
    import pyarrow as pa  # It is slow to import, and comes with the datasets library.
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            header = file.schema_arrow.names
            if len(set(header)) < len(header):
                yield None, _doubled(header)
                return
            for batch in file.iter_batches(batch_size=_BATCH):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        yield number, batch.slice(index, 1).to_pylist()[0]
                    except UnicodeDecodeError:
                        yield number, Fault("a text is not UTF-8")
    except pa.ArrowException as error:
        where = number + 1 if number else None
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield where, Fault(f"not parquet, damaged or cut short: {first}")


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records to a file, which appears complete or not at all.

    Args:
        path: a ``.jsonl``, ``.json`` (one array), ``.csv`` or ``.parquet`` file; replaced if there.
        records: all with the same keys.

    Raises:
        ValueError: another suffix, or a text that a csv file cannot tell from a conversation.
    """
    kind = path.suffix.lower()
    if kind not in _WRITTEN:
        raise ValueError(f"path must end in {', '.join(_WRITTEN)}: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        if kind == ".parquet":
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(list(records)), name)
        else:
            with open(name, "w", encoding="utf-8", newline="") as file:
                if kind == ".csv":
                    _write_csv(file, records)
                elif kind == ".jsonl":
                    file.writelines(_json(record) + "\n" for record in records)
                else:
                    file.write("[\n" + ",\n".join(map(_json, records)) + "\n]\n")
        # mkstemp lets nobody else read; a file that open() makes goes by the umask.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _json(value: Any) -> str:
    # U+2028 and the like end no line of jsonl, so they may stay as they are.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write_csv(file: IO[str], records: Sequence[Record]) -> None:
    header = list(records[0])
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(header)
    for number, record in enumerate(records, start=1):
        cells = []
        for name in header:
            value = record[name]
            cell = "" if value is None else value if isinstance(value, str) else _json(value)
            if isinstance(value, str) and not _stays(name, cell):
                raise ValueError(
                    f"row {number}: as a csv cell, {name} would be read as JSON and not as the "
                    f"text that it is; save to .jsonl or .parquet instead"
                )
            cells.append(cell)
        writer.writerow(cells)


def _stays(name: str, cell: str) -> bool:
    try:
        return _from_cell(name, cell) == cell
    except Fault:
        return False
