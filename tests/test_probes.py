"""Length bias, nuisances and linear probes against closed forms and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import length_bias, length_gain, nuisance_share, probe

# Orthogonal, of mean 0 and of variance 1.
GOLD = jnp.array([1.0, 1, 1, 1, -1, -1, -1, -1])
NOISE = jnp.array([1.0, 1, -1, -1, 1, 1, -1, -1])
OTHER = jnp.array([1.0, -1, 1, -1, 1, -1, 1, -1])


def test_length_bias_in_closed_form():
    # Length follows gold, and the reward both: reward = gold + 0.5 length, length = gold + noise.
    lengths = 20 + 5 * (GOLD + NOISE)
    rewards = GOLD + 0.5 * (GOLD + NOISE) + 0.5 * OTHER
    found = jax.jit(length_bias)(rewards, lengths, GOLD)
    np.testing.assert_allclose(found.correlation, 2 / np.sqrt(2.75 * 2), rtol=1e-5)
    np.testing.assert_allclose(found.partial_correlation, 0.5 / np.sqrt(0.5), rtol=1e-5)


def test_a_reward_that_is_the_gold_has_no_length_bias():
    bias = jax.jit(length_bias)
    found = bias(GOLD + OTHER, GOLD + NOISE, GOLD)
    np.testing.assert_allclose(found.correlation, 0.5, rtol=1e-5)
    np.testing.assert_allclose(found.partial_correlation, 0, atol=1e-6)
    nothing_left = bias(3 * GOLD + 0.1, GOLD + NOISE, GOLD)
    assert np.isnan(nothing_left.partial_correlation)
    without = bias(GOLD, jnp.ones(8))
    assert np.isnan(without.correlation) and np.isnan(without.partial_correlation)


def test_length_gain_of_a_longer_and_of_a_better_policy():
    old = np.random.default_rng(0).integers(5, 25, 400)
    compiled = jax.jit(length_gain, static_argnames="bins")
    longer = compiled(0.1 * (old + 5), old + 5, 0.1 * old, old, bins=20)
    np.testing.assert_allclose(longer.gain, 0.5, rtol=1e-4)
    np.testing.assert_allclose(longer.length_share, 1, atol=0.05)
    assert 0.6 < longer.covered < 0.9
    better = compiled(0.1 * old + 0.5, old, 0.1 * old, old, bins=20)
    np.testing.assert_allclose(better.same_length_gain, 0.5, rtol=1e-4)
    np.testing.assert_allclose(better.length_share, 0, atol=1e-4)
    assert better.covered == 1
    # by hand: 2 better at length 1, 1 better at length 2, of which the new policy writes more
    new_rewards, new_lengths = jnp.array([3.0, 4, 4, 4]), jnp.array([1, 2, 2, 2])
    hand = compiled(
        new_rewards, new_lengths, jnp.array([1.0, 1, 1, 3]), 3 - new_lengths[::-1], bins=2
    )
    np.testing.assert_allclose(hand.gain, 2.25)
    np.testing.assert_allclose(hand.same_length_gain, 1.25)
    # where nobody wrote as long there is nothing to compare
    apart = compiled(old + 0.5, old + 100, 1.0 * old, old, bins=20)
    assert np.isnan(apart.length_share) and apart.covered == 0


def test_nuisance_share_in_closed_form():
    rewards = 3 * GOLD + 2 * NOISE + 1 * OTHER + 7
    share = jax.jit(nuisance_share)
    np.testing.assert_allclose(share(rewards, GOLD[:, None], NOISE[:, None]), 4 / 14, rtol=1e-5)
    # what feature and nuisance share is the feature's; a copy or a constant adds nothing
    both = jnp.stack([GOLD + NOISE, GOLD, 2 * GOLD, jnp.ones(8)], axis=1)
    np.testing.assert_allclose(share(rewards, GOLD[:, None], both), 4 / 14, rtol=1e-5)
    np.testing.assert_allclose(share(rewards, both, NOISE[:, None]), 0, atol=1e-6)
    np.testing.assert_allclose(share(rewards, GOLD[:, None][:, :0], both), 13 / 14, rtol=1e-5)
    assert np.isnan(share(jnp.ones(8), GOLD[:, None], NOISE[:, None]))


def test_probe_is_ridge_regression_on_standardised_features():
    generator = np.random.default_rng(0)
    features = generator.normal(size=[60, 4]) * [1, 10, 0.1, 0] + [0, 100, 0, 3]
    target = features @ [1, 0.2, -3, 0] + generator.normal(size=60)
    held_out = np.arange(60) % 3 == 0
    found = jax.jit(probe)(jnp.float32(features), jnp.float32(target), held_out, penalty=0.1)
    fit, spread = features[~held_out], features[~held_out, :3].std(axis=0)
    inputs = (fit[:, :3] - fit[:, :3].mean(axis=0)) / spread
    centred = target[~held_out] - target[~held_out].mean()
    weights = np.linalg.solve(inputs.T @ inputs / 40 + 0.1 * np.eye(3), inputs.T @ centred / 40)
    weights = np.append(weights / spread, 0)  # the constant feature
    np.testing.assert_allclose(found.weights, weights, rtol=1e-3, atol=1e-5)
    prediction = target[~held_out].mean() + (features - fit.mean(axis=0)) @ weights
    np.testing.assert_allclose(found.prediction, prediction, atol=1e-3)
    np.testing.assert_allclose(found.intercept + features @ found.weights, prediction, atol=1e-2)
    for rows, r2 in ((held_out, found.held_out_r2), (~held_out, found.train_r2)):
        left = np.square(target - prediction)[rows].sum() / target[rows].var() / rows.sum()
        np.testing.assert_allclose(r2, 1 - left, atol=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="rewards and lengths and gold must have one shape"):
        length_bias(GOLD, NOISE, GOLD[:2])
    with pytest.raises(ValueError, match="old_rewards and old_lengths must have one shape"):
        length_gain(GOLD, NOISE, GOLD, NOISE[:2])
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        length_gain(GOLD, NOISE, GOLD, NOISE, bins=0)
    with pytest.raises(ValueError, match=r"nuisances must be \[8, F\], not \[8\]"):
        nuisance_share(GOLD, NOISE[:, None], NOISE)
    with pytest.raises(ValueError, match=r"features must be \[8, F\], not \[7, 1\]"):
        probe(NOISE[:7, None], GOLD, GOLD > 0)
    with pytest.raises(ValueError, match="held_out must be true on some rows"):
        probe(NOISE[:, None], GOLD, GOLD > 2)
    with pytest.raises(ValueError, match="penalty must be at least 0, not -1"):
        probe(NOISE[:, None], GOLD, GOLD > 0, penalty=-1)
