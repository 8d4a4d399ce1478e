import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_training import leaves_bytes, toy, toy_batches, toy_state

from rlhf_jax import checkpoint, configuration, training

# A thread of orbax may outlive the restoring of a damaged step, and complain of its closed loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = {"seed": 0, "adam": {"rate": 0.1}}


class Pair(NamedTuple):
    left: jax.Array
    right: object


def at(step: int):
    """A state that says in its numbers which step it is of."""
    rng = np.random.default_rng(step)
    state = toy_state(seed=step)
    return state.replace(
        step=jnp.int32(step),
        params={"w": jnp.asarray(rng.normal(size=300), jnp.float32), "b": jnp.float32(step)},
    )


def assert_same(found, state):
    assert found is not None
    assert jax.tree.structure(found[0]) == jax.tree.structure(state)
    assert leaves_bytes(found[0]) == leaves_bytes(state)


def test_everything_comes_back_bit_for_bit(tmp_path):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    state = toy_state().replace(
        step=jnp.int32(12),
        extra={
            "bfloat16": jnp.linspace(0, 1, 7, dtype=jnp.bfloat16),
            "float8": jnp.linspace(0, 1, 7).astype(jnp.float8_e4m3fn),
            "bool": jnp.array([True, False]),
            "not finite": jnp.array([jnp.nan, -jnp.inf, -0.0]),
            "empty": jnp.zeros((0, 3)),
            "keys": jax.random.split(jax.random.key(1, impl="rbg"), 4),
            "a.b": {"c": jnp.int8(1)},
            "a": {"b.c": jnp.int8(2), "b/c": jnp.int8(3)},
            "pair": Pair(jnp.uint32(4), [None, (), {}, np.arange(3.0)]),
            "split": jax.device_put(jnp.arange(8.0), split),
            "split keys": jax.device_put(jax.random.split(jax.random.key(2), 4), split),
            "third": jax.device_put(jnp.arange(3), jax.devices()[2]),
        },
    )
    metadata = {"stopped": None, "rates": (1.5, float("nan"))}
    folder = checkpoint.save(tmp_path, state, config=CONFIG, metadata=metadata)
    assert folder == tmp_path / "12"
    for like in (state, checkpoint.template(state)):
        found = checkpoint.restore(tmp_path, like, config=CONFIG)
        assert_same(found, state)
        assert found[1] == {"stopped": None, "rates": [1.5, "NaN"]}
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(found[0]), strict=True):
            assert type(new) is type(old) and new.dtype == old.dtype
            if isinstance(old, jax.Array):
                assert new.committed == old.committed and new.sharding == old.sharding
    # The keys draw what they would have drawn.
    draw = jax.vmap(lambda key: jax.random.normal(key, (3,)))
    for name in ("keys", "split keys"):
        np.testing.assert_array_equal(draw(found[0].extra[name]), draw(state.extra[name]))


def test_it_comes_back_on_other_devices(tmp_path):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    state = at(3)
    checkpoint.save(tmp_path, state, config=CONFIG)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P("y") if leaf.size > 9 else P())
        ),
        state,
    )
    found = checkpoint.restore(tmp_path, like, config=CONFIG)
    assert_same(found, state)
    assert found[0].params["w"].sharding == NamedSharding(mesh, P("y"))


def test_a_resumed_run_is_bit_identical(tmp_path):
    whole = training.fit(toy(), toy_state(), toy_batches, steps=40)
    save = checkpoint.checkpoints(tmp_path, config=CONFIG, every=10)
    training.fit(toy(), toy_state(), toy_batches, steps=20, callbacks=[save])
    state, _ = checkpoint.restore(tmp_path, toy_state(), config=CONFIG)
    assert int(state.step) == 20
    resumed = training.fit(toy(), state, toy_batches, steps=40)
    assert leaves_bytes(resumed.state) == leaves_bytes(whole.state)
    assert resumed.history == whole.history[20:]


def test_saving_is_safe_against_donation(tmp_path):
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), at(1))
    before = leaves_bytes(jax.tree.map(lambda x: jnp.array(x, copy=True), state))
    checkpoint.save(tmp_path, state, config=CONFIG)
    overwrite = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    overwrite(state.params["w"])
    found = checkpoint.restore(tmp_path, at(1), config=CONFIG)
    assert leaves_bytes(found[0]) == before
    # And what came back is jax's own memory.
    overwrite(found[0].params["w"])
    assert leaves_bytes(checkpoint.restore(tmp_path, at(1), config=CONFIG)[0]) == before


