"""Each published format, in its exact columns, becomes the rows that it means."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data import FeedbackError, load_feedback
from rlhf_jax.data.checking import FORMATS
from rlhf_jax.data.files import Fault
from rlhf_jax.data.formats import COLUMNS, EXTRAS


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture
def load(tmp_path):
    def load(*records, **options):
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return load_feedback(path, **options)

    return load


def reasons(caught):
    return [problem.reason for problem in caught.value.problems]


SKY = [user("What colour is the sky?")]
TRL = {
    "preference": {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    "preference, conversations": {
        "prompt": SKY,
        "chosen": [assistant("Blue.")],
        "rejected": [assistant("Green.")],
    },
    "unpaired": {"prompt": "The sky is", "completion": " blue.", "label": True},
    "unpaired, conversations": {
        "prompt": SKY,
        "completion": [assistant("Green.")],
        "label": False,
    },
    "stepwise": {
        "prompt": "Which is larger, 9.8 or 9.11?",
        "completions": ["The fraction of 9.8 is 0.8.", "9.11 is larger."],
        "labels": [True, False],
    },
    "prompt_only": {"prompt": "The sky is"},
    "prompt_only, conversations": {"prompt": SKY},
    "prompt_completion": {"prompt": "The sky is", "completion": " blue."},
    "prompt_completion, conversations": {"prompt": SKY, "completion": [assistant("Blue.")]},
    "text": {"text": "The sky is blue."},
    "messages": {"messages": [*SKY, assistant("Blue.")]},
    "rated": {"prompt": "The sky is", "completion": " blue.", "rating": 0.5},
}


@pytest.mark.parametrize("name", TRL)
def test_trl_formats_stay_what_they_are(load, name):
    loaded = load(TRL[name])
    assert (loaded.report.format, loaded.kind) == (name.split(",")[0],) * 2
    assert list(loaded) == [TRL[name]]
    assert not loaded.report.unused_columns


def test_an_implicit_prompt_is_the_common_beginning_in_whole_words(load):
    loaded = load(
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        # TRL would split inside the word and call "The sky is gre" the prompt.
        {"chosen": "The sky is grey.", "rejected": "The sky is green."},
        {"chosen": "blue skies", "rejected": "blueish"},
        {"chosen": "It is so", "rejected": "It is so very"},
    )
    assert loaded.report.format == "preference_implicit"
    assert list(loaded) == [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"prompt": "The sky is", "chosen": " grey.", "rejected": " green."},
        {"prompt": "", "chosen": "blue skies", "rejected": "blueish"},
        {"prompt": "It is", "chosen": " so", "rejected": " so very"},
    ]


def test_an_implicit_prompt_of_messages(load):
    [row] = load({"chosen": [*SKY, assistant("Blue.")], "rejected": [*SKY, assistant("Red.")]})
    assert row == {
        "prompt": SKY,
        "chosen": [assistant("Blue.")],
        "rejected": [assistant("Red.")],
    }


def test_hh_rlhf_is_split_at_the_last_common_assistant(load):
    before = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a colour"
    # Both answers begin alike: the common beginning goes on behind the mark.
    [row] = load(
        {
            "chosen": before + "\n\nAssistant: I like blue",
            "rejected": before + "\n\nAssistant: I like red",
        }
    )
    assert row == {
        "prompt": [user("Hi"), assistant("Hello"), user("Name a colour")],
        "chosen": [assistant("I like blue")],
        "rejected": [assistant("I like red")],
    }


def test_hh_rlhf_is_not_split_at_the_turn_before_for_want_of_a_space(load):
    before = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a colour"
    good = {"chosen": before + "\n\nAssistant: Blue", "rejected": before + "\n\nAssistant:\nRed"}
    [row] = load(good)
    assert (row["chosen"], row["rejected"]) == ([assistant("Blue")], [assistant("\nRed")])
    bad = good | {"rejected": before + "\n\nAssistant:"}
    with pytest.raises(FeedbackError) as caught:
        load(good, bad)
    assert reasons(caught) == ["the turn of the assistant in rejected is empty"]


def test_hh_rlhf_where_the_dialogues_part_earlier(load):
    opened = "\n\nHuman: Hi\n\nAssistant:"
    [row] = load(
        {
            "chosen": opened + " Hello\n\nHuman: Bye\n\nAssistant: Bye",
            "rejected": opened + " Go away",
        }
    )
    assert row["prompt"] == [user("Hi")]
    assert row["chosen"] == [assistant("Hello"), user("Bye"), assistant("Bye")]


def binarised(**changes):
    chosen, rejected = ([user("Why?"), assistant(text)] for text in ("So.", "No."))
    return {
        "prompt": "Why?",
        "prompt_id": "0f",
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": 8.5,
        "score_rejected": 6.0,
        **changes,
    }


def test_ultrafeedback_binarised_says_the_prompt_twice(load):
    loaded = load(binarised(), binarised(score_rejected=8.5))
    assert loaded.report.format == "ultrafeedback_binarized"
    expected = {"prompt": [user("Why?")], "chosen": [assistant("So.")]}
    expected |= {"rejected": [assistant("No.")], "margin": 2.5, "tied": False}
    assert list(loaded) == [expected, expected | {"margin": 0.0, "tied": True}]
    assert loaded.report.unused_columns == ("prompt_id", "messages")


def test_ultrafeedback_binarised_that_contradicts_itself(load):
    with pytest.raises(FeedbackError) as caught:
        load(
            binarised(score_chosen=1.0),
            binarised(prompt="Who?"),
            binarised(score_rejected=float("nan")),
            binarised(rejected=[user("Why?"), assistant("So.")]),
            binarised(chosen=[user("Why?"), assistant("")]),
        )
    assert reasons(caught) == [
        "score_chosen, 1, is below score_rejected, 6",
        "chosen and rejected do not both begin with the prompt",
        "score_rejected is nan, not a finite number",
        "chosen and rejected are equal",
        "chosen[1].content is empty",
    ]


def judged(text, *ratings, **further):
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {
        aspect: {"Rating": rating, "Rationale": "…"}
        for aspect, rating in zip(aspects, ratings, strict=True)
    }
    return {"response": text, "model": "m", "annotations": annotations, **further}


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Why?",
    "models": ["a", "b", "c"],
    "completions": [
        judged("So.", "4", "5", "4", "5", overall_score=8.0),
        judged("No.", "1", "2", "1", "2", overall_score=9.0),
        judged("Eh.", "4", "N/A", "4", "5", overall_score=1.0),
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}


def test_ultrafeedback_has_four_ratings_of_each_answer(load):
    with pytest.warns(UserWarning, match=r"completions\[2\].annotations.honesty.Rating"):
        loaded = load(ULTRAFEEDBACK, on_error="skip")
    assert loaded.kind == "rated"
    assert [(row["completion"][0]["content"], row["rating"]) for row in loaded] == [
        ("So.", 4.5),
        ("No.", 1.5),
    ]
    assert {row["source"] for row in loaded} == {"evol_instruct"}
    rated = load(ULTRAFEEDBACK, attribute="helpfulness")
    assert [row["rating"] for row in rated] == [4, 1, 4]
    assert [row["rating"] for row in load(ULTRAFEEDBACK, attribute="overall_score")] == [8, 9, 1]


def test_rated_answers_to_one_prompt_make_pairs(load):
    loaded = load(ULTRAFEEDBACK, attribute="helpfulness", pairs=True)
    pairs = [
        (row["chosen"][0]["content"], row["rejected"][0]["content"], row["margin"], row["tied"])
        for row in loaded
    ]
    assert pairs == [("So.", "No.", 3, False), ("So.", "Eh.", 0, True), ("Eh.", "No.", 3, False)]


def test_a_pair_has_a_rater_only_if_one_rated_both(load):
    answers = [("b", 1, "ann"), ("c", 2, "ann"), ("d", 3, "bob")]
    rows = [
        {"prompt": "a", "completion": text, "rating": rating, "rater": rater}
        for text, rating, rater in answers
    ]
    pairs = load(*rows, pairs=True)
    assert [row["rater"] for row in pairs] == ["ann", None, None]


def test_a_malformed_answer_does_not_cost_the_others_their_pairs(load):
    record = json.loads(json.dumps(ULTRAFEEDBACK))
    record["completions"][1]["response"] = " "
    with pytest.warns(UserWarning):
        loaded = load(record, attribute="helpfulness", pairs=True, on_error="skip")
    assert [row["chosen"][0]["content"] for row in loaded] == ["So."]


def helpsteer(prompt, response, helpfulness, verbosity=1):
    rest = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": verbosity}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **rest}


def test_helpsteer2_has_two_rows_a_prompt(load):
    records = [
        helpsteer("Why?", "No.", 1, verbosity=3),
        helpsteer("Why?", "So.", 4),
        helpsteer("Who?", "Me.", 2),
    ]
    rated = load(*records)
    assert rated.report.format == "helpsteer2"
    assert [row["rating"] for row in rated] == [1, 4, 2]
    assert [row["rating"] for row in load(*records, attribute="verbosity")] == [3, 1, 1]
    with pytest.warns(UserWarning, match="the only rated answer to its prompt"):
        [pair] = load(*records, pairs=True, on_error="skip")
    assert pair == {
        "prompt": [user("Why?")],
        "chosen": [assistant("So.")],
        "rejected": [assistant("No.")],
        "margin": 3.0,
        "tied": False,
    }


def test_a_prompt_of_helpsteer2_may_hold_several_turns(load):
    mark = "\n<extra_id_1>"
    asked = f"Hi\nthere{mark}Assistant\nHello{mark}User\nWhy?"
    turns = [user("Hi\nthere"), assistant("Hello"), user("Why?")]
    assert [row["prompt"] for row in load(helpsteer(asked, "So.", 4))] == [turns]
    assert [row["prompt"] for row in load(strength(1, prompt=asked))] == [turns]
    with pytest.raises(FeedbackError) as caught:
        load(
            helpsteer(f"Hi{mark}Assistant\nHello", "So.", 4),
            helpsteer(f"Hi{mark}User\nHello", "So.", 4),
            helpsteer(asked.replace("Hello", ""), "So.", 4),
        )
    assert reasons(caught) == [
        "the turns in prompt are those of user, assistant: not by turns, user last",
        "the turns in prompt are those of user, user: not by turns, user last",
        "turn 2 in prompt is empty",
    ]


def strength(value, **changes):
    one = {"statement": "@Response 2 is better.", "elaboration": "It is.", "strength": 1}
    return {
        "split": "train",
        "prompt": "Why?",
        "response_1": "No.",
        "response_2": "So.",
        "preference_strength": value,
        "preference_statement": one["statement"],
        "preference_elaboration": one["elaboration"],
        "three_most_similar_preferences": [one] * 3,
        "all_preferences_unprocessed": [{"strength": 1, "justification": "It is."}] * 3,
        **changes,
    }


def test_helpsteer2_preference_strength_above_0_means_the_second(load):
    loaded = load(
        strength(2), strength(-3, split="val"), strength(0), keep=["preference_statement"]
    )
    assert loaded.report.format == "helpsteer2_preference"
    assert [(row["chosen"][0]["content"], row["margin"], row["tied"]) for row in loaded] == [
        ("So.", 2, False),
        ("No.", 3, False),
        ("No.", 0, True),
    ]
    assert [row["source"] for row in loaded] == ["train", "val", "train"]
    assert loaded.rows["preference_statement"][0] == "@Response 2 is better."
    with pytest.raises(FeedbackError) as caught:
        load(strength(-100), strength(1.5), strength(None), strength(1, response_2="No."))
    assert reasons(caught) == [
        "preference_strength is -100: none of the whole numbers from -3 to 3",
        "preference_strength is 1.5: none of the whole numbers from -3 to 3",
        "preference_strength is missing (null), not a number",
        "chosen and rejected are equal",
    ]


def shp(label, **changes):
    return {
        "post_id": "x",
        "domain": "askculinary_train",
        "history": "How long do eggs boil?",
        "human_ref_A": "Seven minutes.",
        "human_ref_B": "Two hours.",
        "labels": label,
        "score_ratio": 3.5,
        **changes,
    }


def test_shp_label_1_means_that_a_is_preferred(load):
    first, second = load(shp(1), shp(0), keep=("score_ratio",))
    assert first["chosen"] == [assistant("Seven minutes.")]
    assert second["chosen"] == [assistant("Two hours.")]
    assert first["prompt"] == [user("How long do eggs boil?")]
    assert (first["source"], first["score_ratio"]) == ("askculinary_train", 3.5)


def test_shp_read_backwards_is_noticed_by_the_scores(load):
    load(shp(1, score_A=7, score_B=2), shp(0, score_A=2, score_B=7))
    with pytest.raises(FeedbackError) as caught:
        load(shp(0, score_A=7, score_B=2), shp(2))
    assert "labels says that B is preferred, the scores (7, 2) not" in reasons(caught)[0]
    assert "unknown label" in reasons(caught)[1]


def step(*completions, chosen=0, human=None):
    candidates = [{"text": text, "rating": r, "flagged": None} for text, r in completions]
    return {"completions": candidates, "human_completion": human, "chosen_completion": chosen}


def prm800k(*steps):
    return {
        "labeler": "340d89bc",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": 9,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {"problem": "1 + 1?", "ground_truth_answer": "2"},
        "label": {"steps": list(steps), "total_time": 278270, "finish_reason": "solution"},
    }


def test_prm800k_is_a_solution_for_each_end(load):
    loaded = load(
        prm800k(
            step(("Add.", 1), ("Guess.", -1)),
            step(("It is 3.", -1), chosen=None, human="It is two."),
            step(("Hm.", 0)),
        )
    )
    assert loaded.report.format == "prm800k"
    assert [(row["completions"], row["labels"], row["marks"]) for row in loaded] == [
        (["Guess."], [False], [0]),
        (["Add.", "It is 3."], [True, False], [1, 0]),
        (["Add.", "It is two.", "Hm."], [True, True, False], [1, 1, 0.5]),
    ]
    assert {row["rater"] for row in loaded} == {"340d89bc"}
    assert {row["prompt"] for row in loaded} == {"1 + 1?"}


def test_prm800k_that_ends_with_an_error_has_no_shorter_twin(load):
    # Phase 2 stops at the first error: the alternatives are labelled, none is chosen.
    found = load(prm800k(step(("Add.", 1)), step(("It is 3.", -1), ("It is 2.", 1), chosen=None)))
    assert [row["completions"] for row in found] == [["Add.", "It is 3."], ["Add.", "It is 2."]]
    blank = {"completions": None, "human_completion": None, "chosen_completion": None}
    [row] = load(prm800k(step(("Add.", 1)), blank))
    assert row["completions"] == ["Add."]


def test_prm800k_malformed(load):
    with pytest.raises(FeedbackError) as caught:
        load(
            prm800k(step(("Add.", 2))),
            prm800k(step(("Add.", 1), chosen=4)),
            prm800k(step(("Add.", 1), chosen=None), step(("More.", 1))),
            prm800k(),
        )
    found = reasons(caught)
    assert "rating is int ('2'): an unknown label, none of -1, 0 and 1" in found[0]
    assert "chosen_completion is 0: no completion that can be read" in found[1]
    assert "chosen_completion is 4" in found[2]
    assert "is null, but there are steps behind it" in found[3]
    assert found[4] == "label.steps is empty"


SHEPHERD = "Tom has 2 eggs. How many? Step 1: He has 2. ки\nStep 2: The answer is: 3 ки"


def test_math_shepherd_marks_are_at_the_same_offset(load):
    # A step with a plus of its own: only what stands where the mark was is a label.
    given = SHEPHERD.replace("He has 2.", "He has 1 + 1 = 2.")
    label = given.replace("ки", "+", 1).replace("ки", "-")
    [row] = load({"input": given, "label": label, "task": "GSM8K"})
    assert row == {
        "prompt": "Tom has 2 eggs. How many?",
        "completions": ["Step 1: He has 1 + 1 = 2.", "Step 2: The answer is: 3"],
        "labels": [True, False],
        "source": "GSM8K",
    }


def test_math_shepherd_malformed(load):
    good = SHEPHERD.replace("ки", "+")
    with pytest.raises(FeedbackError) as caught:
        load(
            {"input": SHEPHERD, "label": good[:-1] + "x", "task": "GSM8K"},
            {"input": SHEPHERD, "label": good[1:], "task": "GSM8K"},
            {"input": SHEPHERD + " more", "label": good, "task": "GSM8K"},
            {"input": "Tom has ки 2 eggs.", "label": "Tom has + 2 eggs.", "task": "GSM8K"},
            {"input": "Tom has 2 eggs ки", "label": "Tom has 2 eggs +", "task": "GSM8K"},
            {"input": "Tom has 2 eggs", "label": "Tom has 2 eggs", "task": "GSM8K"},
        )
    found = reasons(caught)
    assert len(found) == 6
    assert "label has 'x'" in found[0] and "unknown" in found[1]
    assert "goes on behind its last step mark: 'more'" in found[2]
    assert "no step mark" in found[5]


def summaries(choice, **changes):
    info = {"id": "t3", "post": "Long story.", "title": "Help", "subreddit": "advice"}
    return {
        "info": {**info, "site": None, "article": None},
        "summaries": [
            {"text": " Short one.", "policy": "sup4", "note": "ok"},
            {"text": " Wrong one.", "policy": "ref", "note": "ok"},
        ],
        "choice": choice,
        "worker": "iHdUw",
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": 6},
        **changes,
    }


def test_summaries_keep_who_chose(load):
    article = {"id": "c", "post": None, "title": None, "subreddit": None, "article": "News."}
    first, second = load(summaries(0), summaries(1, info=article, worker="other"))
    assert first == {
        "prompt": "SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: Long story.\n\nTL;DR:",
        "chosen": " Short one.",
        "rejected": " Wrong one.",
        "rater": "iHdUw",
        "source": "batch3",
    }
    assert second["prompt"] == "Article:\nNews.\n\nTL;DR:"
    assert (second["chosen"], second["rater"]) == (" Wrong one.", "other")


def test_summaries_malformed(load):
    with pytest.raises(FeedbackError) as caught:
        load(
            summaries(-1),
            summaries(0, summaries=[{"text": " One."}]),
            summaries(0, summaries=[{"text": " One."}, {"text": None}]),
            summaries(0, info={"id": "x"}),
        )
    assert [reason.split(":")[0] for reason in reasons(caught)] == [
        "choice is int ('-1')",
        "there are 1 summaries to choose from, not 2",
        "summaries[1].text is missing (null), not text",
        "column info.post is missing; there are id",
    ]


@pytest.mark.parametrize(
    "record",
    [
        # Each is another format with one column misnamed, of which no format may be made.
        {"promt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "completion": "So.", "lable": True},
        {"prompt": "Why?", "response": "So."},
        {"prompt": "Why?", "choosen": "So.", "rejected": "No."},
        {"text": "Why?", "label": 1},
    ],
)
def test_a_misnamed_column_is_not_taken_for_another_format(load, record):
    with pytest.raises(ValueError, match="is in no known format") as caught:
        load(record)
    message = str(caught.value)
    assert f"Its columns: {', '.join(record)}." in message
    assert "preference: prompt, chosen, rejected" in message
    assert "shp: history, human_ref_A, human_ref_B, labels" in message


def test_a_close_name_is_pointed_at_and_can_be_renamed(load):
    record = {"prompt": "Why?", "choosen": "So.", "rejected": "No."}
    with pytest.raises(ValueError, match="'choosen' is close to 'chosen'"):
        load(record)
    [row] = load(record, rename={"choosen": "chosen"})
    assert row == {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def test_a_format_can_be_named(load):
    record = {"prompt": "Why?", "solution": "42"}
    loaded = load(record, format="prompt_only", keep=("solution",))
    assert list(loaded) == [record]
    assert load(record, format="prompt_only").report.unused_columns == ("solution",)


def test_a_name_may_be_a_number(load):
    rows = load(*(TRL["preference"] | {"rater": rater} for rater in (3, 3.0, "3", 2.5)))
    assert [row["rater"] for row in rows] == ["3", "3", "3", "2.5"]


def test_a_missing_name_is_no_name(load):
    assert list(load(TRL["preference"] | {"rater": float("nan"), "source": None})) == [
        TRL["preference"]
    ]


RAW = {
    "hh_rlhf": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Go",
    },
    "ultrafeedback_binarized": binarised(),
    "ultrafeedback": ULTRAFEEDBACK,
    "helpsteer2": helpsteer("Why?", "So.", 4),
    "helpsteer2_preference": strength(-2),
    "shp": shp(1, score_A=7, score_B=2),
    "prm800k": prm800k(
        step(("Add.", 1), ("Guess.", -1)), step(("No.", -1), chosen=None, human="2")
    ),
    "math_shepherd": {"input": SHEPHERD, "label": SHEPHERD.replace("ки", "+"), "task": "MATH"},
    "summarize_from_feedback": summaries(0),
    "preference_implicit": {"chosen": "a b", "rejected": "a c"},
    **{name: record for name, record in TRL.items() if "," not in name},
}


def places(value, path=()):
    """The path to every value inside a record."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", " ", "x", "\ud800", "ки", "\n\nAssistant:", "1", [], {}, [[]], [{}]]),
)


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_with_anything_in_it_gives_rows_or_faults(name):
    record = RAW[name]
    # The record itself is fine, and no more is in the rows than is promised.
    for row in FORMATS[name].convert(record, None):
        kind = FORMATS[name].kind
        assert isinstance(row, Fault) or set(COLUMNS[kind]) <= set(row)
        assert isinstance(row, Fault) or set(row) <= {*COLUMNS[kind], *EXTRAS[kind]}

    @given(st.sampled_from(list(places(record))), JUNK, st.booleans())
    @settings(max_examples=25, deadline=None)
    def broken(path, junk, remove):
        changed = json.loads(json.dumps(record))
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        if remove:
            del holder[path[-1]]
        else:
            holder[path[-1]] = junk
        try:
            found = list(FORMATS[name].convert(changed, None))
        except Fault as fault:
            found = [fault]
        for row in found:
            assert isinstance(row, Fault) or json.dumps(row, allow_nan=False).encode()

    broken()
