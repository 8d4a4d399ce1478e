"""Rows as tokens: nothing is cut or left out without being counted."""

import warnings

import numpy as np
import pytest

from rlhf_jax import losses
from rlhf_jax.data import (
    load_feedback,
    plain_template,
    save_feedback,
    tokenise_preferences,
    tokenise_prompts,
    tokenise_ranked,
    tokenise_rated,
    tokenise_sequences,
    tokenise_steps,
    train_tokenizer,
    unpaired,
)

# One token a character: what is expected can be read.
encode = str.encode


def read(tokens):
    return bytes(np.asarray(tokens).tolist()).decode()


def pair(prompt, chosen, rejected, **further):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **further}


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_prompt_response_padding(quiet):
    rows = [pair("ab", "c", "de"), pair("f", "ghi", "j")]
    batch, index, report = tokenise_preferences(
        rows, encode, max_length=8, bos_id=94, eos_id=36, pad_id=46
    )
    assert [read(row) for row in batch.chosen.tokens] == ["^abc$.", "^fghi$"]
    assert [read(row) for row in batch.rejected.tokens] == ["^abde$", "^fj$.."]
    assert batch.chosen.mask.astype(int).tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert batch.chosen.response_mask.astype(int).tolist() == [
        [0, 0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
    ]
    assert (batch.chosen.tokens.dtype, batch.chosen.mask.dtype) == (np.int32, bool)
    assert batch.tied is None and index.tolist() == [0, 1]
    assert (report.rows, report.prompts_cut, report.responses_cut) == (2, 0, 0)
    # Both sides are of one shape, as the losses and `unpaired` want them.
    assert unpaired(batch).ratings.tolist() == [True, True, False, False]


def test_the_prompt_loses_its_beginning_and_the_same_on_both_sides():
    with pytest.warns(UserWarning, match="of 1 rows: prompts_cut 1") as told:
        batch, _, report = tokenise_preferences(
            [pair("0123456789", "a", "bcd")], encode, max_length=8, bos_id=94, eos_id=36
        )
    assert told[0].filename == __file__
    assert read(batch.chosen.tokens[0]) == "^789a$\0\0"
    assert read(batch.rejected.tokens[0]) == "^789bcd$"
    assert (report.prompts_cut, report.responses_cut) == (1, 0)


def test_a_prompt_keeps_half_and_then_the_response_loses_its_end():
    rows = [pair("012345", "abcdefgh", "x"), pair("0", "abcdefgh", "x")]
    with pytest.warns(UserWarning, match="prompts_cut 1, responses_cut 2"):
        batch, _, report = tokenise_preferences(rows, encode, max_length=8, eos_id=36)
    # Cut, it has no end of text: a model should not learn that an answer may stop anywhere.
    assert [read(row) for row in batch.chosen.tokens] == ["2345abcd", "0abcdefg"]
    assert [read(row) for row in batch.rejected.tokens] == ["2345x$\0\0", "0x$\0\0\0\0\0"]
    assert (report.rows, report.prompts_cut, report.responses_cut) == (2, 1, 2)


def test_a_response_that_fits_exactly_is_not_cut(quiet):
    batch, _, _ = tokenise_preferences([pair("0123", "abc", "x")], encode, max_length=8, eos_id=36)
    assert read(batch.chosen.tokens[0]) == "0123abc$"


def test_pairs_that_the_cut_made_equal_are_left_out_and_counted():
    rows = [pair("0123", "abcdX", "abcdY"), pair("0", "a", "b")]
    with pytest.warns(UserWarning, match="indistinct 1"):
        batch, index, report = tokenise_preferences(rows, encode, max_length=8)
    assert (len(batch.chosen.tokens), index.tolist(), report.indistinct) == (1, [1], 1)
    with pytest.warns(UserWarning, match="indistinct 1"):  # So does a poor vocabulary.
        tokenise_preferences(
            [pair("a", "b", "c"), pair("a", "b", "bb")], lambda text: [7] * len(text), max_length=8
        )


def test_ties(quiet):
    rows = [pair("a", "b", "c", tied=True), pair("a", "d", "e", tied=False), pair("a", "f", "g")]
    kept = tokenise_preferences(rows, encode, max_length=8, ties="keep").batch
    assert kept.tied.tolist() == [True, False, False]
    ignored = tokenise_preferences(rows, encode, max_length=8, ties="ignore").batch
    assert ignored.tied is None and len(ignored.chosen.tokens) == 3
    with pytest.warns(UserWarning, match="of 3 rows: tied 1"):
        _, index, report = tokenise_preferences(rows, encode, max_length=8)
    assert (index.tolist(), report.tied) == ([1, 2], 1)


def test_margins(quiet):
    rows = [pair("a", "b", "c", margin=1.5), pair("a", "d", "e", margin=0.5)]
    assert tokenise_preferences(rows, encode, max_length=8).batch.margin is None
    batch = tokenise_preferences(rows, encode, max_length=8, margins=True).batch
    assert batch.margin.tolist() == [1.5, 0.5]
    with pytest.raises(ValueError, match="row 1 has no margin"):
        tokenise_preferences([rows[0], pair("a", "d", "e")], encode, max_length=8, margins=True)


def test_conversations_go_through_the_template(quiet):
    asked = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    sides = ([{"role": "assistant", "content": text}] for text in ("Hello", "Go"))
    batch = tokenise_preferences([pair(asked, *sides)], encode, max_length=99).batch
    text = "System: Be brief\n\nUser: Hi\n\nAssistant: Hello"
    assert read(batch.chosen.tokens[0]) == text
    assert read(batch.chosen.tokens[0][batch.chosen.response_mask[0]]) == " Hello"

    def chatml(messages, begin_answer):
        said = "".join(f"<{m['role']}>{m['content']}</>" for m in messages)
        return said + "<assistant>" * begin_answer

    row = {"prompt": asked[1:], "completion": [{"role": "assistant", "content": "Yo"}]}
    rated = tokenise_rated([row | {"label": True}], encode, max_length=99, template=chatml).batch
    assert read(rated.sequences.tokens[0]) == "<user>Hi</><assistant>Yo</>"
    assert read(rated.sequences.tokens[0][rated.sequences.response_mask[0]]) == "Yo</>"

    with pytest.raises(ValueError, match="row 0: the template writes otherwise"):
        tokenise_rated(
            [row | {"label": True}],
            encode,
            max_length=99,
            template=lambda messages, begin: plain_template(messages, begin) + "." * begin,
        )


def test_labels_and_ratings(quiet):
    rows = [{"prompt": "a", "completion": "b", "label": True}]
    rows += [{"prompt": "a", "completion": "cd", "label": False}]
    batch = tokenise_rated(rows, encode, max_length=8).batch
    assert (batch.ratings.dtype, batch.ratings.tolist()) == (bool, [True, False])
    assert batch.sequences.response_mask.astype(int).tolist() == [[0, 1, 0], [0, 1, 1]]
    row = {"prompt": "a", "completion": "b", "rating": 2.5}
    batch = tokenise_rated([row], encode, max_length=8).batch
    assert (batch.ratings.dtype, batch.ratings.tolist()) == (np.float32, [2.5])
    with pytest.raises(ValueError, match="row 2 has no label"):
        tokenise_rated([*rows, row], encode, max_length=8)


def solution(*steps, **further):
    rows = {"prompt": "q", "completions": list(steps), "labels": [True] * len(steps)}
    return rows | further


def test_steps_end_where_their_marks_are(quiet):
    rows = [solution("a", "bc", labels=[True, False]), solution("d", marks=[0.5])]
    (sequences, steps), _, _ = tokenise_steps(rows, encode, max_length=9, eos_id=36)
    assert [read(row) for row in sequences.tokens] == ["q\na\nbc\n$", "q\nd\n$\0\0\0"]
    assert steps.ends.tolist() == [[3, 6], [3, 0]]
    assert steps.marks.tolist() == [[1, 0], [0.5, 0]]
    assert steps.mask.tolist() == [[True, True], [True, False]]
    assert sequences.response_mask[0].astype(int).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_steps_that_are_cut_have_no_mark():
    rows = [solution("ab", "cd", "ef"), solution("abcdefgh")]
    with pytest.warns(UserWarning, match="of 2 rows: unmarked 1|responses_cut 1"):
        (sequences, steps), index, report = tokenise_steps(rows, encode, max_length=9)
    assert read(sequences.tokens[0]) == "q\nab\ncd\ne"
    assert steps.ends.tolist() == [[4, 7]]
    assert (index.tolist(), report.unmarked, report.responses_cut) == ([0], 1, 1)
    with pytest.raises(ValueError, match="row 0 has 1 completions and 2 marks"):
        tokenise_steps([solution("a", marks=[1, 0])], encode, max_length=9)


def test_prompts_are_padded_on_the_left():
    rows = [
        {"prompt": "abcdefgh"},
        pair("a", "b", "c"),
        {"prompt": [{"role": "user", "content": "x"}]},
    ]
    with pytest.warns(UserWarning, match="prompts_cut 2"):
        batch = tokenise_prompts(rows, encode, max_length=5, bos_id=94).batch
    assert [read(row) for row in batch.tokens] == ["^efgh", "\0\0\0^a", "^ant:"]
    assert batch.mask[1].tolist() == [False, False, False, True, True]


def test_texts_and_completions_to_imitate(quiet):
    rows = [{"text": "abc"}, {"prompt": "a", "completion": "b"}]
    batch, index, _ = tokenise_sequences(rows, encode, max_length=8, bos_id=94, eos_id=36)
    assert [read(row) for row in batch.tokens] == ["^abc$", "^ab$\0"]
    assert batch.response_mask.astype(int).tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]
    assert batch.mask.sum() == 9 and index.tolist() == [0, 1]
    # Nothing predicts the first token of all, so it is not counted among the learnt.
    batch = tokenise_sequences(rows[:1], encode, max_length=8).batch
    assert batch.response_mask.astype(int).tolist() == [[0, 1, 1]]