def test_none_where_nothing_was_completed(tmp_path):
    assert checkpoint.restore(tmp_path / "absent", at(1), config=CONFIG) is None
    assert not (tmp_path / "absent").exists()
    assert checkpoint.restore(tmp_path, at(1), config=CONFIG) is None
    unfinished = [tmp_path / f"{step}.orbax-checkpoint-tmp" for step in (5, 6)]
    (unfinished[0] / "state").mkdir(parents=True)
    unfinished[1].mkdir()
    assert checkpoint.restore(tmp_path, at(1), config=CONFIG) is None
    checkpoint.save(tmp_path, at(5), config=CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["5"]
    assert_same(checkpoint.restore(tmp_path, at(1), config=CONFIG), at(5))


def test_another_configuration_is_refused_naming_every_difference(tmp_path):
    checkpoint.save(tmp_path, at(1), config=CONFIG)
    with pytest.raises(ValueError) as caught:
        other = {"seed": 1, "adam": {"rate": 0.2}, "new": None}
        checkpoint.restore(tmp_path, at(1), config=other)
    for part in (
        "seed: 0 there, 1 now",
        "adam.rate: 0.1 there, 0.2 now",
        "new: absent there, null",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.replace(params=s.params | {"w": jnp.zeros(5)}),
            r"params/w: float32\[300\] th",
        ),
        (lambda s: s.replace(params={"w": s.params["w"]}), r"params/b: float32\[\] there, absent"),
        (
            lambda s: s.replace(extra={"n": jnp.zeros(2)}),
            r"extra/n: absent there, float32\[2\] now",
        ),
        (lambda s: s.replace(step=jnp.float32(1)), r"step: int32\[\] there, float32\[\] now"),
        (
            lambda s: s.replace(key=jax.random.key(0, impl="rbg")),
            r"key: key<fry>\[\] there, key<rbg",
        ),
    ],
)
def test_another_structure_is_refused_naming_the_difference(tmp_path, change, message):
    checkpoint.save(tmp_path, at(1), config=CONFIG)
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path, change(at(1)), config=CONFIG)


def data(folder: Path) -> Path:
    """The largest of the files that hold a checkpoint's arrays."""
    return max(folder.glob("state/**/d/*"), key=lambda path: path.stat().st_size)


