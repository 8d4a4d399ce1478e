"""Calibration, accuracy and order against values worked out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import (
    auroc,
    brier,
    expected_calibration_error,
    pair_accuracy,
    reliability,
    selective_accuracy,
)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_pair_accuracy_by_hand(transform):
    first = jnp.array([2.0, 1.0, 1.0, 3.0, 1.0, 2.0, 2.0, jnp.inf])
    second = jnp.array([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, jnp.inf])
    preference = jnp.array([1.0, 1.0, 0.0, 0.5, 0.5, 0.9, 0.1, 1.0])
    expected = [1.0, 0.0, 0.5, 0.5, 0.5, 1.0, 0.0, 0.5]
    assert transform(pair_accuracy)(first, second, preference).tolist() == expected


def test_pair_accuracy_does_not_hide_a_broken_score():
    assert jnp.isnan(pair_accuracy(jnp.array([jnp.nan]), jnp.ones(1), jnp.ones(1)))[0]


def test_brier_by_hand():
    found = brier(jnp.array([0.0, 0.5, 0.8]), jnp.array([1.0, 0.5, 1.0]))
    np.testing.assert_allclose(found, [1.0, 0.0, 0.04], atol=1e-6)


def test_reliability_by_hand():
    probabilities = jnp.array([0.1, 0.3, 0.5, 1.0, 0.9])
    outcomes = jnp.array([0.0, 1.0, 0.0, 1.0, 0.5])
    # Two bins: [0, 0.5) holds the first two, [0.5, 1] the others (an edge counts above).
    found = reliability(probabilities, outcomes, 2)
    np.testing.assert_allclose(found.predicted, [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(found.observed, [0.5, 0.5], atol=1e-6)
    assert found.count.tolist() == [2, 3]
    # 2/5 * |0.2 - 0.5| + 3/5 * |0.8 - 0.5|
    error = expected_calibration_error(probabilities, outcomes, 2)
    np.testing.assert_allclose(error, 0.3, atol=1e-6)


def test_empty_bins_are_nan_and_cost_nothing():
    found = reliability(jnp.array([0.05]), jnp.array([0.0]), 4)
    assert np.isnan(found.predicted[1:]).all()
    assert found.count.tolist() == [1, 0, 0, 0]
    error = expected_calibration_error(jnp.array([0.05]), jnp.array([0.0]), 4)
    np.testing.assert_allclose(error, 0.05, atol=1e-6)


def test_bins_of_equal_mass_by_hand():
    probabilities = jnp.array([0.6, 0.7, 0.52, 0.51, jnp.nan])
    outcomes, mask = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0]), jnp.arange(5) < 4
    binned = jax.jit(partial(reliability, equal_mass=True), static_argnums=2)
    found = binned(probabilities, outcomes, 2, mask=mask)
    np.testing.assert_allclose(found.predicted, [0.515, 0.65], atol=1e-6)
    np.testing.assert_allclose(found.observed, [0.5, 1.0], atol=1e-6)
    assert found.count.tolist() == [2, 2]
    error = jax.jit(partial(expected_calibration_error, equal_mass=True), static_argnums=2)
    found = error(probabilities, outcomes, 2, mask=mask)
    np.testing.assert_allclose(found, (0.015 + 0.35) / 2, atol=1e-6)
    # of equal width, all four are in one bin; equal probabilities are never parted
    assert reliability(probabilities, outcomes, 2, mask=mask).count.tolist() == [0, 4]
    tied = binned(jnp.array([0.2, 0.2, 0.2, 0.9, 0.0]), outcomes, 4, mask=mask)
    assert tied.count.tolist() == [0, 3, 0, 1]


def test_auroc_is_the_share_of_pairs_in_order():
    scores = jnp.array([3.0, 1.0, 2.0, 2.0, jnp.inf, -jnp.inf, jnp.nan, 2.0])
    positive = jnp.array([True, False, True, False, False, False, True, True])
    mask = jnp.arange(8) != 6
    ups, downs = [3, 2, 2], [1, 2, np.inf, -np.inf]
    pairs = [(u > d) + 0.5 * (u == d) for u in ups for d in downs]
    area = jax.jit(auroc)
    found = area(scores, positive, mask=mask)
    np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-6)
    np.testing.assert_allclose(area(-scores, positive, mask=mask), 1 - found, rtol=1e-6)
    assert np.isnan(area(scores, positive, mask=mask | True)), "a score that is NaN was hidden"
    assert np.isnan(area(scores, positive, mask=mask & positive)), "one class only"


def test_selective_accuracy_by_hand():
    correct, doubt = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0]), jnp.array([0.1, 0.5, 0.5, 0.2, 0.9])
    expected = [1, 1, (2 + 0.5) / 3, 3 / 4, 3 / 5]  # the two of doubt 0.5 in either order
    curve = jax.jit(selective_accuracy)
    np.testing.assert_allclose(curve(doubt, correct), expected, rtol=1e-6)
    np.testing.assert_allclose(curve(jnp.zeros(5), correct), [0.6] * 5, rtol=1e-6)


def test_what_is_masked_does_not_count():
    probabilities, outcomes = jnp.array([0.75, jnp.nan, 0.1]), jnp.array([1.0, jnp.nan, 1.0])
    mask = jnp.array([True, False, False])
    assert expected_calibration_error(probabilities, outcomes, mask=mask) == 0.25
    assert int(reliability(probabilities, outcomes, mask=mask).count.sum()) == 1
    assert expected_calibration_error(probabilities, outcomes, mask=jnp.zeros(3, bool)) == 0.0


def test_true_probabilities_are_calibrated():
    key, other = jax.random.split(jax.random.key(0))
    probabilities = jax.random.uniform(key, (20_000,))
    outcomes = 1.0 * jax.random.bernoulli(other, probabilities)
    assert expected_calibration_error(probabilities, outcomes) < 0.015
    assert expected_calibration_error(probabilities**3, outcomes) > 0.1
    assert brier(probabilities, outcomes).mean() < brier(probabilities**3, outcomes).mean()


def test_bad_input():
    with pytest.raises(ValueError, match="scores_second and preference must have one shape"):
        pair_accuracy(jnp.ones(3), jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match="outcomes must have one shape"):
        brier(jnp.ones(3), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"probabilities must be of rank 1, not \[2, 2\]"):
        reliability(jnp.ones((2, 2)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="mask must have one shape"):
        expected_calibration_error(jnp.ones(3), jnp.ones(3), mask=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="positive must be boolean"):
        auroc(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match="correct must have one shape"):
        selective_accuracy(jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match="bins must be at least 1"):
        expected_calibration_error(jnp.ones(3), jnp.ones(3), 0)
