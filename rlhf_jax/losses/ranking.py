"""Losses on human answers that are richer than "the first is better": ties, ratings, rankings.

Each is the negative log-likelihood of a model of choice, in nats, unreduced; all but ``rrhf``,
which asks of a ranking no more than its order.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["davidson", "ordinal", "plackett_luce", "rao_kupper", "rrhf"]


def _check_ties(chosen, rejected, tied):
    checks.pair(chosen, rejected)
    if tied is None:
        return jnp.zeros(chosen.shape, bool)
    checks.alike(chosen=chosen, tied=tied)
    checks.booleans(tied=tied)
    return tied


def davidson(
    chosen: jax.Array,
    rejected: jax.Array,
    tied: jax.Array | None = None,
    *,
    tie_weight: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Bradley-Terry with ties, after Davidson.

    .. math::
        P(\text{win}) = \frac{e^{r_w}}{e^{r_w} + e^{r_l} + \nu e^{(r_w + r_l)/2}}, \qquad
        P(\text{tie}) = \frac{\nu e^{(r_w + r_l)/2}}{e^{r_w} + e^{r_l} + \nu e^{(r_w + r_l)/2}}

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats; of either one in a tie.
        rejected: ``float[B]``, reward of the other.
        tied: ``bool[B]``, whether the two were called equal; by default none.
        tie_weight: the paper's nu: how many ties there are for one win between equals; a number or
            ``float[B]``.

    Returns:
        ``float[B]`` in nats, ``-log P(win)`` or ``-log P(tie)``.

    Raises:
        ValueError: if the shapes differ, the rewards are not floating, ``tied`` is not boolean, or
            ``tie_weight`` is not positive or not of a shape that fits.

    Reference: Davidson 1970, J. Amer. Stat. Assoc. 65

    >>> equal = jnp.zeros(2)
    >>> davidson(equal, equal, jnp.array([False, True]), tie_weight=2.0).tolist()
    [1.386294, 0.693147]
    """
    tied = _check_ties(chosen, rejected, tied)
    checks.positive(tie_weight=tie_weight)
    checks.number_or_alike(chosen, tie_weight=tie_weight)
    half = 0.5 * (chosen - rejected)
    tie = jnp.broadcast_to(jnp.log(jnp.asarray(tie_weight, half.dtype)), half.shape)
    total = jnp.logaddexp(jnp.logaddexp(half, -half), tie)
    return total - jnp.where(tied, tie, half)


