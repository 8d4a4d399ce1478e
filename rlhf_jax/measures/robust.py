"""How much each rater's answers should count, where some raters are careless or hostile.

Two kinds: weights by how reliable a rater was found to be (``crowds``), which trust the finding,
and bounds on what any one or few of them can do, which trust nobody. They serve as an answer's
weight in a loss, or to make one label, hard or soft, of several answers.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.measures.crowds import CrowdComparisons, CrowdLabels, CrowdRatings

__all__ = ["influence_cap", "log_odds_weights", "rater_accuracy", "trimmed_mean", "trimmed_vote"]


def rater_accuracy(found: CrowdLabels | CrowdRatings | CrowdComparisons) -> jax.Array:
    r"""How probably each rater is right, from whatever was found about them.

    .. math:: \sum_i p_i \pi^{(k)}_{ii}, \qquad \tfrac12 + \tfrac1\pi \arcsin \rho_k, \qquad \eta_k

    of labels, the share given rightly; of ratings, the share of pairs of items that the rater puts
    in the order of the truth, when both are normal with correlation ``rho`` (Sheppard's formula);
    of comparisons, how probably he reports what he sees.

    Args:
        found: what ``dawid_skene``, ``one_factor`` or ``crowd_bradley_terry`` returned.

    Returns:
        ``float32[K]`` from 0 to 1; a rater below chance (0.5, or ``1 / C`` of ``C`` classes) is
        inverted. NaN for one without ratings.

    Raises:
        ValueError: if ``found`` is none of these.

    Reference: Sheppard 1899, Philosophical Transactions of the Royal Society A 192

    >>> found = CrowdComparisons(jnp.zeros(2), jnp.array([0.9, 0.4]), jnp.zeros(1))
    >>> rater_accuracy(found).tolist()
    [0.9, 0.4]
    """
    if isinstance(found, CrowdLabels):
        return jnp.einsum("i,kii->k", found.prior, found.confusion, precision="highest")
    if isinstance(found, CrowdRatings):
        return 0.5 + jnp.arcsin(found.reliability) / jnp.pi
    if isinstance(found, CrowdComparisons):
        return found.reliability
    wanted = "CrowdLabels, CrowdRatings or CrowdComparisons"
    raise ValueError(f"found must be {wanted}, not {type(found).__name__}")


def log_odds_weights(accuracy: jax.Array, *, largest: float = 4.0) -> jax.Array:
    r"""The weights with which raters' votes between two answers are best added up.

    .. math:: w_k = \log \frac{p_k}{1 - p_k}, \quad |w_k| \le w_{\max}

    The sign of the weighted sum of votes, each 1 or -1, is then the likeliest truth, if raters err
    independently and neither answer is likelier beforehand; the sum is its log-odds. One who is
    inverted has a negative weight. A loss needs weights that are not: ``jnp.maximum(w, 0)[rater]``
    leaves those out, and is a rule of thumb there. Where few raters answer the same pair, a loss
    that knows the rate of flips (``losses.unbiased``) or a soft label says more than a weight.

    Args:
        accuracy: ``float[...]`` from 0 to 1, how probably a rater is right, as from
            ``rater_accuracy``.
        largest: the greatest weight there can be: who was never seen to err may still do so. 4 is
            that of being right 98 times in 100.

    Returns:
        ``float32[...]`` in nats; 0 for a rater of whom nothing is known (NaN).

    Raises:
        ValueError: if ``accuracy`` is not floating or not from 0 to 1, or ``largest`` is not
            positive.

    Reference: Nitzan and Paroush 1982, International Economic Review 23(2)

    >>> log_odds_weights(jnp.array([0.5, 0.9, 0.1, 1.0])).tolist()
    [0.0, 2.197, -2.197, 4.0]
    """
    checks.floating(accuracy=accuracy)
    checks.positive(largest=largest)
    if not isinstance(accuracy, jax.core.Tracer):
        given = np.asarray(accuracy)
        if np.any((given < 0) | (given > 1)):
            raise ValueError(f"accuracy must be from 0 to 1, not {given.min()} to {given.max()}")
    accuracy = jnp.asarray(accuracy, jnp.float32)
    odds = jnp.log(accuracy) - jnp.log1p(-accuracy)
    return jnp.where(jnp.isnan(accuracy), 0, jnp.clip(odds, -largest, largest))


def influence_cap(
    rater: jax.Array, weights: jax.Array | None = None, *, cap: float, raters: int
) -> jax.Array:
    r"""Weights of answers such that no rater has more than a share of the whole.

    .. math:: w'_b = w_b \min\left(1, \frac{c}{W_{k(b)}}\right), \qquad
              c = \mathrm{cap} \cdot \sum_k \min(W_k, c)

    where ``W`` are the raters' sums of weights and ``c`` is the largest level that solves it: those
    above it are brought down to exactly the cap, those below keep what they have.

    Args:
        rater: ``int[B]``, who gave each answer, from 0.
        weights: ``float[B]``, not below 0, what the answers weigh otherwise (0 on padding); by
            default all 1.
        cap: the largest share, at most 1; a cap of ``1 / K`` for ``K`` raters makes all equal.
        raters: how many raters there are.

    Returns:
        ``float32[B]``, at most ``weights``.

    Raises:
        ValueError: if the shapes are not ``[B]``, ``rater`` is not integers or out of range,
            weights are negative, or ``cap`` is not above 0 or too small for the number of raters
            with weight. Where these are being traced they are taken on trust; raters are then made
            equal at the least, and one out of range is not heard.

    >>> rater = jnp.array([0, 0, 0, 0, 1, 2])
    >>> influence_cap(rater, cap=0.5, raters=3).tolist()  # 2 of 4, instead of 4 of 6
    [0.5, 0.5, 0.5, 0.5, 1.0, 1.0]
    """
    weights = jnp.ones(jnp.shape(rater)) if weights is None else weights
    checks.alike(rater=rater, weights=weights)
    checks.vectors(rater=rater)
    checks.integers(rater=rater)
    checks.floating(weights=weights)
    if not isinstance(rater, jax.core.Tracer) and np.size(rater):
        low, high = np.min(rater), np.max(rater)
        if low < 0 or high >= raters:
            raise ValueError(f"rater must be from 0 to {raters - 1}, not {low} to {high}")
    if not isinstance(weights, jax.core.Tracer) and np.any(np.asarray(weights) < 0):
        raise ValueError(f"weights must not be negative, not {np.min(weights)}")
    weights = jnp.asarray(weights, jnp.float32)
    heard = (rater >= 0) & (rater < raters)
    weights, rater = jnp.where(heard, weights, 0), jnp.where(heard, rater, 0)
    totals = jnp.zeros(raters).at[rater].add(weights)
    least = 1 / jnp.maximum(jnp.sum(totals > 0), 1)
    if not isinstance(least + cap, jax.core.Tracer) and not least * (1 - 1e-6) <= cap <= 1:
        found = f"{1 / least:.0f} raters with weight"
        raise ValueError(f"cap must be from {least:.4g} to 1 with {found}, not {cap}")
    cap = jnp.maximum(cap, least)
    # If the m largest are at the level c, then c = cap * (m * c + what the others have).
    ranked = jnp.sort(totals, descending=True)
    others = jnp.sum(ranked) - jnp.cumsum(ranked)
    room = 1 - cap * jnp.arange(1, raters + 1)
    following = jnp.append(ranked[1:], 0)
    levels = cap * others / jnp.where(room > 0, room, 1)
    fits = (room > 0) & (following <= levels * (1 + 1e-6))
    # Where rounding lets no level fit, all raters that there are must be equal.
    smallest = jnp.min(jnp.where(totals > 0, totals, jnp.inf))
    level = jnp.where(jnp.any(fits), levels[jnp.argmax(fits)], smallest)
    level = jnp.where(ranked[0] <= cap * jnp.sum(ranked), jnp.inf, level)
    scale = jnp.minimum(1, level / jnp.where(totals > 0, totals, 1))
    return weights * scale[rater]


def trimmed_mean(ratings: jax.Array, mask: jax.Array | None = None, *, share: float) -> jax.Array:
    r"""The mean of each item's ratings, without the highest and the lowest.

    .. math:: \frac{1}{n - 2k} \sum_{j=k+1}^{n-k} r_{(j)}, \qquad
              k = \lfloor \mathrm{share} \cdot n \rfloor

    As long as no more than ``k`` of the ``n`` raters are hostile they cannot, whatever they say,
    move it out of the range of what the others said. Of votes 0 and 1 it is a soft label, on which
    a minority of no more than ``k`` leaves no trace.

    Args:
        ratings: ``number[N, K]``, items by raters.
        mask: ``bool[N, K]``, true where there is a rating; everywhere by default.
        share: the share of an item's ratings to drop at either end, at least 0 and below 0.5.

    Returns:
        ``float32[N]``; NaN for an item without ratings.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]``, the mask is not boolean, or
            ``share`` is out of range.

    Reference: Tukey 1962, The Future of Data Analysis, Annals of Mathematical Statistics 33(1)

    >>> ratings = jnp.array([[1.0, 2.0, 3.0, 100.0], [0.0, 1.0, 1.0, 1.0]])
    >>> trimmed_mean(ratings, share=0.25).tolist()
    [2.5, 1.0]
    """
    ranked, count, dropped = _ranked(ratings, mask, share)
    place = jnp.arange(ranked.shape[1])
    kept = (place >= dropped[:, None]) & (place < (count - dropped)[:, None])
    return jnp.sum(jnp.where(kept, ranked, 0), axis=1) / (count - 2 * dropped)


def trimmed_vote(
    votes: jax.Array,
    mask: jax.Array | None = None,
    *,
    share: float,
    threshold: float = 0.5,
) -> jax.Array:
    r"""Which way each vote goes, where it goes that way without the winner's keenest supporters.

    1 if the mean without the ``k`` highest votes is above the threshold, 0 if that without the
    ``k`` lowest is below it, 0.5 (a tie) otherwise, with
    :math:`k = \lfloor \mathrm{share} \cdot n \rfloor`. If no more than ``k`` of the ``n`` votes are
    hostile, then what is not 0.5 is what the honest alone would have said. The price is that close
    honest votes are ties too; a majority of ``n`` votes 0 and 1 must be larger than ``k``.

    Args:
        votes: ``number[N, K]``, items by raters: 1 for the first of a pair, 0 for the second, 0.5
            for neither, or ratings with a ``threshold``.
        mask: ``bool[N, K]``, true where there is a vote; everywhere by default.
        share: the share of an item's votes that may be hostile, at least 0 and below 0.5.
        threshold: between the two outcomes.

    Returns:
        ``float32[N]`` of 0, 0.5 and 1; 0.5 for an item without votes.

    Raises:
        ValueError: as ``trimmed_mean``.

    >>> votes = jnp.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    >>> trimmed_vote(votes, share=0.2).tolist()
    [1.0, 0.5, 0.0]
    """
    ranked, count, dropped = _ranked(votes, mask, share)
    place = jnp.arange(ranked.shape[1])
    leads = jnp.where(place < count[:, None], ranked - threshold, 0)
    without_lowest = jnp.sum(jnp.where(place >= dropped[:, None], leads, 0), axis=1)
    without_highest = jnp.sum(jnp.where(place < (count - dropped)[:, None], leads, 0), axis=1)
    return 0.5 + 0.5 * (without_highest > 0) - 0.5 * (without_lowest < 0)


def _ranked(
    ratings: jax.Array, mask: jax.Array | None, share: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each row's ratings from the lowest on, how many, and how many to drop at an end."""
    mask = jnp.ones(jnp.shape(ratings), bool) if mask is None else mask
    checks.table(ratings=ratings, mask=mask)
    if not isinstance(share, jax.core.Tracer) and not 0 <= share < 0.5:
        raise ValueError(f"share must be at least 0 and below 0.5, not {share}")
    # What is masked goes past the end.
    ranked = jnp.sort(jnp.where(mask, jnp.asarray(ratings, jnp.float32), jnp.inf), axis=1)
    count = jnp.sum(mask, axis=1)
    # A little more, since 7 / 23 of 23 is less than 7 when rounded.
    dropped = jnp.floor(share * count + 1e-4).astype(jnp.int32)
    return ranked, count, dropped
