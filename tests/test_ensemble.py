"""An ensemble is its members, side by side: each as it would be alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, data, parallel

MEMBERS = 3
ALONE = algorithms.reward_model(toys.bag_scores, optax.adam(0.1), token_dropout=0.3)
PARAMS = jax.vmap(toys.bag_params)(jnp.arange(MEMBERS))


def member(tree, m):
    return jax.tree.map(lambda x: x[m], tree)


def run(algorithm, params, key, batches):
    step = jax.jit(algorithm.step)
    state = algorithm.init(params, key)
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.parametrize("own_batches", [False, True])
def test_each_member_is_what_it_is_alone(own_batches):
    orders = [data.epochs(toys.preferences(24), 8, seed=m * own_batches) for m in range(MEMBERS)]
    batches = data.stacked(orders) if own_batches else orders[0]
    together = algorithms.ensemble(ALONE, MEMBERS, own_batches=own_batches)
    state, metrics = run(together, PARAMS, jax.random.key(5), [batches(i) for i in range(3)])
    losses = []
    for m in range(MEMBERS):
        key = jax.random.fold_in(jax.random.key(5), m)
        alone, own = run(ALONE, member(PARAMS, m), key, [orders[m](i) for i in range(3)])
        found = (member(state.params, m), member(state.opt_state, m))
        for x, y in zip(
            jax.tree.leaves(found), jax.tree.leaves((alone.params, alone.opt_state)), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7)
        losses.append(own["loss"])
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-6)
    weights = state.params["weights"]
    assert state.step == 3 and not np.allclose(weights[0], weights[1])


def test_it_scans_and_runs_on_a_mesh():
    together = algorithms.ensemble(ALONE, MEMBERS)
    state = together.init(jax.tree.map(jnp.copy, PARAMS), jax.random.key(0))
    batch = toys.preferences(8)
    expected, _ = jax.jit(partial(jax.lax.scan, together.step))(
        state, jax.tree.map(lambda x: np.stack([x] * 2), batch)
    )
    step = parallel.shard_step(together.step, parallel.data_mesh())
    for _ in range(2):
        state, _ = step(state, batch)
    np.testing.assert_allclose(state.params["weights"], expected.params["weights"], rtol=1e-5)


def test_a_member_that_fails_fails_alone():
    params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), PARAMS)
    state, metrics = run(
        algorithms.ensemble(ALONE, MEMBERS), params, jax.random.key(0), [toys.preferences(8)] * 2
    )
    assert state.skipped.tolist() == [0, 2, 0] and metrics["skipped"] == 2
    assert np.isfinite(state.params["weights"][jnp.array([0, 2])]).all()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="members must be at least 1"):
        algorithms.ensemble(ALONE, 0)
    with pytest.raises(ValueError, match=r"params\['weights'\] must be \[4, ...\]"):
        algorithms.ensemble(ALONE, 4).init(PARAMS, jax.random.key(0))
    direct = algorithms.ensemble(algorithms.direct(toys.bigram_logits, optax.sgd(0.1)), 2)
    tables = jax.vmap(toys.bigram_params)(jnp.arange(2))
    with pytest.raises(ValueError, match="give it by keyword, or say own_frozen=True"):
        direct.init(tables, jax.random.key(0))
    assert direct.init(tables, jax.random.key(0), reference=toys.bigram_params()).params
    state = algorithms.ensemble(ALONE, MEMBERS, own_batches=True).init(PARAMS, jax.random.key(0))
    with pytest.raises(ValueError, match=r"batch.chosen.tokens must be \[3, ...\]"):
        algorithms.ensemble(ALONE, MEMBERS, own_batches=True).step(state, toys.preferences(8))
