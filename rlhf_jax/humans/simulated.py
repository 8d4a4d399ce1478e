"""Simulated people, each a pure function ``(key, examples) -> feedback``, of a known utility.

A *utility* says how much the person likes examples: ``utility(examples) -> float[B]``, on whatever
pytree the examples are. Those who compare are shown ``feedback.Pairs``; those who rank, examples of
``[B, N, ...]``. A utility may not know all that the person reacts to: the wrappers of this package
change how people answer, and these functions what they want.

All may be compiled, and vmapped over keys. Nobody here was fitted to anyone: what such people show
is a mechanism. ``fit_rater_effects`` gives ``rater_effects`` the numbers of real raters.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import (
    Comparison,
    Label,
    Pairs,
    Ranking,
    Rating,
    comparisons_from_ratings,
)
from rlhf_jax.humans.common import Human, Rate, Utility, given, probability, row_count, rows_where
from rlhf_jax.humans.wrappers import with_mistakes
from rlhf_jax.types import Key, PyTree

__all__ = [
    "approval",
    "boltzmann",
    "bpref_teacher",
    "comparing",
    "drifting",
    "hidden_context",
    "limited_checker",
    "oracle",
    "ordinal",
    "partial_observer",
    "plackett_luce",
    "population",
    "rater_effects",
    "thurstone",
]


def _lead(utility: Utility, pairs: Pairs) -> jax.Array:
    return given(utility, pairs.first) - given(utility, pairs.second)


def _says(prefers_first: jax.Array) -> Comparison:
    return Comparison(preference=prefers_first.astype(jnp.float32))


def boltzmann(utility: Utility, *, rationality: float | jax.Array = 1.0) -> Human:
    r"""Prefers by the Bradley-Terry model: the logistic choice between two.

    .. math:: P(a \succ b) = \sigma(\beta (u_a - u_b))

    Args:
        utility: ``(examples) -> float[B]``, in nats if ``rationality`` is 1.
        rationality: beta, per unit of utility. As it grows this becomes ``oracle``.

    Returns:
        ``(key, Pairs) -> Comparison``, which never says that two are equal.

    Raises:
        ValueError: if ``rationality`` is not positive.

    Reference: Bradley and Terry 1952, Biometrika 39

    >>> human = boltzmann(lambda score: score, rationality=2.0)
    >>> pairs = Pairs(jnp.zeros(4000), jnp.ones(4000))
    >>> frequency = human(jax.random.key(0), pairs).preference.mean()
    >>> print(f"{frequency:.2f}, expected {jax.nn.sigmoid(-2.0):.2f}")
    0.13, expected 0.12
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: Pairs) -> Comparison:
        chance = jax.nn.sigmoid(rationality * _lead(utility, examples))
        return _says(jax.random.uniform(key, chance.shape) < chance)

    return human


def thurstone(utility: Utility, *, deviation: float | jax.Array = 1.0) -> Human:
    r"""Feels each of the two with Gaussian noise and prefers what feels better (Case V).

    .. math:: P(a \succ b) = \Phi\left(\frac{u_a - u_b}{\sqrt 2\,\sigma}\right)

    Args:
        utility: ``(examples) -> float[B]``.
        deviation: sigma, standard deviation of the noise on one example.

    Returns:
        ``(key, Pairs) -> Comparison``.

    Raises:
        ValueError: if ``deviation`` is not positive.

    Reference: Thurstone 1927, Psychological Review 34

    >>> human = thurstone(lambda score: score, deviation=0.5)
    >>> pairs = Pairs(jnp.ones(4000), jnp.zeros(4000))
    >>> print(f"{human(jax.random.key(0), pairs).preference.mean():.2f}, Phi(sqrt 2) = 0.92")
    0.92, Phi(sqrt 2) = 0.92
    """
    checks.positive(deviation=deviation)

    def human(key: Key, examples: Pairs) -> Comparison:
        lead = _lead(utility, examples)
        noise = jax.random.normal(key, (2, *lead.shape))
        return _says(lead + deviation * (noise[0] - noise[1]) > 0)

    return human


