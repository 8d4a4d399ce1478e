"""Language-model losses by hand, at their bounds, over devices, and training the toys."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, data, losses
from rlhf_jax.types import Rated

LOG_PROBS = jnp.log(jnp.array([[0.5, 0.25], [0.2, 0.1]]))
MASK = jnp.array([[True, True], [True, False]])


def gradient(loss, log_probs=LOG_PROBS):
    return jax.grad(lambda x: loss(x).sum())(log_probs)


def test_cross_entropy_masks():
    log_probs, mask = jnp.array([[-1.0, -jnp.inf]]), jnp.array([[True, False]])
    loss = partial(losses.cross_entropy, mask=mask)
    np.testing.assert_array_equal(loss(log_probs), [[1, 0]])
    np.testing.assert_array_equal(gradient(loss, log_probs), [[-1, 0]])


def test_conditional_predicts_all_but_the_control_tokens():
    control = jnp.array([[True, False], [False, True]])
    loss = partial(losses.conditional, mask=MASK, control=control)
    np.testing.assert_allclose(loss(LOG_PROBS), [[0, np.log(4)], [np.log(5), 0]], rtol=1e-6)
    np.testing.assert_array_equal(gradient(loss), [[0, -1], [-1, 0]])


@pytest.mark.parametrize(
    ("rewards", "threshold", "good"),
    [
        ([0.5, 0.4], 0.5, [[True, True], [False, False]]),  # the threshold itself is good enough
        ([[0.5, 0.4], [0.6, 9.0]], 0.5, [[True, False], [True, False]]),
        ([3, 2], 3, [[True, True], [False, False]]),
        # False is not good, although 0 is not below 0; and True is, whatever the threshold
        ([True, False], 0.0, [[True, True], [False, False]]),
        ([True, False], 7.0, [[True, True], [False, False]]),
        ([jnp.nan, 0.0], 0.0, [[False, False], [True, False]]),
    ],
)
def test_filtered_and_unlikelihood_by_hand(rewards, threshold, good):
    rewards, p = jnp.array(rewards), np.exp(LOG_PROBS)
    loss = partial(losses.filtered, mask=MASK, rewards=rewards, threshold=threshold)
    np.testing.assert_allclose(loss(LOG_PROBS), np.where(good, -np.log(p), 0), rtol=1e-6)
    np.testing.assert_array_equal(gradient(loss), -np.float32(good))
    loss = partial(losses.unlikelihood, mask=MASK, rewards=rewards, threshold=threshold, weight=3.0)
    expected = np.where(good, -np.log(p), -3 * np.log(1 - p)) * MASK
    np.testing.assert_allclose(loss(LOG_PROBS), expected, rtol=1e-6)
    # d/dx -log(1 - e^x) = p / (1 - p)
    np.testing.assert_allclose(
        gradient(loss), np.where(good, -1, 3 * p / (1 - p)) * MASK, rtol=1e-5
    )


def test_unlikelihood_is_bounded_where_the_bad_token_is_certain():
    def loss(log_probs):
        return losses.unlikelihood(log_probs, jnp.ones([1, 4], bool), jnp.array([False]))

    log_probs = jnp.array([[0.0, -1e-6, -2e-6, -1e4]])
    expected = [[1 - np.log(1e-6), -np.log(1e-6), -np.log(2e-6), 0]]
    np.testing.assert_allclose(loss(log_probs), expected, rtol=1e-4)
    np.testing.assert_allclose(gradient(loss, log_probs), [[1e6, 1e6, 5e5, 0]], rtol=1e-4)
    assert (loss(log_probs) <= 14.9).all()


def test_unlikelihood_lowers_the_logit_of_a_token_that_is_all_but_certain():
    """Its slope of 1e6 meets the softmax's of 1 - p: what arrives is about p, not cut off."""

    def loss(logit):
        log_probs = jax.nn.log_softmax(jnp.array([logit, 0.0]))[:1, None]
        return losses.unlikelihood(log_probs, jnp.array([[True]]), jnp.array([-1.0]))[0, 0]

    slopes = jax.jit(jax.vmap(jax.grad(loss)))(jnp.array([0.0, 5.0, 13.0, 14.5]))
    p = 1 / (1 + np.exp(-14.5))
    np.testing.assert_allclose(slopes, [0.5, 0.9933, 1.0, (1 - p) * 1e6], rtol=0.1)


