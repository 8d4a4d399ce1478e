"""Simulated people who judge one example: on a scale, as good or bad, part by part."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import Attributes, Label, Rating, Spans, Steps
from rlhf_jax.humans.common import Human, Utility, given, probability, steps_of
from rlhf_jax.types import Key, PyTree

__all__ = [
    "approval",
    "attributes",
    "linear_scale",
    "marking_spans",
    "marking_steps",
    "ordinal",
    "rater_effects",
]


def approval(
    utility: Utility, *, threshold: float | jax.Array = 0.0, rationality: float | jax.Array = 1.0
) -> Human:
    r"""Says whether an example is good enough.

    .. math:: P(\text{good}) = \sigma(\beta (u - \tau))

    An answer that only looks right is told apart from a right one by what ``utility`` sees of it.
    With ``with_bias`` it is the evaluator who can be misled: ``sigma(a k + c z - tau)``.

    Args:
        utility: ``(examples) -> float[B]``.
        threshold: tau, the utility at which one in two is called good.
        rationality: beta, per unit of utility.

    Returns:
        ``(key, examples) -> Label``, 1 for good and 0 for bad.

    Raises:
        ValueError: if ``rationality`` is not positive.

    Reference: the setting of Wen et al. 2024, https://arxiv.org/abs/2409.12822

    >>> human = approval(lambda score: score, threshold=1.0, rationality=50.0)
    >>> human(jax.random.key(0), jnp.array([0.0, 2.0])).choice.tolist()
    [0, 1]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: PyTree) -> Label:
        chance = jax.nn.sigmoid(rationality * (given(utility, examples) - threshold))
        good = jax.random.uniform(key, chance.shape) < chance
        return Label(choice=good.astype(jnp.int32))

    return human


def ordinal(utility: Utility, *, cutpoints: jax.Array) -> Human:
    r"""Rates on a scale of whole steps: between which cutpoints it felt, with logistic noise.

    .. math:: P(y \le k) = \sigma(c_k - u)

    What ``losses.ordinal`` is the likelihood of.

    Args:
        utility: ``(examples) -> float[B]``, in nats.
        cutpoints: ``float[K - 1]``, increasing.

    Returns:
        ``(key, examples) -> Rating``, from 0 (worst) to ``K - 1``.

    Raises:
        ValueError: if ``cutpoints`` is not of rank 1 or not increasing.

    Reference: McCullagh 1980, J. R. Stat. Soc. B 42

    >>> human = ordinal(lambda score: score, cutpoints=jnp.array([-50.0, 50.0]))
    >>> human(jax.random.key(0), jnp.array([-100.0, 0.0, 100.0])).value.tolist()
    [0.0, 1.0, 2.0]
    """
    checks.vectors(cutpoints=cutpoints)
    cutpoints = jnp.asarray(cutpoints)
    if not isinstance(cutpoints, jax.core.Tracer) and np.any(np.diff(cutpoints) <= 0):
        raise ValueError(f"cutpoints must increase, not {cutpoints}")

    def human(key: Key, examples: PyTree) -> Rating:
        felt = given(utility, examples)
        felt = felt + jax.random.logistic(key, felt.shape)
        return Rating(value=jnp.sum(felt[:, None] > cutpoints, axis=1).astype(jnp.float32))

    return human


def rater_effects(
    utility: Utility,
    *,
    bias: jax.Array,
    slope: jax.Array,
    noise: jax.Array,
    low: float,
    high: float,
) -> Callable[..., Rating]:
    r"""Raters who use the scale in different ways.

    .. math:: y = \operatorname{clip}(\operatorname{round}(
              b_k + s_k u + \sigma_k \varepsilon), \text{low}, \text{high})

    ``rater_settings`` of ``measures.rater_effects`` are the numbers of real raters; their utility
    is the mean of all ratings of an item. ``comparing`` makes it a human who compares, whose two
    ratings are one rater's. To have all raters rate the same examples, pass ``rater``.

    Args:
        utility: ``(examples) -> float[B]``, in steps of the scale.
        bias: ``float[R]``, where each of the raters begins.
        slope: ``float[R]``, how far each goes; negative for one who turned the scale round.
        noise: ``float[R]``, standard deviation of each.
        low: the least step of the scale.
        high: the greatest.

    Returns:
        ``(key, examples) -> Rating`` by raters drawn uniformly, each row by its own; with a third
        argument, ``rater: int[B]``, those rate (-1: no answer).

    Raises:
        ValueError: if the three are not ``[R]``, ``noise`` is negative, or ``low`` is not below
            ``high``.

    >>> tough_and_keen = {"bias": jnp.array([-2.0, 0.0]), "slope": jnp.array([1.0, 2.0])}
    >>> human = rater_effects(
    ...     lambda x: x, **tough_and_keen, noise=jnp.zeros(2), low=-4, high=4)
    >>> human(jax.random.key(0), jnp.array([1.0, 3.0]), jnp.array([0, 1])).value.tolist()
    [-1.0, 4.0]
    """
    bias, slope, noise = (jnp.asarray(x, jnp.float32) for x in (bias, slope, noise))
    checks.vectors(bias=bias)
    checks.alike(bias=bias, slope=slope, noise=noise)
    if not low < high:
        raise ValueError(f"low must be below high, not {low} and {high}")
    _not_negative(noise=noise)

    def human(key: Key, examples: PyTree, rater: jax.Array | None = None) -> Rating:
        who_key, noise_key = jax.random.split(key)
        liked = given(utility, examples)
        if rater is None:
            rater = jax.random.randint(who_key, liked.shape, 0, len(bias))
        else:
            checks.alike(rater=rater, rows=liked)
        felt = bias[rater] + slope[rater] * liked
        felt = felt + noise[rater] * jax.random.normal(noise_key, liked.shape)
        value = jnp.clip(jnp.round(felt), low, high)
        rater = jnp.asarray(rater, jnp.int32)
        return Rating(value=value, rater=rater, answered=(rater >= 0) & (rater < len(bias)))

    return human