def oracle(utility: Utility) -> Human:
    """Prefers what has the higher utility, without fail; equals are a tie.

    Args:
        utility: ``(examples) -> float[B]``.

    Returns:
        ``(key, Pairs) -> Comparison``, which does not depend on the key.

    >>> pairs = Pairs(jnp.array([1.0, 2.0, 0.0]), jnp.array([0.0, 2.0, 3.0]))
    >>> oracle(lambda score: score)(jax.random.key(0), pairs).preference.tolist()
    [1.0, 0.5, 0.0]
    """

    def human(key: Key, examples: Pairs) -> Comparison:
        return Comparison(preference=0.5 + 0.5 * jnp.sign(_lead(utility, examples)))

    return human


def plackett_luce(utility: Utility, *, rationality: float | jax.Array = 1.0) -> Human:
    r"""Ranks by choosing the best, then the best of the rest, and so on.

    .. math:: P(\text{order}) = \prod_n \frac{e^{\beta u_n}}{\sum_{m \ge n} e^{\beta u_m}}

    Any two of the answers come in the order in which ``boltzmann`` would put them.

    Args:
        utility: ``(examples) -> float[B]`` of examples of ``[B, ...]``.
        rationality: beta, per unit of utility.

    Returns:
        ``(key, examples of [B, N, ...]) -> Ranking``.

    Raises:
        ValueError: if ``rationality`` is not positive.

    Reference: Luce 1959, Individual Choice Behavior; Plackett 1975, Applied Statistics 24

    >>> human = plackett_luce(lambda score: score, rationality=100.0)
    >>> human(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]])).order.tolist()
    [[1, 2, 0]]
    """
    checks.positive(rationality=rationality)

    def human(key: Key, examples: PyTree) -> Ranking:
        each = jax.vmap(partial(given, utility), in_axes=1, out_axes=1)(examples)
        # The order of utilities with Gumbel noise is one drawn from the model.
        felt = rationality * each + jax.random.gumbel(key, each.shape)
        return Ranking(order=jnp.argsort(felt, axis=1, descending=True).astype(jnp.int32))

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


def bpref_teacher(
    rewards: Callable[[PyTree], jax.Array],
    *,
    rationality: float | jax.Array | None = None,
    discount: float | jax.Array = 1.0,
    mistakes: Rate = 0.0,
    skip_below: float | jax.Array | None = None,
    equal_within: float | jax.Array | None = None,
) -> Human:
    r"""The teachers of B-Pref, who compare segments of behaviour by the rewards of their steps.

    .. math:: P(a \succ b) = \sigma\Big(\beta \sum_{t=1}^{H} \gamma^{H-t} (r^a_t - r^b_t)\Big)

    ========  =====================================================================
    teacher   arguments
    ========  =====================================================================
    Oracle    none
    Stoc      ``rationality=1.0``
    Mistake   ``mistakes=0.1``
    Skip      ``skip_below=0.1 * margin``
    Equal     ``equal_within=0.1 * margin``
    Myopic    ``discount=0.9``
    ========  =====================================================================

    There the margin follows the policy: the mean return of its latest episodes times the share of
    an episode that a segment is. As there, what is skipped or called equal is judged by the plain
    sums whatever the discount, and a tie is never mistaken.

    Args:
        rewards: ``(segments) -> float[B, H]``, the reward of each step.
        rationality: beta; ``None`` for one who never errs.
        discount: gamma, of steps before the last; below 1 the teacher is myopic.
        mistakes: how often the answer is turned round.
        skip_below: does not answer unless one of the two sums is above this.
        equal_within: calls two equal whose sums differ by less than this.

    Returns:
        ``(key, Pairs of segments) -> Comparison``. An oracle calls exact equals a tie (the original
        prefers the first of them).

    Raises:
        ValueError: if ``rationality`` is not positive, ``mistakes`` or ``discount`` is not from 0
            to 1, or the rewards are not ``[B, H]``.

    Reference: Lee et al. 2021, https://arxiv.org/abs/2111.03026

    >>> pairs = Pairs(jnp.array([[9.0, 0.0], [0.1, 0.0]]), jnp.array([[0.0, 8.0], [0.0, 0.0]]))
    >>> for settings in ({}, {"discount": 0.5}, {"skip_below": 1.0}, {"equal_within": 1.0}):
    ...     answer = bpref_teacher(lambda segment: segment, **settings)(jax.random.key(0), pairs)
    ...     print(answer.preference, answer.answered)
    [1. 1.] [ True  True]
    [0. 1.] [ True  True]
    [1. 1.] [ True False]
    [1.  0.5] [ True  True]
    """
    probability(mistakes=mistakes, discount=discount)

    def total(segments, factor):
        values = jnp.asarray(rewards(segments), jnp.float32)
        if values.ndim != 2:
            raise ValueError(f"rewards must return [B, H], not {list(values.shape)}")
        before_last = jnp.arange(values.shape[1] - 1, -1, -1)
        return jnp.sum(values * jnp.asarray(factor, jnp.float32) ** before_last, axis=1)

    felt = partial(total, factor=discount)
    judge = oracle(felt) if rationality is None else boltzmann(felt, rationality=rationality)
    judge = with_mistakes(judge, rate=mistakes)

    def human(key: Key, examples: Pairs) -> Comparison:
        first, second = total(examples.first, 1.0), total(examples.second, 1.0)
        answer, answered = judge(key, examples), jnp.ones(first.shape, bool)
        if equal_within is not None:
            equal = jnp.abs(first - second) < equal_within
            answer = answer.replace(preference=jnp.where(equal, 0.5, answer.preference))
        if skip_below is not None:
            answered = jnp.maximum(first, second) > skip_below
        return answer.replace(answered=answered)

    return human


