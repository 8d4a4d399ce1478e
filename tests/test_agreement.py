"""Agreement of raters: published tables, the definitions pair by pair, gaps, and refusals."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import measures

FIXTURES = json.loads(Path(__file__).with_name("fixtures.json").read_text())
LEVELS = ["nominal", "ordinal", "interval"]
SHAPE = (12, 6)  # of all ratings here, so that there is one compilation a level
alpha_of = jax.jit(measures.krippendorff_alpha, static_argnames="level")
preferences_of = jax.jit(measures.preference_agreement)


def padded(table):
    out = np.full(SHAPE, np.nan)
    out[: len(table), : len(table[0])] = table
    return out, ~np.isnan(out)


@pytest.mark.parametrize("level", ["nominal", "interval"])
def test_krippendorff_s_table(level):
    table = np.array(FIXTURES["krippendorff"]["table"], float).T  # gaps are NaN
    alpha = alpha_of(*padded(table), level=level)
    np.testing.assert_allclose(alpha, FIXTURES["krippendorff"][level], atol=1e-6)


def test_kappas_of_published_tables():
    fleiss, cohen = FIXTURES["fleiss"], FIXTURES["cohen"]
    kappa = measures.fleiss_kappa(np.array(fleiss["table"]))
    np.testing.assert_allclose(kappa, fleiss["kappa"], atol=1e-6)
    tables = jnp.array([cohen["table"], [[3, 0], [0, 1]], [[30, 10], [0, 10]]])
    kappa = jax.jit(measures.cohen_kappa)(tables)
    # the last: observed 0.8, expected 0.8 * 0.6 + 0.2 * 0.4 = 0.56
    np.testing.assert_allclose(kappa, [cohen["kappa"], 1, 0.24 / 0.44], atol=1e-6)


def by_the_definition(ratings, mask, level):
    """Krippendorff's alpha with every pair formed, in Python."""
    rows = [list(row[counts]) for row, counts in zip(ratings, mask, strict=True)]
    rows = [row for row in rows if len(row) >= 2]
    every = [x for row in rows for x in row]

    def difference(a, b):
        low, high = min(a, b), max(a, b)
        if level == "nominal":
            return a != b
        if level == "interval":
            return (a - b) ** 2
        return (sum(low <= x <= high for x in every) - (every.count(a) + every.count(b)) / 2) ** 2

    def pairs(values):
        return sum(difference(a, b) for a in values for b in values)  # a with itself adds 0

    observed = sum(pairs(row) / (len(row) - 1) for row in rows) / len(every)
    return 1 - observed / (pairs(every) / (len(every) * (len(every) - 1)))


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_that_of_the_definition_whatever_the_gaps_hold(level):
    rng = np.random.default_rng(0)
    ratings = np.clip(np.round(rng.normal(size=[12, 1]) + rng.normal(size=SHAPE)), -2, 2)
    mask = rng.random(SHAPE) < 0.6
    mask[:2] = [[True] + [False] * 5, [False] * 6]  # of these two items nothing can be said
    value = alpha_of(np.where(mask, ratings, np.nan), mask, level=level)
    np.testing.assert_allclose(value, by_the_definition(ratings, mask, level), atol=1e-6)
    scattered, mask = rng.permuted(ratings, axis=0), rng.random(SHAPE) < 0.9
    value = alpha_of(scattered, mask, level=level)  # about 0
    np.testing.assert_allclose(value, by_the_definition(scattered, mask, level), atol=1e-6)


def test_levels_see_what_they_should():
    rng = np.random.default_rng(1)
    ratings = (rng.integers(0, 3, SHAPE) + np.arange(12)[:, None] % 3).astype(float)
    everywhere = np.ones(SHAPE, bool)
    named, ranked, measured = (
        lambda x, level=level: alpha_of(x, everywhere, level=level) for level in LEVELS
    )
    stretched = np.exp(ratings)  # keeps the order and nothing else
    renamed = np.array([3.0, 1, 4, 0, 2])[ratings.astype(int)]
    np.testing.assert_allclose(ranked(ratings), ranked(stretched), atol=1e-6)
    assert abs(measured(ratings) - measured(stretched)) > 0.02
    np.testing.assert_allclose(named(ratings), named(renamed), atol=1e-6)
    assert abs(ranked(ratings) - ranked(renamed)) > 0.02
    np.testing.assert_allclose(measured(ratings), measured(5.0 * ratings - 100), atol=1e-5)