def linear_scale(
    utility: Utility,
    *,
    slope: float | jax.Array = 1.0,
    bias: float | jax.Array = 0.0,
    noise: float | jax.Array = 0.0,
    drift: float | jax.Array = 0.0,
) -> Human:
    r"""Rates by a number without steps or ends, on a scale whose zero may wander.

    .. math:: y_t = b_t + s \, u(x_t) + \sigma \varepsilon_t, \qquad
              b_t = b_{t-1} + \delta \xi_t, \quad \varepsilon_t, \xi_t \sim \mathcal N(0, 1)

    So two ratings are the less comparable the longer the time between them: their difference has
    the variance ``2 sigma ** 2 + delta ** 2 |s - t|``. The rows are in the order of time, and each
    call begins anew from ``bias``. Many raters on a scale of whole steps are ``rater_effects``.

    Args:
        utility: ``(examples) -> float[B]``.
        slope: s, steps of the scale per unit of utility.
        bias: b, the scale's zero before the first answer.
        noise: sigma, standard deviation of each rating.
        drift: delta, standard deviation of what the zero moves by from answer to answer.

    Returns:
        ``(key, examples) -> Rating``.

    Raises:
        ValueError: if ``noise`` or ``drift`` is negative.

    >>> human = linear_scale(lambda score: score, slope=2.0, bias=1.0)
    >>> human(jax.random.key(0), jnp.array([0.0, 3.0])).value.tolist()
    [1.0, 7.0]
    """
    _not_negative(noise=noise, drift=drift)

    def human(key: Key, examples: PyTree) -> Rating:
        noise_key, drift_key = jax.random.split(key)
        felt = slope * given(utility, examples)
        zero = bias + drift * jnp.cumsum(jax.random.normal(drift_key, felt.shape))
        return Rating(value=zero + felt + noise * jax.random.normal(noise_key, felt.shape))

    return human


def attributes(rates: Sequence[Human]) -> Human:
    """Rates in several respects, each as one who rates in that respect alone would.

    Each answers from a key of its own, so that errors in two respects are independent: there is no
    halo, and who rates is not recorded (of ``rater_effects`` each respect draws its own rater).

    Args:
        rates: for each attribute a human who gives a ``Rating``.

    Returns:
        ``(key, examples) -> Attributes``, masked where a rating was not answered; its cost and time
        are the sums of those recorded.

    Raises:
        ValueError: if there is no attribute.
        TypeError: when asked, if one does not give a ``Rating``.

    >>> human = attributes([linear_scale(lambda x: x[:, 1]), linear_scale(lambda x: x[:, 0])])
    >>> human(jax.random.key(0), jnp.array([[1.0, 2.0]])).values.tolist()
    [[2.0, 1.0]]
    """
    if not rates:
        raise ValueError("rates must have at least one attribute, not none")

    def human(key: Key, examples: PyTree) -> Attributes:
        keys = jax.random.split(key, len(rates))
        answers = [rate(own, examples) for rate, own in zip(rates, keys, strict=True)]
        for number, answer in enumerate(answers):
            if not isinstance(answer, Rating):
                found = type(answer).__name__
                raise TypeError(f"attribute {number} must be given as a Rating, not a {found}")
        totals = {}
        for name in ("cost", "seconds"):
            recorded = [x for x in (getattr(a, name) for a in answers) if x is not None]
            totals[name] = sum(recorded) if recorded else None
        values = jnp.stack([answer.value for answer in answers], axis=1)
        if all(answer.answered is None for answer in answers):
            return Attributes(values=values, **totals)
        given_by = [
            jnp.ones(len(values), bool) if answer.answered is None else answer.answered
            for answer in answers
        ]
        mask = jnp.stack(given_by, axis=1)
        return Attributes(values=values, mask=mask, answered=mask.any(axis=1), **totals)

    return human