def test_what_is_not_imitated_is_counted():
    user, assistant = ({"role": role, "content": "0123"} for role in ("user", "assistant"))
    rows = [{"text": "a" * 60}, {"text": "a"}, {"messages": [user]}]
    rows += [{"messages": [user, assistant, user, assistant]}]
    with pytest.warns(UserWarning, match="of 4 rows: responses_cut 2, unmarked 2") as told:
        batch, index, report = tokenise_sequences(rows, encode, max_length=54)
    assert told[0].filename == __file__
    assert (index.tolist(), report.unmarked, report.responses_cut) == ([0, 3], 2, 2)
    # Cut, neither has an end of text; a conversation loses its last turns, and keeps its masks.
    assert read(batch.tokens[0]) == "a" * 54
    assert read(batch.tokens[1]) == "User: 0123\n\nAssistant: 0123\n\nUser: 0123\n\nAssistant: 01"
    assert read(batch.tokens[1][batch.response_mask[1]]) == " 0123 01"


def rated(*ratings, prompt="a"):
    names = "bcdefg"
    return [
        {"prompt": prompt, "completion": names[n] * (n + 1), "rating": rating}
        for n, rating in enumerate(ratings)
    ]


def test_rated_answers_to_one_prompt_become_a_ranking(quiet):
    rows = [*rated(1, 3, 2), *rated(9, 8, -7.5, prompt="xy")]
    batch, index, _ = tokenise_ranked(rows, encode, max_length=8, eos_id=36)
    assert batch.rankings.tolist() == [[1, 2, 0], [0, 1, 2]]
    assert batch.rankings.dtype == np.int32
    assert [read(row) for row in batch.sequences.tokens[1]] == ["xyb$\0\0", "xycc$\0", "xyddd$"]
    assert batch.sequences.response_mask[0].sum(axis=1).tolist() == [2, 3, 4]
    assert index.tolist() == [[0, 1, 2], [3, 4, 5]]
    one = losses.plackett_luce(np.array([[0.0, 9.0, 5.0], [0.0, 0.0, 0.0]]), batch.rankings)
    assert one[0] < 0.1 < one[1]


