"""What draws people to an answer beside what they like: features, places, arguments, indifference.

Functions from a human to a human, which compose (see ``mistakes``).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.feedback import Comparison, Feedback, Label, Pairs, Rating
from rlhf_jax.humans.common import (
    Human,
    Rate,
    Utility,
    given,
    happens,
    probability,
    refuse,
    row_count,
    rows_where,
    said,
)
from rlhf_jax.types import Key, PyTree

__all__ = [
    "near_ties",
    "persuadable",
    "with_bias",
    "with_position_bias",
    "with_ties",
]


def _comparison(answer: Feedback, wrapper: str) -> Comparison:
    if not isinstance(answer, Comparison):
        found = type(answer).__name__
        raise TypeError(f"{wrapper} is for humans who give a Comparison, not a {found}")
    return answer


def with_bias(
    human: Human,
    *,
    feature: Utility,
    weight: float | jax.Array,
    scale: tuple[float, float] | None = None,
    max_tries: int = 256,
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

    A rating has no odds: it moves by ``w f``. On a ``scale`` of whole steps that is to the step
    below or the one above, at random so that the mean moves by ``w f``, and no further than the
    ends.

    Args:
        human: who compares (then the feature is of each side), labels as good or bad (then
            ``f_a - f_b`` is the feature of the example), or rates.
        feature: ``(examples) -> float[B]``, such as ``lambda s: s.response_mask.sum(axis=-1)``.
        weight: w, in nats (of a rating, in its own unit) per unit of the feature; negative for an
            aversion.
        scale: the least and the greatest rating, for one who rates in whole steps.
        max_tries: after which an answer stands, accepted or not. That is a matter of those who are
            all but certain: a bias of d nats against them takes ``exp(d)`` tries on average.

    Returns:
        The human with the bias; it acts on a skip as on a tie.

    Raises:
        ValueError: if ``max_tries`` is below 1 or ``scale`` is not increasing; when asked, if a
            label is neither 0 nor 1 (which cannot be checked while it is traced).
        TypeError: when asked, if the answers are of another form.

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

    if scale is not None and not scale[0] < scale[1]:
        raise ValueError(f"scale must be (low, high), low below high, not {scale}")
    return _tilted(human, shift, max_tries, scale)


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


def _tilted(
    human: Human,
    shift: Callable[[PyTree], jax.Array],
    max_tries: int,
    scale: tuple[float, float] | None = None,
) -> Human:
    """Of all answers, each ``exp(shift * y)`` as often, up to a factor."""
    if max_tries < 1:
        raise ValueError(f"max_tries must be at least 1, not {max_tries}")

    def attempt(key: Key, examples: PyTree, lead: jax.Array):
        ask, accept = jax.random.split(key)
        answer = human(ask, examples)
        if isinstance(answer, Comparison):
            lean = answer.preference - 0.5
        elif isinstance(answer, Label):
            outside = said(answer) & ((answer.choice < 0) | (answer.choice > 1))
            refuse("label", answer.choice, outside, "0 or 1, bad or good, to be biased")
            lean = answer.choice - 0.5
        elif isinstance(answer, Rating):
            moved = answer.value + lead
            if scale is not None:
                up = jax.random.uniform(accept, moved.shape)
                moved = jnp.clip(jnp.floor(moved + up), *scale)
            return answer.replace(value=moved), jnp.ones(moved.shape, bool)
        else:
            found = type(answer).__name__
            raise TypeError(f"a bias acts on a Comparison, a Label or a Rating, not on a {found}")
        if answer.answered is not None:
            lean = jnp.where(answer.answered, lean, 0.0)
        chance = jnp.exp(lead * lean - jnp.abs(lead) / 2)
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
