"""Weights of raters and trimmed answers: by hand, by brute force, and under attack."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import measures
from rlhf_jax.measures import (
    influence_cap,
    log_odds_weights,
    rater_accuracy,
    trimmed_mean,
    trimmed_vote,
)


def test_the_accuracy_of_raters_however_it_was_found():
    confusion = jnp.array([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.5, 0.5]]])
    labels = measures.CrowdLabels(jnp.ones([1, 2]), jnp.array([0.75, 0.25]), confusion, jnp.ones(1))
    expected = [0.75 * 0.9 + 0.25 * 0.6, 0.75 * 0.2 + 0.25 * 0.5]
    np.testing.assert_allclose(rater_accuracy(labels), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"found must be CrowdLabels, .* not tuple"):
        rater_accuracy((1, 2))


def test_sheppard_gives_the_share_of_pairs_in_order():
    correlation = jnp.array([0.8, 0.0, -0.3])
    truth, noise = np.random.default_rng(0).normal(size=[2, 3, 4000])
    ratings = correlation[:, None] * truth + np.sqrt(1 - correlation[:, None] ** 2) * noise
    order = np.sign(np.diff(truth)) == np.sign(np.diff(ratings))
    fields = measures.CrowdRatings._fields
    found = measures.CrowdRatings(*(correlation if f == "reliability" else None for f in fields))
    np.testing.assert_allclose(rater_accuracy(found), order.mean(axis=1), atol=0.03)


def test_votes_by_log_odds_are_the_posterior():
    accuracy = jnp.array([0.9, 0.6, 0.6, 0.3])
    weights = jax.jit(log_odds_weights)(accuracy)
    votes = jnp.array([1, -1, -1, 1])
    right, wrong = 0.9 * 0.4 * 0.4 * 0.3, 0.1 * 0.6 * 0.6 * 0.7
    np.testing.assert_allclose(weights @ votes, np.log(right / wrong), rtol=1e-5)
    extreme = log_odds_weights(jnp.array([0.0, 1.0, jnp.nan]), largest=2.0)
    assert extreme.tolist() == [-2.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="accuracy must be from 0 to 1"):
        log_odds_weights(jnp.array([0.5, 1.5]))
    with pytest.raises(ValueError, match="largest must be positive, not 0"):
        log_odds_weights(accuracy, largest=0)


def by_bisection(totals, cap):
    """The largest level c <= max(totals) with cap * sum(min(totals, c)) >= c."""
    low, high = totals[totals > 0].min(), totals.max()
    for _ in range(60):
        middle = (low + high) / 2
        enough = cap * np.minimum(totals, middle).sum() >= middle
        low, high = (middle, high) if enough else (low, middle)
    return np.minimum(totals, (low + high) / 2)


def test_the_cap_by_brute_force():
    generator = np.random.default_rng(0)
    totals = generator.pareto(1.0, [200, 6]) * (generator.uniform(size=[200, 6]) > 0.2)
    totals[:, 0] += 0.01
    least = 1 / (totals > 0).sum(axis=1)
    between = generator.uniform(size=200) * (np.arange(200) % 5 > 0)  # every fifth is the least
    caps = least + (1 - least) * between
    capped = jax.jit(
        jax.vmap(lambda weights, cap: influence_cap(jnp.arange(6), weights, cap=cap, raters=6))
    )(jnp.float32(totals), jnp.float32(caps))
    shares = capped / capped.sum(axis=1, keepdims=True)
    assert (shares.max(axis=1) <= caps + 1e-5).all()
    for row, cap, found in zip(totals, caps, capped, strict=True):
        np.testing.assert_allclose(found, by_bisection(row, cap), rtol=1e-3)


def test_the_cap_falls_on_a_raters_answers_alike_and_padding_stays_out():
    rater = jnp.array([0, 0, 1, 2, 0])
    weights = jnp.array([4.0, 2.0, 1.0, 1.0, 0.0])
    capped = jax.jit(partial(influence_cap, raters=4))
    expected = [4 / 3, 2 / 3, 1, 1, 0]
    np.testing.assert_allclose(capped(rater, weights, cap=0.5), expected, rtol=1e-6)
    np.testing.assert_array_equal(capped(rater, weights, cap=0.9), weights)
    np.testing.assert_array_equal(capped(rater, 0 * weights, cap=1.0), 0 * weights)
    # one who is not to be heard of, where that cannot be refused
    assert capped(rater.at[0].set(-1), weights, cap=1.0).tolist() == [0, 2, 1, 1, 0]


def test_a_cap_that_cannot_be_kept_is_refused():
    rater = jnp.array([0, 0, 1])
    with pytest.raises(ValueError, match=r"cap must be from 0.5 to 1 with 2 raters .* not 0.4"):
        influence_cap(rater, cap=0.4, raters=5)
    with pytest.raises(ValueError, match="cap must be"):
        influence_cap(rater, cap=1.1, raters=2)
    with pytest.raises(ValueError, match="rater must be from 0 to 0, not 0 to 1"):
        influence_cap(rater, cap=0.5, raters=1)
    with pytest.raises(ValueError, match="weights must not be negative"):
        influence_cap(rater, -jnp.ones(3), cap=0.5, raters=2)


def test_trimmed_mean_by_hand_with_gaps():
    ratings = jnp.array([[9.0, 1, 2, 3, 4], [7, jnp.nan, 1, jnp.nan, jnp.nan], [jnp.nan] * 5])
    mask = ~jnp.isnan(ratings)
    trimmed = jax.jit(trimmed_mean)
    np.testing.assert_allclose(trimmed(ratings, mask, share=0.2), [3, 4, np.nan])
    np.testing.assert_allclose(trimmed(ratings, mask, share=0.4), [3, 4, np.nan])
    np.testing.assert_allclose(trimmed(ratings, mask, share=0.0), [3.8, 4, np.nan], rtol=1e-6)
    many = np.arange(23.0)[None] ** 3  # 7 / 23 of 23 is a little less than 7 when rounded
    np.testing.assert_allclose(trimmed(many, share=7 / 23), many[:, 7:16].mean(1), rtol=1e-6)
    with pytest.raises(ValueError, match=r"share must be at least 0 and below 0.5, not 0.5"):
        trimmed_mean(ratings, mask, share=0.5)
    with pytest.raises(ValueError, match=r"must be \[N, K\]"):
        trimmed_mean(ratings[0], mask[0], share=0.1)


def test_no_attack_within_the_share_turns_a_trimmed_vote():
    """All honest votes of five raters, with each two of them replaced in each way there is."""
    vote = jax.jit(partial(trimmed_vote, share=0.4))
    honest = (np.arange(32)[:, None] >> np.arange(5)) & 1
    for hostile in combinations(range(5), 2):
        for lies in ((0, 0), (0, 1), (1, 1)):
            votes = honest.copy()
            votes[:, hostile] = lies
            rest = np.delete(honest, hostile, axis=1).mean(axis=1)
            label = np.asarray(vote(votes))
            assert ((label == 0.5) | ((rest > 0.5) == (label == 1))).all()
    # which is not so for the plain majority, and is not bought by never deciding
    label, sums = vote(honest), honest.sum(axis=1)
    np.testing.assert_array_equal(label, np.where(sums > 3, 1, np.where(sums < 2, 0, 0.5)))


def test_trimmed_votes_with_gaps_ratings_and_none():
    votes = jnp.array([[1.0, 1.0, 0.0, 0.0], [3.0, 2.0, -1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    mask = jnp.array([[True, True, False, False], [True] * 4, [False] * 4])
    vote = jax.jit(partial(trimmed_vote, share=0.25))
    assert vote(votes, mask, threshold=0.5).tolist() == [1.0, 1.0, 0.5]
    assert vote(votes, mask, threshold=1.2).tolist() == [0.0, 0.5, 0.5]
