"""EM for labels, ratings and comparisons: a published table, plain definitions, known raters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlhf_jax import measures

# Dawid & Skene 1979, table 1: 45 patients' fitness for anaesthesia from 1 to 4 as judged by five
# anaesthetists, of whom the first judged three times (columns 1 to 3).
PATIENTS = """
1111111 3333434 1122122 2223121 2223222 2223322 1222111 3333433 2222223 2322223 4444444 2223343
1111111 2223212 1211111 1112111 1111111 1111111 2222221 2221322 2222222 2222221 2223222 2212222
1111111 1111111 2322222 1111111 1111111 1121121 1111111 3333233 1111111 2222222 2223232 4334343
2212232 2323233 3333432 1111111 1111111 1212111 2322222 1211111 2222222
"""
LABELS = np.array([[int(x) - 1 for x in patient] for patient in PATIENTS.split()])
ANAESTHETIST = np.array([0, 0, 0, 1, 2, 3, 4])


def em_by_the_definition(labels, rater, classes, iterations):
    """Dawid & Skene's equations 2.3 to 2.5 in float64, a patient at a time."""
    items, raters = len(labels), max(rater) + 1
    posterior = np.array([[np.mean(row == c) for c in range(classes)] for row in labels])
    for _ in range(iterations):
        prior, confusion = posterior.mean(axis=0), np.zeros((raters, classes, classes))
        for n in range(items):
            for k, label in zip(rater, labels[n], strict=True):
                confusion[k, :, label] += posterior[n]
        confusion /= confusion.sum(axis=2, keepdims=True)
        posterior = np.empty((items, classes))
        for n in range(items):
            columns = zip(rater, labels[n], strict=True)
            posterior[n] = prior * np.prod([confusion[k, :, y] for k, y in columns], axis=0)
        likelihood = np.log(posterior.sum(axis=1)).sum()
        posterior /= posterior.sum(axis=1, keepdims=True)
    return posterior, prior, confusion, likelihood


def test_dawid_and_skene_s_anaesthetists():
    rater = jnp.array(ANAESTHETIST)
    fit = jax.jit(lambda x: measures.dawid_skene(x, classes=4, rater=rater, iterations=100))
    found = fit(LABELS)
    posterior, prior, confusion, likelihood = em_by_the_definition(LABELS, ANAESTHETIST, 4, 100)
    np.testing.assert_allclose(found.posterior, posterior, atol=2e-6)
    np.testing.assert_allclose(found.log_likelihood[-1], likelihood, rtol=1e-6)
    np.testing.assert_allclose(found.prior, prior, atol=1e-6)
    np.testing.assert_allclose(found.confusion, confusion, atol=2e-6)
    np.testing.assert_allclose(found.confusion.sum(axis=2), 1, atol=1e-6)
    rises = np.diff(found.log_likelihood)
    assert (rises > -1e-4).all()


def test_known_confusion_matrices_are_recovered():
    rng = np.random.default_rng(0)
    confusion = np.array(
        [[[0.9, 0.1], [0.2, 0.8]], [[0.8, 0.2], [0.4, 0.6]], [[0.1, 0.9], [0.9, 0.1]]]
    )
    confusion = np.concatenate([confusion, np.array([[[0.7, 0.3], [0.3, 0.7]]] * 4)])
    truth = (rng.random(6000) < 0.3).astype(int)
    labels = (rng.random((6000, 7)) < confusion[:, truth, 1].T).astype(int)
    mask = rng.random(labels.shape) < 0.8
    found = measures.dawid_skene(np.where(mask, labels, -9), mask, classes=2, iterations=60)
    np.testing.assert_allclose(found.confusion, confusion, atol=0.06)
    np.testing.assert_allclose(found.prior, [0.7, 0.3], atol=0.03)
    right = (found.posterior.argmax(axis=1) == truth).mean()
    majority = (labels * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1) > 0.5
    assert right > (majority == truth).mean() + 0.05  # the third, who inverts, is put right