def population(humans: Sequence[Human], *, weights: jax.Array | None = None) -> Human:
    r"""People who differ: each question goes to one of them, drawn at random.

    .. math:: P(y) = \sum_g w_g P_g(y)

    A mixture of Bradley-Terry people is in general not a Bradley-Terry person. Two answers to one
    question come from one member only as often as both draws fall on it; with 13 members that err
    in a quarter of their answers (with ``with_mistakes``), independently, two agree
    ``0.75 ** 2 + 0.25 ** 2 = 0.625`` of the time.

    Args:
        humans: the members, or one for each group, who all answer in one form. All are asked every
            question, so ``G`` members take ``G`` times as long.
        weights: ``float[G]``, their shares, which need not sum to 1; equal by default.

    Returns:
        ``(key, examples) -> feedback`` whose ``rater`` is the member's number. If members have
        raters of their own, those are lost.

    Raises:
        ValueError: if there is no member, the weights are not ``[G]``, negative or all 0, or two
            members answer in different forms.

    Reference: 13 simulated annotators with mistakes are those of Dubois et al. 2023,
    https://arxiv.org/abs/2305.14387

    >>> likes, dislikes = oracle(lambda x: x), oracle(lambda x: -x)
    >>> human = population([likes, dislikes], weights=jnp.array([1.0, 3.0]))
    >>> answer = human(jax.random.key(0), Pairs(jnp.ones(4000), jnp.zeros(4000)))
    >>> print(f"{answer.preference.mean():.2f}, {answer.rater.mean():.2f}")
    0.24, 0.76
    """
    if not humans:
        raise ValueError("humans must have at least one member, not none")
    weights = jnp.ones(len(humans)) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(humans),):
        raise ValueError(f"weights must be [{len(humans)}], not {list(weights.shape)}")
    if not isinstance(weights, jax.core.Tracer) and (np.any(weights < 0) or not np.any(weights)):
        raise ValueError(f"weights must be at least 0, and not all of them 0: {weights}")

    def human(key: Key, examples: PyTree):
        who_key, *keys = jax.random.split(key, len(humans) + 1)
        rows = row_count(examples)
        who = jax.random.categorical(who_key, jnp.log(weights), shape=(rows,)).astype(jnp.int32)
        answers = [
            member(own, examples).replace(rater=who)
            for member, own in zip(humans, keys, strict=True)
        ]
        answer = answers[0]
        for number, other in enumerate(answers[1:], start=1):
            answer = rows_where(who == number, other, answer)
        return answer

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

    ``rater_settings`` of ``fit_rater_effects`` are the numbers of real raters; their utility is the
    mean of all ratings of an item. ``comparing`` makes it a human who compares, whose two ratings
    are one rater's. To have all raters rate the same examples, pass ``rater``.

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
    if not isinstance(noise, jax.core.Tracer) and np.any(noise < 0):
        raise ValueError(f"noise must be at least 0, not {np.min(noise)}")

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