def test_rankings_that_are_none_are_counted():
    short, ties = rated(1, prompt="x"), rated(2, 2, prompt="y")
    same = [row | {"completion": "b"} for row in rated(1, 2, prompt="z")]
    rows = [*short, *rated(1, 2), *ties, *same, *rated(1, 2, 3, prompt="w")]
    with pytest.warns(UserWarning, match="of 10 rows: incomplete 2, tied 1, indistinct 1"):
        batch, index, report = tokenise_ranked(rows, encode, max_length=8)
    assert index.tolist() == [[1, 2]]
    assert (report.rows, report.incomplete, report.tied, report.indistinct) == (10, 2, 1, 1)
    with pytest.warns(UserWarning, match="incomplete 2, indistinct 1"):
        batch = tokenise_ranked(rows, encode, max_length=8, ties="ignore").batch
    assert batch.rankings.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"no row is left of 10 \(incomplete 5\)"):
        tokenise_ranked(rows, encode, max_length=8, answers=4)
    with pytest.raises(ValueError, match="answers must be at least 2, not 1"):
        tokenise_ranked(rows, encode, max_length=8, answers=1)


def test_what_cannot_be_tokenised():
    good = pair("a", "b", "c")
    for rows, options, message in [
        ([{"prompt": "a"}], {}, "row 0 has prompt, not prompt, chosen, rejected$"),
        ([{"prompt": "a", "completion": "b", "rating": 1.0}], {}, "pairs=True makes pairs"),
        ([], {}, "no row is left of 0"),
        ([good | {"tied": True}], {}, r"no row is left of 1 \(tied 1\)"),
        (good, {}, "rows must be several rows, not one dict"),
        ([good], {"max_length": 3}, "max_length must be at least 4, not 3"),
        ([good], {"ties": "half"}, "ties must be"),
        ([good], {"encode": lambda text: []}, "row 0: encode gave no token for a response"),
        ([good], {"encode": lambda text: [-1]}, "row 0: encode gave a negative token"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenise_preferences(rows, **{"encode": encode, "max_length": 8, **options})


def test_from_a_file_to_a_loss(tmp_path):
    rows = [pair("the film is", " good", " bad", rater="a"), pair("it is", " fine", " dull")]
    save_feedback(rows, tmp_path / "train.parquet")
    tokenizer = train_tokenizer(["the film it is good bad fine dull"], vocab_size=30)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    loaded = load_feedback(tmp_path)
    batch, index, _ = tokenise_preferences(loaded, ids, max_length=8, bos_id=1, eos_id=2)
    scores = [
        side.response_mask.sum(axis=1).astype(np.float32) for side in (batch.chosen, batch.rejected)
    ]
    assert losses.bradley_terry(*scores).tolist() == pytest.approx([np.log(2)] * 2)
    assert [loaded.rows[int(i)]["rater"] for i in index] == ["a", None]
