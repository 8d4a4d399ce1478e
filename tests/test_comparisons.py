"""Strengths from comparisons: published fits, what no strengths can explain, and refusals."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import entr
from scipy.stats import spearmanr

from rlhf_jax import losses, worlds

FIXTURES = json.loads(Path(__file__).with_name("fixtures.json").read_text())


def test_stigler_s_journals():
    data = FIXTURES["citations"]
    names = list(data["mle"])
    wins = np.zeros([4, 4])
    for winner, loser, count in data["rows"]:
        wins[names.index(winner), names.index(loser)] = count
    fit = worlds.fit_bradley_terry(wins)
    np.testing.assert_allclose(fit.strengths, list(data["mle"].values()), atol=1e-5)
    np.testing.assert_allclose(fit.standard_errors, [0, *data["se"].values()], atol=1e-5)
    np.testing.assert_allclose(fit.deviance, data["deviance"], atol=2e-4)
    assert (fit.degrees_of_freedom, fit.advantage, fit.advantage_error) == (3, 0, 0)
    # The likelihood is our loss: at the fit it is level, and so it is from another's point of view.
    slope = jax.jit(jax.grad(worlds.mean_loss))(fit.strengths, wins)
    np.testing.assert_allclose(slope, np.zeros(4), atol=1e-6)
    other = worlds.fit_bradley_terry(wins, reference=2)
    np.testing.assert_allclose(other.strengths, fit.strengths - fit.strengths[2], atol=1e-5)
    np.testing.assert_allclose(other.standard_errors[0], fit.standard_errors[2], atol=1e-6)
    # Of the difference of the last two, from the inverse of the information in float64.
    np.testing.assert_allclose(other.standard_errors[3], 0.0729435, atol=1e-6)


def test_baseball_with_and_without_home_advantage():
    data = FIXTURES["baseball"]
    names = list(data["mle_no_home"])
    home_wins, away_wins = np.zeros([2, 7, 7], int)
    for home, away, won, lost in data["rows"]:
        home_wins[names.index(home), names.index(away)] = won
        away_wins[names.index(away), names.index(home)] = lost
    expected = dict(data["mle_home"])
    fit = worlds.fit_bradley_terry(home_wins, away_wins=away_wins)
    np.testing.assert_allclose(fit.advantage, expected.pop("home"), atol=1e-4)
    np.testing.assert_allclose(fit.strengths, list(expected.values()), atol=1e-4)
    # From iteratively reweighted least squares in float64.
    np.testing.assert_allclose(fit.advantage_error, 0.1309437, atol=1e-5)
    np.testing.assert_allclose(fit.deviance, 38.642852, atol=1e-4)
    assert fit.degrees_of_freedom == 42 - 7
    plain = worlds.fit_bradley_terry(home_wins + away_wins)
    expected = list(data["mle_no_home"].values())
    np.testing.assert_allclose(plain.strengths, expected, atol=1e-4)
    assert plain.degrees_of_freedom == 21 - 6


def test_rock_paper_scissors_has_a_divergence_that_no_strengths_avoid():
    """science.md: kappa^2 / 8 nats a comparison, to 2% for kappa up to 0.4."""
    kappa = np.array([0.1, 0.2, 0.4])
    cycle = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    preferences = jax.nn.sigmoid(kappa[:, None, None] * cycle)
    fits = jax.vmap(worlds.fit_bradley_terry)(preferences)
    np.testing.assert_allclose(fits.strengths, np.zeros([3, 3]), atol=1e-5)
    np.testing.assert_array_equal(fits.degrees_of_freedom, [1, 1, 1])  # 0.5 on the diagonal is none
    excess = fits.deviance / (2 * 3)  # three pairs, each compared once
    np.testing.assert_allclose(excess, kappa**2 / 8, rtol=0.02)
    np.testing.assert_allclose(excess[1], 0.004975, atol=1e-6)
    # It is the population loss, less the entropy that even a model of pairs is left with.
    loss = jax.jit(jax.vmap(worlds.mean_loss))(fits.strengths, preferences * (1 - np.eye(3)))
    entropy = entr(preferences[:, 0, 1]) + entr(preferences[:, 1, 0])
    np.testing.assert_allclose(loss - entropy, excess, atol=1e-6)
    # With strengths and no cycle nothing is left over.
    truth = jnp.array([0.0, 1.5, -0.7])
    tables = jnp.stack([worlds.bradley_terry_preferences(truth)] * 3)
    fits = jax.vmap(worlds.fit_bradley_terry)(tables)
    np.testing.assert_allclose(fits.strengths[1], truth, atol=1e-5)
    np.testing.assert_allclose(fits.deviance, np.zeros(3), atol=1e-5)


def hidden_context_preferences(answers):
    """Siththaranjan et al. 2023, 1-D: a ~ U[0, 1], u = a, but for a >= 0.8 u is 0 or 2a."""
    a = (np.arange(answers) + 0.5) / answers
    utilities = np.stack([np.where(a < 0.8, a, 0), np.where(a < 0.8, a, 2 * a)])
    first, second = utilities[:, None, :, None], utilities[None, :, None, :]
    return a, np.mean((first > second) + 0.5 * (first == second), axis=(0, 1))


def test_bradley_terry_of_hidden_context_follows_borda_and_not_expected_utility():
    a, preferences = hidden_context_preferences(40)
    borda = worlds.win_rates(preferences)
    np.testing.assert_allclose(borda, np.where(a < 0.8, a + 0.1, 0.275 + 0.25 * a), atol=1e-3)
    fit = worlds.fit_bradley_terry(preferences)
    assert spearmanr(fit.strengths, borda).statistic >= 0.99
    assert a[np.argmax(fit.strengths)] < 0.8, "while the expected utility, a, is highest at 1"


def test_against_a_policy_win_rates_are_weighted():
    preferences = worlds.bradley_terry_preferences(jnp.log(jnp.array([1.0, 3.0])))
    rates = worlds.win_rates(preferences, jnp.log(jnp.array([0.2, 0.8])))
    np.testing.assert_allclose(rates, [0.1 + 0.2, 0.15 + 0.4], rtol=1e-6)


def test_the_mean_loss_is_the_loss_of_the_pairs_and_leaves_out_empty_cells():
    scores = jnp.array([0.0, 1.0, jnp.inf])
    wins = np.array([[0, 1, 0], [3, 0, 0], [0, 0, 0]])

    loss = partial(worlds.mean_loss, wins=wins, loss=losses.squared)
    value, slope = jax.jit(jax.value_and_grad(loss))(scores)
    np.testing.assert_allclose(value, (1 * 2**2 + 3 * 0) / 4)
    np.testing.assert_allclose(slope[2], 0)
    assert np.isfinite(slope).all()


def test_what_has_no_finite_fit_is_refused_or_nan():
    never = np.ones([4, 4])
    never[:, 1] = 0
    with pytest.raises(ValueError, match=r"no finite fit: items \[1\] never lost to any other"):
        worlds.fit_bradley_terry(never)
    with pytest.raises(ValueError, match=r"items \[0, 1\] never lost to any other"):
        worlds.fit_bradley_terry(np.kron(np.eye(2), np.ones([2, 2])))
    with pytest.raises(ValueError, match="the place decides every comparison"):
        worlds.fit_bradley_terry(np.ones([7, 7]), away_wins=np.zeros([7, 7]))
    fits = jax.vmap(worlds.fit_bradley_terry)(np.stack([never[:3, :3]] + 2 * [np.ones([3, 3])]))
    assert np.isnan(fits.strengths[0, 1:]).all()
    assert np.isnan(fits.deviance[0])
    np.testing.assert_allclose(fits.strengths[1:], np.zeros([2, 3]), atol=1e-6)


def test_a_table_on_which_plain_newton_steps_diverge():
    wins = np.array([[0, 116, 0, 11], [0, 0, 1, 21], [843533, 27730, 0, 0], [0, 90953, 0, 0]])
    fit = worlds.fit_bradley_terry(wins)
    expected = (wins + wins.T) * worlds.bradley_terry_preferences(fit.strengths)
    np.testing.assert_allclose(expected.sum(axis=1), wins.sum(axis=1), rtol=1e-3)


def test_a_long_chain():
    """Neighbours alone are compared, and the ends are 48 nats apart."""
    truth = jnp.linspace(0, 48, 7)
    neighbours = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) == 1
    wins = np.where(neighbours, worlds.bradley_terry_preferences(truth), 0)
    fit = worlds.fit_bradley_terry(wins)
    np.testing.assert_allclose(fit.strengths, truth, atol=1e-3)
    assert fit.degrees_of_freedom == 0


def test_bad_tables_are_refused():
    table = np.ones([3, 3])
    with pytest.raises(ValueError, match=r"wins must be \[N, N\], N at least 2, not \[3, 2\]"):
        worlds.fit_bradley_terry(table[:, :2])
    with pytest.raises(ValueError, match="wins must not be negative: -1"):
        worlds.mean_loss(jnp.zeros(3), -table)
    with pytest.raises(ValueError, match="shape"):
        worlds.fit_bradley_terry(table, away_wins=np.ones([2, 2]))
    with pytest.raises(ValueError, match="reference must be from 0 to 2, not 3"):
        worlds.fit_bradley_terry(table, reference=3)
    with pytest.raises(ValueError, match="shape"):
        worlds.mean_loss(jnp.zeros(2), table)
    with pytest.raises(ValueError, match="scores must be floating"):
        worlds.mean_loss(jnp.arange(3), table)
    with pytest.raises(ValueError, match="shape"):
        worlds.win_rates(table, jnp.zeros(2))
    with pytest.raises(ValueError, match="rewards must be of rank 1"):
        worlds.bradley_terry_preferences(table)
