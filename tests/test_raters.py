"""Real raters: one column answers for both items, ties and gaps included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import measures
from rlhf_jax.feedback import Comparison, Pairs
from rlhf_jax.humans import (
    comparing,
    fit_rater_effects,
    rater_effects,
    rater_settings,
    real_raters,
    real_ratings,
    same_batch_pairs,
)

# Column 0 likes item 0 best, column 1 item 1; column 2 did not rate item 1, nobody item 3.
RATINGS = np.array([[4, -2, 1], [0, 3, 0], [0, -2, 2], [0, 0, 0]], np.int8)
MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)


def test_one_column_answers_for_both_items():
    first, second = jnp.zeros(500, int), jnp.ones(500, int)
    answer = jax.jit(real_raters(RATINGS, MASK))(jax.random.key(0), Pairs(first, second))
    assert isinstance(answer, Comparison)
    rater = np.asarray(answer.rater)
    assert set(rater) == {0, 1}, "column 2 did not rate both"
    np.testing.assert_array_equal(answer.preference, np.where(rater == 0, 1.0, 0.0))
    assert 0.4 < rater.mean() < 0.6
    assert answer.preference.dtype == jnp.float32
    assert answer.rater.dtype == jnp.int32
    assert answer.answered.all()


def test_ties_are_half_and_the_order_of_a_pair_only_turns_the_answer():
    human = jax.jit(real_raters(RATINGS, MASK))
    first, second = jnp.zeros(300, int), jnp.full(300, 2)
    there = human(jax.random.key(1), Pairs(first, second))
    back = human(jax.random.key(1), Pairs(second, first))
    np.testing.assert_array_equal(there.rater, back.rater)
    np.testing.assert_array_equal(there.preference, 1.0 - back.preference)
    expected = np.array([1.0, 0.5, 0.0])[np.asarray(there.rater)]
    np.testing.assert_array_equal(there.preference, expected)
    assert set(np.asarray(there.rater)) == {0, 1, 2}


@pytest.mark.parametrize("ratings", [np.array([[127], [-128]], np.int8), np.array([[0.7], [0.2]])])
def test_extreme_ratings_do_not_overflow_and_fractions_count(ratings):
    human = real_raters(ratings, np.ones((2, 1), bool))
    answer = human(jax.random.key(0), Pairs(jnp.array([0, 1]), jnp.array([1, 0])))
    assert answer.preference.tolist() == [1.0, 0.0]


def test_a_pair_that_nobody_rated_is_marked():
    pairs = Pairs(jnp.array([0]), jnp.array([3]))
    answer = real_raters(RATINGS, MASK)(jax.random.key(0), pairs)
    assert (answer.rater.tolist(), answer.preference.tolist()) == ([-1], [0.5])
    assert answer.answered.tolist() == [False]


def test_pure_and_vmappable():
    human = real_raters(RATINGS, MASK)
    pairs = Pairs(jnp.zeros(8, int), jnp.ones(8, int))
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(jax.vmap(human, in_axes=(0, None)))(keys, pairs)
    assert many.preference.shape == (3, 8)
    np.testing.assert_array_equal(many.rater[1], jax.jit(human)(keys[1], pairs).rater)


def test_bad_shapes():
    with pytest.raises(ValueError):
        real_raters(RATINGS, MASK[:2])
    with pytest.raises(ValueError):
        real_raters(RATINGS[0], MASK[0])
    with pytest.raises(ValueError):
        real_raters(RATINGS, MASK.astype(int))
    with pytest.raises(ValueError):
        real_raters(RATINGS, MASK)(jax.random.key(0), Pairs(jnp.zeros(2, int), jnp.zeros(3, int)))
    with pytest.raises(ValueError, match="each item of second must be from 0 to 3, not 4"):
        real_raters(RATINGS, MASK)(jax.random.key(0), Pairs(jnp.array([0, 1]), jnp.array([0, 4])))
    with pytest.raises(ValueError, match="item of examples must be from 0 to 3, not -1"):
        real_ratings(RATINGS, MASK)(jax.random.key(0), jnp.array([-1]))


def test_same_batch_pairs_are_distinct_items_of_one_batch_drawn_uniformly():
    batch = np.array([5, -1, 2, 5, 2, 5, 9, -1])  # 9 has no company
    pairs = jax.jit(same_batch_pairs, static_argnums=2)(jax.random.key(0), batch, 6000)
    first, second = np.asarray(pairs.first), np.asarray(pairs.second)
    assert (batch[first] == batch[second]).all()
    assert (first != second).all()
    assert (batch[first] >= 0).all()
    np.testing.assert_allclose(
        np.bincount(first, minlength=8)[[0, 2, 3, 4, 5]] / 6000, 0.2, atol=0.02
    )
    of_zero = second[first == 0]
    np.testing.assert_allclose(np.mean(of_zero == 3), 0.5, atol=0.06)
    assert set(of_zero) == {3, 5}


def test_same_batch_pairs_refuses_when_there_is_none():
    with pytest.raises(ValueError, match="no batch has two items"):
        same_batch_pairs(jax.random.key(0), np.array([0, 1, -1, -1]), 4)
    with pytest.raises(ValueError, match="no batch has two items"):
        same_batch_pairs(jax.random.key(0), np.zeros(0, int), 4)
    with pytest.raises(ValueError):
        same_batch_pairs(jax.random.key(0), np.zeros((2, 2), int), 4)
    traced = jax.jit(lambda batch: same_batch_pairs(jax.random.key(0), batch, 2))
    assert (
        jax.tree.leaves(jax.tree.map(lambda x: x.tolist(), traced(jnp.array([0, -1])))) == [-1] * 4
    )


def test_with_batches_a_rater_is_a_person():
    batch = jnp.array([0, 1, 0, -1])
    answer = jax.jit(real_raters(RATINGS, np.ones((4, 3), bool), batch=batch))(
        jax.random.key(0), Pairs(jnp.array([0, 0, 1, 3]), jnp.array([2, 1, 1, 3]))
    )
    assert answer.rater[0] in (0, 1, 2)
    assert answer.rater.tolist()[1] == -1, "of two batches, two persons"
    assert answer.rater[2] in (3, 4, 5)
    assert answer.rater.tolist()[3] == -1, "of no batch"
    assert answer.answered.all()
    with pytest.raises(ValueError, match=r"batch must be \[N\]"):
        real_raters(RATINGS, MASK, batch=batch[:2])


def test_a_real_rating_is_one_of_the_items_own():
    human = jax.jit(real_ratings(RATINGS, MASK))
    rating = human(jax.random.key(0), jnp.tile(jnp.arange(4), 300))
    value, rater = np.asarray(rating.value).reshape(300, 4), np.asarray(rating.rater)
    rater = rater.reshape(300, 4)
    for item in range(3):
        np.testing.assert_array_equal(value[:, item], RATINGS[item, rater[:, item]])
        counts = np.bincount(rater[:, item], minlength=3)[MASK[item]]
        np.testing.assert_allclose(counts / 300, 1 / MASK[item].sum(), atol=0.1)
    assert set(rater[:, 3]) == {-1}
    assert not rating.answered[3::4].any()
    assert rating.answered.sum() == 900


def test_given_raters_answer_or_nobody_does():
    items = jnp.array([0, 1, 1, 2])
    named = jax.jit(real_ratings(RATINGS, MASK))(jax.random.key(0), items, jnp.array([1, 1, 2, -1]))
    assert named.value.tolist() == [-2.0, 3.0, 0.0, 0.0]
    assert named.answered.tolist() == [True, True, False, False]
    batched = jax.jit(real_ratings(RATINGS, MASK, batch=jnp.array([0, 1, -1, 0])))
    of_batch = batched(jax.random.key(0), jnp.array([0, 1, 1, 2]), jnp.array([1, 4, 1, -1]))
    assert of_batch.rater.tolist() == [1, 4, -1, -1]
    assert of_batch.answered.tolist() == [True, True, False, False]
    assert of_batch.value.tolist() == [-2.0, 3.0, 0.0, 0.0]


def test_comparing_asks_one_person_twice():
    human = jax.jit(comparing(real_ratings(RATINGS, MASK)))
    answer = human(jax.random.key(0), Pairs(jnp.zeros(200, int), jnp.ones(200, int)))
    rater, answered = np.asarray(answer.rater), np.asarray(answer.answered)
    assert set(rater[answered]) == {0, 1}
    np.testing.assert_array_equal(answer.preference[answered], np.where(rater == 0, 1, 0)[answered])
    np.testing.assert_allclose(answered.mean(), 2 / 3, atol=0.12)


effects_of = jax.jit(measures.rater_effects, static_argnames="batches")


def test_simulated_raters_are_recovered_by_the_fit():
    raters, items = 40, 2000
    rng = np.random.default_rng(1)
    biases, slopes = rng.normal(0, 5, raters), np.linspace(-0.5, 2.0, raters)
    biases, slopes = biases - biases.mean(), slopes + 1 - slopes.mean()
    # On a scale so fine that rounding to its steps is nothing.
    settings = {"bias": biases, "slope": slopes, "noise": np.full(raters, 3.0)}
    human = rater_effects(lambda consensus: consensus, **settings, low=-999, high=999)
    asked, who = np.tile(rng.normal(0, 15, items), raters), np.repeat(np.arange(raters), items)
    felt = np.asarray(human(jax.random.key(0), asked, who).value).reshape(raters, items).T
    # Gaps, and items of no batch that would spoil everything.
    mask = rng.random(felt.shape) < 0.9
    ratings = np.concatenate([np.where(mask, felt, 9e3), np.full((7, raters), 9e3)])
    mask = np.concatenate([mask, np.ones((7, raters), bool)])
    batch = np.concatenate([np.full(items, 1), np.full(7, -1)])
    fit = jax.device_get(effects_of(ratings, mask, batch, batches=3))
    assert fit.bias.shape == (3, raters)
    np.testing.assert_array_equal(fit.count, [[0] * raters, mask[:items].sum(axis=0), [0] * raters])
    # From the others' line to the consensus', which each rater is a part of.
    slope = raters * fit.slope[1] / (raters - 1 + fit.slope[1])
    bias = fit.bias[1] + (1 - fit.slope[1]) * fit.centre[1]
    np.testing.assert_allclose(slope, slopes, atol=0.03)
    np.testing.assert_allclose(bias * (raters - slope) / raters, biases, atol=0.4)
    np.testing.assert_allclose(fit.noise[1], 3.0, atol=0.7)


def test_settings_differ_as_the_raters_do_and_not_as_their_estimates():
    batches, raters, items = 60, 20, 30
    rng = np.random.default_rng(4)
    truth, shape = rng.normal(0, 1.5, batches * items), (batches, 1, raters)
    biases, slopes = rng.normal(0, 0.4, shape), rng.normal(1, 0.2, shape)
    felt = biases + slopes * truth.reshape(batches, items, 1)
    felt = np.round(felt + rng.normal(0, 0.9, felt.shape)).reshape(-1, raters)
    batch = np.repeat(np.arange(batches), items)
    mask = np.ones(felt.shape, bool)
    mask[:items, 0], mask[2:items, 1] = False, False  # of nothing and of two items: unknown
    fit = jax.device_get(fit_rater_effects(felt, mask, batch))
    settings = rater_settings(fit)
    assert {name: column.shape for name, column in settings.items()} == dict.fromkeys(
        ("bias", "slope", "noise"), (batches * raters - 2,)
    )
    assert np.nanstd(fit.slope) > 0.225, "the estimates differ by more"
    np.testing.assert_allclose(settings["slope"].std(), 0.2, atol=0.02)
    assert np.nanstd(fit.bias) > 0.43
    np.testing.assert_allclose(settings["bias"].std(), 0.4, atol=0.04)
    np.testing.assert_allclose(np.median(settings["noise"]), 0.92, atol=0.04)
    with pytest.raises(ValueError, match="no rater of three items or more"):
        rater_settings(fit._replace(slope_error=np.full_like(fit.slope, np.nan)))
