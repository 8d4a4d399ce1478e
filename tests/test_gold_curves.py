"""Fits of the gold curves: exact on their own, elsewhere least squares, intervals over seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import measures

DISTANCE = jnp.linspace(0, 3, 12)
FORMS = [
    (measures.best_of_n_gold, measures.fit_best_of_n_gold, lambda d: d**2),
    (measures.rl_gold, measures.fit_rl_gold, lambda d: d * np.log(np.maximum(d, 1e-30))),
]


@pytest.mark.parametrize(("curve", "fit", "bend"), FORMS)
def test_a_fit_finds_its_own_curve_and_is_least_squares_elsewhere(curve, fit, bend):
    alpha, beta = jnp.array([[1.2], [0.4]]), jnp.array([[0.3], [-0.1]])
    gold = curve(DISTANCE, alpha=alpha, beta=beta)
    found = fit(jnp.broadcast_to(DISTANCE, gold.shape), gold)
    np.testing.assert_allclose(found.alpha, alpha[:, 0], rtol=1e-3)
    np.testing.assert_allclose(found.beta, beta[:, 0], rtol=1e-3)
    np.testing.assert_allclose(found.r_squared, 1, atol=1e-5)
    noisy = gold[0] + jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
    found = fit(DISTANCE, noisy)
    design = np.stack([DISTANCE, -bend(np.asarray(DISTANCE))], axis=1)
    expected, residual, *_ = np.linalg.lstsq(design, np.asarray(noisy), rcond=None)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-3)
    np.testing.assert_allclose(found.r_squared, 1 - residual[0] / (12 * noisy.var()), atol=1e-4)


def test_an_interval_of_the_coefficients_is_over_seeds():
    """Of a slope of 1 +- .2 from seed to seed, the mean of 25 is known to .04."""
    alpha = 1 + 0.2 * jax.random.normal(jax.random.key(0), (25, 1))
    curves = measures.best_of_n_gold(DISTANCE, alpha=alpha, beta=0.25)

    def of_mean(rows):
        return jnp.stack(measures.fit_best_of_n_gold(DISTANCE, rows.mean(axis=0)))

    found = measures.bootstrap(curves, key=jax.random.key(1), statistic=of_mean, resamples=500)
    half = 1.96 * alpha.std() / 5
    np.testing.assert_allclose(found.high[0] - found.low[0], 2 * half, rtol=0.2)
    np.testing.assert_allclose(found.low[1:], [0.25, 1], atol=1e-3)


def test_bad_curves_are_refused():
    with pytest.raises(ValueError, match="shape"):
        measures.fit_rl_gold(DISTANCE, DISTANCE[:5])
    with pytest.raises(ValueError, match="at least 3 points"):
        measures.fit_rl_gold(DISTANCE[:2], DISTANCE[:2])
    with pytest.raises(ValueError, match="must be floating"):
        measures.fit_best_of_n_gold(jnp.arange(5), jnp.arange(5))
