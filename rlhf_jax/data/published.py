"""The raw columns of published sets of feedback, each as rows of the one form of ``formats``.

What the columns mean is from the sets' cards and from the scripts by which they are commonly read;
what only looking at the data could tell (how many rows are malformed, say) is not known here.

Of HelpSteer2's ``preference`` folder, the columns, the sign of the strength (below 0 the first is
better) and the turns in a prompt are as its card describes them. The set on the hub is one file,
whose own column ``split`` tells training from validation, and becomes ``source``. Not read are the
single annotators' preferences, which name nobody (``keep`` them to use them).
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlhf_jax.data.files import Fault, Record
from rlhf_jax.data.formats import (
    Format,
    Messages,
    Row,
    boolean,
    described,
    different,
    extras,
    get,
    items,
    number,
    preference,
    text,
)

__all__ = ["PUBLISHED"]

_TURN = re.compile(r"\n\n(Human|Assistant):")


def _is_transcript(record: Record) -> bool:
    return str(record.get("chosen")).startswith("\n\nHuman:")


def _transcript(dialogue: str, name: str) -> Messages:
    before, *turns = _TURN.split(dialogue)
    if before:
        raise Fault(f"{name} does not begin with '\\n\\nHuman: '")
    roles = ["user" if role == "Human" else "assistant" for role in turns[::2]]
    contents = [content.removeprefix(" ") for content in turns[1::2]]
    return [
        {"role": role, "content": text(content, f"the turn of the {role} in {name}")}
        for role, content in zip(roles, contents, strict=True)
    ]


# Split where TRL does, but by the mark without its space, which is missing before a line break or
# an empty answer: by the mark with it, the split would then move to the turn before.
def _hh_rlhf(record: Record, _: str | None) -> Iterator[Row]:
    chosen, rejected = (text(get(record, name), name) for name in ("chosen", "rejected"))
    different({"chosen": chosen, "rejected": rejected})
    shared = min(len(chosen), len(rejected))
    shared = next((i for i in range(shared) if chosen[i] != rejected[i]), shared)
    end = chosen[:shared].rfind("\n\nAssistant:")
    if end < 1:
        raise Fault("chosen and rejected have no '\\n\\nAssistant: ' in common")
    row = {
        "prompt": _transcript(chosen[:end], "prompt"),
        "chosen": _transcript(chosen[end:], "chosen"),
        "rejected": _transcript(rejected[end:], "rejected"),
    }
    yield different(row) | extras(record)


def _exchange(prompt: str, answer: str) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
    }


_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def _ultrafeedback(record: Record, attribute: str | None) -> Iterator[Row | Fault]:
    prompt = text(get(record, "instruction"), "instruction")
    for index, answer in enumerate(items(get(record, "completions"), "completions")):
        where = f"completions[{index}]."
        try:
            response = text(get(answer, "response", where), f"{where}response")
            if attribute in ("overall_score", "fine-grained_score"):
                rating = number(get(answer, attribute, where), where + attribute)
            else:
                given = get(answer, "annotations", where)
                ratings = []
                for aspect in [attribute] if attribute else _ASPECTS:
                    inside = f"{where}annotations.{aspect}."
                    judged = get(given, aspect, f"{where}annotations.")
                    ratings.append(number(get(judged, "Rating", inside), inside + "Rating"))
                rating = float(np.mean(ratings))
            yield _exchange(prompt, response) | {"rating": rating} | extras(record)
        except Fault as fault:
            yield fault


# Between the turns of a prompt that has several, as the set's card has it; 29% have, it says.
_EXTRA_ID = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


def _asked(prompt: Any) -> Messages:
    """A prompt of HelpSteer2 as the turns that it holds, the user's first and last."""
    first, *turns = _EXTRA_ID.split(text(prompt, "prompt"))
    roles = ["user", *(role.lower() for role in turns[::2])]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise Fault(f"the turns in prompt are those of {', '.join(roles)}: not by turns, user last")
    return [
        {"role": role, "content": text(content, f"turn {number} in prompt")}
        for number, (role, content) in enumerate(
            zip(roles, [first, *turns[1::2]], strict=True), start=1
        )
    ]


def _answered(content: Any, name: str) -> Messages:
    return [{"role": "assistant", "content": text(content, name)}]