def test_items_and_raters_without_labels_do_no_harm():
    labels, mask = LABELS[:, 2:], np.ones((45, 5), bool)
    fit = jax.jit(lambda *x, **s: measures.dawid_skene(*x, classes=5, iterations=10, **s))
    plain = fit(labels, mask)
    assert np.isfinite(np.concatenate([x.ravel() for x in plain])).all()  # class 5 never occurs
    wide = np.zeros((46, 6), bool)
    wide[:45, :5] = mask
    padded = np.full((46, 6), 99)
    padded[:45, :5] = labels
    found = fit(padded, wide)
    np.testing.assert_allclose(found.posterior[:45], plain.posterior, atol=1e-6)
    np.testing.assert_allclose(found.log_likelihood, plain.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(found.confusion[5], 0.2, atol=1e-6)
    np.testing.assert_allclose(found.posterior[45], found.prior, atol=1e-3)
    nothing = fit(labels, ~mask)
    for array in (nothing.posterior, nothing.prior, nothing.confusion):
        np.testing.assert_allclose(array, 0.2, atol=1e-6)


def test_smoothing_is_a_prior_whose_mode_is_climbed_to():
    fit = jax.jit(lambda smoothing: measures.dawid_skene(LABELS, classes=4, smoothing=smoothing))
    rises = np.diff(fit(30.0).log_likelihood)
    assert (rises > -0.01).all() and rises.sum() > 5  # of the labels alone it falls by 4 at a step
    # It pulls to the uniform.
    np.testing.assert_allclose(fit(1e4).confusion, 0.25, atol=0.01)


factor = jax.jit(measures.one_factor, static_argnames="iterations")


def raters_of(slope, bias, noise, items, seed):
    key = jax.random.split(jax.random.key(seed), 2)
    truth = 1.0 + 2.0 * jax.random.normal(key[0], (items,))
    slope, bias, noise = (jnp.array(x) for x in (slope, bias, noise))
    error = jax.random.normal(key[1], (items, len(slope)))
    return truth, bias + slope * truth[:, None] + noise * error


def test_one_factor_recovers_bias_slope_and_noise():
    slope, bias = [1.2, 0.8, 1.0, -1.0, 0.0], [0.5, -0.5, 0.0, 0.0, 0.0]
    truth, ratings = raters_of(slope, bias, [0.5, 1.0, 0.3, 0.5, 1.0], 3000, 0)
    mask = jax.random.uniform(jax.random.key(9), ratings.shape) < 0.7
    found = factor(jnp.where(mask, ratings, jnp.nan), mask)
    scale = 0.8  # the mean magnitude of the slopes above
    np.testing.assert_allclose(found.slope, np.array(slope) / scale, atol=0.06)
    np.testing.assert_allclose(found.noise, [0.5, 1.0, 0.3, 0.5, 1.0], atol=0.06)
    level = np.array(bias) + slope  # what each says of the average item, at 1.0
    np.testing.assert_allclose(found.bias, level - level.mean(), atol=0.1)
    assert found.reliability[3] < -0.9 < 0.9 < found.reliability[2]
    assert np.corrcoef(found.truth, truth)[0, 1] > 0.95
    # Of the truth's error, as much as it says.
    error = found.truth - (level.mean() + scale * (truth - 1.0))
    rated = np.asarray(mask).any(axis=1)
    surprise = np.asarray(error / found.truth_sd)[rated]
    np.testing.assert_allclose(np.sqrt(np.mean(surprise**2)), 1, atol=0.1)
    assert (np.diff(found.log_likelihood) > -0.02).all()  # float32 of a sum of thousands
    # In another unit and from another zero it is the same.
    other = factor(10 * ratings - 3, mask)
    np.testing.assert_allclose(other.slope, found.slope, atol=1e-3)
    np.testing.assert_allclose(other.noise, 10 * found.noise, rtol=1e-3)
    np.testing.assert_allclose(other.truth, 10 * found.truth - 3, atol=2e-2)


def with_gaps(items, seed):
    """Three raters, the third of whom inverts, and a column that is nobody."""
    _, ratings = raters_of([1.0, 1.0, -0.5], [0.0, 0.3, 0.0], [0.5, 0.5, 1.0], items, seed)
    mask = np.ones((items, 4), bool)
    mask[:, 3] = mask[0, 1] = mask[5, 2] = False
    return np.concatenate([ratings, np.full((items, 1), np.nan)], axis=1), mask


def test_one_factor_s_likelihood_is_that_of_its_model():
    ratings, mask = with_gaps(20, 1)
    found = factor(ratings, mask, iterations=500)
    # The truth's own SD, in units of which each rater's slope is the loading.
    unit = (found.reliability * found.noise / np.sqrt(1 - found.reliability**2) / found.slope)[0]
    middle = np.mean(found.truth)  # at the maximum the prior's mean is the posterior's
    total = 0.0
    for values, seen in zip(ratings, mask, strict=True):
        loading = (found.slope * unit)[seen]
        covariance = np.outer(loading, loading) + np.diag(np.square(found.noise)[seen])
        # A rater's bias is against the average rater, who says the truth itself of the middle.
        level = middle + found.bias[seen]
        total += stats.multivariate_normal.logpdf(values[seen], level, covariance)
    np.testing.assert_allclose(found.log_likelihood[-1], total, atol=0.01)


def test_one_factor_in_batches_and_with_nobody_in_a_column():
    ratings, mask = with_gaps(40, 2)
    batched = jax.jit(jax.vmap(lambda *x: measures.one_factor(*x, iterations=500)))
    batched = batched(ratings.reshape(2, 20, 4), mask.reshape(2, 20, 4))
    single = factor(ratings[20:], mask[20:], iterations=500)
    np.testing.assert_allclose(batched.slope[1], single.slope, atol=1e-3)
    assert np.isnan(single.slope[3]) and np.isfinite(single.truth).all()
    assert (single.slope[:3] > 0).tolist() == [True, True, False]
    # What does not vary has no slope, and of nobody nothing is known.
    same = factor(jnp.full([20, 4], 3.0), mask[:20], iterations=500)
    assert np.isnan(same.slope).all() and not same.reliability[:3].any()
    np.testing.assert_allclose(same.truth, 3, atol=1e-5)
    nobody = factor(ratings[:20], np.zeros([20, 4], bool), iterations=500)
    assert all(np.isnan(x).all() for x in nobody[:-1])


def compared(seed, reliability, items=30, answers=12_000):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5, items)
    first = rng.integers(items, size=answers)
    second = (first + rng.integers(1, items, size=answers)) % items
    rater = rng.integers(len(reliability), size=answers)
    honest = rng.random(answers) < np.asarray(reliability)[rater]
    wins = rng.random(answers) < 1 / (1 + np.exp(scores[second] - scores[first]))
    return scores, (first, second, (wins == honest).astype(float), rater)


