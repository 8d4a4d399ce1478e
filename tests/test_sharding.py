"""A state cut over a mesh of data, fsdp and tensor: rules, numbers, and what is sent."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded
from jax.sharding import AbstractMesh

from rlhf_jax import algorithms, parallel, placing, trees, vocabulary
from rlhf_jax.parallel import TRANSFORMER_RULES, describe_sharding, state_shardings

MESHES = [
    {"data": 4},
    {"fsdp": 4},
    {"tensor": 2, "fsdp": 2},
    {"data": 2, "tensor": 2},
]


@pytest.fixture(autouse=True)
def in_blocks(monkeypatch):
    """The vocabulary of 96 in four blocks, as that of a real model is in more."""
    monkeypatch.setattr(vocabulary, "default_block", lambda *_: 24)


@functools.cache
def on_one_device(name):
    algorithm, state, batch = sharded.ALGORITHMS[name]()
    return jax.device_get(jax.jit(algorithm.step)(state, batch))


def shapes(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_a_cut_state_gives_the_numbers_of_one_device_and_is_never_put_together():
    mesh = parallel.make_mesh(fsdp=2, tensor=2)
    found, run = sharded.after(*sharded.supervised(), mesh)
    assert sharded.worst(found, on_one_device("supervised")) < 2e-5
    sent = parallel.collectives(run)
    # What is put together is a matrix of one layer at the most, or a block of the vocabulary: the
    # embedding has 6,144 bytes, the stacked matrices of the layers 9,216.
    gathered = [c for c in sent if c.kind == "all-gather"]
    largest = 16 * 48 * 4 // 2
    assert gathered and gathered[0].bytes == largest and gathered[0].group == 2
    # And once for each of the three layers, forwards and backwards.
    layers = [c for c in gathered if c.bytes == largest]
    assert {c.times for c in layers} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", sharded.ALGORITHMS)
def test_every_mesh_and_algorithm_gives_the_numbers_of_one_device(name, mesh):
    found, run = sharded.after(*sharded.ALGORITHMS[name](), parallel.make_mesh(**mesh))
    assert sharded.worst(found, on_one_device(name)) < 2e-5
    gathered = [c.bytes for c in parallel.collectives(run) if c.kind == "all-gather"]
    # Sampling needs a device's share of the unembedding at once, all else a block of it.
    share = 16 * 96 * 4 // mesh.get("tensor", 1) if "policy" in name else 0
    assert max(gathered, default=0) <= max(16 * 48 * 4, share)


@pytest.mark.slow
def test_eight_devices_too():
    """In a process of its own, as this one has four."""
    code = """