def comparing(rates: Callable[..., Rating], *, margin: float | jax.Array = 0.0) -> Human:
    """Compares by rating both: one rater, two ratings.

    Args:
        rates: ``(key, examples, rater=None) -> Rating``, as ``rater_effects`` and ``real_ratings``
            return, which can be asked for the ratings of given raters.
        margin: ratings that differ by no more count as equal.

    Returns:
        ``(key, Pairs) -> Comparison``, by ``feedback.comparisons_from_ratings``. Not answered where
        the rater drawn for the first did not rate the second (``real_raters`` draws among those
        that rated both).

    >>> rates = rater_effects(lambda x: x, bias=jnp.array([-2.0, 2.0]), slope=jnp.ones(2),
    ...                       noise=jnp.zeros(2), low=-4, high=4)
    >>> human = comparing(rates)
    >>> human(jax.random.key(0), Pairs(jnp.array([1.0, 0.0]), jnp.zeros(2))).preference.tolist()
    [1.0, 0.5]
    """

    def human(key: Key, examples: Pairs) -> Comparison:
        first_key, second_key = jax.random.split(key)
        first = rates(first_key, examples.first)
        second = rates(second_key, examples.second, first.rater)
        return comparisons_from_ratings(first, second, margin=margin)

    return human


def partial_observer(human: Human, *, observe: Callable[[PyTree], PyTree]) -> Human:
    r"""Sees of the examples only what ``observe`` shows, and judges that.

    .. math:: u(o) = \mathbb E_{B(s \mid o)}[r(s)]

    It is for the human's own utility, a function of observations, to say what they believe about
    what they do not see; whoever hides a failure from them gets the reward of what they believe.

    Args:
        human: who judges observations.
        observe: from examples (of pairs, each side; of ``[B, ...]``) to observations of ``B`` rows.

    Returns:
        A human to whom whole examples are shown.

    Reference: Lang et al. 2024, https://arxiv.org/abs/2402.17747

    >>> outcome_and_log = lambda outcome, log: jnp.array([[outcome, log]])
    >>> judge = oracle(lambda log: log[:, 0])
    >>> human = partial_observer(judge, observe=lambda example: example[:, 1:])
    >>> pairs = Pairs(outcome_and_log(0.0, 1.0), outcome_and_log(1.0, 0.0))
    >>> human(jax.random.key(0), pairs).preference.tolist()
    [1.0]
    """

    def observer(key: Key, examples: PyTree):
        if isinstance(examples, Pairs):
            return human(key, Pairs(observe(examples.first), observe(examples.second)))
        return human(key, observe(examples))

    return observer


def limited_checker(
    correct: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    cue: Utility,
    *,
    limit: int,
    answer: Callable[[Utility], Human] = oracle,
) -> Human:
    r"""Checks the first steps of a solution, as many as they can, and trusts a cue for the rest.

    .. math::
        u = \begin{cases} 0 & \text{a step is wrong among the first } M \\
            1 & \text{all steps were checked, and are right} \\
            \text{cue} & \text{otherwise} \end{cases}

    The error is one that raters share: asking more of them does not help.

    Args:
        correct: ``(examples) -> (bool[B, S], bool[B, S])``, whether each step is right, and where
            there is a step.
        cue: ``(examples) -> float[B]``, from 0 to 1, how right they take an unchecked rest to be
            (its confidence, length or looks).
        limit: ``M``, how many steps they check.
        answer: from this utility to a human: ``oracle``, ``partial(boltzmann, rationality=4.0)``,
            ``partial(approval, threshold=0.5)``.

    Returns:
        The human whom ``answer`` returned.

    Raises:
        ValueError: if ``limit`` is negative, or the steps are not ``[B, S]``.

    >>> everywhere = lambda steps: jnp.ones(steps.shape, bool)
    >>> human = limited_checker(
    ...     lambda steps: (steps, everywhere(steps)), cue=lambda steps: jnp.full(len(steps), 0.9),
    ...     limit=2)
    >>> late = jnp.array([[True, True, False]])
    >>> early = jnp.array([[False, True, True]])
    >>> human(jax.random.key(0), Pairs(late, early)).preference.tolist()
    [1.0]
    """
    if limit < 0:
        raise ValueError(f"limit must be at least 0, not {limit}")

    def utility(examples: PyTree) -> jax.Array:
        right, mask = correct(examples)
        checks.alike(correct=right, mask=mask)
        checks.booleans(correct=right, mask=mask)
        if jnp.ndim(right) != 2:
            raise ValueError(f"correct must return [B, S], not {list(jnp.shape(right))}")
        number = jnp.cumsum(mask, axis=1)
        found_wrong = jnp.any(mask & (number <= limit) & ~right, axis=1)
        checked_all = number[:, -1] <= limit
        believed = jnp.where(checked_all, 1.0, given(cue, examples, "cue"))
        return jnp.where(found_wrong, 0.0, believed)

    return answer(utility)


