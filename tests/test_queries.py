"""What to ask: closed forms, cases by hand, coverage, chance where it is promised, and refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import queries

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2000)


def counts(choose, size):
    """How often each candidate is chosen over many keys."""
    chosen = jax.jit(jax.vmap(choose))(KEYS)
    assert all(len(set(row)) == len(row) for row in chosen[:50].tolist())  # without replacement
    return np.bincount(chosen.ravel(), minlength=size) / len(KEYS)


def test_random_is_uniform():
    found = counts(lambda key: queries.random(key, 5, size=2), 5)
    np.testing.assert_allclose(found, 0.4, atol=0.05)
    mask = jnp.array([True, False, True, True, False])
    found = counts(lambda key: queries.random(key, 5, size=2, mask=mask), 5)
    np.testing.assert_allclose(found, [2 / 3, 0, 2 / 3, 2 / 3, 0], atol=0.05)


def test_stratified_gives_every_stratum_its_share():
    strata = jnp.array([2] * 8 + [0] * 4 + [1] * 2)
    choose = jax.jit(queries.stratified, static_argnames=("size", "proportional"))

    def shares(size, **settings):
        chosen = np.asarray(choose(KEY, strata, size=size, **settings))
        assert len(set(chosen.tolist())) == size
        return np.bincount(strata[chosen], minlength=3).tolist()

    assert shares(6) == [2, 2, 2]
    assert shares(9) in ([3, 2, 4], [4, 2, 3])  # the small one is used up, the others make up
    assert shares(7, proportional=True) == [2, 1, 4]
    mask = np.ones(14, bool)
    mask[:7] = False
    chosen = choose(KEY, strata, size=7, mask=mask)
    assert sorted(chosen.tolist()) == list(range(7, 14))
    # Within a stratum it is random, and so is which stratum gets one more.
    found = counts(lambda key: queries.stratified(key, strata, size=4), 14)
    np.testing.assert_allclose(
        found, [4 / 3 / 8] * 8 + [4 / 3 / 4] * 4 + [4 / 3 / 2] * 2, atol=0.05
    )


def test_disagreement_is_the_standard_deviation():
    differences = jnp.array([[0.0, 5.0, -1.0, 2.0], [0.1, 5.0, 1.0, 6.0]])
    chosen = queries.ensemble_disagreement(KEY, differences, size=4)
    assert chosen.tolist() == [3, 2, 0, 1]
    members = jax.random.normal(KEY, (5, 30))
    chosen = queries.ensemble_disagreement(KEY, members, size=30)
    assert chosen.tolist() == np.argsort(-np.std(members, axis=0)).tolist()


def entropy(p):
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def test_bald_is_the_mutual_information():
    differences = jax.random.normal(KEY, (4, 40)) * 2
    p = 1 / (1 + np.exp(-np.asarray(differences, float)))
    gain = entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)
    assert queries.bald(KEY, differences, size=40).tolist() == np.argsort(-gain).tolist()
    # Two members who are sure of opposites: log 2. Both unsure, or of one mind: nothing; and
    # saturated log-odds give no NaN, nor do those of judges who only choose.
    for sure in (300.0, jnp.inf):
        differences = jnp.array([[0.0, sure, 1.0, sure, 4.0], [0.0, -sure, -1.0, sure, 1.0]])
        assert queries.bald(KEY, differences, size=3).tolist() == [1, 2, 4]


def test_near_ties_are_the_least_sure():
    differences = jnp.array([-3.0, 0.5, -0.2, 8.0])
    assert queries.near_ties(KEY, differences, size=4).tolist() == [2, 1, 0, 3]
    # One who is certain is the last to be asked about, but is asked; one of whom nothing is known
    # comes after, where it cannot be refused.
    differences = jnp.array([jnp.nan, -jnp.inf, -0.2, 8.0])
    choose = jax.jit(queries.near_ties, static_argnames="size")
    assert choose(KEY, differences, size=4).tolist() == [2, 3, 1, 0]
    mask = jnp.array([False, True, True, True])
    assert queries.near_ties(KEY, differences, size=3, mask=mask).tolist() == [2, 3, 1]


def test_equals_are_chosen_among_at_random():
    found = counts(lambda key: queries.near_ties(key, jnp.array([1.0, 0.0, 1.0, -1.0]), size=2), 4)
    np.testing.assert_allclose(found, [1 / 3, 1, 1 / 3, 1 / 3], atol=0.05)


def test_on_policy_draws_one_after_the_other_without_replacement():
    p = np.array([0.5, 0.3, 0.2])
    log_weights = jnp.array([*np.log(p), -jnp.inf]) + 7  # a constant does not matter
    first = jax.jit(jax.vmap(lambda key: queries.on_policy(key, log_weights, size=2)))(KEYS)
    np.testing.assert_allclose(np.bincount(first[:, 0]) / len(KEYS), p, atol=0.04)
    second = [sum(p[j] * p[i] / (1 - p[j]) for j in range(3) if j != i) for i in range(3)]
    np.testing.assert_allclose(np.bincount(first[:, 1]) / len(KEYS), second, atol=0.04)
    assert queries.on_policy(KEY, log_weights, size=4).tolist()[-1] == -1


def test_k_centre_goes_to_the_farthest():
    features = jnp.array([[0.0, 0], [1, 0], [10, 0], [10, 1], [0, 7]])
    choose = jax.jit(queries.k_centre, static_argnames="size")
    asked = jnp.array([[0.0, 0.0]])
    # 101 away; then 7 beats 1, both of the rest being 1 away; then those.
    assert choose(KEY, features, size=2, asked=asked).tolist() == [3, 4]
    chosen = np.asarray(choose(KEY, features, size=5)).tolist()
    assert sorted(chosen) == [0, 1, 2, 3, 4]
    covered = [chosen[0]]
    for index in chosen[1:]:  # the definition, in Python
        distances = np.linalg.norm(features[:, None] - features[np.array(covered)], axis=2).min(1)
        assert distances[index] == distances.max()
        covered.append(index)
    mask = jnp.array([True, True, False, False, True])
    assert choose(KEY, features, size=2, asked=asked, mask=mask).tolist() == [4, 1]


def test_k_centre_is_within_twice_the_best_radius():
    features = jax.random.uniform(KEY, (40, 2))
    distance = np.linalg.norm(features[:, None] - features, axis=2)
    best = min(
        distance[:, [i, j, k]].min(axis=1).max()
        for i in range(40)
        for j in range(i)
        for k in range(j)
    )
    for key in KEYS[:5]:
        chosen = np.asarray(queries.k_centre(key, features, size=3))
        assert distance[:, chosen].min(axis=1).max() <= 2 * best


def test_where_a_traced_mask_allows_too_few_the_rest_is_minus_one():
    mask, zeros = jnp.array([False, True, False]), jnp.zeros(3)
    ways = {
        "random": lambda mask: queries.random(KEY, 3, size=2, mask=mask),
        "stratified": lambda mask: queries.stratified(
            KEY, jnp.array([0, 0, 1]), size=2, mask=mask, proportional=True
        ),
        "ties": lambda mask: queries.near_ties(KEY, zeros, size=2, mask=mask),
        "policy": lambda mask: queries.on_policy(KEY, zeros, size=2, mask=mask),
        "centre": lambda mask: queries.k_centre(KEY, jnp.ones([3, 1]), size=2, mask=mask),
    }
    for name, way in ways.items():
        assert jax.jit(way)(mask).tolist() == [1, -1], name
        with pytest.raises(ValueError, match="size must be from 1 to 1, as many may be asked"):
            way(mask)


def test_asking_where_the_ensemble_is_torn_is_no_worse_than_asking_at_random():
    """Linear Bradley-Terry with an ensemble of Laplace samples: error of the learnt weights."""
    width, pool, size, rounds = 6, 200, 8, 6

    def learn(select, key):
        keys = jax.random.split(key, 4 + rounds)
        pairs = 0.5 * jax.random.normal(keys[0], (pool, width))
        truth = 2 * jax.random.normal(keys[1], (width,))
        answers = jax.random.bernoulli(keys[2], jax.nn.sigmoid(pairs @ truth)).astype(float)

        def fit(asked):
            def step(weights, _):
                p = jax.nn.sigmoid(pairs @ weights)
                slope = pairs.T @ (asked * (answers - p)) - weights / 4
                hessian = (pairs.T * (asked * p * (1 - p))) @ pairs + jnp.eye(width) / 4
                return weights + jnp.linalg.solve(hessian, slope), hessian

            weights, hessians = jax.lax.scan(step, jnp.zeros(width), length=8)
            return weights, hessians[-1]

        def ask(asked, key):
            weights, hessian = fit(asked)
            normal = jax.random.normal(key, (20, width))
            members = weights + jnp.linalg.solve(jnp.linalg.cholesky(hessian).T, normal.T).T
            chosen = select(key, members @ pairs.T, size=size, mask=asked == 0)
            return asked.at[chosen].set(1.0), None

        asked, _ = jax.lax.scan(ask, jnp.zeros(pool), keys[4:])
        weights, _ = fit(asked)
        return jnp.sum(jnp.square(weights - truth)) / jnp.sum(jnp.square(truth))

    def at_random(key, differences, **settings):
        return queries.random(key, differences.shape[1], **settings)

    errors = {
        select: np.asarray(jax.jit(jax.vmap(partial(learn, select)))(KEYS[:64]))
        for select in (at_random, queries.bald, queries.ensemble_disagreement)
    }
    baseline = errors.pop(at_random)
    for select, error in errors.items():
        gain = baseline - error
        assert gain.mean() > -2 * gain.std() / 8, select.__name__
    assert (baseline - errors[queries.bald]).mean() > 0


def test_bad_arguments_are_refused():
    ones = jnp.ones([2, 3])
    with pytest.raises(ValueError, match="size must be from 1 to 3, as many may be asked, not 4"):
        queries.random(KEY, 3, size=4)
    with pytest.raises(ValueError, match="size must be from 1 to 3, as many may be asked, not 0"):
        queries.bald(KEY, ones, size=0)
    with pytest.raises(ValueError, match=r"mask must be \[3\], as many as candidates, not \(2,\)"):
        queries.bald(KEY, ones, size=1, mask=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="mask must be boolean"):
        queries.near_ties(KEY, ones[0], size=1, mask=ones[0])
    with pytest.raises(ValueError, match=r"must be \[M, N\] of 2 members or more, not \[1, 3\]"):
        queries.ensemble_disagreement(KEY, ones[:1], size=1)
    with pytest.raises(ValueError, match="strata must be integers"):
        queries.stratified(KEY, ones[0], size=1)
    with pytest.raises(ValueError, match="differences must be of rank 1"):
        queries.near_ties(KEY, ones, size=1)
    with pytest.raises(ValueError, match=r"features must be \[N, D\], not \[3\]"):
        queries.k_centre(KEY, ones[0], size=1)
    with pytest.raises(ValueError, match=r"asked must be \[A, 3\], not \[1, 2\]"):
        queries.k_centre(KEY, ones, size=1, asked=jnp.ones([1, 2]))
    with pytest.raises(ValueError, match="strata must be from 0 to 1, not 0 to 2"):
        queries.stratified(KEY, jnp.array([0, 2]), size=1)
    unknown = ones.at[1, 0].set(jnp.nan)
    for choose, known in (
        (queries.near_ties, unknown[1]),
        (queries.on_policy, unknown[1]),
        (queries.bald, unknown),
        (queries.ensemble_disagreement, jnp.where(unknown == 1, 1, jnp.inf)),
        (queries.k_centre, unknown.T),
        (partial(queries.k_centre, asked=unknown), ones),
    ):
        with pytest.raises(ValueError, match="must be finite where the mask is true"):
            choose(KEY, known, size=1)
    with pytest.raises(ValueError, match="log_weights must be floating"):
        queries.on_policy(KEY, jnp.array([1, 2]), size=1)
