"""Texts as rows of features, and the linear reward nearest to their ratings."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import worlds


def test_text_features_by_hand():
    texts = ["Good film!", "a good film", "bad", "a bad, bad plot"]
    # Twice each, in the order of their names: a, bad, film, good, and the pair (good, film).
    features = worlds.text_features(texts, width=6)
    expected = np.array(
        [[1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1], [1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    )
    assert set(map(tuple, (features[:, 1:] > 0).T)) == set(map(tuple, (expected[:, 1:] > 0).T))
    np.testing.assert_array_equal(features[:, 0], 1)
    np.testing.assert_allclose(np.linalg.norm(features[:, 1:], axis=1), 1, rtol=1e-6)
    # As rare as each other, they weigh the same.
    np.testing.assert_allclose(features[3, features[3] > 0][1:], np.sqrt(0.5), rtol=1e-6)
    # The commoner first, and the rarer the weightier.
    two = worlds.text_features(["a b", "a c", "a"], width=3)
    assert two[2].tolist() == [1, 1, 0] and 0 < two[0, 1] < two[0, 2]
    # Fewer words than columns, and a text without any.
    assert worlds.text_features(["a", "1"], width=5).tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("wrong", [{"texts": "film"}, {"texts": []}, {"texts": ["a"], "width": 1}])
def test_text_features_refuse(wrong):
    with pytest.raises(ValueError, match="must be"):
        worlds.text_features(**wrong)


def test_ridge_is_the_least_penalised_square():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(30), rng.normal(size=(30, 3))]).astype(np.float32)
    y, weight = rng.normal(size=30).astype(np.float32), rng.integers(0, 4, 30).astype(np.float32)
    found = worlds.ridge(x, y, weight=weight, l2=2.0)
    # The gradient of what it minimises is 0 there, that of the intercept unpenalised.
    gradient = x.T @ (weight * (x @ found - y)) + 2.0 * np.array([0, 1, 1, 1]) * found
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    # So the mean of the predictions is that of the ratings, and a weight is as many rows.
    assert jnp.allclose(weight @ (x @ found), weight @ y, atol=1e-4)
    copies = np.repeat(np.arange(30), weight.astype(int))
    np.testing.assert_allclose(worlds.ridge(x[copies], y[copies], l2=2.0), found, atol=1e-5)


def test_ridge_refuses():
    x, y = jnp.ones((3, 2)), jnp.ones(3)
    for wrong in ({"targets": jnp.ones(2)}, {"weight": jnp.ones(2)}, {"l2": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            worlds.ridge(**{"features": x, "targets": y, "l2": 1.0} | wrong)