def test_reward_weighted_by_hand():
    rewards = jnp.log(jnp.array([4.0, 1.0]))
    # of three tokens, weights 4, 4 and 1: the mean is 3
    loss = partial(losses.reward_weighted, mask=MASK, rewards=rewards)
    weights = np.array([[4, 4], [1, 0]]) / 3
    np.testing.assert_allclose(loss(LOG_PROBS), -weights * LOG_PROBS, rtol=1e-6)
    np.testing.assert_allclose(gradient(loss), -weights, rtol=1e-6)
    # the square root of the weights
    loss = partial(loss, temperature=2.0)
    np.testing.assert_allclose(gradient(loss), -np.array([[2, 2], [1, 0]]) * 3 / 5, rtol=1e-6)
    per_token = jnp.broadcast_to(rewards[:, None], MASK.shape).at[1, 1].set(jnp.nan)
    np.testing.assert_array_equal(loss(LOG_PROBS, rewards=per_token), loss(LOG_PROBS))


def test_reward_weighted_takes_any_rewards_and_a_constant_added_to_them():
    loss = partial(losses.reward_weighted, LOG_PROBS, MASK)
    rewards = jnp.array([0.25, 0.0])
    np.testing.assert_allclose(loss(rewards + 1000), loss(rewards), rtol=1e-5)
    # far apart it is the cross-entropy of the best
    np.testing.assert_allclose(loss(jnp.array([-1e4, 1e4]))[:, 0], [0, 3 * np.log(5)], rtol=1e-6)


def test_rewards_and_advantages_are_constants():
    for loss in (losses.reward_weighted, losses.advantage_weighted):
        slope = jax.grad(lambda r, loss=loss: loss(LOG_PROBS, MASK, r).sum())(jnp.array([0.5, 1.0]))
        np.testing.assert_array_equal(slope, [0, 0])


def test_reward_weighted_over_devices_is_that_of_one():
    """Unequal masks, the largest reward on one device, and a device on which nothing counts."""
    rng = np.random.default_rng(0)
    log_probs, rewards = -rng.random([4, 2, 3]), 5 * rng.normal(size=[4, 2])
    mask = rng.random([4, 2, 3]) < 0.5
    mask[0], mask[1] = True, False
    log_probs, rewards = jnp.float32(log_probs), jnp.float32(rewards)
    alone = losses.reward_weighted(log_probs.reshape(8, 3), mask.reshape(8, 3), rewards.reshape(8))

    def loss(*shard):
        return losses.reward_weighted(*shard, axis_name="devices")

    def value_and_gradient(log_probs, *rest):
        return loss(log_probs, *rest), gradient(lambda x: loss(x, *rest), log_probs)

    value, slope = jax.pmap(value_and_gradient, axis_name="devices")(log_probs, mask, rewards)
    np.testing.assert_allclose(value.reshape(8, 3), alone, rtol=1e-5)
    np.testing.assert_allclose(slope, np.where(mask, value / log_probs, 0), rtol=1e-5)


def test_nothing_that_counts_under_jit_is_nothing():
    """As on a device that got padding only: a traced mask cannot be refused."""
    mask = jnp.zeros([2, 2], bool)
    for loss in (losses.reward_weighted, losses.advantage_weighted, losses.unlikelihood):

        def value_and_gradient(mask, rewards, loss=loss):
            return loss(LOG_PROBS, mask, rewards), gradient(lambda x: loss(x, mask, rewards))

        values = jax.jit(value_and_gradient)(mask, jnp.array([jnp.nan, jnp.inf]))
        np.testing.assert_array_equal(values, np.zeros([2, 2, 2]))


def test_advantage_weighted_by_hand():
    advantages = jnp.array([[np.log(3.0), 1e4], [-np.log(2.0), jnp.inf]])
    loss = partial(losses.advantage_weighted, mask=MASK, advantages=advantages)
    weights = np.array([[3, 20], [0.5, 0]])
    np.testing.assert_allclose(gradient(loss), -weights, rtol=1e-6)
    np.testing.assert_allclose(loss(LOG_PROBS), -weights * LOG_PROBS, rtol=1e-6)
    loss = partial(loss, temperature=0.5, maximum=8.0)
    np.testing.assert_allclose(gradient(loss), [[-8, -8], [-0.25, 0]], rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.reward_weighted, losses.advantage_weighted])
def test_labels_are_not_exponentiated(loss):
    with pytest.raises(ValueError, match=r"(rewards|advantages) must be floating, not bool"):
        loss(LOG_PROBS, MASK, jnp.array([True, False]))


# --- in supervised learning -------------------------------------------------------------------


def mixed(pairs=32):
    """To each prompt a good response, of large tokens, and a bad one, of small tokens."""
    text = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), toys.sequences(pairs, length=8))
    good, small = np.arange(2 * pairs) % 2 == 0, 2 + text.tokens % 3
    tokens = np.where(text.response_mask, small + 5 * good[:, None], text.tokens)
    return text.replace(tokens=np.where(text.mask, tokens, 0)), good


