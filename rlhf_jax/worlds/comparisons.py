"""Comparisons of a finite number of items, and the scores that explain them best.

A table ``wins: number[N, N]`` says how often item ``i`` beat item ``j``. It may hold counts, or
the probabilities of an infinite population, ``preferences``: then ``preferences + preferences.T``
is 1, and 0.5 on the diagonal. Items are answers, models or teams.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.csgraph import connected_components

from rlhf_jax import checks, losses
from rlhf_jax.types import PreferenceLoss

__all__ = [
    "BradleyTerryFit",
    "bradley_terry_preferences",
    "fit_bradley_terry",
    "mean_loss",
    "win_rates",
]

_MAX_STEPS = 100


class BradleyTerryFit(NamedTuple):
    """Strengths fitted to comparisons.

    Attributes:
        strengths: ``float32[N]`` in nats, the reference item's 0.
        standard_errors: ``float32[N]``, of the difference to the reference; its own is 0. They take
            ``wins`` for counts of independent comparisons.
        advantage: ``float32[]`` in nats, of being at home (shown first); 0 where none was fitted.
        advantage_error: ``float32[]``, its standard error; 0 where none was fitted.
        deviance: ``float32[]``, twice by how much the log-likelihood is below that of the observed
            frequencies. Over twice the number of comparisons it is the mean divergence, in nats,
            that no Bradley-Terry model can avoid.
        degrees_of_freedom: ``int32[]``; if the model holds, the deviance of large counts is
            chi-squared with so many.
    """

    strengths: jax.Array
    standard_errors: jax.Array
    advantage: jax.Array
    advantage_error: jax.Array
    deviance: jax.Array
    degrees_of_freedom: jax.Array


def bradley_terry_preferences(rewards: jax.Array) -> jax.Array:
    r"""The table of preferences of an infinite population that follows Bradley and Terry.

    .. math:: P_{ij} = \sigma(r_i - r_j)

    Args:
        rewards: ``float[N]`` in nats.

    Returns:
        ``float[N, N]``, the probability that ``i`` is preferred to ``j``.

    Raises:
        ValueError: if the rewards are not ``[N]`` or not floating.

    >>> bradley_terry_preferences(jnp.log(jnp.array([1.0, 3.0]))).tolist()
    [[0.5, 0.25], [0.75, 0.5]]
    """
    checks.vectors(rewards=rewards)
    checks.floating(rewards=rewards)
    return jax.nn.sigmoid(rewards[:, None] - rewards)


def win_rates(preferences: jax.Array, log_probs: jax.Array | None = None) -> jax.Array:
    r"""How often each item is preferred to one drawn from a policy.

    .. math:: w_i = \sum_j \pi(j) \, P_{ij}

    Against the uniform policy it is the (normalised) Borda count, whose order is what a
    Bradley-Terry fit to all pairs finds whatever the preferences are. Against the reference policy,
    it is the reward that IPO optimises.

    Args:
        preferences: ``float[N, N]``, the probability that ``i`` is preferred to ``j``.
        log_probs: ``float[N]`` in nats, the opponents' policy; uniform by default.

    Returns:
        ``float[N]`` from 0 to 1.

    Raises:
        ValueError: if the shapes do not fit or are not floating.

    Reference: Siththaranjan et al. 2023, https://arxiv.org/abs/2312.08358; for IPO, Azar et al.
    2023, https://arxiv.org/abs/2310.12036

    >>> win_rates(jnp.array([[0.5, 0.25], [0.75, 0.5]])).tolist()
    [0.375, 0.625]
    """
    _check_table(preferences=preferences)
    checks.floating(preferences=preferences)
    if log_probs is None:
        return jnp.mean(preferences, axis=1)
    checks.alike(log_probs=log_probs, items=preferences[0])
    return jnp.matmul(preferences, jax.nn.softmax(log_probs), precision="highest")


def mean_loss(
    scores: jax.Array, wins: jax.Array, *, loss: PreferenceLoss = losses.bradley_terry
) -> jax.Array:
    r"""A preference loss over a whole table: that of the population, where it holds probabilities.

    .. math:: \frac{\sum_{ij} w_{ij} \, \ell(s_i, s_j)}{\sum_{ij} w_{ij}}

    With ``beta * (log_probs - ref_log_probs)`` as the scores it is the population loss of a direct
    method, DPO by default. To compare items drawn from a policy, multiply the table by the
    probabilities of the pairs.

    Args:
        scores: ``float[N]``.
        wins: ``number[N, N]``, not negative; an empty cell adds neither value nor gradient.
        loss: a preference loss ``(chosen[B], rejected[B]) -> [B]``.

    Returns:
        ``float[]``, per comparison.

    Raises:
        ValueError: if the shapes do not fit or the scores are not floating.

    >>> mean_loss(jnp.log(jnp.array([1.0, 3.0])), jnp.array([[0, 1], [3, 0]])).item()
    0.562335
    """
    checks.floating(scores=scores)
    _check_table(wins=wins)
    checks.alike(scores=scores, items=wins[0])
    chosen, rejected = jnp.meshgrid(scores, scores, indexing="ij")
    return _total_loss(jnp.asarray(wins), chosen, rejected, loss) / jnp.sum(wins)


def fit_bradley_terry(
    wins: jax.Array,
    *,
    away_wins: jax.Array | None = None,
    reference: int = 0,
) -> BradleyTerryFit:
    r"""The maximum-likelihood strengths of a table of comparisons.

    .. math::
        P(i \text{ beats } j) = \sigma(s_i - s_j), \qquad
        P(i \text{ at home beats } j) = \sigma(s_i + h - s_j)

    The likelihood is ``losses.bradley_terry``; with ``away_wins`` the advantage ``h`` is fitted,
    the bias of raters for the answer that they are shown first, for instance. Newton's method; no
    step moves a lead by more than 1 nat, over which the curvature changes too little for a step to
    do harm. Compiled for each ``N``, and may be vmapped. Holds ``[N, N, N]`` arrays: for hundreds
    of items minimise ``mean_loss``.

    Args:
        wins: ``number[N, N]``, how often ``i`` beat ``j``, at home if ``away_wins`` is given. The
            diagonal is left out.
        away_wins: ``number[N, N]``, how often ``i``, away, beat ``j`` at home.
        reference: the item whose strength is 0.

    Returns:
        A ``BradleyTerryFit``; of NaN where a traced table has no finite fit.

    Raises:
        ValueError: if the tables are not ``[N, N]`` or ``reference`` is not among the items, or if
            no finite strengths fit best: some items never lost to the others.

    Reference: Bradley and Terry 1952, Biometrika 39; when the fit is finite, Ford 1957, Amer.
    Math. Monthly 64; with home advantage, Agresti 2002, Categorical Data Analysis, section 10.6

    >>> fit = fit_bradley_terry(jnp.array([[0, 1], [3, 0]]))
    >>> fit.strengths.tolist(), fit.standard_errors.tolist()
    ([0.0, 1.098612], [0.0, 1.154701])
    """
    _check_table(wins=wins)
    if not 0 <= reference < len(wins):
        raise ValueError(f"reference must be from 0 to {len(wins) - 1}, not {reference}")
    tables = [wins]
    if away_wins is not None:
        checks.alike(wins=wins, away_wins=away_wins)
        _check_table(away_wins=away_wins)
        tables.append(away_wins)
    others = ~jnp.eye(len(wins), dtype=bool)
    tables = jnp.where(others, jnp.stack(tables), 0).astype(jnp.float32)
    fit = _newton(tables, reference)
    if not isinstance(fit.deviance, jax.core.Tracer) and not jnp.isfinite(fit.deviance):
        raise ValueError(f"wins has no finite fit: {_why_infinite(np.sum(tables, axis=0))}")
    return fit


@jax.jit  # Compiled operation by operation it would take seconds.
def _newton(tables: jax.Array, reference: jax.Array) -> BradleyTerryFit:
    """Of ``[1, N, N]`` without homes; ``[2, N, N]`` with, the winner's first."""
    homes, items = len(tables) - 1, tables.shape[1]
    winner_is_home = jnp.array([1.0, 0.0])[: homes + 1, None, None] * homes
    # The other side's wins of the same contests.
    lost = jnp.swapaxes(tables[::-1], 1, 2)

    def split(parameters):
        """All strengths, the first of them 0, and the advantage."""
        advantage = parameters[-1] if homes else jnp.float32(0)
        return jnp.pad(parameters[: items - 1], (1, 0)), advantage

    def scores(parameters):
        """Of winners and of losers."""
        strengths, advantage = split(parameters)
        chosen = strengths[:, None] + advantage * winner_is_home
        rejected = strengths + advantage * (homes - winner_is_home)
        return jnp.broadcast_arrays(chosen, rejected, tables)[:2]

    def gradient(parameters):
        return jax.grad(lambda x: _total_loss(tables, *scores(x)))(parameters)

    def improve(state):
        parameters, _, _, steps = state
        information = jax.scipy.linalg.cho_factor(jax.jacfwd(gradient)(parameters))
        covariance = jax.scipy.linalg.cho_solve(information, jnp.eye(free))
        step = -jnp.matmul(covariance, gradient(parameters), precision="highest")
        chosen, rejected = scores(step)
        longest = jnp.max(jnp.where(tables + lost > 0, jnp.abs(chosen - rejected), 0))
        after = parameters + step / jnp.maximum(longest, 1)
        return after, covariance, jnp.max(jnp.abs(step)), steps + 1

    def unfinished(state):
        *_, change, steps = state
        return (change > 1e-5) & (steps < _MAX_STEPS)

    free = items - 1 + homes
    start = (jnp.zeros(free), jnp.zeros([free, free]), jnp.float32(jnp.inf), 0)
    parameters, covariance, change, _ = jax.lax.while_loop(unfinished, improve, start)
    # Rounding may keep the last changes above 1e-5; without a finite optimum they stay near 1, or
    # a direction in which nothing is known is not moved at all.
    finite = (change < 1e-2) & _strongly_connected(jnp.sum(tables, axis=0))
    parameters, covariance = jax.tree.map(
        lambda found: jnp.where(finite, found, jnp.nan), (parameters, covariance)
    )
    strengths, advantage = split(parameters)
    shifted = jnp.pad(covariance[: items - 1, : items - 1], (1, 0))
    variances = jnp.diag(shifted)
    to_reference = variances + variances[reference] - 2 * shifted[reference]

    def surplus(chosen, rejected):
        # Term by term: the difference of the two log-likelihoods would lose digits.
        return losses.bradley_terry(chosen, rejected) + jnp.log(tables / (tables + lost)).ravel()

    return BradleyTerryFit(
        strengths - strengths[reference],
        jnp.sqrt(jnp.maximum(to_reference, 0)),
        advantage,
        jnp.sqrt(covariance[-1, -1]) if homes else jnp.float32(0),
        2 * jnp.maximum(_total_loss(tables, *scores(parameters), surplus), 0),
        jnp.count_nonzero(tables + lost) // 2 - free,
    )