def drifting(
    features: Callable[[PyTree], jax.Array],
    weights: jax.Array,
    *,
    deviation: float | jax.Array,
    answer: Callable[[Utility], Human] = boltzmann,
) -> Human:
    r"""Wants something else as time goes by: the weights of the features walk at random.

    .. math:: u_t(x) = w_t \cdot \phi(x), \qquad w_t = w_{t-1} + \sigma \xi_t,
              \quad \xi_t \sim \mathcal N(0, I)

    The rows are in the order of time, and each call begins anew from ``weights``.

    Args:
        features: ``(examples) -> float[B, F]``.
        weights: ``float[F]``, before the first answer.
        deviation: sigma, standard deviation of each step, for each feature.
        answer: from a utility to a human.

    Returns:
        A human as ``answer`` makes them; both sides of a pair are seen with the same weights.

    Raises:
        ValueError: if ``weights`` is not ``[F]`` or the features are not ``[B, F]``.

    >>> human = drifting(lambda x: x, jnp.array([1.0]), deviation=0.0, answer=oracle)
    >>> human(jax.random.key(0), Pairs(jnp.ones([2, 1]), jnp.zeros([2, 1]))).preference.tolist()
    [1.0, 1.0]
    """
    checks.vectors(weights=weights)
    weights = jnp.asarray(weights, jnp.float32)

    def human(key: Key, examples: PyTree):
        walk_key, answer_key = jax.random.split(key)
        steps = jax.random.normal(walk_key, (row_count(examples), len(weights)))
        now = weights + deviation * jnp.cumsum(steps, axis=0)

        def utility(example: PyTree) -> jax.Array:
            seen = jnp.asarray(features(example))
            if seen.shape != now.shape:
                found = f"{list(now.shape)}, not {list(seen.shape)}"
                raise ValueError(f"features must return {found}")
            return jnp.sum(seen * now, axis=1)

        return answer(utility)(answer_key, examples)

    return human


def hidden_context(
    utility: Callable[[PyTree, jax.Array], jax.Array],
    *,
    probabilities: jax.Array,
    answer: Callable[[Utility], Human] = oracle,
) -> Human:
    """Wants what depends on something that the data do not show.

    Of pairs, a reward model that does not know the context learns the Borda count, which is not
    the mean utility. Unlike in a ``population`` nobody can be told apart: there is no rater.

    Args:
        utility: ``(examples, context: int[B]) -> float[B]``.
        probabilities: ``float[C]``, how probable each context is, up to a factor.
        answer: from a utility to a human.

    Returns:
        A human as ``answer`` makes them; both sides of a pair are seen in the same context.

    Raises:
        ValueError: if ``probabilities`` is not of rank 1 or some are negative.

    Reference: Siththaranjan et al. 2023, https://arxiv.org/abs/2312.08358

    >>> human = hidden_context(
    ...     lambda x, context: jnp.where(context == 0, x, -x), probabilities=jnp.array([0.9, 0.1]))
    >>> pairs = Pairs(jnp.ones(4000), jnp.zeros(4000))
    >>> print(f"{human(jax.random.key(0), pairs).preference.mean():.2f}")
    0.89
    """
    checks.vectors(probabilities=probabilities)
    chances = jnp.asarray(probabilities, jnp.float32)
    if not isinstance(chances, jax.core.Tracer) and np.any(chances < 0):
        raise ValueError(f"probabilities must be at least 0, not {chances}")

    def human(key: Key, examples: PyTree):
        context_key, answer_key = jax.random.split(key)
        shape = (row_count(examples),)
        context = jax.random.categorical(context_key, jnp.log(chances), shape=shape)
        return answer(lambda example: utility(example, context))(answer_key, examples)

    return human
