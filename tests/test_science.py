"""What is left of the table of numbers that the library must reproduce; where each line is tested.

| number | test |
| --- | --- |
| Bradley-Terry fits, rock-paper-scissors, Borda | test_comparisons |
| best-of-n: bound, exact policy, unbiased estimate; peaks of gold curves | test_overoptimisation |
| exact tilt; optima of DPO and IPO, with certain preferences too | test_finite |
| exact tilt as the optimum of PPO and REINFORCE | test_algorithms |
| GAE; RLOO and GRPO | test_advantages |
| DPO, IPO, PPO's clipping | test_losses, and here |
| SimPO, ORPO | test_implicit_rewards |
| KL and its estimators | test_divergences |
| Krippendorff, Fleiss, Cohen | test_coefficients |
| ensembles | test_aggregates |
| power-seeking | test_tabular |
| performative prediction | here |
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import losses


def test_dpo_and_ipo_at_one_pair():
    """Log-ratios 0.4 and -0.2; beta or tau 0.1."""
    chosen, rejected = jnp.array([0.4]), jnp.array([-0.2])
    dpo = losses.bradley_terry(0.1 * chosen, 0.1 * rejected)
    np.testing.assert_allclose(dpo, [0.663597], atol=1e-6)
    np.testing.assert_allclose(losses.squared(chosen, rejected, tau=0.1), [19.36], rtol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.8, 1.2])
def test_a_predictor_that_moves_its_data_is_retrained(shift):
    """Perdomo et al. 2020: the data's mean is mu + shift * prediction.

    Each round fits the data that the last prediction brought about, taken as constants, as
    ``squared_value`` takes its returns. The error shrinks by ``shift`` a round, to
    ``mu / (1 - shift)``; above 1 it grows. A gradient through the data would shrink it otherwise.
    """
    mu, limit = 1.0, 1 / (1 - shift)
    noise = jnp.array([-0.5, 0.5])
    optimizer = optax.sgd(1.0)  # minimises half a squared error in one step

    def error(prediction):
        data = mu + shift * prediction + noise
        predicted = jnp.full(2, prediction)
        return jnp.mean(losses.squared_value(predicted, predicted, data))

    def retrain(prediction, _):
        updates, _ = optimizer.update(jax.grad(error)(prediction), optimizer.init(prediction))
        return optax.apply_updates(prediction, updates), prediction

    run = jax.jit(partial(jax.lax.scan, retrain, length=30))
    last, predictions = run(jnp.float32(0))
    errors = np.asarray(predictions[:8] - limit)
    np.testing.assert_allclose(errors[1:], shift * errors[:-1], atol=1e-4, rtol=1e-4)
    if shift < 1:
        np.testing.assert_allclose(last, limit, rtol=0.01)
    else:
        assert abs(last - limit) > 100
