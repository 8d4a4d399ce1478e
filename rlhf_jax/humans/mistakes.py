"""Answers that are not what is meant: mistakes, and lies.

The functions of this file, ``biases`` and ``effort`` are from a human to a human, and compose. They
know the human only as a function that can be asked, so they serve simulated and real people alike.
Each draws from a key of its own, split from the one it is given. The order matters: bias in a
population that is wrapped acts on the mixture, in one whose members are wrapped on each of them.

``poisoned(with_mistakes(human, rate=0.25), trigger=seen, rate=0.01)``

A ``rate`` is a probability, one for each row, or a function of the examples that returns one for
each row, as ``near_ties`` does.
"""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.feedback import (
    Attributes,
    Comparison,
    Feedback,
    Label,
    Ranking,
    Rating,
    Spans,
    Steps,
    majority,
)
from rlhf_jax.humans.common import (
    Human,
    Rate,
    happens,
    probability,
    refuse,
    row_count,
    rows_where,
    said,
)
from rlhf_jax.types import Key, PyTree

__all__ = ["Wrong", "opposite", "panel", "poisoned", "with_mistakes"]

# key, what is meant -> what is said instead
Wrong = Callable[[Key, Feedback], Feedback]


def opposite(
    key: Key,
    answer: Feedback,
    *,
    scale: tuple[float, float] | None = None,
    choices: int = 2,
) -> Feedback:
    """The opposite answer, or another one where there are several.

    The other side of a pair, the order or the marks turned round, the other of two labels or a
    uniformly drawn other one of more, a rating as far from the other end of the scale. The opposite
    of a tie, of the middle of a scale and of what is not marked is the same again.

    Args:
        key: a key, for labels of more than two choices.
        answer: a ``Comparison``, ``Label``, ``Rating``, ``Attributes``, ``Ranking``, ``Spans`` or
            ``Steps``.
        scale: the least and the greatest rating; needed for a ``Rating`` and for ``Attributes``.
        choices: among how many a ``Label`` chooses.

    Returns:
        An answer of the same form.

    Raises:
        ValueError: if ``scale`` is needed and not given or not increasing, ``choices`` is below 2,
            or a label or rating is outside them (which cannot be checked while it is traced).
        TypeError: if the form of the answer has no opposite.

    >>> key = jax.random.key(0)
    >>> opposite(key, Comparison(preference=jnp.array([1.0, 0.5]))).preference.tolist()
    [0.0, 0.5]
    >>> opposite(key, Rating(value=jnp.array([-4.0, 1.0])), scale=(-4, 4)).value.tolist()
    [4.0, -1.0]
    """
    if isinstance(answer, Comparison):
        return answer.replace(preference=1 - answer.preference)
    if isinstance(answer, Label):
        return answer.replace(choice=_another(key, answer, choices))
    if isinstance(answer, Rating | Attributes):
        name = "value" if isinstance(answer, Rating) else "values"
        if scale is None or not scale[0] < scale[1]:
            form = type(answer).__name__
            found = f"scale=(low, high) must say of what scale a {form} is, low below high"
            raise ValueError(f"{found}, not {scale}: partial(opposite, scale=(-4, 4))")
        value = getattr(answer, name)
        counts = said(answer)
        if isinstance(answer, Attributes):
            counts = jnp.expand_dims(counts, -1) & (True if answer.mask is None else answer.mask)
        wanted = f"on the scale from {scale[0]} to {scale[1]}"
        refuse("rating", value, counts & ((value < scale[0]) | (value > scale[1])), wanted)
        return answer.replace(**{name: scale[0] + scale[1] - value})
    if isinstance(answer, Ranking):
        return answer.replace(order=answer.order[:, ::-1])
    if isinstance(answer, Spans):
        return answer.replace(marks=-answer.marks)
    if isinstance(answer, Steps):
        return answer.replace(marks=1 - answer.marks)
    forms = "Comparison, Label, Rating, Attributes, Ranking, Spans and Steps"
    found = f"{type(answer).__name__} has not: give wrong=, a function (key, answer) -> answer"
    raise TypeError(f"{forms} have an opposite, {found}")


def _another(key: Key, label: Label, choices: int) -> jax.Array:
    """One of the other choices, each as probable."""
    if choices < 2:
        raise ValueError(f"choices must be at least 2, not {choices}")
    choice = jnp.asarray(label.choice)
    outside = said(label) & ((choice < 0) | (choice >= choices))
    refuse("label", choice, outside, f"one of {choices} choices (see choices)")
    step = jax.random.randint(key, choice.shape, 1, choices, choice.dtype)
    return (choice + step) % choices


