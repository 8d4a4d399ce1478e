"""Tables by subset and domain, and the relearning gap, against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import relearning_gap, subset_table, transfer

CORRECT = jnp.array([1.0, 1, 1, 0, 1, 0, 0.5, 0.5])
SUBSET = jnp.array([0, 0, 0, 0, 2, 2, 1, 1])  # accuracies 0.75, 0.5, 0.5
TABLE = jax.jit(subset_table, static_argnums=2)


def test_subset_table_by_hand():
    found = TABLE(CORRECT, SUBSET, (0, 1, 0))
    assert found.accuracy.tolist() == [0.75, 0.5, 0.5]
    assert found.count.tolist() == [4, 2, 2]
    np.testing.assert_allclose(found.section_accuracy, [(4 * 0.75 + 2 * 0.5) / 6, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.overall, (2 / 3 + 0.5) / 2, rtol=1e-6)


def test_subsets_and_sections_may_weigh_otherwise():
    weights = jnp.array([2.0, 1.0, 6.0]), jnp.array([1.0, 0.5])
    found = TABLE(CORRECT, SUBSET, (0, 1, 0), subset_weights=weights[0], section_weights=weights[1])
    np.testing.assert_allclose(found.section_accuracy, [0.5625, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.overall, (0.5625 + 0.25) / 1.5, rtol=1e-6)


def test_what_is_missing_is_not_averaged_away():
    found = TABLE(CORRECT, SUBSET, (0, 1, 0, 1, 2))
    assert np.isnan(found.accuracy[3]) and found.count[3] == 0
    np.testing.assert_allclose(found.section_accuracy[:2], [2 / 3, 0.5], rtol=1e-6)
    assert np.isnan(found.section_accuracy[2]) and np.isnan(found.overall)
    without = TABLE(CORRECT, SUBSET, (0, 1, 2, 3), section_weights=jnp.array([1.0, 1, 1, 0]))
    np.testing.assert_allclose(without.overall, (0.75 + 0.5 + 0.5) / 3, rtol=1e-6)
    demanded = TABLE(CORRECT, SUBSET, (0, 0, 0, 0), subset_weights=jnp.ones(4))
    assert np.isnan(demanded.overall)


def test_transfer_by_hand():
    accuracy = np.array([[0.9, 0.6, 0.5], [0.7, 0.8, 0.5], [0.5, 0.4, 0.5]])
    correct = jnp.float32(np.repeat(accuracy, [1, 2, 3], axis=1))
    domain = jnp.array([0, 1, 1, 2, 2, 2])
    found = jax.jit(transfer)(correct, domain)
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=1e-6)
    assert found.count.tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.gap, [0.3, 0.3, 0.0], atol=1e-6)
    off = accuracy[~np.eye(3, dtype=bool)].mean()
    np.testing.assert_allclose(found.mean_gap, np.diag(accuracy).mean() - off, atol=1e-6)
    assert np.isnan(transfer(correct[:1], jnp.zeros(6, int)).mean_gap)


def test_relearning_gap_is_paired():
    seeds, wobble = np.random.default_rng(0).normal(size=[2, 30]) * [[10], [0.1]]
    found = relearning_gap(seeds + 2, seeds + wobble, key=jax.random.key(2))
    np.testing.assert_allclose(found.estimate, 2 - wobble.mean(), atol=1e-4)
    assert 1.9 < found.low < found.estimate < found.high < 2.1


def test_bad_input():
    with pytest.raises(ValueError, match="subset must be from 0 to 1, not 0 to 2"):
        subset_table(CORRECT, SUBSET, [0, 0])
    with pytest.raises(ValueError, match=r"sections must be numbered .* not \[0, 2\]"):
        subset_table(CORRECT, SUBSET, [0, 2, 2])
    with pytest.raises(ValueError, match=r"subset_weights must be \[3\], not \[2\]"):
        subset_table(CORRECT, SUBSET, [0, 0, 0], subset_weights=jnp.ones(2))
    with pytest.raises(ValueError, match="section_weights must not be negative"):
        subset_table(CORRECT, SUBSET, [0, 0, 0], section_weights=jnp.array([-1.0]))
    with pytest.raises(ValueError, match="domain must be integers"):
        transfer(jnp.ones([2, 3]), jnp.ones(3))
    with pytest.raises(ValueError, match=r"not \[2, 3\] and domain \[2\]"):
        transfer(jnp.ones([2, 3]), jnp.zeros(2, int))
    with pytest.raises(ValueError, match="must have one shape"):
        relearning_gap(jnp.ones(3), jnp.ones(2), key=jax.random.key(0))
