"""Distributions of rewards against sums, integrals and draws; the losses that are made of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlhf_jax import distributions, losses

ATOMS = jnp.array([-1.0, 0.0, 0.5, 2.0])
FIRST, SECOND = np.random.default_rng(0).normal(size=[2, 5, 4]).astype(np.float32)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def test_normal_by_scipy():
    d, first, second = distributions.normal(least=0.1), FIRST[:, :2], SECOND[:, :2]
    spread = [np.log1p(np.exp(x[:, 1])) + 0.1 for x in (first, second)]
    np.testing.assert_allclose(d.mean(first), first[:, 0])
    np.testing.assert_allclose(d.variance(first), spread[0] ** 2, rtol=1e-5)
    expected = stats.norm.ppf(0.1, first[:, 0], spread[0])
    np.testing.assert_allclose(d.quantile(first, 0.1), expected, rtol=1e-5)
    np.testing.assert_allclose(
        d.above(first, 0.3), stats.norm.sf(0.3, first[:, 0], spread[0]), rtol=1e-4
    )
    gap = (first[:, 0] - second[:, 0]) / np.hypot(*spread)
    np.testing.assert_allclose(d.log_prefers(first, second), stats.norm.logcdf(gap), rtol=1e-5)
    expected = stats.norm.logpdf(0.7, first[:, 0], spread[0])
    np.testing.assert_allclose(d.log_density(first, jnp.full(5, 0.7)), expected, rtol=1e-5)


def test_categorical_by_sums():
    d, p, q = distributions.categorical(ATOMS), softmax(FIRST), softmax(SECOND)
    atoms = np.asarray(ATOMS)
    np.testing.assert_allclose(d.mean(FIRST), p @ atoms, rtol=1e-5, atol=1e-6)
    expected = p @ atoms**2 - (p @ atoms) ** 2
    np.testing.assert_allclose(d.variance(FIRST), expected, rtol=1e-5)
    wins = np.tril(np.ones([4, 4]), -1) + 0.5 * np.eye(4)
    expected = np.einsum("bi,ij,bj->b", p, wins, q)
    np.testing.assert_allclose(np.exp(d.log_prefers(FIRST, SECOND)), expected, rtol=1e-5)
    expected = [atoms[np.searchsorted(np.cumsum(row), 0.4)] for row in p]
    np.testing.assert_allclose(d.quantile(FIRST, 0.4), expected)
    # At an atom, half of what is there.
    np.testing.assert_allclose(d.above(FIRST, atoms[1]), p[:, 1] / 2 + p[:, 2:].sum(1), rtol=1e-5)
    np.testing.assert_allclose(
        d.log_density(FIRST, jnp.array([-1.0, 0.0, 0.5, 2.0, 2.0])),
        np.log(p[np.arange(5), [0, 1, 2, 3, 3]]),
        rtol=1e-5,
    )


@pytest.mark.parametrize("size", [2, 4])
def test_the_two_ways_round_are_one_and_extremes_have_gradients(size):
    d = distributions.normal() if size == 2 else distributions.categorical(ATOMS)
    first, second = jnp.asarray(FIRST[:, :size]), jnp.asarray(SECOND[:, :size])
    both = jnp.exp(d.log_prefers(first, second)) + jnp.exp(d.log_prefers(second, first))
    np.testing.assert_allclose(both, 1, rtol=1e-5)
    loss = jax.jit(jax.value_and_grad(lambda x: jnp.sum(-d.log_prefers(100 * x, 100 * second))))
    value, slope = loss(first)
    assert np.isfinite(value) and np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_a_hidden_context_shows_in_the_spread():
    """Half the people love what the others hate: its mean is that of what leaves all cold.

    Against six fixed answers, each side's share of wins is the true one: only a spread gives it.
    """
    atoms = jnp.linspace(-2, 2, 9)
    d = distributions.categorical(atoms)
    known = 10 * jax.nn.one_hot(jnp.arange(1, 8), 9)  # answers that all rate alike
    wins = jnp.stack([jnp.full(7, 0.5), jnp.array([1.0, 1, 1, 0.5, 0, 0, 0])])

    def objective(outputs):
        one = jnp.broadcast_to(outputs[:, None], (2, 7, 9))
        loss = partial(losses.distributional, distribution=d)
        won, lost = loss(one, jnp.stack([known] * 2)), loss(jnp.stack([known] * 2), one)
        return jnp.mean(wins * won + (1 - wins) * lost)

    def step(outputs, _):
        return outputs - 5 * jax.grad(objective)(outputs), None

    start = 0.1 * jax.random.normal(jax.random.key(0), [2, 9])
    (split, mild), _ = jax.jit(lambda x: jax.lax.scan(step, x, None, 500))(start)
    assert abs(d.mean(split) - d.mean(mild)) < 0.1
    assert d.variance(split) > 3 and d.variance(mild) < 0.1


def test_explained_share():
    rng = np.random.default_rng(0)
    means = jnp.asarray(rng.normal(size=4000), jnp.float32)
    share = distributions.explained_share(means, jnp.full(4000, 3.0))
    np.testing.assert_allclose(share, 0.25, atol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distributions.normal(least=0.0), "least must be positive"),
        (lambda: distributions.categorical(jnp.array([1.0, 0.0])), "ascending"),
        (lambda: distributions.normal().quantile(FIRST[:, :2], 1.5), "level must be from 0 to 1"),
        (
            lambda: losses.distributional(FIRST, SECOND, distribution=distributions.normal()),
            r"chosen must be \[..., 2\]",
        ),
        (
            lambda: losses.likelihood(
                FIRST, jnp.zeros(3), distribution=distributions.categorical(ATOMS)
            ),
            "one shape",
        ),
        (lambda: losses.squared_error(FIRST, FIRST[0]), "one shape"),
        (lambda: losses.binary_cross_entropy(jnp.array([1]), jnp.array([1])), "floating"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_losses_of_ratings_by_hand():
    rewards, ratings = jnp.array([0.3, -1.0]), jnp.array([True, False])
    expected = [np.log1p(np.exp(-0.3)), np.log1p(np.exp(-1.0))]
    np.testing.assert_allclose(losses.binary_cross_entropy(rewards, ratings), expected, rtol=1e-6)
    slope = jax.grad(lambda r: losses.binary_cross_entropy(r, ratings).sum())(rewards)
    np.testing.assert_allclose(slope, jax.nn.sigmoid(rewards) - ratings, rtol=1e-6)
    np.testing.assert_allclose(losses.squared_error(rewards, jnp.array([1, 1])), [0.49, 4.0])
