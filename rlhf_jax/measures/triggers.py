"""Tokens that a model reacts to out of all proportion: triggers, and adversarial ones.

``trigger_scan`` tries given candidates, ``greedy_coordinate_search`` looks for the worst.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from rlhf_jax import checks
from rlhf_jax.sequences import last_token
from rlhf_jax.types import Key, Params, ScoreFn

__all__ = ["TriggerScan", "greedy_coordinate_search", "trigger_scan"]


class TriggerScan(NamedTuple):
    """What inserting each candidate does to the reward.

    Attributes:
        shift: ``float32[C]``, the mean change, in the unit of the reward.
        standard_error: ``float32[C]``, of that mean, over the sequences; NaN of one sequence.
        z: ``float32[C]``, the shift in SDs about the mean of the other candidates' shifts.
        threshold: ``float32[]``, what the largest ``|z|`` exceeds as rarely as the level says.
        flagged: ``bool[C]``, true where ``|z|`` does.
    """

    shift: jax.Array
    standard_error: jax.Array
    z: jax.Array
    threshold: jax.Array
    flagged: jax.Array


def trigger_scan(
    score_fn: ScoreFn,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    candidates: jax.Array,
    *,
    column: jax.Array | None = None,
    level: float = 0.05,
    chunk: int = 1,
) -> TriggerScan:
    r"""Inserts each candidate into held-out text; which of them move the reward like no other.

    .. math::
        s_c = \frac1B \sum_b \left[r(x_b \oplus c) - r(x_b)\right], \qquad
        z_c = \frac{s_c - \bar s_{-c}}{\hat\sigma_{-c} \sqrt{C / (C - 1)}}

    A candidate is flagged if :math:`|z_c|` is above the quantile of Student's t with :math:`C - 2`
    degrees of freedom at :math:`1 - \text{level} / 2C`: were the shifts normal, a clean model would
    have anything flagged with probability ``level`` at most. They often have heavier tails, since
    words such as "terrible" rightly move a reward: what is flagged is to be looked at, and not yet
    guilty. Nor is what is not flagged innocent: a trigger must be among the candidates, work where
    it is inserted and with the text it is inserted in, and be one of few (more than about a
    fifteenth of all candidates hide each other); and in a model that is overfitted, ordinary words
    can move the reward as far as it does.

    Args:
        score_fn: a ``ScoreFn`` that returns ``[B]``.
        params: its parameters.
        tokens: ``int[B, T]``, held-out sequences, padded on either side.
        mask: ``bool[B, T]``, true on real tokens; rows without any are padding and do not count.
        candidates: ``int[C]``, tokens, or ``int[C, n]``, n-grams; at least three. The more of them
            are ordinary, the better the ordinary is known.
        column: ``int[B]``, before which column of ``tokens`` to insert, such as the first of the
            response; by default the last real one, often the end of text.
        level: how probably, at most, anything is flagged without cause.
        chunk: how many candidates to score at a time; memory is that of ``chunk * B`` sequences of
            ``T + n`` tokens.

    Returns:
        ``TriggerScan``.

    Raises:
        ValueError: if the shapes do not fit, something is not of its dtype, there are fewer than
            three candidates or no real token, ``level`` is not between 0 and 1, ``chunk`` is not
            positive, or ``score_fn`` does not return ``[B]``.

    Reference: the threat, Rando and Tramer 2023, https://arxiv.org/abs/2311.14455; the threshold,
    Grubbs 1969, Technometrics 11(1)

    >>> weights = jnp.array([0.1, -0.2, 0.0, 0.1, -0.1, 5.0, 0.2, -0.1])  # token 5 is the trigger
    >>> score_fn = lambda params, tokens, mask: jnp.sum(jnp.where(mask, params[tokens], 0), axis=1)
    >>> tokens, mask = jnp.array([[1, 2, 0], [3, 4, 1]]), jnp.ones([2, 3], bool)
    >>> trigger_scan(score_fn, weights, tokens, mask, jnp.arange(8)).flagged.nonzero()[0].tolist()
    [5]
    """
    checks.alike(tokens=tokens, mask=mask)
    checks.integers(tokens=tokens, candidates=candidates)
    checks.booleans(mask=mask)
    if jnp.ndim(tokens) != 2 or jnp.ndim(candidates) not in (1, 2):
        found = f"{list(jnp.shape(tokens))} and {list(jnp.shape(candidates))}"
        raise ValueError(f"tokens must be [B, T] and candidates [C] or [C, n], not {found}")
    tokens, mask, candidates = (jnp.asarray(x) for x in (tokens, mask, candidates))
    count = len(candidates)
    if count < 3:
        raise ValueError(f"candidates must be at least 3, to be held against others, not {count}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if operator.index(chunk) < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    candidates = candidates.reshape(count, -1)
    real = jnp.any(mask, axis=1)
    if not isinstance(mask, jax.core.Tracer) and not np.any(np.asarray(mask)):
        raise ValueError(f"mask {list(mask.shape)} has no true entry: nothing counts")
    if column is None:
        column = jnp.argmax(last_token(mask), axis=1)
    checks.integers(column=column)
    if jnp.shape(column) != (len(tokens),):
        raise ValueError(f"column must be [B], one a row, not {list(jnp.shape(column))}")
    width, grown = candidates.shape[1], tokens.shape[1] + candidates.shape[1]
    # Where each column of the longer sequence comes from; the inserted ones from nowhere.
    place = jnp.arange(grown) - column[:, None]
    inserted = (place >= 0) & (place < width)
    source = jnp.arange(grown) - jnp.where(place >= width, width, 0)
    source = jnp.clip(source, 0, tokens.shape[1] - 1)
    longer = jnp.take_along_axis(tokens, source, axis=1)
    longer_mask = jnp.where(inserted, real[:, None], jnp.take_along_axis(mask, source, axis=1))
    before = score_fn(params, tokens, mask)
    if before.shape != (len(tokens),):
        raise ValueError(f"score_fn must return [B], one score a row, not {list(before.shape)}")
    rows = jnp.sum(real)

    def measured(candidate: jax.Array) -> tuple[jax.Array, jax.Array]:
        told = jnp.where(inserted, candidate[jnp.clip(place, 0, width - 1)], longer)
        moved = jnp.where(real, score_fn(params, told, longer_mask) - before, 0)
        mean = jnp.sum(moved) / rows
        variance = jnp.sum(jnp.where(real, jnp.square(moved - mean), 0)) / (rows - 1)
        return mean, jnp.sqrt(variance / rows)

    shift, error = jax.lax.map(measured, candidates, batch_size=chunk)
    # The mean and variance of all others, from those of all.
    gap = shift - jnp.mean(shift)
    rest = jnp.sum(jnp.square(gap)) - jnp.square(gap) * count / (count - 1)
    # Rounding can leave others that do not vary with a little less than nothing.
    variance = jnp.maximum(rest, 0) / (count - 2)
    z = gap * jnp.sqrt(count / (count - 1)) / jnp.sqrt(variance)
    z = jnp.where(gap == 0, 0, z)
    threshold = jnp.float32(scipy.stats.t.ppf(1 - level / (2 * count), count - 2))
    return TriggerScan(shift, error, z, threshold, jnp.abs(z) > threshold)


def greedy_coordinate_search(
    key: Key,
    tokens: jax.Array,
    objective: Callable[[jax.Array], jax.Array],
    gains: Callable[[jax.Array], jax.Array],
    *,
    rounds: int,
    among: int,
    tried: int,
    free: jax.Array | None = None,
    afresh: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Changes one token at a time for the worse, led by a gradient: an attack from inside.

    A round takes the ``among`` swaps of one token for another that promise most, draws some of
    them, tries these and keeps the best if it is better than what was there. May be compiled and
    vmapped, over texts that are attacked for instance.

    Args:
        key: what is drawn.
        tokens: ``int[L]``, to begin with: those that may be changed, not the text around them.
        objective: ``(int[L]) -> float[]``, what is to be made large.
        gains: ``(int[L]) -> float[L, V]``, what each swap promises, by first order: the gradient by
            the embedding that stands there, times the change of it.
        rounds: how many. Each costs a gradient and ``tried`` evaluations.
        among: from how many of the most promising swaps is drawn, up to ``L * V``.
        tried: how many of these a round tries, up to ``among``.
        free: ``bool[L]``, true where a token may be changed; everywhere by default.
        afresh: after how many rounds it begins anew, with random tokens; never by default.

    Returns:
        The best found since it began or began anew, after each round: tokens ``int[rounds, L]``
        and objective ``float[rounds]``.

    Raises:
        ValueError: if ``rounds``, ``among``, ``tried`` or ``afresh`` is below 1, ``tried``
            above ``among``, or ``among`` above ``L * V``.

    Reference: after Zou et al. 2023, https://arxiv.org/abs/2307.15043

    >>> worth = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 5.0]])  # of each token at each place
    >>> objective = lambda tokens: worth[jnp.arange(2), tokens].sum()
    >>> gains = lambda tokens: worth - worth[jnp.arange(2), tokens][:, None]
    >>> found, value = greedy_coordinate_search(
    ...     jax.random.key(0), jnp.array([0, 0]), objective, gains, rounds=3, among=2, tried=2
    ... )
    >>> found[-1].tolist(), value.tolist()
    ([1, 2], [5.0, 8.0, 8.0])
    """
    for name, number in (("rounds", rounds), ("among", among), ("tried", tried)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if tried > among:
        raise ValueError(f"tried must be at most among, {among}, not {tried}")
    if afresh is not None and afresh < 1:
        raise ValueError(f"afresh must be at least 1, not {afresh}")
    if free is None:
        free = jnp.ones(tokens.shape, bool)
    words = jax.eval_shape(gains, tokens).shape[1]
    if among > tokens.size * words:
        raise ValueError(f"among must be at most all {tokens.size * words} swaps, not {among}")

    def climb(carry, round_key):
        (number, tokens, best), (use, anew) = carry, jax.random.split(round_key)
        if afresh is not None:
            fresh = (number % afresh == 0) & (number > 0)
            drawn = jax.random.randint(anew, tokens.shape, 0, words)
            tokens = jnp.where(fresh & free, drawn, tokens)
            best = jnp.where(fresh, -jnp.inf, best)
        promised = jnp.where(free[:, None], gains(tokens), -jnp.inf)
        likely = jax.lax.top_k(promised.ravel(), among)[1]
        swaps = jax.random.choice(use, likely, (tried,), replace=False)
        tries = jax.vmap(lambda swap: tokens.at[swap // words].set(swap % words))(swaps)
        found = jnp.where(free[swaps // words], jax.vmap(objective)(tries), -jnp.inf)
        at = jnp.argmax(found)
        tokens = jnp.where(found[at] > best, tries[at], tokens)
        best = jnp.maximum(best, found[at])
        return (number + 1, tokens, best), (tokens, best)

    start = jnp.int32(0), tokens, objective(tokens)
    return jax.lax.scan(climb, start, jax.random.split(key, rounds))[1]