def _helpsteer2(record: Record, attribute: str | None) -> Iterator[Row]:
    name = attribute or "helpfulness"
    yield {
        "prompt": _asked(get(record, "prompt")),
        "completion": _answered(get(record, "response"), "response"),
        "rating": number(get(record, name), name),
    } | extras(record)


def _helpsteer2_preference(record: Record, _: str | None) -> Iterator[Row]:
    strength = number(get(record, "preference_strength"), "preference_strength")
    if strength not in range(-3, 4):
        raise Fault(f"preference_strength is {strength:g}: none of the whole numbers from -3 to 3")
    sides = [_answered(get(record, name), name) for name in ("response_1", "response_2")]
    chosen, rejected = sides if strength <= 0 else sides[::-1]
    row = {"prompt": _asked(get(record, "prompt")), "chosen": chosen, "rejected": rejected}
    row |= {"margin": abs(strength), "tied": strength == 0}
    yield different(row) | extras(record, source="split")


def _shp(record: Record, _: str | None) -> Iterator[Row]:
    answers = [text(get(record, name), name) for name in ("human_ref_A", "human_ref_B")]
    first = boolean(get(record, "labels"), "labels")
    scores = [record.get(name) for name in ("score_A", "score_B")]
    if None not in scores:
        a, b = (number(score, "score_A and score_B") for score in scores)
        if (a < b) if first else (a > b):
            preferred = "A" if first else "B"
            raise Fault(f"labels says that {preferred} is preferred, the scores ({a:g}, {b:g}) not")
    chosen, rejected = answers if first else answers[::-1]
    asked = _exchange(text(get(record, "history"), "history"), chosen)
    row = {
        "prompt": asked["prompt"],
        "chosen": asked["completion"],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    yield different(row) | extras(record, source="domain")


def _summaries(record: Record, _: str | None) -> Iterator[Row]:
    summaries = items(get(record, "summaries"), "summaries")
    if len(summaries) != 2:
        raise Fault(f"there are {len(summaries)} summaries to choose from, not 2")
    texts = [
        text(get(summary, "text", f"summaries[{i}]."), f"summaries[{i}].text")
        for i, summary in enumerate(summaries)
    ]
    choice = get(record, "choice")
    if str(choice) not in ("0", "1"):
        raise Fault(f"choice is {described(choice)}: an unknown label, neither 0 nor 1")
    info = get(record, "info")
    get(info, "post", "info.")
    if info["post"] is None and info.get("article") is not None:
        prompt = f"Article:\n{text(info['article'], 'info.article')}\n\nTL;DR:"
    else:
        post = text(info["post"], "info.post")
        heading = f"SUBREDDIT: r/{info.get('subreddit') or ''}\n\nTITLE: {info.get('title') or ''}"
        prompt = f"{heading}\n\nPOST: {post}\n\nTL;DR:"
    best = int(choice)
    row = {"prompt": prompt, "chosen": texts[best], "rejected": texts[1 - best]}
    yield different(row) | extras(record, rater="worker", source="batch")


def _binarised(record: Record, _: str | None) -> Iterator[Row]:
    better, worse = (number(get(record, name), name) for name in ("score_chosen", "score_rejected"))
    if better < worse:
        raise Fault(f"score_chosen, {better:g}, is below score_rejected, {worse:g}")
    for row in preference(record):
        yield row | {"margin": better - worse, "tied": better == worse}


def _rating(given: Any, name: str) -> int:
    if given not in (-1, 0, 1) or isinstance(given, bool):
        raise Fault(f"{name} is {described(given)}: an unknown label, none of -1, 0 and 1")
    return int(given)


def _prm800k(record: Record, _: str | None) -> Iterator[Row | Fault]:
    """Each solution that was looked at: at every step the others that were rated end one there."""
    problem = text(get(get(record, "question"), "problem", "question."), "question.problem")
    before: list[tuple[str, int]] = []

    def solution(steps: list[tuple[str, int]]) -> Row:
        texts, ratings = zip(*steps, strict=True)
        row = {"prompt": problem, "completions": list(texts), "labels": [r == 1 for r in ratings]}
        marks = [(rating + 1) / 2 for rating in ratings]
        return row | {"marks": marks} | extras(record, rater="labeler")

    steps = items(get(get(record, "label"), "steps", "label."), "label.steps")
    for index, step in enumerate(steps):
        where = f"label.steps[{index}]."
        picked, by_hand = get(step, "chosen_completion", where), step.get("human_completion")
        given = get(step, "completions", where)
        candidates = [] if given in (None, []) else items(given, where + "completions")
        going_on = None
        for order, candidate in enumerate(candidates):
            inside = f"{where}completions[{order}]."
            try:
                said = text(get(candidate, "text", inside), inside + "text")
                found = (said, _rating(get(candidate, "rating", inside), inside + "rating"))
            except Fault as fault:
                yield fault
                continue
            if order == picked and not isinstance(picked, bool):
                going_on = found
            else:
                yield solution([*before, found])
        if picked is not None and going_on is None:
            yield Fault(f"{where}chosen_completion is {picked}: no completion that can be read")
            return
        if going_on is None and by_hand is not None:
            said = get(by_hand, "text", where) if isinstance(by_hand, dict) else by_hand
            going_on = (text(said, where + "human_completion"), 1)
        if going_on is None:
            if index < len(steps) - 1:
                yield Fault(f"{where}chosen_completion is null, but there are steps behind it")
            if candidates:
                return  # What stands before is in the solutions that ended here.
            break
        before.append(going_on)
    if not before:
        raise Fault("label.steps holds no step that was rated")
    yield solution(before)


_MARK = "ки"


def _math_shepherd(record: Record, _: str | None) -> Iterator[Row]:
    given, labelled = (text(get(record, name), name) for name in ("input", "label"))
    # The mark's two characters are one, + or -, in the label.
    *parts, rest = given.split(_MARK)
    if not parts:
        raise Fault(f"input has no step mark {_MARK!r}")
    if rest.strip():
        raise Fault(f"input goes on behind its last step mark: {rest.strip()[:40]!r}")
    at, labels = -1, []
    for part in parts:
        at += len(part) + 1
        sign = labelled[at : at + 1]
        if sign not in ("+", "-"):
            raise Fault(f"label has {sign!r} at character {at + 1}: unknown, neither '+' nor '-'")
        labels.append(sign == "+")
    prompt, mark, first = _first_step(parts[0])
    steps = [(mark + first).strip(), *(part.strip() for part in parts[1:])]
    yield {
        "prompt": text(prompt.strip(), "the question in input"),
        "completions": [text(step, f"step {i + 1} of input") for i, step in enumerate(steps)],
        "labels": labels,
    } | extras(record, source="task")


def _first_step(part: str) -> tuple[str, str, str]:
    for mark in ("Step 1:", "step 1:"):
        if mark in part:
            prompt, mark, first = part.partition(mark)
            return prompt, mark, first
    question, mark, first = part.rpartition("?")
    if not mark or not first.strip():
        raise Fault("input has a step mark before 'Step 1:', so the question has no certain end")
    return question + mark, "", first


# The first that fits is taken.
PUBLISHED: dict[str, Format] = {
    "hh_rlhf": Format("preference", ("chosen", "rejected"), _hh_rlhf, True, seems=_is_transcript),
    "ultrafeedback_binarized": Format(
        "preference",
        ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
        _binarised,
    ),
    "ultrafeedback": Format("rated", ("instruction", "completions"), _ultrafeedback),
    "helpsteer2": Format(
        "rated",
        (
            "prompt",
            "response",
            "helpfulness",
            "correctness",
            "coherence",
            "complexity",
            "verbosity",
        ),
        _helpsteer2,
    ),
    "helpsteer2_preference": Format(
        "preference",
        ("prompt", "response_1", "response_2", "preference_strength"),
        _helpsteer2_preference,
        reads=("split",),
    ),
    "shp": Format(
        "preference",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _shp,
        reads=("domain", "score_A", "score_B"),
    ),
    "prm800k": Format(
        "stepwise",
        ("question", "label"),
        _prm800k,
        reads=("labeler",),
        seems=lambda record: isinstance(record["label"], dict),
    ),
    "math_shepherd": Format("stepwise", ("input", "label"), _math_shepherd, reads=("task",)),
    "summarize_from_feedback": Format(
        "preference", ("info", "summaries", "choice"), _summaries, reads=("worker", "batch")
    ),
}
