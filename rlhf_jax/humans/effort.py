"""Whether people answer, how long they keep it up, and what it costs: wrappers on humans."""

import jax
import jax.numpy as jnp

from rlhf_jax.feedback import Feedback
from rlhf_jax.humans.common import Human, Rate, Utility, given, happens, probability, row_count
from rlhf_jax.humans.mistakes import Wrong, opposite, with_mistakes
from rlhf_jax.types import Key, PyTree

__all__ = ["budgeted", "with_effort", "with_fatigue", "with_skips"]


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

    >>> from rlhf_jax.feedback import Pairs
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
    wrong: Wrong = opposite,
) -> Human:
    r"""Errs the more, the more they have answered.

    .. math:: \varepsilon_t = \min(\varepsilon_0 + \delta t, \tfrac{1}{2})

    The rows are in the order of answering.

    Args:
        human: as for ``with_mistakes``.
        drift: delta, by how much each answer raises the rate of errors; negative for practice.
        rate: epsilon 0, that of the first.
        answers_before: how many they have given before this call.
        wrong: as in ``with_mistakes``.

    Returns:
        The human who tires. They remember nothing from call to call: pass ``answers_before``.

    Raises:
        ValueError: if ``rate`` is not from 0 to 1.

    >>> from rlhf_jax.feedback import Pairs
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

    return with_mistakes(human, rate=errors, wrong=wrong)


def with_effort(
    human: Human,
    *,
    effort: float | jax.Array | Utility,
    base_cost: float | jax.Array = 0.0,
    wrong: Wrong = opposite,
) -> Human:
    r"""Errs the less, the more effort goes into an answer, and effort costs.

    .. math:: \varepsilon(e) = \tfrac{1}{2} e^{-e}, \qquad c = c_0 + e

    With a budget, what an answer tells is ``(1 - 2 epsilon) ** 2 / c``, which is largest somewhere
    in between: at an effort of 1.92 for a base cost of 1.

    Args:
        human: as for ``with_mistakes``.
        effort: e, a number, ``float[B]``, or a function of the examples that returns it.
        base_cost: c0, of an answer without any.
        wrong: as in ``with_mistakes``.

    Returns:
        The human, their cost recorded (added to what they had).

    Raises:
        ValueError: if ``effort`` or ``base_cost`` is negative.

    >>> from rlhf_jax.feedback import Pairs
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

    def errors(examples: PyTree) -> jax.Array:
        return 0.5 * jnp.exp(-exerted(examples))

    erring = with_mistakes(human, rate=errors, wrong=wrong)

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

    >>> from rlhf_jax.feedback import Pairs
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
