"""One device, a mesh and pmap give the same numbers, with unequal masks on the devices."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from cases import ALIKE, CASES, names

from rlhf_jax import parallel, training

# Those that share their code with others are slow: rloo stands for them.
each_case = pytest.mark.parametrize("name", names(ALIKE - {"rloo"}))


@functools.cache
def on_one_device(name):
    """A case, its state and batch, and the step taken on one device."""
    case = CASES[name]
    algorithm = case.build()
    state, batch = case.init(algorithm), case.batch(0)
    return case, state, batch, jax.jit(algorithm.step)(state, batch)


def close(a, b):
    chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), atol=2e-6, rtol=2e-5)


def numbers(state):
    return state.params, state.opt_state, state.extra, state.step


def test_there_are_four_devices():
    assert jax.device_count() == 4


@each_case
def test_mesh_equals_one_device(name):
    case, state, batch, (expected, metrics) = on_one_device(name)
    mesh = parallel.data_mesh()
    step = parallel.shard_step(case.build().step, mesh)
    actual, sharded = step(parallel.place(jax.tree.map(jnp.copy, state), mesh), batch)
    close(numbers(actual), numbers(expected))
    close(sharded, metrics)
    assert jax.tree.leaves(actual.params)[0].sharding.device_set == set(jax.devices())


@pytest.mark.parametrize("name", names())
def test_pmap_equals_one_device(name):
    case, state, batch, (expected, metrics) = on_one_device(name)
    actual, mapped = parallel.pmap_step(case.build(axis_name="data").step)(state, batch)
    close(numbers(actual), numbers(expected))
    close(mapped, metrics)


@pytest.mark.parametrize("name", ["dpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_chunks_of_steps_too(name):
    case = CASES[name]
    batches = jax.tree.map(lambda *x: np.stack(x), *(case.batch(seed) for seed in range(3)))
    state = case.init(case.build())
    expected, history = jax.jit(training.run_chunk(case.build().step))(state, batches)
    chunk = parallel.shard_step(
        training.run_chunk(case.build().step), parallel.data_mesh(), batch_axis=1
    )
    close(chunk(jax.tree.map(jnp.copy, state), batches)[0].params, expected.params)
    mapped = parallel.pmap_step(training.run_chunk(case.build(axis_name="data").step), batch_axis=1)
    after, pmapped = mapped(state, batches)
    close(after.params, expected.params)
    close(pmapped, history)


@pytest.mark.parametrize("place", [False, True])
def test_fit_on_a_mesh_equals_fit_on_one_device(place):
    case, mesh = CASES["dpo"], parallel.data_mesh()
    algorithm = case.build()
    state = case.init(algorithm)
    expected = training.fit(algorithm, state, case.batch, steps=4, chunk=2)
    start = parallel.place(state, mesh) if place else state
    compile = partial(parallel.shard_step, mesh=mesh, batch_axis=1)
    actual = training.fit(algorithm, start, case.batch, steps=4, chunk=2, compile=compile)
    close(actual.state.params, expected.state.params)
    close(actual.history, expected.history)


def test_a_mean_of_means_would_be_seen(monkeypatch):
    """The trap that the parity tests are there for: dividing on each device, then averaging."""
    from rlhf_jax.algorithms import common

    def of_means(tree, axis_name):
        if isinstance(tree, tuple):  # the gradient and the loss: averaged
            return jax.lax.pmean(tree, axis_name)
        return tree  # the counts: each device its own

    monkeypatch.setattr(common, "over_devices", of_means)
    monkeypatch.setattr(common, "divided", lambda means, axis_name: {})
    case = CASES["supervised"]
    state, batch = case.init(case.build()), case.batch(0)
    wrong, _ = parallel.pmap_step(case.build(axis_name="data").step)(state, batch)
    monkeypatch.undo()
    right, _ = jax.jit(case.build().step)(state, batch)
    assert np.abs(wrong.params["table"] - right.params["table"]).max() > 1e-3


def test_a_batch_that_cannot_be_cut_is_refused():
    case = CASES["supervised"]
    algorithm = case.build()
    state, batch = case.init(algorithm), toys.sequences(6)
    message = "a batch of 6 cannot be cut evenly over 4 devices: use a multiple of 4"
    with pytest.raises(ValueError, match=message):
        parallel.shard_step(algorithm.step, parallel.data_mesh())(state, batch)
    with pytest.raises(ValueError, match=message):
        parallel.pmap_step(case.build(axis_name="data").step)(state, batch)
    with pytest.raises(ValueError, match=message):
        parallel.place(batch, parallel.data_mesh(), batch_axis=0)


def test_a_pmapped_step_compiles_once():
    traces = []
    case = CASES["dpo"]
    algorithm = case.build(axis_name="data")

    def counted(state, batch):
        traces.append(1)
        return algorithm.step(state, batch)

    step, state = parallel.pmap_step(counted), case.init(algorithm)
    for seed in range(3):
        state, _ = step(state, case.batch(seed))
    assert len(traces) <= 2  # once for the state as made, at most once more for it as returned
