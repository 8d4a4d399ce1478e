"""Comparisons of a finite number of items, and the scores that explain them best.

A table ``wins: number[N, N]`` says how often item ``i`` beat item ``j``. It may hold counts, or
the probabilities of an infinite population, ``preferences``: then ``preferences + preferences.T``
is 1, and 0.5 on the diagonal. Items are answers, models or teams.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks, losses
from rlhf_jax.types import PreferenceLoss

__all__ = [
    "BradleyTerryFit",
    "bradley_terry_preferences",
    "fit_bradley_terry",
    "mean_loss",
    "win_rates",
]


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
    max_steps: int = 100,
) -> BradleyTerryFit:
    r"""The maximum-likelihood strengths of a table of comparisons.

    .. math::
        P(i \text{ beats } j) = \sigma(s_i - s_j), \qquad
        P(i \text{ at home beats } j) = \sigma(s_i + h - s_j)

    The likelihood is ``losses.bradley_terry``; with ``away_wins`` the advantage ``h`` is fitted,
    the bias of raters for the answer that they are shown first, for instance. Newton's method; no
    step moves a lead by more than 1 nat, over which the curvature changes too little for a step to
    do harm. May be compiled and vmapped. Holds ``[N, N, N]`` arrays: for many items minimise
    ``mean_loss``.

    Args:
        wins: ``number[N, N]``, how often ``i`` beat ``j``, at home if ``away_wins`` is given. The
            diagonal is left out.
        away_wins: ``number[N, N]``, how often ``i``, away, beat ``j`` at home.
        reference: the item whose strength is 0.
        max_steps: how many steps at most; a dozen are usual.

    Returns:
        A ``BradleyTerryFit``; of NaN where the fit did not converge in a traced call.

    Raises:
        ValueError: if the tables are not ``[N, N]`` or ``reference`` is not among the items, or if
            no finite strengths fit best: some items never lost to the others, or never met them.

    Reference: Bradley and Terry 1952, Biometrika 39; when the fit is finite, Ford 1957, Amer.
    Math. Monthly 64; with home advantage, Agresti 2002, Categorical Data Analysis, section 10.6

    >>> fit = fit_bradley_terry(jnp.array([[0, 1], [3, 0]]))
    >>> fit.strengths.tolist(), fit.standard_errors.tolist()
    ([0.0, 1.098612], [0.0, 1.154701])
    """
    _check_table(wins=wins)
    items, home = len(wins), away_wins is not None
    if home:
        checks.alike(wins=wins, away_wins=away_wins)
    if not 0 <= reference < items:
        raise ValueError(f"reference must be from 0 to {items - 1}, not {reference}")
    wins = jnp.where(jnp.eye(items, dtype=bool), 0, wins).astype(jnp.float32)
    away_wins = jnp.where(jnp.eye(items, dtype=bool), 0, away_wins if home else 0 * wins)
    free = items - 1 + home

    def split(parameters):
        advantage = parameters[-1] if home else jnp.float32(0)
        return jnp.insert(parameters[: items - 1], reference, 0), advantage

    def scores(parameters):
        """Of those who won and those who lost, in both tables."""
        strengths, advantage = split(parameters)
        won, lost = jnp.meshgrid(strengths, strengths, indexing="ij")
        return (won + advantage, lost), (won, lost + advantage)

    def total(parameters):
        at_home, away = scores(parameters)
        return _total_loss(wins, *at_home) + _total_loss(away_wins, *away)

    def newton(state):
        parameters, _, steps = state
        step = jnp.linalg.solve(jax.hessian(total)(parameters), -jax.grad(total)(parameters))
        strengths, advantage = split(step)
        longest = jnp.ptp(strengths) + jnp.abs(advantage)
        return parameters + step / jnp.maximum(longest, 1), longest, steps + 1

    def unfinished(state):
        _, longest, steps = state
        return (longest > 1e-5) & (steps < max_steps)

    start = (jnp.zeros(free), jnp.float32(jnp.inf), 0)
    parameters, longest, _ = jax.lax.while_loop(unfinished, newton, start)
    # Rounding may keep the last steps above 1e-5; without a finite optimum they stay near 1.
    converged = longest < 1e-2
    if not isinstance(converged, jax.core.Tracer) and not converged:
        raise ValueError(
            "wins has no finite Bradley-Terry fit: some items never lost to the others, or were "
            "never compared with them" + (", or who is at home decides it all" if home else "")
        )
    parameters = jnp.where(converged, parameters, jnp.nan)
    covariance = jnp.linalg.inv(jax.hessian(total)(parameters))
    # How often i at home met j away; without homes, how often i met j.
    met = wins + (away_wins.T if home else wins.T)
    at_home, away = scores(parameters)
    # Term by term: the difference of the two log-likelihoods would lose digits.
    surplus = _total_loss(wins, *at_home, partial(_surplus, shares=wins / met)) + _total_loss(
        away_wins, *away, partial(_surplus, shares=away_wins / met.T)
    )
    contests = jnp.count_nonzero(met) // (1 if home else 2)
    strengths, advantage = split(parameters)
    standard_errors, advantage_error = split(jnp.sqrt(jnp.diag(covariance)))
    return BradleyTerryFit(
        strengths,
        standard_errors,
        advantage,
        advantage_error,
        2 * surplus,
        (contests - free).astype(jnp.int32),
    )


def _surplus(chosen: jax.Array, rejected: jax.Array, *, shares: jax.Array) -> jax.Array:
    return losses.bradley_terry(chosen, rejected) + jnp.log(shares.ravel())


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