@cache
def training(loss, steps=150):
    algorithm = algorithms.supervised(toys.bigram_logits, optax.adam(0.1), loss=loss)

    @jax.jit
    def run(batch):
        state = algorithm.init(toys.bigram_params(), jax.random.key(0))
        return jax.lax.scan(lambda s, _: algorithm.step(s, batch), state, length=steps)

    return run


def learnt(loss, batch):
    state, history = training(loss)(batch)
    assert set(history) == {"loss", "grad_norm", "skipped"}
    assert np.isfinite(history["loss"]).all()
    table = np.exp(state.params["table"])
    return table / table.sum(axis=-1, keepdims=True), np.asarray(history["loss"])


SMALL, LARGE = slice(2, 5), slice(7, 10)


@pytest.mark.parametrize(
    ("loss", "as_ratings", "worst"),
    [
        (losses.filtered, lambda good: good, 0.05),
        (losses.unlikelihood, lambda good: good, 0.01),
        (losses.reward_weighted, lambda good: np.float32(6 * good), 0.05),
        (losses.advantage_weighted, lambda good: np.float32(6 * good - 3), 0.05),
    ],
)
def test_rated_text_teaches_what_is_good(loss, as_ratings, worst):
    text, good = mixed()
    policy, values = learnt(loss, Rated(text, as_ratings(good)))
    prompts = np.unique(text.tokens[:, 1])
    assert policy[prompts, LARGE].sum(axis=-1).min() > 0.9
    assert policy[prompts, SMALL].sum(axis=-1).max() < worst
    assert values[-1] < 0.7 * values[0]


def test_best_of_n_is_filtered_with_the_best_as_the_good():
    text, good = mixed()
    ratings = np.where(good, 1.0, 0.0).reshape(16, 4) + np.linspace(0, 0.5, 4)
    groups = jax.tree.map(lambda x: x.reshape(16, 4, *x.shape[1:]), text)
    best = np.zeros([16, 4], bool)
    best[np.arange(16), data.ranked(groups, ratings).rankings[:, 0]] = True
    policy, _ = learnt(losses.filtered, Rated(text, best.ravel()))
    prompts = np.unique(text.tokens[best.ravel(), 1])
    assert policy[prompts, LARGE].sum(axis=-1).min() > 0.9


def test_conditional_training_learns_both_and_is_told_which():
    """Of a policy that sees one token back, the control token rules the first after it."""
    text, good = mixed()
    text = jax.tree.map(lambda x: x[:, 2:], text)  # without prompts
    told = data.with_control_tokens(Rated(text, good), good_id=0, bad_id=1)
    policy, _ = learnt(losses.cross_entropy, told)
    assert policy[0, LARGE].sum() > 0.9
    assert policy[1, SMALL].sum() > 0.9
    # the same with the control tokens counted in, as the loss leaves them out
    everything = told.replace(response_mask=told.mask)
    with_control = Rated(everything, data.control_positions(told))
    log_probs = -jnp.ones(told.tokens.shape)
    np.testing.assert_array_equal(
        losses.conditional(log_probs, everything.response_mask, with_control.ratings),
        losses.cross_entropy(log_probs, told.response_mask),
    )


def test_padding_rows_of_rated_text_may_hold_anything():
    text, good = mixed(4)
    algorithm = algorithms.supervised(
        toys.bigram_logits, optax.sgd(0.1), loss=losses.reward_weighted
    )
    state = algorithm.init(toys.bigram_params(), jax.random.key(0))
    text = text.replace(response_mask=text.response_mask & (np.arange(8) < 6)[:, None])
    step = jax.jit(algorithm.step)
    ratings = np.float32(good)
    _, expected = step(state, Rated(text, ratings))
    ratings[6:] = np.nan, 1e30
    _, metrics = step(state, Rated(text, ratings))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_a_loss_that_does_not_fit_the_batch_is_refused():
    text, good = mixed(4)

    def step(loss, batch):
        jax.eval_shape(training(loss), batch)

    with pytest.raises(ValueError, match=r"ratings\), but cross_entropy takes \(log_probs, mask"):
        step(losses.cross_entropy, Rated(text, good))
    weighted = partial(losses.reward_weighted, temperature=2.0)
    with pytest.raises(ValueError, match=r"loss\(log_probs, mask\), but reward_weighted takes"):
        step(weighted, text)
    with pytest.raises(ValueError, match=r"rewards must have the shape \(8,\) or \(8, 8\)"):
        step(losses.filtered, Rated(text, good[:4]))
