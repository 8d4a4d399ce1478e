"""The truth behind the answers of raters who err, and how reliable each is, by EM.

Nothing here knows the truth: raters are judged by each other, so an error that most of them share
is taken for the truth. All may be compiled and vmapped.
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = [
    "CrowdComparisons",
    "CrowdLabels",
    "CrowdRatings",
    "crowd_bradley_terry",
    "dawid_skene",
    "one_factor",
]


class CrowdLabels(NamedTuple):
    """What ``dawid_skene`` finds.

    Attributes:
        posterior: ``float32[N, C]``, how probable each class is for each item.
        prior: ``float32[C]``, how frequent the classes are.
        confusion: ``float32[R, C, C]``; ``confusion[r, i, j]`` is how probably rater ``r`` says
            ``j`` of an item of class ``i``.
        log_likelihood: ``float32[iterations]``, in nats, before each iteration but the first, and
            at the end; with the prior that ``smoothing`` is. It never falls, rounding aside.
    """

    posterior: jax.Array
    prior: jax.Array
    confusion: jax.Array
    log_likelihood: jax.Array


class CrowdRatings(NamedTuple):
    """What ``one_factor`` finds, in the unit of the ratings.

    Attributes:
        truth: ``float32[N]``, what the average rater would say without noise.
        truth_sd: ``float32[N]``, how unsure that is.
        bias: ``float32[K]``, how much above the average rater on the average item.
        slope: ``float32[K]``, how far apart the rater holds what is different; negative if
            inverted. Its magnitude is 1 on average.
        noise: ``float32[K]``, SD of what is left.
        reliability: ``float32[K]``, the correlation of the rater's ratings with the truth.
        log_likelihood: ``float32[iterations]``, in nats, before each iteration. It never falls,
            rounding aside.
    """

    truth: jax.Array
    truth_sd: jax.Array
    bias: jax.Array
    slope: jax.Array
    noise: jax.Array
    reliability: jax.Array
    log_likelihood: jax.Array


class CrowdComparisons(NamedTuple):
    """What ``crowd_bradley_terry`` finds.

    Attributes:
        scores: ``float32[N]``, log-odds against a virtual item at 0.
        reliability: ``float32[K]``, how probably a rater reports what he sees: 1 always, 0.5 as a
            coin does, 0 never (inverted).
        log_likelihood: ``float32[iterations]``, in nats, before each iteration, with the priors.
            It never falls, rounding aside.
    """

    scores: jax.Array
    reliability: jax.Array
    log_likelihood: jax.Array


def dawid_skene(
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    classes: int,
    rater: jax.Array | None = None,
    smoothing: float = 0.0,
    iterations: int = 100,
) -> CrowdLabels:
    r"""True classes and every rater's confusion matrix, from labels alone, by EM.

    .. math::
        p(z_n = i \mid \text{labels}) \propto p_i \prod_k \pi^{(k)}_{i, y_{nk}}, \qquad
        \pi^{(k)}_{ij} \propto \sum_{n:\, y_{nk} = j} p(z_n = i), \quad
        p_i = \frac1N \sum_n p(z_n = i)

    starting from each item's shares of labels. It takes raters to err independently given the
    class. It finds a local maximum, in which most labels are right; with few labels a rater or a
    rare class the estimates are extreme, against which ``smoothing`` helps.

    Args:
        labels: ``int[N, K]``, from 0 to ``classes - 1``.
        mask: ``bool[N, K]``, true where there is a label; everywhere by default.
        classes: how many classes, ``C``.
        rater: ``int[K]``, who gave the labels of each column, from 0, for raters with several
            columns; not to be traced. By default each column is another rater, ``R = K``.
        smoothing: labels added to each cell of each confusion matrix (a Dirichlet prior, whose
            mode is found); 0 for maximum likelihood.
        iterations: how many EM steps.

    Returns:
        ``CrowdLabels``. A row of a confusion matrix that no label speaks of is uniform, and so is
        all if there are no labels. A rater without others is taken for the truth.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]``, the mask is not boolean, labels are
            not integers or out of range, ``rater`` is not ``[K]``, or ``smoothing`` is negative.
            Values that are being traced cannot be checked.

    Reference: Dawid & Skene 1979, Maximum Likelihood Estimation of Observer Error-Rates Using the
    EM Algorithm, Applied Statistics 28(1)

    >>> labels = jnp.array([[0, 0, 1], [0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
    >>> found = dawid_skene(labels, classes=2)
    >>> found.posterior.argmax(axis=1).tolist()
    [0, 0, 1, 1, 0]
    """
    mask = jnp.ones(jnp.shape(labels), bool) if mask is None else mask
    checks.table(labels=labels, mask=mask)
    checks.integers(labels=labels)
    _at_least(1, iterations=iterations, classes=classes)
    if not isinstance(smoothing, jax.core.Tracer) and smoothing < 0:
        raise ValueError(f"smoothing must be at least 0, not {smoothing}")
    if not isinstance(labels, jax.core.Tracer) and not isinstance(mask, jax.core.Tracer):
        checks.within(classes, labels=np.asarray(labels)[np.asarray(mask)])
    given = jax.nn.one_hot(jnp.where(mask, labels, -1), classes)
    if rater is not None:
        if jnp.shape(rater) != labels.shape[1:]:
            found = f"{list(jnp.shape(rater))} beside labels {list(labels.shape)}"
            raise ValueError(f"rater must be [K], one number a column, not {found}")
        raters = int(np.max(np.asarray(rater), initial=0)) + 1
        checks.within(raters, rater=rater)
        given = jax.vmap(lambda row: jax.ops.segment_sum(row, rater, num_segments=raters))(given)
    labelled = jnp.sum(given, axis=(1, 2)) > 0
    tiny = jnp.finfo(jnp.float32).tiny

    def maximise(posterior: jax.Array) -> tuple[jax.Array, jax.Array]:
        weight = jnp.where(labelled[:, None], posterior, 0)
        cells = jnp.einsum("ni,nrj->rij", weight, given, precision="highest") + smoothing
        rows = jnp.sum(cells, axis=2, keepdims=True)
        confusion = jnp.where(rows > 0, cells / jnp.maximum(rows, tiny), 1 / classes)
        prior = jnp.sum(weight, axis=0) / jnp.maximum(jnp.sum(labelled), 1)
        return jnp.where(jnp.any(labelled), prior, 1 / classes), confusion

    def expect(prior: jax.Array, confusion: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A probability of 0 is only ever multiplied by a count of 0, or rules the class out.
        logs = jnp.log(jnp.maximum(confusion, tiny))
        logits = jnp.einsum("nrj,rij->ni", given, logs, precision="highest")
        logits += jnp.log(jnp.maximum(prior, tiny))
        likelihood = jnp.where(labelled, jax.nn.logsumexp(logits, axis=1), 0)
        return jax.nn.softmax(logits, axis=1), jnp.sum(likelihood) + smoothing * jnp.sum(logs)

    def iterate(posterior: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return expect(*maximise(posterior))

    shares = jnp.sum(given, axis=1)
    shares = shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1)
    posterior, likelihood = jax.lax.scan(iterate, shares, length=iterations)
    prior, confusion = maximise(posterior)
    return CrowdLabels(posterior, prior, confusion, likelihood)


def one_factor(
    ratings: jax.Array, mask: jax.Array | None = None, *, iterations: int = 200
) -> CrowdRatings:
    r"""The truth behind ratings, and every rater's bias, slope and noise, by EM.

    .. math::
        r_{nk} = b_k + s_k \theta_n + \sigma_k \varepsilon_{nk}, \qquad
        \theta_n, \varepsilon_{nk} \sim \mathcal N(0, 1)

    This is factor analysis with one factor, gaps allowed: a rater with more noise counts less, and
    one who is inverted counts the other way. It starts from the items' means, so that most raters
    are taken for honest. May be vmapped over batches of items. It takes three raters to tell which
    of them errs: of two it finds a model of several that fit as well, and one alone is the truth.

    Args:
        ratings: ``number[N, K]``, items by raters.
        mask: ``bool[N, K]``, true where there is a rating; everywhere by default.
        iterations: how many EM steps.

    Returns:
        ``CrowdRatings``; a rater without ratings has NaN, an item without ratings the prior. Slopes
        are NaN if the ratings do not vary, all is if there are none.

    Raises:
        ValueError: if the shapes differ or are not ``[N, K]``, the mask is not boolean, or there
            are no iterations.

    Reference: Rubin & Thayer 1982, EM algorithms for ML factor analysis, Psychometrika 47

    >>> truth = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    >>> wobble = jnp.array([0.1, -0.1, 0.0, -0.1, 0.1])
    >>> ratings = jnp.stack([truth + wobble, truth - wobble, truth, -truth], axis=1)
    >>> one_factor(ratings).slope.round(2).tolist()
    [1.0, 1.0, 1.0, -1.0]
    """
    mask = jnp.ones(jnp.shape(ratings), bool) if mask is None else mask
    checks.table(ratings=ratings, mask=mask)
    _at_least(1, iterations=iterations)
    mask = jnp.asarray(mask)
    values = jnp.where(mask, ratings, 0).astype(jnp.float32)
    count = jnp.sum(mask, axis=0)
    present, total = count > 0, jnp.maximum(jnp.sum(mask), 1)
    # In units of the ratings' SD, so that the floor below has a meaning.
    centre = jnp.sum(values) / total
    values = jnp.where(mask, values - centre, 0)
    scale = jnp.sqrt(jnp.sum(jnp.square(values)) / total)
    scale = jnp.where(scale > 0, scale, 1)
    values = values / scale

    def by_rater(array: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, array, 0), axis=0)

    def expect(bias, slope, variance):
        gain = jnp.where(mask, slope / variance, 0)
        error = jnp.where(mask, values - bias, 0)
        spread = 1 / (1 + jnp.sum(gain * slope, axis=1))
        pull = jnp.sum(gain * error, axis=1)
        logs = jnp.where(mask, jnp.log(2 * jnp.pi * variance) + jnp.square(error) / variance, 0)
        likelihood = jnp.log(spread) + spread * jnp.square(pull) - jnp.sum(logs, axis=1)
        return spread * pull, spread, 0.5 * jnp.sum(likelihood)

    def maximise(truth, spread):
        """Each rater's regression on a truth that is known up to its spread."""
        truth, spread = truth[:, None], spread[:, None]
        mean_truth = by_rater(truth) / jnp.maximum(count, 1)
        mean_value = by_rater(values) / jnp.maximum(count, 1)
        gap = truth - mean_truth
        squares = by_rater(jnp.square(gap) + spread)
        slope = by_rater(gap * (values - mean_value)) / jnp.where(squares > 0, squares, 1)
        bias = mean_value - slope * mean_truth
        left = jnp.square(values - bias - slope * truth) + jnp.square(slope) * spread
        # A floor, since a rater without noise would be the truth and never leave it.
        return bias, slope, jnp.maximum(by_rater(left) / jnp.maximum(count, 1), 1e-4)

    def iterate(state, _):
        truth, spread, likelihood = expect(*state)
        bias, slope, variance = maximise(truth, spread)
        # The truth's own mean and variance are maximised as well, and then scaled away (parameter
        # expansion): the same maximum in far fewer steps.
        rated = jnp.any(mask, axis=1)
        rows = jnp.maximum(jnp.sum(rated), 1)
        mean = jnp.sum(jnp.where(rated, truth, 0)) / rows
        moment = jnp.sum(jnp.where(rated, jnp.square(truth - mean) + spread, 0)) / rows
        return (bias + slope * mean, slope * jnp.sqrt(moment), variance), likelihood

    rated = jnp.maximum(jnp.sum(mask, axis=1), 1)
    means = jnp.sum(values, axis=1) / rated
    deviation = jnp.std(means)
    start = maximise(means / jnp.where(deviation > 0, deviation, 1), jnp.zeros_like(means))
    (bias, slope, variance), likelihood = jax.lax.scan(iterate, start, length=iterations)
    truth, spread, _ = expect(bias, slope, variance)
    raters = jnp.sum(present)
    mean_bias = jnp.sum(jnp.where(present, bias, 0)) / raters
    mean_slope = jnp.sum(jnp.where(present, jnp.abs(slope), 0)) / raters

    def known(array: jax.Array) -> jax.Array:
        return jnp.where(present, array, jnp.nan)

    return CrowdRatings(
        truth=centre + scale * (mean_bias + mean_slope * truth),
        truth_sd=scale * mean_slope * jnp.sqrt(spread),
        bias=known(scale * (bias - mean_bias)),
        slope=known(slope / mean_slope),
        noise=known(scale * jnp.sqrt(variance)),
        reliability=known(slope / jnp.sqrt(jnp.square(slope) + variance)),
        # In the ratings' unit.
        log_likelihood=likelihood - jnp.sum(mask) * jnp.log(scale),
    )


def crowd_bradley_terry(
    first: jax.Array,
    second: jax.Array,
    preference: jax.Array,
    rater: jax.Array,
    mask: jax.Array | None = None,
    *,
    items: int,
    raters: int,
    prior_wins: float = 0.5,
    prior_answers: tuple[float, float] = (2.0, 1.0),
    iterations: int = 500,
) -> CrowdComparisons:
    r"""Scores of items and reliabilities of raters, from comparisons alone, by EM.

    .. math::
        p(\text{rater } k \text{ prefers } i \text{ to } j)
        = \eta_k \, \sigma(\theta_i - \theta_j) + (1 - \eta_k) \, \sigma(\theta_j - \theta_i)

    The scores take one step a round, of the minorise-maximise kind, so no likelihood is ever lost.
    It starts from raters who are mostly right, and takes the majority for honest: scores and
    reliabilities could all be turned round. Where all raters answer each pair and nothing relates
    the pairs, ``dawid_skene`` with two classes says it without scores.

    Args:
        first: ``int[B]``, an item, from 0 to ``items - 1``.
        second: ``int[B]``, the item that it was compared with.
        preference: ``float[B]``, 1 if the first was preferred, 0 if the second, 0.5 for a tie,
            which counts as half an answer each way.
        rater: ``int[B]``, who said so, from 0 to ``raters - 1``.
        mask: ``bool[B]``, true on the comparisons that were answered (``Comparison.answered``); all
            by default. The others may hold anything but must name an item and a rater.
        items: how many items, ``N``.
        raters: how many raters, ``K``.
        prior_wins: wins and losses that each item is given against a virtual item at 0: what keeps
            the scores finite of items that always won or lost.
        prior_answers: right and wrong answers that each rater is given.
        iterations: how many EM steps.

    Returns:
        ``CrowdComparisons``; an item or a rater that no answer speaks of is where the prior is.

    Raises:
        ValueError: if the arrays are not of one shape ``[B]``, the mask is not boolean, the indices
            are not integers or out of range, a preference is not from 0 to 1 (neither of which can
            be checked where they are being traced), or a prior is not positive.

    Reference: Chen et al. 2013, Pairwise Ranking Aggregation in a Crowdsourced Setting, WSDM, for
    the model; Hunter 2004, MM Algorithms for Generalized Bradley-Terry Models, Annals of Statistics
    32, for the step.

    >>> first, second = jnp.array([0, 1, 0] * 3), jnp.array([1, 2, 2] * 3)
    >>> preference = jnp.array([1.0, 1, 1, 1, 1, 1, 0, 0, 0])
    >>> rater = jnp.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    >>> found = crowd_bradley_terry(first, second, preference, rater, items=3, raters=3)
    >>> found.reliability.round(1).tolist()
    [0.8, 0.8, 0.4]
    """
    checks.alike(first=first, second=second, preference=preference, rater=rater)
    checks.vectors(first=first, second=second, preference=preference, rater=rater)
    checks.integers(first=first, second=second, rater=rater)
    checks.floating(preference=preference)
    checks.positive(prior_wins=prior_wins, prior_answers=np.asarray(prior_answers))
    _at_least(1, items=items, raters=raters, iterations=iterations)
    checks.within(items, first=first, second=second)
    checks.within(raters, rater=rater)
    if mask is None:
        mask = jnp.ones(jnp.shape(preference), bool)
    checks.alike(preference=preference, mask=mask)
    checks.booleans(mask=mask)
    says_first = jnp.where(mask, preference, 0.5).astype(jnp.float32)
    if not isinstance(says_first, jax.core.Tracer):
        wrong = ~((says_first >= 0) & (says_first <= 1))  # nan too
        if wrong.any():
            row = int(jnp.argmax(wrong))
            raise ValueError(f"preference must be from 0 to 1, not {says_first[row]} as in [{row}]")
    counts = jnp.asarray(mask, jnp.float32)
    right, wrong = prior_answers
    answers = jnp.zeros(raters).at[rater].add(counts)

    def iterate(state: tuple[jax.Array, jax.Array], _: None):
        scores, reliability = state
        gap, honest = scores[first] - scores[second], reliability[rater]
        chance = jax.nn.sigmoid(gap)  # that the first is preferred by one who is honest
        says = honest * chance + (1 - honest) * (1 - chance)
        denies = honest * (1 - chance) + (1 - honest) * chance
        # Whether the rater was honest, given that he said first, and that he said second.
        if_first, if_second = honest * chance / says, honest * (1 - chance) / denies
        won = says_first * if_first + (1 - says_first) * (1 - if_second)
        sincere = says_first * if_first + (1 - says_first) * if_second

        def added(start: jax.Array, for_first: jax.Array) -> jax.Array:
            """To each item what falls to it of the comparisons that count."""
            for_second = counts * (1 - for_first)
            return start.at[first].add(counts * for_first).at[second].add(for_second)

        wins = added(jnp.full(items, prior_wins), won)
        expected = added(2 * prior_wins * jax.nn.sigmoid(scores), chance)
        totals = jnp.zeros(raters).at[rater].add(counts * sincere)

        logs = says_first * jnp.log(says) + (1 - says_first) * jnp.log(denies)
        likelihood = jnp.sum(counts * logs)
        likelihood += prior_wins * jnp.sum(jax.nn.log_sigmoid(scores) + jax.nn.log_sigmoid(-scores))
        likelihood += jnp.sum(right * jnp.log(reliability) + wrong * jnp.log1p(-reliability))
        new = scores + jnp.log(wins / expected), (totals + right) / (answers + right + wrong)
        return new, likelihood

    start = jnp.zeros(items), jnp.full(raters, 0.9)
    (scores, reliability), likelihood = jax.lax.scan(iterate, start, length=iterations)
    return CrowdComparisons(scores, reliability, likelihood)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if operator.index(value) < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