def rao_kupper(
    chosen: jax.Array,
    rejected: jax.Array,
    tied: jax.Array | None = None,
    *,
    threshold: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Bradley-Terry with ties, after Rao and Kupper: a difference below a threshold is not felt.

    .. math::
        P(\text{win}) = \sigma(r_w - r_l - \eta), \qquad
        P(\text{tie}) = (e^{2\eta} - 1)\, \sigma(r_w - r_l - \eta)\, \sigma(r_l - r_w - \eta)

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats; of either one in a tie.
        rejected: ``float[B]``, reward of the other.
        tied: ``bool[B]``, whether the two were called equal; by default none.
        threshold: eta, in nats; the paper's theta is its exponential. A number or ``float[B]``.

    Returns:
        ``float[B]`` in nats, ``-log P(win)`` or ``-log P(tie)``.

    Raises:
        ValueError: if the shapes differ, the rewards are not floating, ``tied`` is not boolean, or
            ``threshold`` is not positive or not of a shape that fits.

    Reference: Rao and Kupper 1967, J. Amer. Stat. Assoc. 62

    >>> equal = jnp.zeros(2)
    >>> rao_kupper(equal, equal, jnp.array([False, True]), threshold=1.0).tolist()
    [1.313262, 0.771937]
    """
    tied = _check_ties(chosen, rejected, tied)
    checks.positive(threshold=threshold)
    checks.number_or_alike(chosen, threshold=threshold)
    lead = chosen - rejected
    win, loss = jax.nn.softplus(threshold - lead), jax.nn.softplus(threshold + lead)
    # log(exp(2 eta) - 1), without the overflow of a large eta.
    constant = 2 * threshold + jax.nn.log1mexp(jnp.asarray(2 * threshold, lead.dtype))
    return jnp.where(tied, win + loss - constant, win)


def ordinal(scores: jax.Array, ratings: jax.Array, *, cutpoints: jax.Array) -> jax.Array:
    r"""Ratings on a scale, under the cumulative logit (proportional odds) model.

    .. math:: \ell = -\log\left[\sigma(c_{y} - s) - \sigma(c_{y-1} - s)\right],
              \qquad c_{-1} = -\infty, \; c_{K-1} = \infty

    The rating says between which two cutpoints the score, felt with logistic noise, fell. That
    raters use the scale alike, and the steps mean the same for all texts, it cannot check.

    Args:
        scores: ``float[B]``, in nats.
        ratings: ``int[B]``, from 0 (worst) to ``K - 1``; that none is outside it cannot
            check.
        cutpoints: ``float[K - 1]``, increasing, in nats; differentiable, so they can be learnt.
            Where they are not increasing the loss is ``nan`` or infinite.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if ``scores`` and ``ratings`` differ in shape, are not floating and integer, or
            ``cutpoints`` is not of rank 1.

    Reference: McCullagh 1980, J. R. Stat. Soc. B 42

    >>> cutpoints = jnp.array([-1.0, 1.0])
    >>> jnp.exp(-ordinal(jnp.zeros(3), jnp.array([0, 1, 2]), cutpoints=cutpoints)).tolist()
    [0.268941, 0.462117, 0.268941]
    """
    checks.alike(scores=scores, ratings=ratings)
    checks.floating(scores=scores)
    checks.integers(ratings=ratings)
    checks.vectors(cutpoints=cutpoints)
    ends = jnp.full(1, jnp.inf, cutpoints.dtype)
    upper = jnp.concatenate([cutpoints, ends])[ratings]
    lower = jnp.concatenate([-ends, cutpoints])[ratings]
    # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)): no difference of equal numbers.
    outside = jax.nn.softplus(scores - upper) + jax.nn.softplus(lower - scores)
    return outside - jax.nn.log1mexp(upper - lower)


def _ranked(scores, rankings):
    """The scores from that of the best answer to that of the worst."""
    checks.alike(scores=scores, rankings=rankings)
    checks.floating(scores=scores)
    checks.integers(rankings=rankings)
    return jnp.take_along_axis(scores, rankings, axis=-1)


def plackett_luce(scores: jax.Array, rankings: jax.Array) -> jax.Array:
    r"""A ranking of N answers as N - 1 choices of the best of those that are left.

    .. math:: \ell = -\sum_{k=1}^{N-1} \log \frac{e^{s_{\rho(k)}}}{\sum_{j \ge k} e^{s_{\rho(j)}}}

    With two answers it is ``bradley_terry``. The choices are taken to be independent of each other.

    Args:
        scores: ``float[B, N]``, in nats.
        rankings: ``int[B, N]``, the answers' indices from the best to the worst. That a row is a
            permutation it cannot check.

    Returns:
        ``float[B]`` in nats, summed over the choices.

    Raises:
        ValueError: if the shapes differ, or are not floating and integer.

    Reference: Plackett 1975, J. R. Stat. Soc. C 24; Luce 1959, Individual Choice Behavior

    >>> plackett_luce(jnp.zeros([1, 3]), jnp.array([[2, 0, 1]])).tolist()
    [1.791759]
    """
    ranked = _ranked(scores, rankings)
    left = jax.lax.cumlogsumexp(ranked, axis=ranked.ndim - 1, reverse=True)
    return jnp.sum(left - ranked, axis=-1)


def rrhf(scores: jax.Array, rankings: jax.Array) -> jax.Array:
    r"""What every pair of answers is out of order by, summed (RRHF).

    .. math:: \ell = \sum_{i \text{ better than } j} \max(0, s_j - s_i)

    0 for every order that is right, however narrowly: there is no margin. The paper's scores are
    mean log-probabilities, ``implicit_rewards.mean_log_prob``, and it adds the cross-entropy of the
    best answer, which keeps all of them from becoming alike.

    Args:
        scores: ``float[B, N]``, in nats a token.
        rankings: ``int[B, N]``, the answers' indices from the best to the worst. That a row is a
            permutation it cannot check.

    Returns:
        ``float[B]``, summed over the pairs; takes memory for ``B N^2`` numbers.

    Raises:
        ValueError: if the shapes differ, or are not floating and integer.

    Reference: Yuan et al. 2023, https://arxiv.org/abs/2304.05302

    >>> rrhf(jnp.array([[-1.0, -3.0, -2.0]]), jnp.array([[1, 0, 2]])).tolist()
    [3.0]
    """
    ranked = _ranked(scores, rankings)
    wrong = jax.nn.relu(ranked[..., None, :] - ranked[..., :, None])
    return jnp.sum(jnp.triu(wrong), axis=(-2, -1))