def test_crowd_bradley_terry_finds_who_is_reliable():
    reliability = [1.0, 0.95, 0.9, 0.8, 0.5, 0.1]
    scores, answers = compared(0, reliability)
    fit = jax.jit(lambda *a: measures.crowd_bradley_terry(*a, items=30, raters=6, iterations=300))
    found = fit(*answers)
    np.testing.assert_allclose(found.reliability, reliability, atol=0.05)
    assert np.corrcoef(found.scores, scores)[0, 1] > 0.98
    assert (np.diff(found.log_likelihood) > -0.02).all()
    assert found.log_likelihood[-1] - found.log_likelihood[0] > 100


def test_crowd_bradley_terry_ends_where_the_likelihood_is_flat():
    _, (first, second, preference, rater) = compared(1, [0.9, 0.6], items=4, answers=60)
    preference[:6] = 0.5  # ties
    asked, given = (first, second, preference, rater), np.arange(60) < 50
    first, second, preference, rater = (x[given] for x in asked)
    fit = jax.jit(lambda *x: measures.crowd_bradley_terry(*x, items=4, raters=3, iterations=3000))
    # Whatever the unanswered hold; and the third rater never answers.
    found = fit(*asked[:2], np.where(given, asked[2], np.nan), np.where(given, asked[3], 2), given)
    np.testing.assert_allclose(found.reliability[2], 2 / 3, rtol=1e-6)

    def likelihood(scores, log_odds):
        eta, chance = jax.nn.sigmoid(log_odds), jax.nn.sigmoid(scores[first] - scores[second])
        says = eta[rater] * chance + (1 - eta[rater]) * (1 - chance)
        total = jnp.sum(preference * jnp.log(says) + (1 - preference) * jnp.log(1 - says))
        total += 0.5 * jnp.sum(jnp.log(jax.nn.sigmoid(scores) * jax.nn.sigmoid(-scores)))
        return total + jnp.sum(2 * jnp.log(eta) + jnp.log(1 - eta))

    odds = jnp.log(found.reliability) - jnp.log1p(-found.reliability)
    np.testing.assert_allclose(likelihood(found.scores, odds), found.log_likelihood[-1], rtol=1e-5)
    slopes = jax.grad(likelihood, argnums=(0, 1))(found.scores, odds)
    np.testing.assert_allclose(np.concatenate(slopes), 0, atol=5e-3)