def marking_steps(
    correct: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    *,
    ends: Callable[[PyTree], jax.Array] | None = None,
    missed: float | jax.Array = 0.0,
    false_alarms: float | jax.Array = 0.0,
    until_error: bool = False,
) -> Human:
    r"""Marks each step of a solution as right or wrong, and makes mistakes.

    .. math:: P(\text{marked wrong}) = \begin{cases} 1 - m & \text{wrong} \\
              f & \text{right} \end{cases}

    The mistakes are independent from step to step.

    Args:
        correct: ``(examples) -> (bool[B, S], bool[B, S])``, whether each step is right, and where
            there is a step, as for ``limited_checker``.
        ends: ``(examples) -> int[B, S]``, the column of each step's last token; by default step
            ``s`` ends in column ``s``.
        missed: m, how often a wrong step passes for right.
        false_alarms: f, how often a right step is called wrong.
        until_error: whether to stop at the first step marked wrong, and leave the rest unmarked, as
            was done for Lightman et al.

    Returns:
        ``(key, examples) -> Steps``, 1 for right and 0 for wrong.

    Raises:
        ValueError: if a rate is not from 0 to 1, or the steps are not ``[B, S]``.

    Reference: Lightman et al. 2023, https://arxiv.org/abs/2305.20050

    >>> human = marking_steps(lambda right: (right, jnp.ones(right.shape, bool)), until_error=True)
    >>> steps = human(jax.random.key(0), jnp.array([[True, False, True]]))
    >>> print(steps.marks, steps.mask)
    [[1. 0. 1.]] [[ True  True False]]
    """
    probability(missed=missed, false_alarms=false_alarms)

    def human(key: Key, examples: PyTree) -> Steps:
        right, mask = steps_of(correct, examples)
        if ends is None:
            last = jnp.broadcast_to(jnp.arange(right.shape[1], dtype=jnp.int32), right.shape)
        else:
            last = jnp.asarray(ends(examples))
            checks.integers(ends=last)
            checks.alike(correct=right, ends=last)
        wrong = jax.random.uniform(key, right.shape) < jnp.where(right, false_alarms, 1 - missed)
        if until_error:
            seen = jnp.cumsum(wrong & mask, axis=1) - (wrong & mask)
            mask = mask & (seen == 0)
        return Steps(marks=jnp.where(wrong, 0.0, 1.0), ends=last.astype(jnp.int32), mask=mask)

    return human


def marking_spans(
    spans: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    *,
    threshold: float | jax.Array = 1.0,
    rationality: float | jax.Array = 1.0,
) -> Human:
    r"""Marks the parts of a text that make it better or worse, and leaves the rest alone.

    .. math:: P(m) \propto \exp(\beta \, m u) \text{ for } m = \pm 1, \qquad
              P(0) \propto \exp(\beta \tau)

    A noisily rational choice of one mark for each span: where ``rationality`` is large, ``m`` is
    the sign of what matters more than the threshold.

    Args:
        spans: ``(examples) -> (float[B, S], int[B, T])``, what each span adds to the utility, and
            the number of the span in which each token is, negative for none.
        threshold: tau, how much a span matters that is as likely marked as not (its other mark
            aside).
        rationality: beta, per unit of utility.

    Returns:
        ``(key, examples) -> Spans``, -1, 0 or 1 on all tokens of a span.

    Raises:
        ValueError: if ``rationality`` is not positive; when asked, if the arrays are not ``[B, S]``
            and ``[B, T]``.

    >>> places = jnp.array([[0, 0, -1, 1, 2]])
    >>> human = marking_spans(lambda adds: (adds, places), rationality=50.0)
    >>> human(jax.random.key(0), jnp.array([[-2.0, 0.5, 3.0]])).marks.tolist()
    [[-1.0, -1.0, 0.0, 0.0, 1.0]]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: PyTree) -> Spans:
        adds, span = (jnp.asarray(x) for x in spans(examples))
        if adds.ndim != 2 or span.ndim != 2 or len(adds) != len(span):
            found = f"{list(adds.shape)} and {list(span.shape)}"
            raise ValueError(f"spans must return [B, S] and [B, T], not {found}")
        checks.integers(span=span)
        marks = jnp.array([-1.0, 0.0, 1.0])
        value = jnp.where(marks == 0, threshold, marks * adds[..., None])
        mark = marks[jax.random.categorical(key, rationality * value)]
        there = (span >= 0) & (span < adds.shape[1])
        at_tokens = jnp.take_along_axis(mark, jnp.where(there, span, 0), axis=1)
        return Spans(marks=jnp.where(there, at_tokens, 0.0))

    return human


def _not_negative(**values: float | jax.Array) -> None:
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name} must be at least 0, not {value}")
