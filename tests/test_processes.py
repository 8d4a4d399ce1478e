"""Several processes that are one run: what they share and must agree on, and that they may die."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import checkpoint, digests, parallel, runs, training

HERE = Path(__file__).parent
CONFIG = {"seed": 1}
SCRIPT = """
import os, signal, sys
import jax
from rlhf_jax import parallel

index, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
print(parallel.initialise(f"127.0.0.1:{port}", 2, index, timeout=200))
import test_processes
try:
    parallel.check_agreement("configuration", {"seed": 1, "rate": 0.1 * (1 + index)})
except ValueError as error:
    print("DISAGREE", error)
try:
    parallel.first_does(lambda: int("no number"))
except ValueError as error:
    print("FIRST", error)
mesh = parallel.make_mesh(fsdp=2, tensor=2)
print("ROWS", parallel.rows_here(8, mesh))

def killed(step):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return test_processes.batches(step)

test_processes.train(folder, mesh, killed, resume=False, local=index)
"""


def batches(step):
    return jax.tree.map(lambda x: np.roll(x, step, axis=0), sharded.supervised_batch())


def train(folder, mesh, batches, resume, local=None):
    """Six steps of a small model, saved every two."""
    algorithm = sharded.supervised_algorithm()
    run = runs.start(folder, CONFIG, resume=resume)

    def fresh():
        return algorithm.init(sharded.params(), jax.random.key(1))

    cut = parallel.state_shardings(jax.eval_shape(fresh), mesh)

    def init():
        return parallel.put(fresh(), cut)

    def compile(chunk):
        return parallel.shard_step(chunk, mesh, state_shardings=cut, batch_axis=1)

    show = [] if local is None else None
    return run.fit(
        "sft", algorithm, init, batches, steps=6, chunk=2, save_every=2, compile=compile, show=show
    )


def launch(arguments):
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_are_killed_and_one_goes_on_with_another_mesh(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [launch([index, port, tmp_path / "run"]) for index in range(2)]
    said = [process.communicate(timeout=900)[0] for process in both]
    codes = [process.returncode for process in both]
    assert codes == [-9, -9], "\n".join(text[-3000:] for text in said)
    for index, lines in enumerate(said):
        assert f"Processes(index={index}, count=2)" in lines
        assert "DISAGREE the processes disagree on the configuration: " in lines
        assert "rate: 0.1 in process 0, 0.2 in process 1. Start all of them" in lines
        assert "FIRST" in lines and "no number" in lines
        first = 4 * index
        assert f"ROWS slice({first}, {first + 4}, None)" in lines
    # What was written, once, by the first.
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert sorted(x.name for x in (tmp_path / "run/checkpoints/sft").iterdir()) == ["2", "4"]
    resumed = train(tmp_path / "run", parallel.make_mesh(data=2, tensor=2), batches, resume=True)
    whole = train(tmp_path / "whole", parallel.make_mesh(fsdp=4), batches, resume=False)
    assert int(resumed.state.step) == 6 and len(resumed.history) == 6
    assert sharded.worst((resumed.state, {}), (whole.state, {})) < 2e-5
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert a == pytest.approx(b, abs=2e-5)


def test_one_process_is_left_alone(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert parallel.initialise() == (0, 1) and parallel.is_first()
    parallel.check_agreement("anything", {"here": 1})
    assert parallel.first_does(lambda: [1]) == [1]
    for settings, message in [
        ({"coordinator": "a:1"}, "there is only JAX_COORDINATOR_ADDRESS=a:1: give all three"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "index is 2: of 2 processes .* 0 to 1"),
        ({"coordinator": "a", "count": 2, "index": 1}, "'a': it must be host:port"),
    ]:
        with pytest.raises(ValueError, match=message):
            parallel.initialise(**settings)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="number of processes is 'two'"):
        parallel.initialise("a:1", None, 0)


def test_that_it_comes_too_late_is_said():
    with pytest.raises(RuntimeError, match=r"initialise\(\) must come before anything that uses"):
        parallel.initialise("127.0.0.1:1", 2, 0)


def test_a_batch_of_local_rows_is_the_batch():
    mesh, batch = parallel.make_mesh(data=2, fsdp=2), np.arange(24.0).reshape(2, 12)
    assert parallel.rows_here(8, mesh) == slice(0, 8)
    joined = parallel.global_batch(batch, mesh, batch_axis=1)
    np.testing.assert_array_equal(joined, batch)
    assert joined.sharding.shard_shape(joined.shape) == (2, 3)
    with pytest.raises(ValueError, match="feeds 6 rows to 4 of the batch's 4 parts"):
        parallel.global_batch(batch[:, :6], mesh, batch_axis=1)


def test_the_sum_of_an_array_is_the_same_however_it_is_cut(monkeypatch):
    mesh = parallel.make_mesh(fsdp=2, tensor=2)
    rng = np.random.default_rng(0)
    arrays = {
        "f": rng.normal(size=(6, 8, 4)).astype(np.float32),
        "b": rng.normal(size=(4, 2)).astype(jnp.bfloat16),
        "m": rng.random((4, 6)) < 0.5,
        "s": np.float32(2),
        "d": rng.normal(size=4),
    }
    monkeypatch.setattr(digests, "_SLAB", 256)
    here = {name: digests._sums({name: x})[name] for name, x in arrays.items()}
    for name in "fbm":
        cut = jax.device_put(arrays[name], NamedSharding(mesh, P("fsdp", "tensor")))
        lanes = jax.jit(lambda x: digests._mixed(jnp, x))(cut)
        assert "".join(f"{int(lane):08x}" for lane in lanes) == here[name]
    # One element, or the places of two, and it is another.
    changed = arrays["f"].copy()
    changed[5, 7, 3] = np.nextafter(changed[5, 7, 3], 9)
    swapped = arrays["f"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    sums = {"f": {"sum": here["f"]}}
    assert digests.differing({"f": arrays["f"]}, sums) == []
    assert (
        digests.differing({"f": changed}, sums) == digests.differing({"f": swapped}, sums) == ["f"]
    )


def test_a_checkpoint_with_sums_is_read_and_its_damage_seen(tmp_path, monkeypatch):
    """As several processes write it; one process reads it."""
    state = sharded.small_state()

    def sums(arrays):
        return {name: {"sum": value} for name, value in digests._sums(arrays).items()}

    with monkeypatch.context() as patch:
        patch.setattr(digests, "of_arrays", sums)
        checkpoint.save(tmp_path, state, config=CONFIG)
    found, _ = checkpoint.restore(tmp_path, state, config=CONFIG)
    np.testing.assert_array_equal(found.params["w"], state.params["w"])
    # Saved again, it is known to be the same.
    assert checkpoint.save(tmp_path, state, config=CONFIG) == tmp_path / "3"
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_finalised", lambda x: x)
        with (
            pytest.warns(UserWarning, match="damaged and passed over"),
            pytest.raises(checkpoint.CheckpointError, match="is not what was saved"),
        ):
            checkpoint.restore(tmp_path, state, config=CONFIG)


def test_a_signal_to_one_process_stops_all(monkeypatch):
    from jax.experimental import multihost_utils

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.array([x, 15]))
    assert training._anyones([]) == ["SIGTERM"]