def test_bad_arguments_are_refused():
    labels = np.zeros((3, 2), int)
    with pytest.raises(ValueError, match=r"labels must be from 0 to 1, not 0 to 2"):
        measures.dawid_skene(labels + np.array([[0, 2]]), classes=2)
    with pytest.raises(ValueError, match="labels must be integers"):
        measures.dawid_skene(labels * 1.0, classes=2)
    with pytest.raises(ValueError, match=r"rater must be \[K\]"):
        measures.dawid_skene(labels, classes=2, rater=np.array([0]))
    with pytest.raises(ValueError, match="rater must be from 0 to 0, not -1 to 0"):
        measures.dawid_skene(labels, classes=2, rater=np.array([-1, 0]))
    with pytest.raises(ValueError, match=r"smoothing must be at least 0, not -1"):
        measures.dawid_skene(labels, classes=2, smoothing=-1)
    with pytest.raises(ValueError, match="iterations must be at least 1, not 0"):
        measures.one_factor(labels * 1.0, iterations=0)
    with pytest.raises(ValueError, match=r"ratings must be \[N, K\]"):
        measures.one_factor(np.ones(3))
    index, answer = np.array([0, 1]), np.array([1.0, 0.0])
    crowd, sizes = measures.crowd_bradley_terry, {"items": 2, "raters": 2}
    with pytest.raises(ValueError, match="second must be from 0 to 1, not 1 to 2"):
        crowd(index, index + 1, answer, index, **sizes)
    with pytest.raises(ValueError, match="one shape"):
        crowd(index, index, answer[:1], index, **sizes)
    with pytest.raises(ValueError, match="preference must be floating"):
        crowd(index, index, index, index, **sizes)
    with pytest.raises(ValueError, match="prior_wins must be positive, not 0"):
        crowd(index, index[::-1], answer, index, prior_wins=0, **sizes)
    with pytest.raises(ValueError, match=r"preference must be from 0 to 1, not nan as in \[1\]"):
        crowd(index, index, np.array([1, np.nan]), index, **sizes)
    with pytest.raises(ValueError, match="mask must be boolean"):
        crowd(index, index, answer, index, answer, **sizes)
    with pytest.raises(ValueError, match="ratings must be finite"):
        measures.one_factor(np.array([[1.0, np.nan]]))
