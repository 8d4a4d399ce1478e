"""Log-probabilities by three paths, and means that are divided by the right number."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sequences, vocabulary
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


# A vocabulary of 37 is cut unevenly, of 36 evenly; in one block it is multiplied out at once.
@pytest.mark.parametrize(("size", "block_size"), [(37, 8), (37, 1), (36, 8), (36, 35), (37, 37)])
def test_blocks_of_the_vocabulary_change_nothing(case, size, block_size):
    factored, tokens = case
    factored, tokens = factored.replace(unembedding=factored.unembedding[:, :size]), tokens % size
    weights = jnp.arange(10.0).reshape(2, 5)

    @partial(jax.jit, static_argnums=2)
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def value(factored, temperature, at_once):
        logits = factored.hidden @ factored.unembedding if at_once else factored
        settings = {"temperature": temperature, "block_size": block_size}
        log_probs, entropies = sequences.log_probs_and_entropies(logits, tokens, **settings)
        alone = sequences.token_log_probs(logits, tokens, **settings)
        total = (weights * (log_probs + alone)).sum() + (jnp.cos(weights) * entropies).sum()
        return total, (log_probs, entropies, alone)

    for temperature in (1.0, 0.7):
        (_, expected), expected_gradient = value(factored, temperature, True)
        (_, actual), gradient = value(factored, temperature, False)
        chex.assert_trees_all_close(actual, expected, atol=1e-5)
        chex.assert_trees_all_close(gradient, expected_gradient, atol=2e-4, rtol=1e-5)


def test_halves_are_multiplied_with_float32_sums(case):
    factored, tokens = case
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), factored)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
    expected = sequences.token_log_probs(wide.hidden @ wide.unembedding, tokens)
    for block_size in (8, 37):
        log_probs, pullback = jax.vjp(
            partial(sequences.token_log_probs, tokens=tokens, block_size=block_size), halves
        )
        assert log_probs.dtype == jnp.float32
        np.testing.assert_allclose(log_probs, expected, atol=1e-5)
        (gradient,) = pullback(jnp.ones_like(log_probs))
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, halves)


def test_from_a_column_on_and_nothing_before(case):
    factored, tokens = case
    for logits in (factored, factored.hidden @ factored.unembedding):
        for block_size in (8, 64):
            read = partial(sequences.log_probs_and_entropies, tokens=tokens, block_size=block_size)
            for some, whole in zip(read(logits, start=3), read(logits), strict=True):
                assert jnp.all(some[:, :3] == 0)
                np.testing.assert_allclose(some[:, 3:], whole[:, 3:], atol=1e-6)
    assert jnp.all(sequences.token_log_probs(factored, tokens, start=5) == 0)
    gradient = jax.grad(lambda f: sequences.token_log_probs(f, tokens, start=3).sum())(factored)
    assert jnp.all(gradient.hidden[:, [0, 1, 4]] == 0) and jnp.all(gradient.hidden[:, 2:4] != 0)
    for wrong in ({"start": 0}, {"block_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 1, not 0"):
            sequences.token_log_probs(factored, tokens, **wrong)


# Of the second row one can be predicted.
MARKS = jnp.array([[False, False, True, False, True], [True, True, False, False, False]])


@pytest.mark.parametrize("most", [2, 4])
def test_only_what_is_marked_is_read(case, most):
    factored, tokens = case

    def marked(factored, dense, block_size):
        logits = factored.hidden @ factored.unembedding if dense else factored
        read = sequences.marked_log_probs(logits, tokens, MARKS, most, block_size=block_size)
        return jnp.sum(read * jnp.arange(1, 1 + read.size).reshape(read.shape)), read

    def all_of_them(factored):
        read = jnp.where(MARKS, sequences.token_log_probs(factored, tokens), 0)
        return jnp.sum(read * jnp.arange(1, 1 + read.size).reshape(read.shape)), read

    gradient, expected = jax.grad(all_of_them, has_aux=True)(factored)
    assert jnp.all(expected[:, 0] == 0) and jnp.all((expected != 0)[:, 1:] == MARKS[:, 1:])
    for dense, block_size in ((False, 8), (False, 64), (True, 64)):
        found = jax.grad(marked, has_aux=True)(factored, dense, block_size)
        chex.assert_trees_all_close(found, (gradient, expected), rtol=1e-5, atol=1e-5)


def test_more_marks_than_promised_are_no_number(case):
    factored, tokens = case
    marks = jnp.ones(tokens.shape, bool)
    with pytest.raises(ValueError, match=f"at least the {tokens.shape[1] - 1} marks of a row, not"):
        sequences.marked_log_probs(factored, tokens, marks, 2)
    found = jax.jit(lambda m: sequences.marked_log_probs(factored, tokens, m, 2))(marks)
    expected = sequences.token_log_probs(factored, tokens)
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=1e-6)
    assert jnp.all(jnp.isnan(found[:, 3:]))
    with pytest.raises(ValueError, match="most must be at least 1, not 0"):
        sequences.marked_log_probs(factored, tokens, marks, 0)
    with pytest.raises(ValueError, match="mask must be "):
        sequences.marked_log_probs(factored, tokens, marks[:, :2], 2)


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
    assert vocabulary.default_block(1000) == vocabulary.MAX_BLOCK
    assert vocabulary.default_block(2**18) == 512


def test_a_frozen_unembedding_costs_no_gradient():
    factored = FactoredLogits(jnp.ones([2, 64, 8]), jnp.ones([8, 4096]))
    tokens = jnp.zeros([2, 64], jnp.int32)

    def dots(frozen):
        def loss(hidden, unembedding):
            logits = FactoredLogits(hidden, unembedding)
            return sequences.token_log_probs(logits, tokens, block_size=256).sum()

        step = jax.jit(jax.grad(loss, 0 if frozen else (0, 1)))
        return step.lower(factored.hidden, factored.unembedding).compile().as_text().count(" dot(")

    assert dots(frozen=True) == dots(frozen=False) - 1


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
