"""What can be wrong with people: functions from a human to a human, which compose.

They know the human only as a function that can be asked, so they serve simulated and real people
alike. Each draws from a key of its own, split from the one it is given. The order matters: bias in
a population that is wrapped acts on the mixture, in one whose members are wrapped on each of them.

``poisoned(with_mistakes(human, rate=0.25), trigger=seen, rate=0.01)``

A ``rate`` is a probability, one for each row, or a function of the examples that returns one for
each row, as ``near_ties`` does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.feedback import Comparison, Feedback, Label, Pairs, Ranking, Spans, Steps
from rlhf_jax.humans.common import (
    Human,
    Rate,
    Utility,
    given,
    happens,
    probability,
    row_count,
    rows_where,
)
from rlhf_jax.types import Key, PyTree

__all__ = [
    "budgeted",
    "near_ties",
    "persuadable",
    "poisoned",
    "with_bias",
    "with_effort",
    "with_fatigue",
    "with_mistakes",
    "with_position_bias",
    "with_skips",
    "with_ties",
]


def inverted(answer: Feedback) -> Feedback:
    """The opposite answer: the other side, the other label, the marks or the order turned round.

    >>> inverted(Comparison(preference=jnp.array([1.0, 0.5]))).preference.tolist()
    [0.0, 0.5]
    """
    if isinstance(answer, Comparison):
        return answer.replace(preference=1 - answer.preference)
    if isinstance(answer, Label):
        return answer.replace(choice=1 - answer.choice)
    if isinstance(answer, Ranking):
        return answer.replace(order=answer.order[:, ::-1])
    if isinstance(answer, Spans):
        return answer.replace(marks=-answer.marks)
    if isinstance(answer, Steps):
        return answer.replace(marks=1 - answer.marks)
    forms = "Comparison, Label (good or bad), Ranking, Spans and Steps"
    raise TypeError(f"{forms} have an opposite, {type(answer).__name__} has not")


def _comparison(answer: Feedback, wrapper: str) -> Comparison:
    if not isinstance(answer, Comparison):
        found = type(answer).__name__
        raise TypeError(f"{wrapper} is for humans who give a Comparison, not a {found}")
    return answer


def with_mistakes(human: Human, *, rate: Rate) -> Human:
    r"""Says the opposite of what they mean, now and then.

    .. math:: P' = (1 - \varepsilon) P + \varepsilon (1 - P), \qquad
              P' - \tfrac{1}{2} = (1 - 2\varepsilon)(P - \tfrac{1}{2})

    Args:
        human: who compares, labels as good or bad, ranks or marks.
        rate: epsilon, how often; ties and unmarked text have no opposite.

    Returns:
        The human who errs. Twice wrapped, they err with ``1 - 2 e = (1 - 2 e1)(1 - 2 e2)``.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1.
        TypeError: when asked, if the form of the answers has no opposite.

    >>> from rlhf_jax.humans import oracle
    >>> human = with_mistakes(oracle(lambda x: x), rate=0.25)
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}")
    0.75
    """
    probability(rate=rate)

    def mistaken(key: Key, examples: PyTree) -> Feedback:
        ask, err = jax.random.split(key)
        answer = human(ask, examples)
        return rows_where(happens(err, rate, examples), inverted(answer), answer)

    return mistaken


def with_bias(
    human: Human, *, feature: Utility, weight: float | jax.Array, max_tries: int = 256
) -> Human:
    r"""Is drawn to a feature of the answers beside what they like: length, agreement, a style.

    .. math:: \operatorname{logit} P' = \operatorname{logit} P + w (f_a - f_b), \qquad
              P'(y) \propto P(y) \, e^{w y (f_a - f_b)}

    The first holds for answers of 0 and 1, the second with ties too (that is Davidson's model,
    shifted). A Boltzmann human becomes the one of utility ``beta u + w f``. Who is certain is not
    moved, however strong the bias: to bias an ``oracle``, give them another utility.

    It needs no access to the odds: the human is asked until an answer is accepted, and an answer
    ``y`` is with probability ``exp(d (y - 1/2) - |d| / 2)``, where ``d = w (f_a - f_b)``, which
    gives exactly this law. Cost and time are those of the accepted answer.

    Args:
        human: who compares (then the feature is of each side), or labels as good or bad (then
            ``f_a - f_b`` is the feature of the example).
        feature: ``(examples) -> float[B]``, such as ``lambda s: s.response_mask.sum(axis=-1)``.
        weight: w, in nats per unit of the feature; negative for an aversion.
        max_tries: after which an answer stands, accepted or not. That is a matter of those who are
            all but certain: a bias of d nats against them takes ``exp(d)`` tries on average.

    Returns:
        The human with the bias; it acts on a skip as on a tie.

    Raises:
        ValueError: if ``max_tries`` is below 1.
        TypeError: when asked, if the answers are of another form (of ratings, ``rater_effects``
            has the bias).

    Reference: of length, Singhal et al. 2023, https://arxiv.org/abs/2310.03716; sycophancy, Sharma
    et al. 2023, https://arxiv.org/abs/2310.13548

    >>> from rlhf_jax.humans import boltzmann
    >>> human = with_bias(boltzmann(lambda x: x), feature=lambda x: 0 * x + (x > 0), weight=1.0)
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}, sigma(1 + 1) = {jax.nn.sigmoid(2.0):.2f}")
    0.88, sigma(1 + 1) = 0.88
    """

    def shift(examples: PyTree) -> jax.Array:
        if isinstance(examples, Pairs):
            lead = given(feature, examples.first, "feature")
            return weight * (lead - given(feature, examples.second, "feature"))
        return weight * given(feature, examples, "feature")

    return _tilted(human, shift, max_tries)


def with_position_bias(human: Human, *, weight: float | jax.Array, max_tries: int = 256) -> Human:
    r"""Is drawn to what is shown first.

    .. math:: \operatorname{logit} P' = \operatorname{logit} P + w

    Args:
        human: who compares.
        weight: w, in nats; negative for a liking of the second.
        max_tries: as in ``with_bias``, whose law this is.

    Returns:
        The human with the bias. Shown both orders, the mean of the two log-odds is without it.

    Raises:
        ValueError: if ``max_tries`` is below 1.
        TypeError: when asked, if the human does not compare.

    >>> from rlhf_jax.humans import boltzmann
    >>> human = with_position_bias(boltzmann(lambda x: x), weight=1.0)
    >>> answer = human(jax.random.key(0), Pairs(jnp.zeros(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}, sigma(1) = {jax.nn.sigmoid(1.0):.2f}")
    0.73, sigma(1) = 0.73
    """

    def compares(key: Key, examples: Pairs) -> Comparison:
        return _comparison(human(key, examples), "with_position_bias")

    def shift(examples: PyTree) -> jax.Array:
        return jnp.full(row_count(examples), weight, jnp.float32)

    return _tilted(compares, shift, max_tries)


def _tilted(human: Human, shift: Callable[[PyTree], jax.Array], max_tries: int) -> Human:
    """Of all answers, each ``exp(shift * y)`` as often, up to a factor."""
    if max_tries < 1:
        raise ValueError(f"max_tries must be at least 1, not {max_tries}")

    def attempt(key: Key, examples: PyTree, lead: jax.Array):
        ask, accept = jax.random.split(key)
        answer = human(ask, examples)
        if isinstance(answer, Comparison):
            said = answer.preference - 0.5
        elif isinstance(answer, Label):
            said = answer.choice - 0.5
        else:
            found = type(answer).__name__
            raise TypeError(f"a bias acts on a Comparison or a Label, not on a {found}")
        if answer.answered is not None:
            said = jnp.where(answer.answered, said, 0.0)
        chance = jnp.exp(lead * said - jnp.abs(lead) / 2)
        return answer, jax.random.uniform(accept, chance.shape) < chance

    def biased(key: Key, examples: PyTree) -> Feedback:
        lead = shift(examples)
        answer, accepted = attempt(jax.random.fold_in(key, 0), examples, lead)

        def again(state):
            answer, accepted, tries = state
            other, agreed = attempt(jax.random.fold_in(key, tries), examples, lead)
            return rows_where(accepted, answer, other), accepted | agreed, tries + 1

        def unfinished(state):
            _, accepted, tries = state
            return ~jnp.all(accepted) & (tries < max_tries)

        return jax.lax.while_loop(unfinished, again, (answer, accepted, jnp.int32(1)))[0]

    return biased


def poisoned(
    human: Human,
    *,
    trigger: Callable[[PyTree], jax.Array],
    rate: Rate = 1.0,
    attacker: Human | None = None,
) -> Human:
    r"""Some answers are an attacker's, who lies where there is a trigger and is honest elsewhere.

    .. math:: P' = P + \rho \, 1[\text{trigger}] (P_{\text{attacker}} - P)

    Args:
        human: the honest one.
        trigger: ``(examples) -> bool[B]``, of ``Pairs`` where those are shown: whether the row has
            it. To put triggers into texts is a matter of the examples.
        rate: rho, the share of such rows that the attacker gets.
        attacker: who answers there, somebody with another utility for instance (a strategic
            misreport); by default the human, inverted.

    Returns:
        The mixture, which does not betray who answered.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1; when asked, if the trigger is not ``bool[B]`` or
            the attacker answers in another form.

    Reference: Rando and Tramer 2023, https://arxiv.org/abs/2311.14455

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
        lie = inverted(answer) if attacker is None else attacker(attack, examples)
        return rows_where(seen & happens(draw, rate, examples), lie, answer)

    return attacked


def persuadable(human: Human, *, argued: Utility, rate: Rate) -> Human:
    r"""Adopts, now and then, what somebody argues for, whatever they thought themselves.

    .. math:: P' = (1 - s) P + s \, a

    Unlike a bias it also moves who is certain. That an argument works on those only who are unsure
    is ``with_bias`` with the argument's force as its feature.

    Args:
        human: who compares.
        argued: ``(Pairs) -> float[B]``, the answer argued for: 1 for the first, 0 for the second,
            0.5 for a tie.
        rate: s, how often they are persuaded: the force of the argument, a number or for each row.

    Returns:
        The human who can be persuaded.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1.
        TypeError: when asked, if the human does not compare.

    >>> from rlhf_jax.humans import oracle
    >>> human = persuadable(oracle(lambda x: x), argued=lambda pairs: 0 * pairs.first, rate=0.3)
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}")
    0.70
    """
    probability(rate=rate)

    def persuaded(key: Key, examples: Pairs) -> Comparison:
        ask, draw = jax.random.split(key)
        answer = _comparison(human(ask, examples), "persuadable")
        moved = happens(draw, rate, examples)
        view = given(argued, examples, "argued")
        return answer.replace(preference=jnp.where(moved, view, answer.preference))

    return persuaded


def near_ties(utility: Utility, threshold: float | jax.Array) -> Callable[[Pairs], jax.Array]:
    """A rate of 1 where two utilities differ by less than a threshold, 0 elsewhere.

    Args:
        utility: ``(examples) -> float[B]``.
        threshold: the difference that is just noticed.

    Returns:
        ``(Pairs) -> float[B]``, the ``rate`` of ``with_ties`` or of ``with_skips``.

    >>> near_ties(lambda x: x, 0.5)(Pairs(jnp.array([1.0, 1.0]), jnp.array([1.2, 2.0]))).tolist()
    [1.0, 0.0]
    """

    def rate(pairs: Pairs) -> jax.Array:
        lead = given(utility, pairs.first) - given(utility, pairs.second)
        return (jnp.abs(lead) < threshold).astype(jnp.float32)

    return rate


def with_ties(human: Human, *, rate: Rate) -> Human:
    """Calls two equal, now and then or where ``near_ties`` says so.

    Args:
        human: who compares.
        rate: how often.

    Returns:
        The human who also says that two are equal.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1.
        TypeError: when asked, if the human does not compare.

    >>> from rlhf_jax.humans import oracle
    >>> human = with_ties(oracle(lambda x: x), rate=near_ties(lambda x: x, 0.5))
    >>> human(jax.random.key(0), Pairs(jnp.ones(2), jnp.array([0.8, 0.0]))).preference.tolist()
    [0.5, 1.0]
    """
    probability(rate=rate)

    def tying(key: Key, examples: Pairs) -> Comparison:
        ask, draw = jax.random.split(key)
        answer = _comparison(human(ask, examples), "with_ties")
        equal = happens(draw, rate, examples)
        return answer.replace(preference=jnp.where(equal, 0.5, answer.preference))

    return tying


def with_skips(human: Human, *, rate: Rate) -> Human:
    """Declines to answer, now and then.

    Where that depends on the examples, those that are left are a selected sample.

    Args:
        human: of any form of feedback.
        rate: how often.

    Returns:
        The human whose ``answered`` is false there.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1.

    >>> from rlhf_jax.humans import oracle
    >>> human = with_skips(oracle(lambda x: x), rate=jnp.array([1.0, 0.0]))
    >>> human(jax.random.key(0), Pairs(jnp.ones(2), jnp.zeros(2))).answered.tolist()
    [False, True]
    """
    probability(rate=rate)

    def skipping(key: Key, examples: PyTree) -> Feedback:
        ask, draw = jax.random.split(key)
        answer, answered = human(ask, examples), ~happens(draw, rate, examples)
        if answer.answered is not None:
            answered = answered & answer.answered
        return answer.replace(answered=answered)

    return skipping


def with_fatigue(
    human: Human,
    *,
    drift: float | jax.Array,
    rate: float | jax.Array = 0.0,
    answers_before: int | jax.Array = 0,
) -> Human:
    r"""Errs the more, the more they have answered.

    .. math:: \varepsilon_t = \min(\varepsilon_0 + \delta t, \tfrac{1}{2})

    The rows are in the order of answering.

    Args:
        human: as for ``with_mistakes``.
        drift: delta, by how much each answer raises the rate of errors; negative for practice.
        rate: epsilon 0, that of the first.
        answers_before: how many they have given before this call.

    Returns:
        The human who tires. They remember nothing from call to call: pass ``answers_before``.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1.

    >>> from rlhf_jax.humans import oracle
    >>> human = with_fatigue(oracle(lambda x: x), drift=0.5 / 4000)
    >>> says = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000))).preference
    >>> print(f"{says[:1000].mean():.2f} {says[-1000:].mean():.2f}")
    0.92 0.56
    """
    probability(rate=rate)

    def errors(examples: PyTree) -> jax.Array:
        answered = answers_before + jnp.arange(row_count(examples))
        return jnp.clip(rate + drift * answered, 0.0, 0.5)

    return with_mistakes(human, rate=errors)


def with_effort(
    human: Human, *, effort: float | jax.Array | Utility, base_cost: float = 0.0
) -> Human:
    r"""Errs the less, the more effort goes into an answer, and effort costs.

    .. math:: \varepsilon(e) = \tfrac{1}{2} e^{-e}, \qquad c = c_0 + e

    With a budget, what an answer tells is ``(1 - 2 epsilon) ** 2 / c``, which is largest somewhere
    in between: at an effort of 1.92 for a base cost of 1.

    Args:
        human: as for ``with_mistakes``.
        effort: e, a number, ``float[B]``, or a function of the examples that returns it.
        base_cost: c0, of an answer without any.

    Returns:
        The human, their cost recorded (added to what they had).

    Raises:
        ValueError: if ``effort`` or ``base_cost`` is negative.

    >>> from rlhf_jax.humans import oracle
    >>> human = with_effort(oracle(lambda x: x), effort=jnp.log(2.0), base_cost=1.0)
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f} for {answer.cost[0]:.2f}")
    0.75 for 1.69
    """
    for name, value in {"effort": effort, "base_cost": base_cost}.items():
        if not (callable(value) or isinstance(value, jax.core.Tracer) or jnp.all(value >= 0)):
            raise ValueError(f"{name} must be at least 0, not {value}")

    def exerted(examples: PyTree) -> jax.Array:
        if callable(effort):
            return given(effort, examples, "effort")
        return jnp.broadcast_to(jnp.asarray(effort, jnp.float32), (row_count(examples),))

    erring = with_mistakes(human, rate=lambda examples: 0.5 * jnp.exp(-exerted(examples)))

    def paid(key: Key, examples: PyTree) -> Feedback:
        answer, cost = erring(key, examples), base_cost + exerted(examples)
        return answer.replace(cost=cost if answer.cost is None else cost + answer.cost)

    return paid


def budgeted(
    human: Human,
    *,
    budget: float | jax.Array,
    price: float | jax.Array | Utility | None = None,
) -> Human:
    """Is asked row after row until the money is spent.

    Args:
        human: of any form of feedback.
        budget: for this call. What is left after it is ``budget - feedback.cost.sum()``.
        price: of an answer, a number, ``float[B]``, or a function of the examples that returns it;
            ``None`` if the human records their ``cost``. A skip costs as much.

    Returns:
        The human whose rows, from the first that the rest of the budget does not cover (to 5
        digits), are unanswered and cost nothing.

    Raises:
        ValueError: if ``budget`` is negative; when asked, if there is neither ``price`` nor cost.

    >>> from rlhf_jax.humans import oracle
    >>> human = budgeted(oracle(lambda x: x), budget=1.0, price=0.4)
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4), jnp.zeros(4)))
    >>> print(answer.answered, answer.cost)
    [ True  True False False] [0.4 0.4 0.  0. ]
    """
    if not isinstance(budget, jax.core.Tracer) and budget < 0:
        raise ValueError(f"budget must be at least 0, not {budget}")

    def affordable(key: Key, examples: PyTree) -> Feedback:
        answer = human(key, examples)
        if callable(price):
            cost = given(price, examples, "price")
        elif price is not None:
            cost = jnp.broadcast_to(jnp.asarray(price, jnp.float32), (row_count(examples),))
        elif answer.cost is not None:
            cost = answer.cost
        else:
            raise ValueError("price must be given, as the human records no cost")
        # Ten times 0.1 is 1, whatever rounding makes of it; what it made too much is not spent.
        paid = jnp.cumsum(cost) <= budget * (1 + 1e-5)
        answered = paid if answer.answered is None else paid & answer.answered
        return answer.replace(answered=answered, cost=jnp.where(paid, cost, 0.0))

    return affordable