def flip(path: Path, position: float = 0.5, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    at = int(position * (len(data) - 1))
    for i in range(at, min(at + count, len(data))):
        data[i] ^= 0xFF
    path.write_bytes(bytes(data))


def other_arrays(folder: Path) -> None:
    """Arrays that orbax reads without complaint, and that are not the record's."""
    with ocp.CheckpointManager(folder.parent / "other") as manager:
        tree = {"state": checkpoint._nest(checkpoint._named(at(7)))}
        tree["state"]["key"] = jax.random.key_data(at(7).key)
        manager.save(1, args=ocp.args.Composite(state=ocp.args.StandardSave(tree["state"])))
    shutil.rmtree(folder / "state")
    shutil.move(folder.parent / "other" / "1" / "state", folder / "state")
    shutil.rmtree(folder.parent / "other")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "empty": empty,
    "no arrays": lambda folder: shutil.rmtree(folder / "state"),
    "no record": lambda folder: shutil.rmtree(folder / "record"),
    "half a copy": lambda folder: [
        p.unlink() for i, p in enumerate(sorted(folder.rglob("*"))) if p.is_file() and i % 2
    ],
    "no data": lambda folder: data(folder).unlink(),
    "truncated data": lambda folder: data(folder).write_bytes(
        data(folder).read_bytes()[: data(folder).stat().st_size // 2]
    ),
    "zeroed data": lambda folder: data(folder).write_bytes(bytes(data(folder).stat().st_size)),
    "flipped data": lambda folder: flip(data(folder), count=4),
    "flipped record": lambda folder: flip(folder / "record" / "metadata"),
    "altered record": lambda folder: (folder / "record" / "metadata").write_text(
        (folder / "record" / "metadata").read_text().replace("0.1", "0.9")
    ),
    "other arrays": other_arrays,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, at(step), config=CONFIG)
    DAMAGE[damage](tmp_path / "30")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match="step 30 .* is damaged") as caught:
        found = checkpoint.restore(tmp_path, at(1), config=CONFIG)
    assert len([w for w in caught if "damaged" in str(w.message)]) == 1
    assert_same(found, at(20))
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    # The run goes on from there, past the damaged step and over it.
    checkpoint.save(tmp_path, at(25), config=CONFIG, keep=2)
    checkpoint.save(tmp_path, at(30), config=CONFIG, keep=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(checkpoint.restore(tmp_path, at(1), config=CONFIG), at(30))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["25", "30", "30.damaged"]


def test_no_flipped_byte_anywhere_goes_unnoticed(tmp_path):
    checkpoint.save(tmp_path / "good", at(10), config=CONFIG)
    checkpoint.save(tmp_path / "good", at(20), config=CONFIG)
    files = [p for p in sorted((tmp_path / "good" / "20").rglob("*")) if p.is_file()]
    noticed = 0
    for number, file in enumerate(files):
        for position in (0.0, 0.6):
            folder = tmp_path / f"{number}-{position}"
            shutil.copytree(tmp_path / "good", folder)
            if file.stat().st_size == 0:
                continue
            flip(folder / file.relative_to(tmp_path / "good"), position)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = checkpoint.restore(folder, at(1), config=CONFIG)
            damaged = [w for w in caught if "damaged" in str(w.message)]
            assert_same(found, at(10) if damaged else at(20))
            noticed += bool(damaged)
    assert noticed >= 4


def test_if_every_checkpoint_is_damaged_there_is_an_error_and_no_restart(tmp_path):
    for step in (10, 20):
        checkpoint.save(tmp_path, at(step), config=CONFIG)
        empty(tmp_path / str(step))
    with (
        pytest.warns(UserWarning),
        pytest.raises(checkpoint.CheckpointError, match=r"every checkpoint.*step 20: .*step 10: "),
    ):
        checkpoint.restore(tmp_path, at(1), config=CONFIG)


def test_it_keeps_the_newest_few(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, at(step), config=CONFIG, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5"]


def test_a_good_checkpoint_is_never_replaced(tmp_path):
    checkpoint.save(tmp_path, at(10), config=CONFIG)
    written = data(tmp_path / "10").stat().st_mtime_ns
    checkpoint.save(tmp_path, at(10), config=CONFIG)
    assert data(tmp_path / "10").stat().st_mtime_ns == written
    for state in (at(10).replace(skipped=jnp.int32(1)), at(9)):
        with pytest.raises(checkpoint.CheckpointError, match="holds step 10 already"):
            checkpoint.save(tmp_path, state, config=CONFIG)
    assert_same(checkpoint.restore(tmp_path, at(1), config=CONFIG), at(10))


def test_a_save_that_fails_says_so_and_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, at(10), config=CONFIG)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for fault, message in ((full, "No space left"), (lambda *a, **k: False, "declined")):
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "save", fault)
            with pytest.raises(checkpoint.CheckpointError, match=message):
                checkpoint.save(tmp_path, at(20), config=CONFIG)
    assert_same(checkpoint.restore(tmp_path, at(1), config=CONFIG), at(10))
    (tmp_path / "file").touch()
    with pytest.raises(checkpoint.CheckpointError, match="cannot be saved"):
        checkpoint.save(tmp_path / "file" / "x", at(20), config=CONFIG)


def test_the_callback_saves_when_due_and_never_twice(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, state, **kwargs: saved.append((int(state.step), kwargs))
    )
    notes = {}
    save = checkpoint.checkpoints(tmp_path, config=CONFIG, every=6, metadata=lambda: dict(notes))
    assert save(at(4), [{"step": s} for s in (1, 2, 3, 4)], False) is None
    save(at(8), [{"step": s} for s in (5, 6, 7, 8)], False)
    save(at(12), [{"step": s} for s in (9, 10, 11, 12)], False)
    save(at(12), [], True)
    notes["stopped"] = "enough"
    save(at(14), [{"step": s} for s in (13, 14)], True)
    assert [step for step, _ in saved] == [8, 12, 14]
    assert saved[-1][1] == {"config": CONFIG, "metadata": {"stopped": "enough"}, "keep": 3}
    with pytest.raises(ValueError, match="every is 0"):
        checkpoint.checkpoints(tmp_path, config=CONFIG, every=0)


def test_plain_and_differences():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        path: Path = Path("a")
        rates: tuple[float, ...] = (0.1, 1.0)

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()
        function: object = json.dumps
        number: object = np.float32(0.5)

    values = configuration.plain(Outer())
    assert values == {
        "inner": {"path": "a", "rates": [0.1, 1.0]},
        "function": "json.dumps",
        "number": 0.5,
    }
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert configuration.differences(Outer(), values) == []
    assert configuration.differences({"a": {}}, {"a": {"b": 1}}) == [
        "a: {} there, absent now",
        "a.b: absent there, 1 now",
    ]
    with pytest.raises(ValueError, match="object cannot be written"):
        configuration.plain({"x": object()})
