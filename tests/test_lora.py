"""Adapters: what they add, that they come off again, and that nothing else trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, models, trees
from rlhf_jax.models import lora

MODEL = models.language_model(
    models.TransformerConfig(
        vocab_size=toys.VOCAB, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2,
        num_kv_heads=2,
    )
)  # fmt: skip
BASE = jax.tree.map(lambda x: 3 * x, MODEL.init(jax.random.key(0)))
LOGITS = jax.jit(MODEL.logits_fn)
TEXT = toys.sequences(4)


def trained(seed, params=BASE, **settings):
    """An adapter that says something."""
    adapted = lora.add(jax.random.key(seed), params, **({"rank": 3, "alpha": 6.0} | settings))
    rng = np.random.default_rng(seed)
    part, rest = trees.split(adapted, "*lora_b")
    drawn = jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.3, x.shape)), part)
    return trees.join(drawn, rest)


def logits(params):
    return np.asarray(LOGITS(params, TEXT.tokens, TEXT.mask))[TEXT.mask]


def same(a, b, **tolerances):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


def test_a_layer_by_hand():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 4), "bias": (4,), "lora_a": (5, 2), "lora_b": (2, 4)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    params["adapter_scale"] = np.float64(1.5)
    x = rng.normal(size=(3, 5))
    layer = lora.Dense(4)

    def apply(params):
        return layer.apply({"params": params}, jnp.float32(x))

    expected = x @ (params["kernel"] + 1.5 * params["lora_a"] @ params["lora_b"]) + params["bias"]
    params = jax.tree.map(jnp.float32, params)
    np.testing.assert_allclose(apply(params), expected, rtol=1e-5)
    gradient = jax.grad(lambda p: apply(p).sum())(params)
    ones = np.ones((3, 4))
    np.testing.assert_allclose(
        gradient["lora_b"], 1.5 * (x @ params["lora_a"]).T @ ones, rtol=1e-4, atol=1e-5
    )
    assert gradient["adapter_scale"] == 0 and np.abs(gradient["lora_a"]).min() > 0
    # Thin products only: nothing of the kernel's shape is computed.
    made = [
        v.aval.shape for e in jax.make_jaxpr(apply)(params).jaxpr.eqns for v in e.outvars
    ]  # fmt: skip
    assert (5, 4) not in made and (3, 2) in made


def test_an_adapter_is_added_merged_and_stripped():
    fresh = lora.add(jax.random.key(1), BASE, rank=3, alpha=6.0)
    np.testing.assert_array_equal(logits(fresh), logits(BASE))
    a = fresh["layers"]["gate"]["lora_a"]
    assert a.shape == (2, 8, 3) and not np.allclose(a[0], a[1])
    assert not np.allclose(a, fresh["layers"]["up"]["lora_a"])
    assert sum("lora_a" in path for path in trees.paths(fresh)) == 7

    adapted = trained(1)
    assert np.abs(logits(adapted) - logits(BASE)).max() > 0.1
    merged = lora.merge(adapted)
    np.testing.assert_allclose(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)
    assert all(
        x is y for x, y in zip(*map(jax.tree.leaves, (lora.strip(adapted), BASE)), strict=True)
    )
    same(lora.unmerge(merged, adapted), adapted, atol=1e-6)
    layer = adapted["layers"]["down"]
    by_hand = layer["kernel"] + 2.0 * np.matmul(layer["lora_a"], layer["lora_b"])
    np.testing.assert_allclose(merged["layers"]["down"]["kernel"], by_hand, rtol=1e-4, atol=1e-5)

    some = lora.add(
        jax.random.key(1), {"trunk": BASE}, rank=4, alpha=6.0, rank_stabilised=True,
        targets=("*query/kernel", "*value/*"),
    )["trunk"]["layers"]  # fmt: skip
    assert {name for name, layer in some.items() if "lora_a" in layer} == {"query", "value"}
    np.testing.assert_allclose(some["query"]["adapter_scale"], 3.0)
    # A base of few bits has its adapter in float32.
    half = lora.add(
        jax.random.key(1), jax.tree.map(lambda x: x.astype(jnp.bfloat16), BASE), rank=1, alpha=1.0
    )
    assert half["layers"]["up"]["lora_a"].dtype == jnp.float32
    assert lora.merge(half)["layers"]["up"]["kernel"].dtype == jnp.bfloat16


def test_several_adapters_on_one_base():
    alone = [trained(seed) for seed in range(3)]
    axes = lora.axes(alone[0])
    together = jax.tree.map(
        lambda axis, *x: jnp.stack(x) if axis == 0 else x[0], axes, *alone,
        is_leaf=lambda x: x is None,
    )  # fmt: skip
    assert together["layers"]["up"]["kernel"].shape == (2, 8, 8)
    several = jax.jit(jax.vmap(MODEL.logits_fn, (axes, None, None)))
    found = np.asarray(several(together, TEXT.tokens, TEXT.mask))[:, TEXT.mask]
    for m, own in enumerate(alone):
        np.testing.assert_allclose(found[m], logits(own), rtol=1e-4, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_only_the_adapter_trains_and_generation_reads_it():
    params = trained(1)  # rank 3, as the others: compiled once
    algorithm = algorithms.dpo(
        MODEL.factored_logits_fn,
        optax.adamw(0.1, weight_decay=0.1),
        beta=1.0,
        trainable=lora.TRAINABLE,
    )
    state = algorithm.init(params, jax.random.key(2))
    step = jax.jit(algorithm.step)
    for seed in range(3):
        state, metrics = step(state, toys.preferences(4, seed))
    assert metrics["chosen_reward"] - metrics["rejected_reward"] > 0.1
    part, rest = trees.split(params, lora.TRAINABLE)
    jax.tree.map(np.testing.assert_array_equal, trees.split(state.params, lora.TRAINABLE)[1], rest)
    numbers = sum(x.size for x in jax.tree.leaves(part))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * numbers + 1
    assert sum(x.size for x in jax.tree.leaves(state.frozen)) == numbers

    # Generation, which reads with a cache, reads the adapter too.
    full = np.ones(TEXT.tokens.shape, bool)
    cache = MODEL.decoder.init_cache(*TEXT.tokens.shape)
    said, _ = jax.jit(MODEL.decoder.apply)(state.params, TEXT.tokens, full, cache)
    seen = LOGITS(state.params, TEXT.tokens, full)[:, -1]
    np.testing.assert_allclose(said, seen, rtol=1e-4, atol=1e-4)
    plain = LOGITS(lora.strip(state.params), TEXT.tokens, full)[:, -1]
    assert np.abs(said - plain).max() > 0.1


def test_what_does_not_fit_is_named():
    add = lora.add
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="rank must be positive, not 0"):
        add(key, BASE, rank=0, alpha=1.0)
    with pytest.raises(
        ValueError, match="rank must be at most 8 for layers/attention_out/kernel of 8 to 8, not 9"
    ):
        add(key, BASE, rank=9, alpha=1.0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        add(key, BASE, rank=1, alpha=0.0)
    with pytest.raises(ValueError, match=r"targets 'q_proj' matches nothing: there are layers/att"):
        add(key, BASE, rank=1, alpha=1.0, targets="q_proj")
    with pytest.raises(ValueError, match="attention_out/kernel has an adapter already"):
        add(key, trained(0), rank=1, alpha=1.0)
    with pytest.raises(ValueError, match="params have no kernel"):
        add(key, {"embed": jnp.ones(3)}, rank=1, alpha=1.0)
    for function in (lora.merge, lora.axes):
        with pytest.raises(ValueError, match="no adapter"):
            function(BASE)
    with pytest.raises(ValueError, match="merged must have the structure"):
        lora.unmerge(trained(0), trained(0))
