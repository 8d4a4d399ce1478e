"""Rewards made of scores."""

import jax
import numpy as np
import toys

from rlhf_jax import rewards
from rlhf_jax.rewards import Standardised


def test_standardised_scores_have_mean_0_and_deviation_1_on_the_samples_they_were_read_on():
    samples, params = toys.sequences(64), toys.bag_params()
    scores = rewards.from_scores(toys.bag_scores)(params, samples)
    np.testing.assert_array_equal(scores, toys.bag_scores(params, samples.tokens, samples.mask))
    reading = Standardised(params, scores.mean(), scores.std())
    read = jax.jit(rewards.standardised(toys.bag_scores))(reading, samples)
    np.testing.assert_allclose([read.mean(), read.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(read * scores.std() + scores.mean(), scores, atol=1e-5)