def _strongly_connected(wins: jax.Array) -> jax.Array:
    """Whether of any two items the first beat the second, if by way of others."""
    beats = (wins > 0) | jnp.eye(len(wins), dtype=bool)
    for _ in range((len(wins) - 1).bit_length()):  # Each doubles the length of the ways.
        beats = jnp.matmul(1.0 * beats, 1.0 * beats) > 0
    return jnp.all(beats)


def _why_infinite(wins: np.ndarray) -> str:
    _, group = connected_components(wins, connection="strong")
    for label in range(group.max() + 1):
        inside = group == label
        if not inside.all() and not wins[np.ix_(~inside, inside)].any():
            return f"items {np.flatnonzero(inside).tolist()} never lost to any other"
    return "the place decides every comparison, or the table is too extreme for float32"


def _total_loss(
    wins: jax.Array,
    chosen: jax.Array,
    rejected: jax.Array,
    loss: PreferenceLoss = losses.bradley_terry,
) -> jax.Array:
    """The loss of each cell of a table, as often as it happened; empty cells are left out."""
    pairs = [jnp.where(wins > 0, scores, 0).ravel() for scores in (chosen, rejected)]
    return jnp.sum(jnp.where(wins > 0, wins * loss(*pairs).reshape(wins.shape), 0))


def _check_table(**tables: jax.Array) -> None:
    for name, table in tables.items():
        shape = jnp.shape(table)
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
            raise ValueError(f"{name} must be [N, N], N at least 2, not {list(shape)}")
        if not isinstance(table, jax.core.Tracer) and np.any(np.asarray(table) < 0):
            raise ValueError(f"{name} must not be negative: {np.min(table)}")