def test_two_raters_who_always_or_never_agree():
    same, opposite = [[0, 0], [1, 1]] * 6, [[0, 1], [1, 0]] * 6
    for level in LEVELS:
        assert alpha_of(*padded(same), level=level) == 1
        np.testing.assert_allclose(alpha_of(*padded(opposite), level=level), -11 / 12, atol=1e-6)
    np.testing.assert_allclose(measures.fleiss_kappa(np.array([[1, 1]] * 10)), -1, atol=1e-6)


def test_where_chance_agreement_is_certain_nothing_can_be_said():
    assert np.isnan(measures.cohen_kappa(np.array([[5, 0], [0, 0]])))
    assert np.isnan(measures.fleiss_kappa(np.array([[3, 0]] * 10)))
    for level in LEVELS:
        assert np.isnan(alpha_of(*padded(np.ones([3, 2])), level=level))
        assert np.isnan(alpha_of(*padded([[1.0], [2.0], [3.0]]), level=level))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"table must be \[..., C, C\], not \[2, 3\]"):
        measures.cohen_kappa(jnp.ones([2, 3]))
    with pytest.raises(ValueError, match="one number of raters, 2 or more: 2 to 3"):
        measures.fleiss_kappa(np.array([[2, 1], [1, 1]]))
    with pytest.raises(ValueError, match=r"2 or more: 1\.0 to 1\.0"):
        measures.fleiss_kappa(np.eye(2))
    with pytest.raises(ValueError, match="no items"):
        measures.fleiss_kappa(np.ones([0, 2]))
    with pytest.raises(ValueError, match=r"counts must be \[N, C\]"):
        measures.fleiss_kappa(np.ones(3))
    alpha, table = measures.krippendorff_alpha, np.ones([3, 2])
    with pytest.raises(ValueError, match="level must be one of nominal, ordinal, interval"):
        alpha(table, level="ratio")
    with pytest.raises(ValueError, match="shape"):
        alpha(table, np.ones([2, 3], bool))
    with pytest.raises(ValueError, match="mask must be boolean"):
        alpha(table, np.ones([3, 2]))
    with pytest.raises(ValueError, match=r"ratings must be \[N, K\]"):
        alpha(np.ones(3))


def test_alpha_of_counts_is_the_same_number():
    rng = np.random.default_rng(3)
    ratings, mask = rng.integers(0, 4, SHAPE).astype(float), rng.random(SHAPE) < 0.6
    mask[0] = [True] + [False] * 5  # an item with one rating counts for nothing
    counts = np.stack([((ratings == value) & mask).sum(axis=1) for value in range(4)], axis=1)
    values = np.array([0.0, 1, 2, 3])
    of_counts = measures.krippendorff_alpha_of_counts
    ratings = np.where(mask, ratings, np.nan)
    np.testing.assert_allclose(
        of_counts(counts), alpha_of(ratings, mask, level="nominal"), atol=1e-6
    )
    expected = alpha_of(ratings, mask, level="interval")
    np.testing.assert_allclose(of_counts(counts, values=values), expected, atol=1e-6)
    np.testing.assert_allclose(of_counts(counts, values=5 * values - 7), expected, atol=1e-6)
    assert np.isnan(of_counts(np.array([[3, 0], [2, 0]])))
    with pytest.raises(ValueError, match=r"counts must be \[N, C\]"):
        of_counts(np.ones(3))
    with pytest.raises(ValueError, match=r"values must be \[C\].*\[2\] beside counts \[3, 4\]"):
        of_counts(np.ones([3, 4]), values=np.ones(2))


def preferences_by_the_definition(ratings, mask, pairs):
    """Every pair, every two columns, in Python: hits and cases of each measure."""
    hits, cases = np.zeros(3), np.zeros(3)
    ties = answers = 0.0

    def mean(item, without=()):
        return np.mean(
            [x for k, x in enumerate(ratings[item]) if mask[item, k] and k not in without]
        )

    for a, b in pairs:
        columns = np.flatnonzero(mask[a] & mask[b])
        signs = {k: np.sign(ratings[a, k] - ratings[b, k]) for k in columns}
        for k in columns:
            answers += 1 / len(columns)
            ties += (signs[k] == 0) / len(columns)
            others = [j for j in columns if j != k]
            for j in others:
                weight = 1 / (len(columns) * (len(columns) - 1))
                if signs[k] and signs[j]:
                    cases[0] += weight
                    hits[0] += weight * (signs[k] == signs[j])
            gaps = mean(a, [k]) - mean(b, [k]), mean(a) - mean(b)
            for n, gap in enumerate(gaps, start=1):
                if signs[k] and gap:
                    cases[n] += 1 / len(columns)
                    hits[n] += (signs[k] == np.sign(gap)) / len(columns)
    return [*(hits / cases), ties / answers]


