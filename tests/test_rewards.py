"""Rewards made of scores, of whole texts and of their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from rlhf_jax import rewards
from rlhf_jax.rewards import Standardised
from rlhf_jax.types import Sequences


def test_standardised_scores_have_mean_0_and_deviation_1_on_the_samples_they_were_read_on():
    samples, params = toys.sequences(64), toys.bag_params()
    scores = rewards.from_scores(toys.bag_scores)(params, samples)
    np.testing.assert_array_equal(scores, toys.bag_scores(params, samples.tokens, samples.mask))
    reading = Standardised(params, scores.mean(), scores.std())
    read = jax.jit(rewards.standardised(toys.bag_scores))(reading, samples)
    np.testing.assert_allclose([read.mean(), read.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(read * scores.std() + scores.mean(), scores, atol=1e-5)


# Two solutions: a prompt of one token, steps that end with 9, end-of-text 1; the second is cut off.
TOKENS = np.array([[9, 3, 9, 4, 9, 1, 0], [5, 6, 9, 7, 8, 2, 4]], np.int32)
MASK = np.arange(7) < np.array([[6], [7]])
TEXT = Sequences(TOKENS, MASK, MASK & (np.arange(7) > 0))
ENDS = np.array([[0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 1]], bool)
ODDS = np.random.default_rng(0).normal(size=[2, 7]).astype(np.float32)
P = 1 / (1 + np.exp(-ODDS.astype(np.float64)))


def odds(params, tokens, mask):
    return params * jnp.asarray(ODDS)


ends_fn = rewards.ends_after(9, eos_id=1)


def test_where_parts_end():
    np.testing.assert_array_equal(ends_fn(TEXT), ENDS)
    np.testing.assert_array_equal(rewards.whole_answer(TEXT).nonzero()[1], [5, 6])
    empty = TEXT.replace(response_mask=np.zeros_like(MASK))
    assert not ends_fn(empty).any() and not rewards.whole_answer(empty).any()


@pytest.mark.parametrize(
    ("combine", "by_hand"),
    [
        ("product", lambda p: np.cumprod(p)),
        ("minimum", lambda p: np.minimum.accumulate(p)),
        ("last", lambda p: p),
        (
            lambda log_probs, ends: (
                rewards.running_product(log_probs, ends) / jnp.maximum(jnp.cumsum(ends, axis=-1), 1)
            ),
            lambda p: np.cumprod(p) ** (1 / np.arange(1, 3)),
        ),
    ],
)
def test_rewards_of_steps_by_hand(combine, by_hand):
    each = np.array([by_hand(P[row, ENDS[row]]) for row in range(2)])
    for log in (False, True):
        wanted = np.log(each) if log else each
        settings = {"combine": combine, "log": log}
        whole = rewards.from_steps(odds, ends_fn, **settings)(1.0, TEXT)
        np.testing.assert_allclose(whole, wanted[:, -1], rtol=1e-5)
        dense = rewards.from_steps(odds, ends_fn, dense=True, **settings)(1.0, TEXT)
        np.testing.assert_array_equal(dense[~ENDS], 0)
        np.testing.assert_allclose(
            dense[ENDS], np.diff(wanted, prepend=0).ravel(), rtol=1e-4, atol=1e-6
        )


def test_a_solution_of_many_steps_does_not_underflow_and_one_of_none_is_worth_0():
    every = lambda sequences: sequences.response_mask  # noqa: E731
    tokens = np.zeros([2, 400], np.int32)
    mask = np.ones([2, 400], bool)
    text = Sequences(tokens, mask, mask & np.array([[True], [False]]))
    flat = lambda params, tokens, mask: jnp.full(tokens.shape, params)  # noqa: E731
    log = rewards.from_steps(flat, every, log=True)(-1.0, text)
    np.testing.assert_allclose(log, [400 * np.log(1 / (1 + np.e)), 0], rtol=1e-5)
    np.testing.assert_array_equal(rewards.from_steps(flat, every)(9.0, text)[1], 0)


def test_fine_grained_rewards_are_a_weighted_sum_of_parts():
    sign = rewards.at_ends(odds, ends_fn, transform=jnp.sign)
    reward_fn = rewards.fine_grained(
        sign,
        rewards.at_ends(odds, rewards.whole_answer),
        lambda params, sequences: params * jnp.sum(sequences.response_mask, axis=-1),
        weights=[0.5, 2.0, -1.0],
    )
    found = jax.jit(reward_fn)((1.0, 3.0, 0.1), TEXT)
    expected = 0.5 * np.sign(ODDS) * ENDS
    expected[0, 5] += 2 * 3 * ODDS[0, 5] - 0.1 * 5
    expected[1, 6] += 2 * 3 * ODDS[1, 6] - 0.1 * 6
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rewards.ends_after(), "at least one token"),
        (
            lambda: rewards.from_steps(odds, ends_fn, combine="mean"),
            "combine must be product, minimum, last or a function, not 'mean'",
        ),
        (
            lambda: rewards.from_steps(lambda *x: odds(*x)[:, 0], ends_fn)(1.0, TEXT),
            r"token_score_fn must return \[B, T\] = \[2, 7\], not \[2\]",
        ),
        (
            lambda: rewards.fine_grained(odds, weights=[1.0, 2.0]),
            r"weights must be one for each of 1 rewards, not \[2\]",
        ),
        (
            lambda: rewards.fine_grained(lambda p, s: odds(p, 0, 0)[:, :3], weights=[1.0])(
                [1.0], TEXT
            ),
            r"reward 0 must be \[B\] or \[B, T\], with B, T = \[2, 7\], not \[2, 3\]",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