import jax, sharded
from rlhf_jax import parallel, vocabulary
vocabulary.default_block = lambda *_: 24
for name in ("direct", "policy"):
    algorithm, state, batch = sharded.ALGORITHMS[name]()
    expected = jax.device_get(jax.jit(algorithm.step)(state, batch))
    for mesh in ({"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}):
        found, _ = sharded.after(algorithm, state, batch, parallel.make_mesh(**mesh))
        print(name, mesh, sharded.worst(found, expected))
"""
    flags = "--xla_force_host_platform_device_count=8"
    here = Path(__file__).parent
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{here}:{here.parent}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(float(line.split()[-1]) < 2e-5 for line in lines), lines


@pytest.mark.slow
def test_a_transformer_under_pmap_knows_nothing_of_meshes():
    _, state, batch = sharded.supervised()
    mapped = algorithms.supervised(
        sharded.MODEL.factored_logits_fn, sharded.optimizer(), axis_name="data"
    )
    found = parallel.pmap_step(mapped.step)(state, batch)
    assert sharded.worst(found, on_one_device("supervised")) < 2e-5


def test_rules_cut_parameters_and_the_optimisers_alike():
    mesh = AbstractMesh((1, 2, 4), ("data", "fsdp", "tensor"))
    _, state, _ = sharded.direct()
    found = {
        path: sharding.spec
        for path, sharding in zip(
            trees.paths(state),
            jax.tree.leaves(state_shardings(state, mesh)),
            strict=True,
        )
    }
    for path, partition in {
        "embed/embedding": ("tensor", "fsdp"),
        "unembed": ("fsdp", "tensor"),
        "layers/query/kernel": (None, "fsdp", "tensor"),
        "layers/down/kernel": (None, "tensor", "fsdp"),
        "layers/attention_norm/scale": (None, None),
    }.items():
        for place in ("params", "frozen", "opt_state/0/mu", "opt_state/0/nu"):
            assert tuple(found[f"{place}/{path}"]) == partition, (place, path)
    assert all(tuple(found[path]) == () for path in ("step", "key", "opt_state/0/count"))
    # Members of an ensemble stand before the layers; what Adafactor keeps of rows is whole.
    tree = {"layers": {"up": {"kernel": shapes(5, 3, 16, 48)}}, "v_row": {"unembed": shapes(16)}}
    cut = state_shardings(tree | {"a": tree}, mesh)["a"]
    assert tuple(cut["layers"]["up"]["kernel"].spec) == (None, None, "fsdp", "tensor")
    assert tuple(cut["v_row"]["unembed"].spec) == (None,)


def test_the_table_adds_up():
    mesh = AbstractMesh((2, 2), ("fsdp", "tensor"))
    tree = {"layers": {"up": {"kernel": shapes(3, 16, 48)}}, "norm": shapes(16, dtype=jnp.bfloat16)}
    lines = describe_sharding(tree, mesh).splitlines()
    assert lines[0] == "fsdp=2, tensor=2: 4 devices"
    assert re.fullmatch(r"layers/up/kernel +float32\[3, 16, 48\] +-, fsdp, tensor +2,304", lines[2])
    assert re.fullmatch(r"norm +bfloat16\[16\] +whole +32", lines[3])
    assert re.fullmatch(r"together +9,248 bytes +2,336", lines[4])


@pytest.mark.parametrize(
    "rules, message",
    [
        ((("layer/*", ("fsdp",)),), "the rule 'layer/.' matches nothing: there are layers/up"),
        ((("*kernel", ("model",)),), "cuts over 'model', .* axes are data, fsdp and tensor"),
        ((("*kernel", (None,) * 4),), r"float32\[3, 16, 49\], but its rule cuts 4 axes"),
        ((("*kernel", ("fsdp", "fsdp")),), "'fsdp' twice"),
        (TRANSFORMER_RULES, r"axis 2, of 49, cannot be cut evenly over tensor=2\..*a rule before"),
    ],
)
def test_rules_that_cannot_be(rules, message):
    tree = {"layers": {"up": {"kernel": shapes(3, 16, 49)}}}
    with pytest.raises(ValueError, match=message):
        state_shardings(tree, AbstractMesh((2, 2), ("fsdp", "tensor")), rules)


def test_meshes_that_cannot_be():
    with pytest.raises(ValueError, match="fsdp is 0: an axis of a mesh is at least 1"):
        parallel.make_mesh(fsdp=0)
    with pytest.raises(ValueError, match="4 devices cannot make a mesh of fsdp=3, tensor=1"):
        parallel.make_mesh(fsdp=3)
    with pytest.raises(ValueError, match="4 devices cannot make a mesh of data=2, fsdp=1"):
        parallel.make_mesh(data=2)
    for text in ("model=2", "fsdp", "fsdp=2,fsdp=2", "fsdp=two", ""):
        with pytest.raises(ValueError, match="it must be some of data, fsdp and tensor"):
            parallel.mesh_axes(text)
    mesh = parallel.make_mesh(data=2, fsdp=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    with pytest.raises(ValueError, match="batch of 6 cannot be cut evenly over 4 devices"):
        parallel.place(np.zeros(6), mesh, batch_axis=0)


def test_a_model_that_a_mesh_does_not_divide():
    mesh = AbstractMesh((2, 4), ("fsdp", "tensor"))
    (note,) = parallel.check_model(sharded.CONFIG, mesh)  # 2 heads of keys
    assert "tensor of 2 at most would cut them" in note
    with pytest.raises(ValueError, match=r"num_heads is 4, .* tensor=3: use 1, 2 or 4"):
        parallel.check_model(sharded.CONFIG, AbstractMesh((3,), ("tensor",)))


def test_without_a_mesh_nothing_is_placed():
    x = jnp.arange(8.0)
    assert placing.placed(x, "rows") is x and placing.pieces(8, "words") == 1
    program = str(jax.make_jaxpr(lambda t: placing.looked_up(t, jnp.array([1])))(jnp.ones([4, 2])))
    assert "shard" not in program
