import functools
import os
import signal
import threading
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import training
from rlhf_jax.types import Algorithm, TrainState


@functools.cache  # one algorithm, so that equal chunks are compiled once for all tests
def toy(rate: float = 0.1) -> Algorithm:
    """Regression with noise from the step's key, that skips updates which are not finite."""
    optimizer = optax.adam(rate)

    def init(params, key, **frozen):
        return TrainState(
            step=jnp.int32(0),
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            frozen=frozen,
            extra={"mean_loss": jnp.zeros((), jnp.bfloat16)},
            skipped=jnp.int32(0),
        )

    def step(state, batch):
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), batch["y"].shape)

        def loss_fn(params):
            error = batch["x"] @ params["w"] + params["b"] + 0.1 * noise - batch["y"]
            return jnp.mean(jnp.square(error))

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        good = jnp.isfinite(loss)
        skipped = jnp.where(good, 0, state.skipped + 1)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            extra={"mean_loss": state.extra["mean_loss"] * 0.9 + loss.astype(jnp.bfloat16)},
            skipped=skipped,
        )
        metrics = {"loss": loss, "noise": noise.mean(), "skipped": skipped.astype(jnp.float32)}
        return state, metrics

    return Algorithm(init, step)


def toy_params():
    return {"w": jnp.zeros(4), "b": jnp.zeros(())}


def toy_state(algorithm=None, seed: int = 0) -> TrainState:
    params = toy_params()
    return (algorithm or toy()).init(params, jax.random.key(seed), reference=params)


def toy_batches(step: int):
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(8, 4)).astype(np.float32)
    return {"x": x, "y": x @ np.float32([1, -2, 3, 0])}


def leaves_bytes(tree) -> dict[str, bytes]:
    """Every leaf of a tree as bytes, keys as the numbers inside them."""

    def numbers(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): numbers(leaf) for path, leaf in paths}


class Recorder:
    """A callback that keeps what it was called with, and can answer."""

    def __init__(self, answer=lambda state, rows, last: None):
        self.calls, self.closed, self.answer = [], 0, answer

    def __call__(self, state, rows, last):
        self.calls.append((int(state.step), [row["step"] for row in rows], last))
        return self.answer(state, rows, last)

    def close(self):
        self.closed += 1


_compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: _compilations.append(name) if "backend_compile" in name else None
)


def counting(**options):
    """A ``compile`` for ``fit``, and a list that grows each time XLA compiles the chunk."""
    compiled = []

    def compile(chunk):
        jitted = jax.jit(chunk, donate_argnums=0, **options)

        def run(*args):
            before = len(_compilations)
            result = jitted(*args)
            compiled.extend(_compilations[before:])
            return result

        return run

    return compile, compiled


def test_fit_takes_the_steps_that_a_plain_loop_takes():
    algorithm = toy()
    state, losses = toy_state(algorithm), []
    for i in range(7):
        state, metrics = jax.jit(algorithm.step)(state, toy_batches(i))
        losses.append(float(metrics["loss"]))
    fitted = training.fit(algorithm, toy_state(algorithm), toy_batches, steps=7, chunk=4)
    assert [row["step"] for row in fitted.history] == [1, 2, 3, 4, 5, 6, 7]
    assert all(type(row["step"]) is int and type(row["loss"]) is float for row in fitted.history)
    np.testing.assert_allclose([row["loss"] for row in fitted.history], losses, rtol=1e-5)
    np.testing.assert_allclose(fitted.state.params["w"], state.params["w"], rtol=1e-4, atol=1e-6)
    assert int(fitted.state.step) == 7
    assert fitted.stopped is None and not fitted.interrupted
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("steps", "compilations"), [(30, 1), (25, 2), (10, 1), (7, 1)])
def test_it_compiles_once_and_again_only_for_a_short_last_chunk(steps, compilations):
    compile, compiled = counting()
    training.fit(
        toy.__wrapped__(),
        toy_state(),
        toy_batches,
        steps=steps,
        callbacks=[Recorder()],
        compile=compile,
    )
    assert len(compiled) == compilations


def test_weak_types_and_a_second_fit_compile_nothing_anew():
    algorithm = toy.__wrapped__()
    compile, compiled = counting()
    params = {"w": jnp.zeros(4), "b": jnp.asarray(0.0)}
    state = algorithm.init(params, jax.random.key(0)).replace(step=jnp.asarray(0), skipped=0)
    assert state.params["b"].weak_type
    state = training.fit(algorithm, state, toy_batches, steps=30, compile=compile).state
    training.fit(algorithm, state, toy_batches, steps=50, compile=compile)
    assert len(compiled) == 1


