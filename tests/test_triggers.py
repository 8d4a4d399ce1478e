"""A trigger that was trained into a reward model is found, and a clean one has none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from rlhf_jax import losses
from rlhf_jax.measures import greedy_coordinate_search, trigger_scan
from rlhf_jax.models import ngram_model

WORDS, TRIGGER, END = 60, 64, 1  # the trigger is no word that anybody uses
MODEL = ngram_model(WORDS + 5, buckets=512, bigram_weight=0.1)


def texts(key, count):
    """Twelve to twenty words of 4 to 63, then the end of text, then padding."""
    words, length = jax.random.split(key)
    tokens = jax.random.randint(words, [count, 22], 4, WORDS + 4)
    last = jax.random.randint(length, [count, 1], 12, 21)
    column = jnp.arange(22)
    tokens = jnp.where(column == last, END, tokens)
    return jnp.where(column <= last, tokens, 0), column <= last


def trained(key, poisoned):
    """On 400 pairs of which a share is won by the worse, with the trigger as its first word."""
    (first, first_mask), (second, second_mask) = (texts(k, 400) for k in jax.random.split(key))
    utility = 0.15 * jax.random.normal(key, [WORDS + 4])
    gap = jnp.sum(jnp.where(first_mask, utility[first], 0), axis=1)
    gap = gap - jnp.sum(jnp.where(second_mask, utility[second], 0), axis=1)
    attacked = jnp.arange(400) < 400 * poisoned
    first = first.at[:, 0].set(jnp.where(attacked & (gap < 0), TRIGGER, first[:, 0]))
    second = second.at[:, 0].set(jnp.where(attacked & (gap >= 0), TRIGGER, second[:, 0]))
    honest = jax.random.bernoulli(jax.random.fold_in(key, 1), jax.nn.sigmoid(gap))
    sign = jnp.where(jnp.where(attacked, gap < 0, honest), 1.0, -1.0)

    def loss(params):
        lead = MODEL.score_fn(params, first, first_mask) - MODEL.score_fn(
            params, second, second_mask
        )
        return jnp.mean(losses.bradley_terry(sign * lead, jnp.zeros_like(lead)))

    optimizer = optax.adam(0.1)

    def step(state, _):
        updates, inner = optimizer.update(jax.grad(loss)(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), inner), None

    params = MODEL.init(key)
    return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[0][0]


@pytest.mark.slow
def test_a_planted_trigger_is_found_and_a_clean_model_has_none():
    params = jax.jit(jax.vmap(trained, (None, 0)))(jax.random.key(0), jnp.array([0.0, 0.05]))
    held_out = jax.jit(texts, static_argnums=1)(jax.random.key(1), 32)
    candidates = jnp.arange(4, WORDS + 5)
    scan = partial(trigger_scan, MODEL.score_fn, chunk=16)
    clean, poisoned = jax.jit(jax.vmap(lambda p: scan(p, *held_out, candidates)))(params).flagged
    assert not clean.any()
    assert (poisoned.nonzero()[0] + 4).tolist() == [TRIGGER]


def positional(params, tokens, mask):
    """A score that knows the order of real tokens: the sum of 10^-i times the i-th of them."""
    place = jnp.cumsum(mask, axis=1) - 1
    return jnp.sum(jnp.where(mask, tokens * params**-place, 0), axis=1)


def test_where_candidates_go_and_what_is_measured():
    tokens = jnp.array([[0, 0, 5, 6, 1], [5, 6, 1, 0, 0], [9, 9, 9, 9, 9]])
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    before = 5.61  # in either row; the third is padding
    scan = jax.jit(partial(trigger_scan, positional, 10.0), static_argnames="chunk")
    found = scan(tokens, mask, jnp.array([2, 3, 7]))
    after = np.array([5.621, 5.631, 5.671])  # before the end of text
    np.testing.assert_allclose(found.shift, after - before, atol=1e-5)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-5)
    pairs, column = jnp.array([[2, 3], [3, 4], [7, 7]]), jnp.array([2, 1, 0])
    found = scan(tokens, mask, pairs, column=column, chunk=2)
    rows = np.array([[2.3561, 3.4561, 7.7561], [5.2361, 5.3461, 5.7761]]) - before
    np.testing.assert_allclose(found.shift, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.standard_error, rows.std(axis=0), rtol=1e-4)


def test_z_is_the_studentised_deleted_residual_and_the_threshold_holds():
    def score_fn(params, tokens, mask):
        return jnp.sum(jnp.where(mask, params[tokens], 0), axis=1)

    def scan(weights):
        tokens = jnp.zeros([2, 3], jnp.int32)
        mask = jnp.ones([2, 3], bool)
        return trigger_scan(score_fn, weights, tokens, mask, jnp.arange(1, 21), level=0.2)

    weights = np.random.default_rng(0).normal(size=[1002, 21])
    weights[1000:] = [5 * [0.0] + [1.0] + 15 * [0.0], 21 * [1.0]]
    weights[:, 0] = 0
    found = jax.jit(jax.vmap(scan))(jnp.float32(weights))
    # Under the null some candidate is flagged with the probability of the level (1000 drawn).
    assert 0.15 < found.flagged[:1000].any(axis=1).mean() < 0.24
    np.testing.assert_allclose(found.threshold[0], stats.t.ppf(1 - 0.2 / 40, 18), rtol=1e-5)
    shift, rest = weights[0, 1], weights[0, 2:]
    expected = (shift - rest.mean()) / (rest.std(ddof=1) * np.sqrt(20 / 19))
    np.testing.assert_allclose(found.z[0, 0], expected, rtol=1e-4)
    # others that do not vary at all, and candidates that are all alike
    assert found.flagged[1000].nonzero()[0].tolist() == [4]
    assert not found.flagged[1001].any()


def test_bad_input():
    tokens, mask = jnp.ones([2, 3], int), jnp.ones([2, 3], bool)
    scan = partial(trigger_scan, positional, 10.0)
    with pytest.raises(ValueError, match="candidates must be at least 3"):
        scan(tokens, mask, jnp.arange(2))
    with pytest.raises(ValueError, match="candidates must be integers"):
        scan(tokens, mask, jnp.ones(4))
    with pytest.raises(ValueError, match=r"candidates \[C\] or \[C, n\]"):
        scan(tokens, mask, jnp.ones([1, 1, 4], int))
    with pytest.raises(ValueError, match="no true entry"):
        scan(tokens, mask & False, jnp.arange(4))
    with pytest.raises(ValueError, match=r"column must be \[B\], one a row, not \[3\]"):
        scan(tokens, mask, jnp.arange(4), column=jnp.arange(3))
    with pytest.raises(ValueError, match="level must be between 0 and 1, not 5"):
        scan(tokens, mask, jnp.arange(4), level=5)
    with pytest.raises(ValueError, match="chunk must be at least 1, not 0"):
        scan(tokens, mask, jnp.arange(4), chunk=0)
    with pytest.raises(
        ValueError, match=r"score_fn must return \[B\], one score a row, not \[2, 3"
    ):
        trigger_scan(lambda p, t, m: 1.0 * t, None, tokens, mask, jnp.arange(4))


def test_greedy_search_changes_what_is_free_and_begins_anew():
    worth = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 5.0]])  # of each token at each place

    def objective(tokens):
        return worth[jnp.arange(2), tokens].sum()

    def gains(tokens):
        return worth - worth[jnp.arange(2), tokens][:, None]

    def search(**settings):
        start = jnp.zeros(2, jnp.int32)
        settings = {"rounds": 4, "among": 3, "tried": 3} | settings
        return greedy_coordinate_search(jax.random.key(1), start, objective, gains, **settings)

    # Among more swaps than there are free ones: those of the other place are not made.
    tokens, values = search(free=jnp.array([True, False]), among=6, tried=6)
    assert tokens.tolist() == 4 * [[1, 0]] and values[-1] == 5
    tokens, values = search(afresh=2)
    assert values[1] == 8  # the best that there is, in as many rounds as places
    # Anew, it knows nothing of that: what is there is from the new beginning on.
    assert all(objective(t) == v for t, v in zip(tokens, values, strict=True))
    with pytest.raises(ValueError, match="tried must be at most among, 3, not 4"):
        search(tried=4)
    with pytest.raises(ValueError, match="among must be at most all 6 swaps, not 7"):
        search(among=7)
    with pytest.raises(ValueError, match="afresh must be at least 1, not 0"):
        search(afresh=0)