def test_agreement_about_pairs_is_what_it_is_by_definition():
    rng = np.random.default_rng(4)
    ratings, mask = rng.integers(-2, 3, (7, 5)), rng.random((7, 5)) < 0.8
    mask[:, :2] = True
    first, second = np.array([(i, j) for i in range(7) for j in range(i)]).T
    found = preferences_of(
        np.where(mask, ratings, np.nan), mask, first, second, weights=np.ones(len(first))
    )
    expected = preferences_by_the_definition(ratings, mask, zip(first, second, strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Weighing a pair by two is asking about it twice.
    weights = rng.integers(0, 3, len(first))
    repeated = np.repeat(first, weights), np.repeat(second, weights)
    weighed = preferences_of(ratings, mask, first, second, weights=weights.astype(float))
    expected = preferences_by_the_definition(ratings, mask, zip(*repeated, strict=True))
    np.testing.assert_allclose(weighed, expected, atol=1e-6)


def test_two_raters_of_known_accuracy_agree_as_often_as_they_should():
    # Each is right with probability 0.75, so that two agree with .75^2 + .25^2 = .625.
    rng = np.random.default_rng(5)
    right = rng.random((20_000, 8)) < 0.75
    ratings = np.stack([right, ~right], axis=1).reshape(-1, 8).astype(float)
    pairs = jnp.arange(0, len(ratings), 2), jnp.arange(1, len(ratings), 2)
    found = preferences_of(ratings, np.ones(ratings.shape, bool), *pairs)
    np.testing.assert_allclose(found.two_raters, 0.625, atol=0.004)
    assert found.rater_rest < found.rater_mean
    assert found.ties == 0


def test_a_rater_who_is_alone_has_nobody_to_agree_with():
    ratings, mask = jnp.array([[3, 0], [1, 0]]), jnp.array([[True, False], [True, False]])
    found = preferences_of(ratings, mask, jnp.array([0]), jnp.array([1]))
    np.testing.assert_array_equal(found, [np.nan, np.nan, 1, 0])


def test_retest_by_hand():
    first = np.array([[1.0, 2, 3, 4, np.nan], [2, 2, 2, 2, 9]])
    second = np.array([[1.0, 3, 3, 5, 7], [3, 2, 3, 2, 9]])
    mask = np.array([[True] * 4 + [False]] * 2)
    found = measures.retest_agreement(first, second, mask)
    np.testing.assert_allclose(found.same, [0.5, 0.5])
    np.testing.assert_allclose(found.shift, [0.5, 0.5])
    expected = np.corrcoef(first[0, :4], second[0, :4])[0, 1]
    np.testing.assert_allclose(found.correlation, [expected, np.nan], rtol=1e-6)
    deviation = np.std([0, 1, 0, 1], ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(found.error, [deviation] * 2, rtol=1e-6)
    assert found.count.tolist() == [4, 4]
    # Rounding does not make a correlation out of answers that are all equal.
    assert np.isnan(measures.retest_agreement(np.full(3, 0.1), np.arange(3.0)).correlation)


def test_bad_arguments_about_pairs_are_refused():
    ratings, mask, index = jnp.ones([3, 2]), jnp.ones([3, 2], bool), jnp.array([0, 1])
    agreement = measures.preference_agreement
    with pytest.raises(ValueError, match="first and second and weights must have one shape"):
        agreement(ratings, mask, index, index[:1])
    with pytest.raises(ValueError, match="one shape"):
        agreement(ratings, mask, index, index, weights=jnp.ones(3))
    with pytest.raises(ValueError, match="first must be integers"):
        agreement(ratings, mask, jnp.ones(2), index)
    with pytest.raises(ValueError, match="mask must be boolean"):
        agreement(ratings, ratings, index, index)
    with pytest.raises(ValueError, match=r"must be \[\.\.\., N\]"):
        measures.retest_agreement(1.0, 2.0)
    with pytest.raises(ValueError, match="one shape"):
        measures.retest_agreement(jnp.ones(2), jnp.ones(3))