def test_a_resumed_fit_cuts_the_same_chunks_and_is_bit_identical():
    algorithm = toy()
    whole = training.fit(algorithm, toy_state(), toy_batches, steps=40, chunk=10)
    recorder = Recorder()
    first = training.fit(algorithm, toy_state(), toy_batches, steps=20, chunk=10)
    second = training.fit(
        algorithm, first.state, toy_batches, steps=40, chunk=10, callbacks=[recorder]
    )
    assert leaves_bytes(second.state) == leaves_bytes(whole.state)
    assert first.history + second.history == whole.history
    assert [step for step, _, _ in recorder.calls] == [30, 40]
    # From the midst of a chunk, the first chunk is the short one.
    recorder = Recorder()
    odd = training.fit(algorithm, toy_state(), toy_batches, steps=14, chunk=10)
    training.fit(algorithm, odd.state, toy_batches, steps=40, chunk=10, callbacks=[recorder])
    assert [step for step, _, _ in recorder.calls] == [20, 30, 40]


def test_the_callers_arrays_stay_usable_though_the_state_is_donated():
    state = toy_state()
    assert state.frozen["reference"]["w"] is state.params["w"]
    numbers = np.ones(1 << 16, np.float32)  # large enough for jax to borrow its memory
    state = state.replace(extra=state.extra | {"numbers": numbers})
    algorithm = toy()

    def step(state, batch):
        new, metrics = algorithm.step(state, batch)
        extra = new.extra | {"numbers": state.extra["numbers"] * 2}
        return new.replace(extra=extra), metrics

    before = leaves_bytes(toy_state())
    fitted = training.fit(algorithm._replace(step=step), state, toy_batches, steps=20)
    assert (numbers == 1).all() and float(fitted.state.extra["numbers"][0]) == 2.0**20
    state.extra.pop("numbers")
    assert leaves_bytes(state) == before
    assert (fitted.state.frozen["reference"]["w"] == 0).all()


def test_the_state_is_donated_from_chunk_to_chunk():
    kept = []
    training.fit(
        toy(),
        toy_state(),
        toy_batches,
        steps=20,
        callbacks=[lambda state, rows, last: kept.append(state.params["w"])],
    )
    assert kept[0].is_deleted() and not kept[1].is_deleted()


def test_a_sharded_state_stays_where_it_is():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    state = toy_state()
    state = jax.device_put(state, NamedSharding(mesh, P()))
    state = state.replace(params=state.params | {"w": jax.device_put(jnp.zeros(4), sharding)})
    places = jax.tree.map(lambda x: x.sharding, state)
    compile, compiled = counting(out_shardings=(places, None))
    fitted = training.fit(toy(), state, toy_batches, steps=30, compile=compile)
    assert fitted.state.params["w"].sharding.is_equivalent_to(sharding, 1)
    assert len(compiled) == 1
    alone = training.fit(toy(), toy_state(), toy_batches, steps=30)
    np.testing.assert_allclose(fitted.state.params["w"], alone.state.params["w"], atol=1e-5)


def test_every_callback_sees_every_row_once_and_last_once():
    recorder = Recorder()
    training.fit(toy(), toy_state(), toy_batches, steps=9, chunk=4, callbacks=[recorder])
    assert recorder.calls == [
        (4, [1, 2, 3, 4], False),
        (8, [5, 6, 7, 8], False),
        (9, [9], True),
    ]
    assert recorder.closed == 1
    # Nothing to do is said too.
    state = toy_state().replace(step=jnp.int32(5))
    recorder = Recorder()
    fitted = training.fit(toy(), state, toy_batches, steps=5, callbacks=[recorder])
    assert recorder.calls == [(5, [], True)] and fitted.history == []


def test_a_callback_stops_training_with_a_reason():
    stop = Recorder(lambda state, rows, last: "enough" if rows and rows[-1]["step"] == 4 else None)
    after = Recorder()
    fitted = training.fit(
        toy(), toy_state(), toy_batches, steps=9, chunk=4, callbacks=[stop, after]
    )
    assert fitted.stopped == "enough" and not fitted.interrupted
    assert len(fitted.history) == 4
    assert after.calls == stop.calls
    assert after.calls == [(4, [1, 2, 3, 4], False), (4, [], True)]


def test_non_finite_updates_in_a_row_stop_training_with_the_last_good_state():
    def batches(step):
        batch = toy_batches(step)
        if step == 3 or step >= 12:
            batch["y"] = batch["y"] * np.nan
        return batch

    states = []
    keep = Recorder(lambda state, rows, last: states.append(np.asarray(state.params["w"])))
    with pytest.raises(training.NonFiniteError, match=r"up to step 16.*update was step 12.*loss"):
        training.fit(
            toy(), toy_state(), batches, steps=100, chunk=5, callbacks=[keep], max_skipped=4
        )
    assert keep.calls[-1] == (20, [16, 17, 18, 19, 20], True)
    good = training.fit(toy(), toy_state(), batches, steps=12, chunk=5)
    assert np.isfinite(states[-1]).all()
    np.testing.assert_allclose(states[-1], good.state.params["w"], rtol=1e-5)
    assert [row["skipped"] for row in good.history] == [0, 0, 0, 1] + [0] * 8


