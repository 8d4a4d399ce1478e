"""Best-of-n: closed forms, all subsets by hand, bounds; and the peaks of the gold curves."""

from itertools import combinations, product
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import divergences, measures

LOG_PROBS = jnp.log(jnp.array([0.5, 0.3, 0.2]))
REWARDS = jnp.array([1.0, 0.0, 2.0])


def test_bound_and_win_rate_by_hand():
    n = jnp.array([1, 4, 64, 1024])
    expected = [0, 0.636294, 3.174508, 5.932448]
    np.testing.assert_allclose(measures.best_of_n_kl(n), expected, atol=2e-6)
    np.testing.assert_allclose(measures.best_of_n_win_rate(n[:2]), [0.5, 0.8], rtol=1e-6)


def test_exact_policy_of_the_science_page_and_its_divergence():
    policy = jax.jit(measures.best_of_n_policy)(LOG_PROBS, REWARDS, 4)
    np.testing.assert_allclose(jnp.exp(policy), [0.4015, 0.0081, 0.5904], atol=1e-6)
    kl = divergences.exact_kl(policy, LOG_PROBS)
    np.testing.assert_allclose(kl, 0.521752, atol=2e-6)
    assert kl < measures.best_of_n_kl(4)


def best_of_n_by_enumeration(probabilities, rewards, n):
    """Every way to draw n answers; of equal rewards the first drawn is kept."""
    policy = np.zeros(len(rewards))
    for drawn in product(range(len(rewards)), repeat=n):
        policy[max(drawn, key=lambda i: rewards[i])] += np.prod(probabilities[list(drawn)])
    return policy


def test_exact_policy_with_ties_and_impossible_answers():
    probabilities = np.array([0.1, 0.25, 0.0, 0.3, 0.15, 0.2])
    rewards = np.array([1.0, 0.0, 5.0, 1.0, 0.0, -2.0])
    policies = jax.jit(jax.vmap(measures.best_of_n_policy, (None, None, 0)))(
        np.log(probabilities, where=probabilities > 0, out=np.full(6, -np.inf)),
        rewards,
        jnp.arange(1, 5),
    )
    for n, policy in enumerate(policies, start=1):
        expected = best_of_n_by_enumeration(probabilities, rewards, n)
        np.testing.assert_allclose(np.exp(policy), expected, atol=1e-6)
        beaten = (rewards[:, None] > rewards) + 0.5 * (rewards[:, None] == rewards)
        wins = expected @ beaten @ probabilities
        assert wins < measures.best_of_n_win_rate(n) or n == 1  # ties


def test_exact_policy_of_many_answers_and_large_n():
    """Of N equally likely answers, all different, the i-th is best with ((i/N)^n - ((i-1)/N)^n)."""
    answers, n = 2000, 4096
    rewards = jnp.arange(1.0 * answers)[::-1]
    policy = jax.jit(measures.best_of_n_policy)(jnp.zeros(answers), rewards, n)
    i = np.arange(answers, 0, -1) / answers
    expected = n * np.log(i) + np.log1p(-((1 - 1 / (answers * i)) ** n))
    counts = expected > -60
    np.testing.assert_allclose(np.asarray(policy)[counts], expected[counts], atol=1e-4)
    np.testing.assert_allclose(jnp.exp(policy).sum(), 1, rtol=1e-5)
    kl = divergences.exact_kl(policy, jnp.zeros(answers))
    assert 0 < kl < min(np.log(answers), measures.best_of_n_kl(n))


def test_unbiased_estimate_is_the_mean_over_all_subsets():
    gold, proxy = jnp.array([3.0, 1, 2, 0]), jnp.array([0.1, 0.4, 0.2, 0.3])
    curve = jax.jit(jax.vmap(measures.best_of_n_estimate, (None, None, 0)))
    values = curve(gold, proxy, jnp.arange(1, 5))
    np.testing.assert_allclose(values, [1.5, 0.833333, 0.75, 1], atol=1e-6)
    rng = np.random.default_rng(0)
    gold, proxy = rng.normal(size=7), rng.integers(0, 3, 7)  # with ties
    values = curve(jnp.array(gold), jnp.float32(proxy), jnp.arange(1, 9))

    def best(subset):
        top = max(proxy[i] for i in subset)
        return np.mean([gold[i] for i in subset if proxy[i] == top])

    for n in range(1, 8):
        expected = np.mean([best(subset) for subset in combinations(range(7), n)])
        np.testing.assert_allclose(values[n - 1], expected, atol=1e-6)
    assert np.isnan(values[7])  # 8 of 7


def test_unbiased_estimate_keeps_its_digits_with_thousands_of_samples():
    samples = 4096
    rng = np.random.default_rng(0)
    gold, proxy = rng.normal(size=samples), rng.permutation(samples)
    estimate = jax.jit(measures.best_of_n_estimate)
    for n in (1, 64, 2048, 4096):
        total = comb(samples, n)
        weights = [comb(i - 1, n - 1) / total if i >= n else 0 for i in range(1, samples + 1)]
        value = estimate(np.float32(gold), np.float32(proxy), n)
        np.testing.assert_allclose(value, gold[np.argsort(proxy)] @ weights, atol=2e-6)


@pytest.mark.parametrize(
    ("curve", "find_peak", "closed_form"),
    [
        (measures.best_of_n_gold, measures.best_of_n_gold_peak, (2.0, 1.2)),
        (measures.rl_gold, measures.rl_gold_peak, (np.exp(3), 0.3 * np.exp(3))),
    ],
)
def test_peaks_of_the_gold_curves(curve, find_peak, closed_form):
    alpha, beta = 1.2, 0.3
    peak = find_peak(alpha=alpha, beta=beta)
    np.testing.assert_allclose(peak, closed_form, rtol=1e-5)
    value, slope = jax.value_and_grad(lambda d: curve(d, alpha=alpha, beta=beta))(peak.distance)
    np.testing.assert_allclose([value, slope], [peak.gold, 0], rtol=1e-5, atol=1e-5)
    around = curve(peak.distance * jnp.array([0.9, 1.1]), alpha=alpha, beta=beta)
    assert (around < peak.gold).all()
    assert curve(jnp.float32(0), alpha=alpha, beta=beta) == 0
    with pytest.raises(ValueError, match="beta must be positive, not 0"):
        find_peak(alpha=alpha, beta=0)


def test_bad_arguments_are_refused():
    for function in (measures.best_of_n_kl, measures.best_of_n_win_rate):
        with pytest.raises(ValueError, match="n must be at least 1, not 0"):
            function(0)
    with pytest.raises(ValueError, match="n must be from 1 to 3, not 4"):
        measures.best_of_n_estimate(REWARDS, REWARDS, 4)
    for function in (measures.best_of_n_estimate, measures.best_of_n_policy):
        with pytest.raises(ValueError, match=r"n must be .* not 0"):
            function(REWARDS, REWARDS, 0)
        with pytest.raises(ValueError, match="shape"):
            function(REWARDS, REWARDS[:2], 1)
        with pytest.raises(ValueError, match="rank 1"):
            function(REWARDS[None], REWARDS[None], 1)
        with pytest.raises(ValueError, match="must be floating"):
            function(REWARDS, jnp.arange(3), 1)
