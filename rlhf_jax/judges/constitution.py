"""Constitutional AI: answers that a model criticises and revises by written principles."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.feedback import Comparison, Correction, Critique, Pairs
from rlhf_jax.judges.common import Generate, Texts, Unanswered, aligned_texts, fields, filled
from rlhf_jax.judges.pairwise import Judge, Verdicts
from rlhf_jax.types import Key

__all__ = [
    "CRITIQUE",
    "REVISE",
    "Principle",
    "Revised",
    "Round",
    "critique_and_revise",
    "preferred",
]

CRITIQUE = """Question: {prompt}

Answer: {answer}

{request}
Critique:"""

REVISE = """Question: {prompt}

Answer: {answer}

Critique: {critique}

{request}
Revised answer:"""


class Principle(NamedTuple):
    """An article of a constitution, as the two requests that are made of the model.

    Attributes:
        critique: asks what is wrong ("Say in which ways the answer is harmful or untrue.").
        revision: asks for it to be put right ("Rewrite the answer so that it is neither.").
    """

    critique: str
    revision: str


class Round(NamedTuple):
    """One critique and one revision of every answer.

    Attributes:
        principle: ``int32[B]``, which principle each row was held against.
        critique: a ``feedback.Critique`` whose ``text`` is ``B`` strings.
        correction: a ``feedback.Correction`` whose ``corrected`` is ``Texts``; where it is not
            ``answered`` the text is what it was before the round.
    """

    principle: jax.Array
    critique: Critique
    correction: Correction


class Revised(NamedTuple):
    """Answers, everything that was said of them, and what became of them.

    Attributes:
        original: ``Texts``, as given.
        rounds: one ``Round`` after another.
        revised: ``Texts``, after the last.
        unanswered: in which round a row had no critique or no revision, and why, by row. It was
            left out of the rounds that followed.
    """

    original: Texts
    rounds: list[Round]
    revised: Texts
    unanswered: dict[int, str]


def critique_and_revise(
    generate: Generate,
    examples: Texts,
    *,
    principles: Sequence[Principle],
    key: Key,
    rounds: int = 1,
    critique_template: str = CRITIQUE,
    revise_template: str = REVISE,
) -> Revised:
    """Has a model criticise answers and revise them, against a principle drawn for each.

    Args:
        generate: the model, from ``local_generate`` or ``endpoint``.
        examples: the prompts and the answers to begin with.
        principles: the constitution.
        key: draws the principles, one a row and round, uniformly.
        rounds: how often; each begins with what the one before made.
        critique_template: with the fields ``{prompt}``, ``{answer}`` and ``{request}``.
        revise_template: with these and ``{critique}``.

    Returns:
        ``Revised``.

    Raises:
        ValueError: there is no principle or no round, the examples are not aligned strings, a
            template lacks a field, or ``generate`` returns another number of texts than it was
            asked for.

    Reference: Bai et al. 2022, https://arxiv.org/abs/2212.08073

    >>> def shout(questions):
    ...     return ["TOO QUIET" if text.endswith("Critique:") else "YES!" for text in questions]
    >>> done = critique_and_revise(
    ...     shout,
    ...     Texts(["Shall we?"], ["yes"]),
    ...     principles=[Principle("Is it loud?", "Make it louder.")],
    ...     key=jax.random.key(0),
    ... )
    >>> done.rounds[0].critique.text, done.revised.answers
    (['TOO QUIET'], ['YES!'])
    """
    aligned_texts(prompts=examples.prompts, answers=examples.answers)
    if not principles:
        raise ValueError("principles must have at least one")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    to_critique = fields("critique_template", critique_template, ("prompt", "answer", "request"))
    wanted = ("prompt", "answer", "critique", "request")
    to_revise = fields("revise_template", revise_template, wanted)
    count, answers = len(examples.prompts), list(examples.answers)
    done, unanswered = [], {}

    def asked(what: str, questions: dict[int, str]) -> dict[int, str]:
        """The texts by row; a row without one is noted."""
        replies = list(generate(list(questions.values()))) if questions else []
        if len(replies) != len(questions):
            raise ValueError(f"generate made {len(replies)} texts of {len(questions)} questions")
        texts = {}
        for row, reply in zip(questions, replies, strict=True):
            if isinstance(reply, Unanswered) or not reply.strip():
                reason = reply.reason if isinstance(reply, Unanswered) else "an empty text"
                unanswered[row] = f"{what} of round {len(done) + 1}: {reason}"
            else:
                texts[row] = reply.strip()
        return texts

    def among(rows: dict[int, str]) -> jax.Array:
        return jnp.array([row in rows for row in range(count)], bool)

    for round_key in jax.random.split(key, rounds):
        drawn = np.asarray(jax.random.randint(round_key, [count], 0, len(principles)))
        active = [row for row in range(count) if row not in unanswered]
        about = {row: {"prompt": examples.prompts[row], "answer": answers[row]} for row in active}
        requests = {row: principles[drawn[row]] for row in active}
        critiques = asked(
            "critique",
            {
                row: filled(to_critique, **about[row], request=requests[row].critique)[0][0]
                for row in active
            },
        )
        revisions = asked(
            "revision",
            {
                row: filled(
                    to_revise,
                    **about[row],
                    critique=critiques[row],
                    request=requests[row].revision,
                )[0][0]
                for row in critiques
            },
        )
        answers = [revisions.get(row, answer) for row, answer in enumerate(answers)]
        done.append(
            Round(
                jnp.asarray(drawn, jnp.int32),
                Critique(
                    text=[critiques.get(row, "") for row in range(count)], answered=among(critiques)
                ),
                Correction(corrected=Texts(examples.prompts, answers), answered=among(revisions)),
            )
        )
    return Revised(examples, done, Texts(examples.prompts, answers), unanswered)


def preferred(revised: Revised, judge: Judge | None = None) -> Verdicts:
    """Whether the revisions are better than the originals: ``Pairs(revised, original)``.

    Args:
        revised: from ``critique_and_revise``.
        judge: from ``pairwise``; ``None`` takes it on trust that a revision is better than what it
            revises, and a text left as it was is its own equal.

    Returns:
        ``Verdicts`` of all rows. One that was not revised to the end is not put to the judge and
        not answered: its preference is 0.5.

    >>> done = Revised(Texts(["?"], ["no"]), [], Texts(["?"], ["yes"]), {})
    >>> preferred(done).comparison.preference.tolist()
    [1.0]
    """
    before, after = revised.original, revised.revised
    count = len(before.prompts)
    kept = [row for row in range(count) if row not in revised.unanswered]
    if judge is None:
        changed = [after.answers[row] != before.answers[row] for row in kept]
        zeros = jnp.zeros(len(kept))
        verdicts = Verdicts(
            Comparison(preference=jnp.where(jnp.array(changed, bool), 1.0, 0.5)),
            jnp.where(jnp.array(changed, bool), jnp.inf, zeros),
            zeros,
            zeros > 0,
            {},
        )
    else:
        sides = [Texts(*([side[row] for row in kept] for side in x)) for x in (after, before)]
        verdicts = judge(Pairs(*sides))
    reasons = revised.unanswered | {kept[n]: why for n, why in verdicts.unanswered.items()}

    def spread(values: jax.Array, missing: float | bool) -> jax.Array:
        return jnp.full([count], missing, values.dtype).at[jnp.array(kept, int)].set(values)

    return Verdicts(
        Comparison(
            preference=spread(verdicts.comparison.preference, 0.5),
            answered=jnp.array([row not in reasons for row in range(count)], bool),
        ),
        spread(verdicts.log_odds, jnp.nan),
        spread(verdicts.position_bias, jnp.nan),
        spread(verdicts.swayed, False),
        dict(sorted(reasons.items())),
    )
