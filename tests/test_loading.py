"""Files, folders, streams and the hub: everything malformed is reported with its place."""

import gzip
import json
import warnings

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from rlhf_jax.data import FeedbackError, load_feedback, save_feedback
from rlhf_jax.data.formats import COLUMNS

GOOD = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
LINE = json.dumps(GOOD)


def write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def problems(caught):
    return [(problem.row, problem.reason) for problem in caught.value.problems]


# Malformed records.

MALFORMED = {
    "column rejected is missing; there are prompt, chosen": {"prompt": "a", "chosen": "b"},
    "chosen and rejected are equal": GOOD | {"rejected": " blue."},
    "chosen is empty": GOOD | {"chosen": " \n"},
    "prompt is missing (null), not text": GOOD | {"prompt": None},
    "prompt is int ('5'), not text": GOOD | {"prompt": 5},
    "chosen is float ('nan'), not text": GOOD | {"chosen": float("nan")},
    "margin is nan, not a finite number": GOOD | {"margin": float("nan")},
    "margin is bool ('True'), not a number": GOOD | {"margin": True},
    "tied is str ('maybe'): an unknown label, neither true nor false": GOOD | {"tied": "maybe"},
    "prompt, chosen and rejected must all be texts or all be conversations": GOOD
    | {"chosen": [{"role": "assistant", "content": "Blue."}]},
    "column prompt[0].content is missing; there are from, role": GOOD
    | {"prompt": [{"from": "human", "role": "user"}]},
    "prompt[0] is str ('Hi'), not a mapping": GOOD | {"prompt": ["Hi"]},
    "prompt[0].content is list (\"[{'type': 'text', 'text': 'Hi'}]\"), not text": GOOD
    | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    "prompt is empty: no message": GOOD | {"prompt": []},
    "prompt[0].role is 'human': an unknown role, none of system, developer, user, assistant, tool, "
    "function": GOOD | {"prompt": [{"role": "human", "content": "Hi"}]},
    "chosen begins with the user, not with the assistant's answer": {
        name: [{"role": "user", "content": text}] for name, text in GOOD.items()
    },
    "prompt[0] is missing (null), not a mapping": GOOD | {"prompt": [None]},
    "prompt[0].role is missing (null), not text": GOOD | {"prompt": [{"role": None}]},
    "margin is int ('1000000000000000000000000000000000000000'), not a number": GOOD
    | {"margin": 10**400},
    "rater is dict (\"{'id': 5}\"), not a name": GOOD | {"rater": {"id": 5}},
    "prompt is not valid Unicode: it has half a surrogate pair": GOOD | {"prompt": "\ud83d"},
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_a_malformed_record_is_reported_with_file_row_and_reason(tmp_path, reason):
    path = write(tmp_path / "train.jsonl", LINE, "", json.dumps(MALFORMED[reason]), LINE)
    with pytest.raises(FeedbackError) as caught:
        load_feedback(path, format="preference")
    assert problems(caught) == [(3, reason)], "the line, blank ones counted"
    assert f"{path}, row 3: {reason}" in str(caught.value)


def test_unpaired_and_stepwise_that_are_malformed(tmp_path):
    good = {"prompt": "a", "completion": "b", "label": True}
    path = write(tmp_path / "u.jsonl", *map(json.dumps, [good, good | {"label": "good"}]))
    with pytest.raises(FeedbackError, match=r"row 2: label is str \('good'\): an unknown label"):
        load_feedback(path)
    good = {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}
    bad = [
        good | {"labels": [True]},
        good | {"completions": ["b", ""]},
        good | {"labels": [True, None]},
    ]
    path = write(tmp_path / "s.jsonl", *map(json.dumps, [good, *bad, good | {"marks": [1]}]))
    with pytest.raises(FeedbackError) as caught:
        load_feedback(path)
    assert [reason for _, reason in problems(caught)] == [
        "there are 2 completions and 1 labels",
        "completions[1] is empty",
        "labels[1] is missing (null): an unknown label, neither true nor false",
        "there are 2 completions and 1 marks",
    ]


def test_the_first_ten_are_listed(tmp_path):
    bad = json.dumps(GOOD | {"chosen": ""})
    path = write(tmp_path / "train.jsonl", *[LINE, bad] * 14)
    with pytest.raises(FeedbackError, match="the first 10 problem") as caught:
        load_feedback(path)
    assert [row for row, _ in problems(caught)] == list(range(2, 22, 2))


def test_skipping_counts_reports_and_warns(tmp_path):
    lines = [LINE, json.dumps(GOOD | {"chosen": ""}), "{", LINE]
    path = write(tmp_path / "train.jsonl", *lines)
    with pytest.warns(UserWarning, match="3 records .preference., 2 rows, 2 problems") as told:
        loaded = load_feedback(path, on_error="skip")
    assert told[0].filename == __file__
    assert len(loaded) == 2
    assert [(p.row, p.file) for p in loaded.report.problems] == [(2, str(path)), (3, str(path))]
    assert (loaded.report.records, loaded.report.rows, loaded.report.skipped) == (3, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_feedback(write(tmp_path / "good.jsonl", LINE), on_error="skip")


def test_nothing_left_is_an_error_even_when_skipping(tmp_path):
    path = write(tmp_path / "train.jsonl", json.dumps(GOOD | {"chosen": ""}))
    with pytest.raises(FeedbackError, match="no row is left"):
        load_feedback(path, on_error="skip")
    with pytest.raises(FeedbackError, match=r"empty.jsonl: the file is empty"):
        load_feedback(write(tmp_path / "empty.jsonl"), on_error="skip")
    with pytest.raises(ValueError, match=r"no records in .*header.csv"):
        load_feedback(write(tmp_path / "header.csv", "prompt,chosen,rejected"))
    with pytest.raises(FeedbackError, match="no record could be read"):
        load_feedback(write(tmp_path / "junk.jsonl", "junk"), on_error="skip")


def test_texts_and_conversations_are_not_mixed(tmp_path):
    other = {name: [{"role": "assistant", "content": text}] for name, text in GOOD.items()}
    path = write(tmp_path / "train.jsonl", LINE, json.dumps(other))
    with pytest.raises(FeedbackError, match="row 2: prompt is a conversation, and was a text"):
        load_feedback(path)


# Malformed files.


def test_broken_jsonl(tmp_path):
    path = tmp_path / "train.jsonl"
    latin = LINE.replace("green", "gr\u00fcn").encode("latin-1")
    path.write_bytes(b"\n".join([LINE.encode(), latin, b"[1]", b"[" * 10**5, LINE[:-20].encode()]))
    with pytest.raises(FeedbackError) as caught:
        load_feedback(path)
    found = problems(caught)
    assert [row for row, _ in found] == [2, 3, 4, 5]
    assert "not UTF-8: byte 0xfc at offset" in found[0][1]
    assert found[1][1] == "not a JSON object but list"
    assert "nested too deeply" in found[2][1]
    assert "not JSON: " in found[3][1]


def test_broken_json_array(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(f" [{LINE}, {LINE}, {LINE[:-9]}")
    with pytest.warns(UserWarning, match="row 3: not JSON: .*; nor can anything behind it"):
        assert len(load_feedback(path, on_error="skip")) == 2
    for text, reason in {
        f"[{LINE}, 7]": "row 2: not a JSON object but int",
        f"[{LINE} {LINE}]": "row 2: the array is cut short or damaged",
        f"[{LINE}": "row 2: the array is cut short or damaged",
        f"[{LINE},]": "row 2: not JSON",
        f"[{LINE}] {LINE}": "train.json: there is something behind the array",
    }.items():
        path.write_text(text)
        with pytest.raises(FeedbackError, match=reason):
            load_feedback(path)
    path.write_bytes(f"[{LINE}, ".encode() + b"\xff]")
    with pytest.raises(FeedbackError, match="not UTF-8: byte 0xff"):
        load_feedback(path)


def test_broken_csv(tmp_path):
    path = tmp_path / "train.csv"
    header = "prompt,chosen,rejected\n"
    path.write_bytes(header.encode() + b"a,b,c\na,b\na,b,\xfc\na,b,\na,b,b\n")
    with pytest.raises(FeedbackError) as caught:
        load_feedback(path)
    assert problems(caught) == [
        (2, "2 cells under 3 column names"),
        (3, "rejected is not UTF-8"),
        (4, "rejected is missing (null), not text"),
        (5, "chosen and rejected are equal"),
    ]
    path.write_text("prompt,prompt,chosen\na,b,c\n")
    with pytest.raises(FeedbackError, match="two columns have one name"):
        load_feedback(path)
    path.write_text(header + 'a,b,c\na,"b,c\n')
    with pytest.raises(FeedbackError, match="row 2: not csv, nor can anything behind it"):
        load_feedback(path)
    path.write_text('prompt,completions,labels\na,"[""b""","[true]"\n')
    with pytest.raises(FeedbackError, match="row 1: in completions: not JSON: "):
        load_feedback(path)


def test_broken_parquet(tmp_path):
    path = tmp_path / "train.parquet"
    save_feedback([GOOD] * 3, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FeedbackError, match="not parquet, damaged or cut short"):
        load_feedback(path)
    latin = pa.array([b"blue", b"gr\xfcn", b"red"]).cast(pa.string(), safe=False)
    table = pa.table({"prompt": ["a", "b", "c"], "chosen": latin, "rejected": ["x", "y", "z"]})
    parquet.write_table(table, path)
    with pytest.raises(FeedbackError) as caught:
        load_feedback(path)
    assert problems(caught) == [(2, "a text is not UTF-8")]
    parquet.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(FeedbackError, match="two columns have one name: text, text"):
        load_feedback(path)


def test_files_that_are_wrong_as_a_whole(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(LINE.encode("utf-16"))
    with pytest.raises(FeedbackError, match=r"train.jsonl: the file is UTF-16; save it as UTF-8"):
        load_feedback(path)
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress((LINE + "\n").encode() * 99)[:-9])
    with pytest.raises(FeedbackError, match="compressed file is damaged or cut short"):
        load_feedback(path)
    path.write_bytes(LINE.encode())
    with pytest.raises(FeedbackError, match="compressed file is damaged or cut short"):
        load_feedback(path)


WHOLE = {
    "train.jsonl": [
        (b"PAR1", "the file is parquet; name it .parquet"),
        (gzip.compress(LINE.encode()), "the file is compressed by gzip; add .gz to its name"),
        (b"PK\x03\x04", "the file is a zip archive; unpack it"),
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\r\n \n", "the file is empty"),
    ],
    "train.json": [(b"\n \n", "the file is empty")],
    "train.csv": [(b"", "the file is empty"), (b"\n", "the file is empty")],
    "train.csv.gz": [(gzip.compress(b""), "the file is empty")],
    "train.parquet": [(b"", "not parquet, damaged or cut short")],
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_shard_that_is_wrong_as_a_whole_is_reported(tmp_path, name, streaming):
    """Whether it comes first or last, and the other's rows are all there."""
    for content, reason in WHOLE[name]:
        for other in ("a-train.jsonl", "z-train.jsonl"):
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            (folder / name).write_bytes(content)
            write(folder / other, LINE, LINE)
            with pytest.raises(FeedbackError) as caught:
                list(load_feedback(folder, streaming=streaming))
            [problem] = caught.value.problems
            assert (problem.file, problem.row) == (str(folder / name), None)
            assert problem.reason.startswith(reason)
            with pytest.warns(UserWarning, match="1 problems"):
                loaded = load_feedback(folder, streaming=streaming, on_error="skip")
                assert list(loaded) == [GOOD] * 2


def test_what_python_would_read_in_silence(tmp_path):
    twice = '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}'
    number = LINE[:-1] + ', "margin": ' + "9" * 5000 + "}"
    path = write(tmp_path / "train.jsonl", LINE + "\r", twice, number, LINE)
    with pytest.raises(FeedbackError) as caught:
        load_feedback(path)
    (first, why), (second, what) = problems(caught)
    assert (first, why, second) == (2, "chosen is there twice", 3)
    assert what.startswith("not JSON: Exceeds the limit")
    # As pandas writes conversations: text, if one does not look.
    row = str([{"role": "user", "content": "Hi"}])
    path = write(tmp_path / "train.csv", "prompt,chosen,rejected", f'"{row}",b,c', "a,b,c")
    with pytest.raises(FeedbackError, match="row 1: in prompt: not JSON: "):
        load_feedback(path)


def test_shards_with_other_columns(tmp_path):
    write(tmp_path / "0.jsonl", LINE, LINE)
    write(tmp_path / "1.jsonl", json.dumps({"prompt": "a", "completion": "b", "label": True}))
    write(tmp_path / "2.csv", "prompt;chosen;rejected", "a;b;c")
    for streaming in (False, True):
        with pytest.warns(UserWarning, match="4 records .preference., 2 rows, 2 problems"):
            loaded = load_feedback(tmp_path, on_error="skip", streaming=streaming)
            assert list(loaded) == [GOOD] * 2
        assert list(map(str, loaded.report.problems)) == [
            f"{tmp_path / name}, row 1: column {column} is missing; there are {columns}"
            for name, column, columns in (
                ("1.jsonl", "chosen", "prompt, completion, label"),
                ("2.csv", "prompt", "prompt;chosen;rejected"),
            )
        ]


def test_a_pickle_is_not_opened(tmp_path):
    path = write(tmp_path / "train.pkl", "cos\nsystem")
    with pytest.raises(ValueError, match=r"train\.pkl is not one of \.jsonl"):
        load_feedback(path)
    with pytest.raises(FileNotFoundError, match=r"there are: train\.pkl"):
        load_feedback(tmp_path)


@pytest.mark.parametrize(
    "name", ["train.jsonl", "/nowhere/at/all", "a/b.parquet", "../up", "data/train.json.gz"]
)
def test_a_missing_file_is_not_sought_on_the_hub(monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load_feedback(name)


def test_wrong_arguments(tmp_path):
    path = write(tmp_path / "train.jsonl", LINE)
    for options, message in [
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip'"),
        ({"format": "dpo"}, "format must be one of hh_rlhf, "),
        ({"pairs": True}, "pairs are made of ratings"),
        ({"attribute": "honesty"}, "attribute is for"),
        ({"keep": ["chosen"]}, "keep names what the rows have anyway: chosen"),
        ({"config": "x"}, "config is for sets on the hub"),
        ({"rename": {"chosen": "rejected"}}, "rename makes two columns one"),
        ({"keep": ["id"]}, "row 1: column id is missing"),
        ({"rename": {"choosen": "chosen"}}, "rename: no column choosen; there are prompt, chosen"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_feedback(path, **options)


# Where it comes from.


def test_the_same_rows_from_every_kind_of_file(tmp_path):
    table = pa.Table.from_pylist([GOOD, GOOD | {"prompt": "Grass\nis"}])
    rows = table.to_pylist()
    parquet.write_table(table, tmp_path / "a.parquet")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "lines.json").write_text(text)
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.csv").write_text(
        'prompt,chosen,rejected\nThe sky is, blue., green.\n"Grass\nis", blue., green.\n'
    )
    for path in tmp_path.iterdir():
        assert list(load_feedback(path)) == rows, path.name
        assert list(load_feedback(path, streaming=True)) == rows, path.name


def test_a_folder_is_read_by_split(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00001-of-00002.jsonl", json.dumps(GOOD | {"prompt": "2"}))
    write(tmp_path / "data" / "train-00000-of-00002.jsonl", json.dumps(GOOD | {"prompt": "1"}))
    write(tmp_path / "data" / "test.jsonl", json.dumps(GOOD | {"prompt": "3"}))
    write(tmp_path / "README.md", "no data; see pretraining.jsonl")
    write(tmp_path / "dataset_infos.json", "{}")
    write(tmp_path / "._train.jsonl", "what macOS writes beside it")
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "test-2.jsonl", LINE)
    loaded = load_feedback(tmp_path)
    assert loaded.rows["prompt"][:] == ["1", "2"]
    assert len(loaded.report.ignored_files) == 5
    assert load_feedback(tmp_path, split="test").rows["prompt"][:] == ["3", GOOD["prompt"]]
    with pytest.raises(FileNotFoundError, match=r"split 'validation'.*data/test.jsonl"):
        load_feedback(tmp_path, split="validation")


def test_a_folder_without_splits_is_train(tmp_path):
    write(tmp_path / "pretraining.jsonl", LINE)
    assert len(load_feedback(tmp_path)) == 1
    with pytest.raises(FileNotFoundError, match="split 'test'"):
        load_feedback(tmp_path, split="test")


def test_columns_to_keep_that_are_no_column(tmp_path):
    path = write(tmp_path / "t.jsonl", *(json.dumps(GOOD | {"id": each}) for each in (1, "a", [2])))
    with pytest.raises(ValueError, match="keep: id cannot be one column of a Dataset"):
        load_feedback(path, keep=["id"])
    assert [row["id"] for row in load_feedback(path, keep=["id"], streaming=True)] == [1, "a", [2]]


def test_a_stream_reads_no_further_than_asked(tmp_path):
    path = write(tmp_path / "train.jsonl", *[LINE] * 40, "{")
    loaded = load_feedback(path, streaming=True)
    rows = iter(loaded)
    assert next(rows) == GOOD
    assert loaded.report.rows == 1
    with pytest.raises(FeedbackError, match="row 41: not JSON"):
        list(rows)
    assert loaded.report.rows == 40
    loaded = load_feedback(path, streaming=True, on_error="skip")
    with pytest.warns(UserWarning, match="1 problems") as told:
        assert sum(1 for _ in loaded) == 40
    assert told[0].filename == __file__


def test_a_stream_that_stops_looks_ahead_only_so_far(tmp_path):
    bad = json.dumps(GOOD | {"chosen": ""})
    path = write(tmp_path / "train.jsonl", LINE, bad, *[LINE] * 2000, bad)
    with pytest.raises(FeedbackError) as caught:
        list(load_feedback(path, streaming=True))
    assert [row for row, _ in problems(caught)] == [2]
    with pytest.raises(FeedbackError) as caught:
        load_feedback(path)
    assert [row for row, _ in problems(caught)] == [2, 2003]


def test_the_hub_is_asked_without_any_code(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list([GOOD, GOOD | {"chosen": ""}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FeedbackError) as caught:
        load_feedback("someone/pairs", split="test", data_dir="helpful-base", revision="abc")
    options = {"data_dir": "helpful-base", "split": "test", "streaming": False, "revision": "abc"}
    assert asked == [(("someone/pairs", None), options)]
    assert "someone/pairs[test], row 2: chosen is empty" in str(caught.value)


def test_a_set_that_the_hub_lacks(monkeypatch):
    def load_dataset(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError("no such set")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match="someone/pairs is no file or folder here, nor"):
        load_feedback("someone/pairs")


# There and back.

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


@st.composite
def rows_of_a_kind(draw):
    kind = draw(st.sampled_from(list(COLUMNS)))
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": texts}
    )
    said = texts if draw(st.booleans()) else st.lists(message, min_size=1, max_size=2)
    begun = said if said is texts else said.map(lambda m: [m[0] | {"role": "assistant"}, *m[1:]])
    values = {
        "prompt": said,
        **dict.fromkeys(("chosen", "rejected", "completion"), begun),
        "label": st.booleans(),
        "rating": st.floats(-10, 10),
        "text": texts,
        "messages": st.lists(message, min_size=1, max_size=2),
    }
    extras = {"rater": texts, "source": texts}
    if kind == "stepwise":
        said = values["prompt"] = texts
        steps = draw(st.integers(1, 3))
        values["completions"] = st.lists(texts, min_size=steps, max_size=steps)
        values["labels"] = st.lists(st.booleans(), min_size=steps, max_size=steps)
        extras["marks"] = st.lists(st.sampled_from([0, 0.5, 1]), min_size=steps, max_size=steps)
    if kind == "preference":
        extras |= {"margin": st.floats(-10, 10), "tied": st.booleans()}
    present = draw(st.sets(st.sampled_from(list(extras))))
    columns = {name: values[name] for name in COLUMNS[kind]}
    row = st.fixed_dictionaries(columns | {name: extras[name] for name in sorted(present)})
    if kind == "preference":
        row = row.filter(lambda row: row["chosen"] != row["rejected"])
        if said is not texts:  # A prompt that both answers repeat is taken for a repetition.
            row = row.filter(lambda row: row["chosen"][:1] != row["prompt"][:1])
    return kind, draw(st.lists(row, min_size=1, max_size=3))


@given(rows_of_a_kind(), st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_saved_comes_back(tmp_path, case, suffix):
    kind, rows = case
    path = tmp_path / f"rows{suffix}"
    assert save_feedback(rows, path) == len(rows)
    loaded = load_feedback(path, streaming=True)
    assert loaded.kind == kind
    assert list(loaded) == rows


def test_a_dataset_comes_back_from_a_file(tmp_path):
    path = write(tmp_path / "in.jsonl", json.dumps(GOOD | {"rater": "a", "margin": 2}), LINE)
    loaded = load_feedback(path)
    assert loaded.rows.column_names == ["prompt", "chosen", "rejected", "margin", "rater"]
    assert loaded.rows["margin"][:] == [2.0, None]
    for suffix in (".jsonl", ".json", ".csv", ".parquet"):
        save_feedback(loaded, tmp_path / f"out{suffix}")
        again = load_feedback(tmp_path / f"out{suffix}")
        assert again.rows.to_list() == loaded.rows.to_list(), suffix
        assert again.rows.features == loaded.rows.features, suffix


def test_an_implicit_prompt_is_written_before_both_sides(tmp_path):
    path = tmp_path / "out.jsonl"
    save_feedback([GOOD], path, format="preference_implicit")
    assert json.loads(path.read_text()) == {
        "chosen": "The sky is blue.",
        "rejected": "The sky is green.",
    }
    assert list(load_feedback(path)) == [GOOD]


def test_malformed_rows_are_not_saved(tmp_path):
    path = write(tmp_path / "out.jsonl", "what was there")
    with pytest.raises(FeedbackError, match="rows, row 2: chosen and rejected are equal"):
        save_feedback([GOOD, GOOD | {"rejected": " blue."}], path)
    with pytest.raises(FeedbackError, match="column completion is missing"):
        save_feedback([GOOD], path, format="unpaired")
    with pytest.raises(ValueError, match="no known format"):
        save_feedback([{"question": "a"}], path)
    with pytest.raises(ValueError, match="format must be one of stepwise"):
        save_feedback([GOOD], path, format="shp")
    with pytest.raises(ValueError, match="no rows"):
        save_feedback([], path)
    with pytest.raises(ValueError, match=r"path must end in .jsonl, .json, .csv, .parquet"):
        save_feedback([GOOD], tmp_path / "out.pkl")
    assert path.read_text() == "what was there\n"
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_csv_does_not_guess_what_a_text_is(tmp_path):
    path = tmp_path / "out.csv"
    row = GOOD | {"chosen": '[{"role": "user", "content": "x"}]'}
    with pytest.raises(ValueError, match="row 1: as a csv cell, chosen would be read as JSON"):
        save_feedback([row], path)
    assert not path.exists()
    row = GOOD | {"chosen": '["just", "text"]', "rejected": "{"}
    save_feedback([row], path)
    assert list(load_feedback(path)) == [row]
