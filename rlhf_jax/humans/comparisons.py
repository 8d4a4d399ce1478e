"""Simulated people who compare two examples, of a known utility.

A *utility* says how much the person likes examples: ``utility(examples) -> float[B]``, on whatever
pytree the examples are. It may not know all that the person reacts to: wrappers change how people
answer, ``wishes`` what they want. All may be compiled, and vmapped over keys. Nobody in this
package was fitted to anyone, but ``rater_effects`` can be (``rater_settings``) and ``real_raters``
are real: what such people show is a mechanism.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.feedback import Comparison, Pairs, Rating, comparisons_from_ratings
from rlhf_jax.humans.common import Human, Rate, Utility, given, probability
from rlhf_jax.humans.mistakes import with_mistakes
from rlhf_jax.types import Key, PyTree

__all__ = ["boltzmann", "bpref_teacher", "comparing", "oracle", "preferring", "thurstone"]


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


def preferring(chance: Callable[[PyTree, PyTree], jax.Array]) -> Human:
    """Prefers the first as often as told: preferences that need not come from any utility.

    They may go round in a circle. That ``chance(a, b)`` and ``chance(b, a)`` sum to 1, without
    which the place decides too, is not checked.

    Args:
        chance: ``(first, second) -> float[B]``, how probably the first is preferred.

    Returns:
        ``(key, Pairs) -> Comparison``, which never says that two are equal.

    Raises:
        ValueError: when asked, if the sides are not alike or ``chance`` does not return ``[B]``.

    >>> human = preferring(lambda first, second: jnp.where((second - first) % 3 == 1, 1.0, 0.0))
    >>> pairs = Pairs(jnp.array([0, 1, 2]), jnp.array([1, 2, 0]))  # each beats the next
    >>> human(jax.random.key(0), pairs).preference.tolist()
    [1.0, 1.0, 1.0]
    """

    def human(key: Key, examples: Pairs) -> Comparison:
        chances = given(lambda pairs: chance(pairs.first, pairs.second), examples)
        return _says(jax.random.uniform(key, chances.shape) < chances)

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

    >>> from rlhf_jax.humans import rater_effects
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
