"""Log-probabilities by three paths, and means that are divided by the right number."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sequences
from rlhf_jax.types import FactoredLogits


@pytest.fixture
def case():
    keys = jax.random.split(jax.random.key(0), 3)
    factored = FactoredLogits(
        3 * jax.random.normal(keys[0], [2, 5, 8]), jax.random.normal(keys[1], [8, 37])
    )
    tokens = jax.random.randint(keys[2], [2, 5], 0, 37)
    return factored, tokens


def test_token_log_probs_by_hand():
    logits = jnp.log(jnp.array([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]]))
    log_probs, entropies = sequences.log_probs_and_entropies(logits, jnp.array([[0, 2, 1]]))
    np.testing.assert_allclose(log_probs, [[0, np.log(0.7), np.log(0.25)]], atol=1e-6)
    first = -(0.1 * np.log(0.1) + 0.2 * np.log(0.2) + 0.7 * np.log(0.7))
    np.testing.assert_allclose(entropies, [[0, first, 1.5 * np.log(2)]], atol=1e-6)


@pytest.mark.parametrize("block_size", [1, 8, 36, 37, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_blocks_of_the_vocabulary_change_nothing(case, block_size, temperature):
    factored, tokens = case
    dense = factored.hidden @ factored.unembedding

    def value(logits, block_size):
        log_probs, entropies = sequences.log_probs_and_entropies(
            logits, tokens, temperature=temperature, block_size=block_size
        )
        weights = jnp.arange(10.0).reshape(2, 5)
        return (weights * log_probs).sum() + (jnp.cos(weights) * entropies).sum(), log_probs

    (expected, log_probs), _ = jax.value_and_grad(value, has_aux=True)(dense, 8)
    (actual, blocked), gradient = jax.value_and_grad(value, has_aux=True)(factored, block_size)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(blocked, log_probs, atol=1e-5)

    def through_dense(factored):
        return value(factored.hidden @ factored.unembedding, 8)[0]

    for a, b in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(jax.grad(through_dense)(factored)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-4)
    alone = sequences.token_log_probs(
        factored, tokens, temperature=temperature, block_size=block_size
    )
    np.testing.assert_allclose(alone, log_probs, atol=1e-5)


@pytest.mark.parametrize("block_size", [16, 64])
def test_logits_with_a_soft_cap(case, block_size):
    factored, tokens = case

    def value(logits):
        log_probs, entropies = sequences.log_probs_and_entropies(
            logits, tokens, temperature=0.7, block_size=block_size
        )
        return (log_probs + 0.3 * entropies)[:, 1:].sum()

    def capped(hidden):
        return value(2.5 * jnp.tanh(hidden @ factored.unembedding / 2.5))

    def through_factors(hidden):
        return value(factored.replace(hidden=hidden, softcap=2.5))

    expected = jax.value_and_grad(capped)(factored.hidden)
    actual = jax.value_and_grad(through_factors)(factored.hidden)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-4)
    assert abs(expected[0] - value(factored)) > 1


def test_blocks_keep_no_array_as_wide_as_the_vocabulary():
    factored = FactoredLogits(jnp.ones([2, 64, 8]), jnp.ones([8, 4096]))
    tokens = jnp.zeros([2, 64], jnp.int32)

    def loss(factored, block_size):
        return sequences.token_log_probs(factored, tokens, block_size=block_size).sum()

    def memory(block_size):
        step = jax.jit(partial(jax.grad(loss), block_size=block_size))
        return step.lower(factored).compile().memory_analysis().temp_size_in_bytes

    assert memory(256) < memory(4096) / 4


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits must be \[B, T"):
        sequences.token_log_probs(jnp.zeros([1, 3, 4]), jnp.zeros([1, 2], jnp.int32))


def test_positions_and_last_token_with_padding_on_either_side():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(
        sequences.positions(mask), [[0, 0, 0, 1], [0, 1, 2, 2], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        sequences.last_token(mask), [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    )


def test_three_aggregations_of_one_loss_differ():
    loss = jnp.array([[1.0, 1.0, 1.0, 99.0], [4.0, 99.0, 99.0, 99.0], [99.0] * 4])
    mask = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)

    def value(aggregation):
        total, count = aggregation(loss, mask)
        return float(total / count)

    assert value(sequences.token_mean) == pytest.approx(7 / 4)
    assert value(sequences.sequence_mean) == pytest.approx((1 + 4) / 2)
    assert value(partial(sequences.constant_length, length=10)) == pytest.approx(7 / 20)


def test_masked_mean_of_nothing_is_zero():
    assert sequences.masked_mean(jnp.array([jnp.nan]), jnp.array([False])) == 0
    with pytest.raises(ValueError, match="shape"):
        sequences.masked_mean(jnp.zeros(2), jnp.ones(3, bool))