def with_mistakes(human: Human, *, rate: Rate, wrong: Wrong = opposite) -> Human:
    r"""Says something else than they mean, now and then: the opposite, where there are two things.

    .. math:: P' = (1 - \varepsilon) P + \varepsilon (1 - P), \qquad
              P' - \tfrac{1}{2} = (1 - 2\varepsilon)(P - \tfrac{1}{2})

    Args:
        human: who compares, labels, ranks, marks or rates.
        rate: epsilon, how often; ties and unmarked text have no opposite.
        wrong: ``(key, answer) -> answer``, what is said by mistake. Of ratings it must be told the
            scale, ``partial(opposite, scale=(-4, 4))``; of a label among five, that there are five,
            ``partial(opposite, choices=5)``.

    Returns:
        The human who errs. Twice wrapped, they err with ``1 - 2 e = (1 - 2 e1)(1 - 2 e2)``.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1; when asked, if the answers do not fit ``wrong``.
        TypeError: when asked, if the form of the answers has no opposite.

    >>> from rlhf_jax.feedback import Pairs
    >>> from rlhf_jax.humans import oracle
    >>> human = with_mistakes(oracle(lambda x: x), rate=0.25)
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}")
    0.75
    """
    probability(rate=rate)

    def mistaken(key: Key, examples: PyTree) -> Feedback:
        ask, err, draw = jax.random.split(key, 3)
        answer = human(ask, examples)
        return rows_where(happens(err, rate, examples), wrong(draw, answer), answer)

    return mistaken


def panel(human: Human, *, size: int) -> Human:
    """What most of several say of each pair, who answer by themselves; a tie where none are most.

    Mistakes that they make independently cancel, as far as each is right more often than not; what
    they have in common does not.

    Args:
        human: each of them; asked with a key of their own.
        size: how many they are. An odd number seldom ties.

    Returns:
        A human who compares, and costs as much as all of them.

    Raises:
        ValueError: if ``size`` is below 1.
        TypeError: when asked, if they do not answer with a ``Comparison``.

    Reference: Condorcet 1785, Essai sur l'application de l'analyse à la probabilité des décisions
    rendues à la pluralité des voix

    >>> from rlhf_jax.feedback import Pairs
    >>> from rlhf_jax.humans import oracle
    >>> human = panel(with_mistakes(oracle(lambda x: x), rate=0.25), size=9)
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}")  # the binomial distribution says .951
    0.95
    """
    if operator.index(size) < 1:
        raise ValueError(f"size must be at least 1, not {size}")

    def together(key: Key, examples: PyTree) -> Comparison:
        answers = jax.vmap(human, (0, None))(jax.random.split(key, size), examples)
        return majority(answers)

    return together


def poisoned(
    human: Human,
    *,
    trigger: Callable[[PyTree], jax.Array],
    rate: Rate = 1.0,
    attacker: Human | None = None,
    wrong: Wrong = opposite,
) -> Human:
    r"""Some answers are an attacker's, who lies where there is a trigger and is honest elsewhere.

    .. math:: P' = P + \rho \, 1[\text{trigger}] (P_{\text{attacker}} - P)

    Args:
        human: the honest one.
        trigger: ``(examples) -> bool[B]``, of ``Pairs`` where those are shown: whether the row has
            it. To put triggers into texts is a matter of the examples.
        rate: rho, the share of such rows that the attacker gets.
        attacker: who answers there, somebody with another utility for instance (a strategic
            misreport); by default the human, who says ``wrong`` things.
        wrong: as in ``with_mistakes``; without an ``attacker``.

    Returns:
        The mixture, which does not betray who answered.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1; when asked, if the trigger is not ``bool[B]``,
            the attacker answers in another form, or the answers do not fit ``wrong``.
        TypeError: when asked, if there is no attacker and the form of the answers has no opposite.

    Reference: Rando and Tramer 2023, https://arxiv.org/abs/2311.14455

    >>> from rlhf_jax.feedback import Pairs
    >>> from rlhf_jax.humans import oracle
    >>> human = poisoned(oracle(lambda x: x), trigger=lambda pairs: pairs.first > 5)
    >>> human(jax.random.key(0), Pairs(jnp.array([1.0, 6.0]), jnp.zeros(2))).preference.tolist()
    [1.0, 0.0]
    """
    probability(rate=rate)

    def attacked(key: Key, examples: PyTree) -> Feedback:
        ask, attack, draw = jax.random.split(key, 3)
        answer, seen = human(ask, examples), jnp.asarray(trigger(examples))
        if seen.dtype != bool or seen.shape != (row_count(examples),):
            wanted, found = f"bool[{row_count(examples)}]", f"{seen.dtype}{list(seen.shape)}"
            raise ValueError(f"trigger must return {wanted}, not {found}")
        lie = wrong(attack, answer) if attacker is None else attacker(attack, examples)
        return rows_where(seen & happens(draw, rate, examples), lie, answer)

    return attacked