@pytest.mark.parametrize("where", ["callback", "batches"])
def test_an_exception_is_passed_on_and_everything_is_closed(where):
    def fail(*args):
        raise RuntimeError("mine")

    def batches(step):
        return fail() if where == "batches" and step == 6 else toy_batches(step)

    callbacks = [Recorder(), Recorder(fail if where == "callback" else lambda *args: None)]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="mine"):
        training.fit(toy(), toy_state(), batches, steps=9, chunk=4, callbacks=callbacks)
    assert [callback.closed for callback in callbacks] == [1, 1]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_training_after_the_chunk(name, capfd):
    number = getattr(signal, name)

    def batches(step):
        if step == 5:
            os.kill(os.getpid(), number)
        return toy_batches(step)

    recorder = Recorder()
    before = signal.getsignal(number)
    fitted = training.fit(toy(), toy_state(), batches, steps=50, chunk=4, callbacks=[recorder])
    assert fitted.stopped == f"interrupted by {name}" and fitted.interrupted
    assert recorder.calls == [(4, [1, 2, 3, 4], False), (8, [5, 6, 7, 8], True)]
    assert len(fitted.history) == 8
    assert signal.getsignal(number) is before
    assert f"{name}: stopping" in capfd.readouterr().err


def test_a_signal_that_comes_while_callbacks_run_still_gives_a_last_call():
    def answer(state, rows, last):
        if not last and int(state.step) == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    recorder = Recorder(answer)
    fitted = training.fit(toy(), toy_state(), toy_batches, steps=50, chunk=4, callbacks=[recorder])
    assert fitted.interrupted
    assert recorder.calls[-2:] == [(8, [5, 6, 7, 8], False), (8, [], True)]


def test_a_second_ctrl_c_stops_at_once():
    def batches(step):
        if step in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
        return toy_batches(step)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.fit(toy(), toy_state(), batches, steps=50, chunk=10)
    assert signal.getsignal(signal.SIGINT) is before


def test_it_leaves_signals_alone_that_are_ignored_or_not_its_own_thread():
    result = []
    thread = threading.Thread(
        target=lambda: result.append(training.fit(toy(), toy_state(), toy_batches, steps=2))
    )
    thread.start()
    thread.join()
    assert len(result[0].history) == 2
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        seen = Recorder(lambda *args: os.kill(os.getpid(), signal.SIGINT))
        fitted = training.fit(toy(), toy_state(), toy_batches, steps=20, callbacks=[seen])
        assert fitted.stopped is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"max_skipped": 0}, "max_skipped is 0"),
        ({"batches": lambda i: {"x": np.ones((8 - i, 4)), "y": np.ones(8 - i)}}, "steps 1 to 4"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"algorithm": toy(), "state": toy_state(), "batches": toy_batches, "steps": 4}
    with pytest.raises(ValueError, match=message):
        training.fit(**arguments | change)


def test_an_algorithm_that_breaks_the_contract_is_named():
    algorithm = toy()

    def no_count(state, batch):
        new, metrics = algorithm.step(state, batch)
        return new.replace(step=state.step), metrics

    def no_scalar(state, batch):
        new, metrics = algorithm.step(state, batch)
        return new, metrics | {"weights": new.params["w"]}

    for step, message in (
        (no_count, "add exactly one"),
        (no_scalar, r"'weights' has shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            training.fit(algorithm._replace(step=step), toy_state(), toy_batches, steps=4)


def test_any_pytree_is_a_batch():
    @flax.struct.dataclass
    class Points:
        x: jax.Array
        y: jax.Array
        weight: jax.Array | None = None

    algorithm = toy()
    step = functools.partial(lambda s, b: algorithm.step(s, {"x": b.x, "y": b.y}))
    fitted = training.fit(
        algorithm._replace(step=step), toy_state(), lambda i: Points(**toy_batches(i)), steps=4
    )
    assert len(fitted.history) == 4


def test_compilation_cache_sets_a_folder(tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
        assert training.compilation_cache() == tmp_path / "cache" / "compiled"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "compiled")
        monkeypatch.delenv("RLHF_JAX_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert training.compilation_cache() == Path(tmp_path, ".cache/rlhf_jax/compiled")
        assert training.compilation_cache(tmp_path / "mine").is_dir()
        (tmp_path / "file").touch()
        with pytest.warns(UserWarning, match="not be kept"):
            training.compilation_cache(tmp_path / "file" / "x")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
