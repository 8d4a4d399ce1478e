"""Packed batches: laid out as promised, and to every algorithm the same as unpacked ones."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, data, losses, parallel
from rlhf_jax.algorithms.laid import laid_out
from rlhf_jax.models import TransformerConfig, score_model, token_score_model, value_model
from rlhf_jax.sequences import positions, sequence_mean
from rlhf_jax.types import Preferences, Sequences

SGD, KEY = optax.sgd(0.3), jax.random.key(3)
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "lower": {
        "embed": jax.random.normal(KEYS[0], [toys.VOCAB, 6]),
        "place": jax.random.normal(KEYS[1], [8, 6]),
    },
    "upper": {"out": jax.random.normal(KEYS[2], [6, toys.VOCAB])},
    "head": jax.random.normal(KEYS[3], [6]),
}


def trunk(params, tokens, mask):
    """Every token with the mean of those before it: the smallest model that would see a leak."""
    ids = mask.astype(jnp.int32)
    seen = jnp.tril(ids[:, :, None] == ids[:, None, :]) & (ids > 0)[:, None, :]
    read = params["lower"]["embed"][tokens] + params["lower"]["place"][positions(mask)]
    return jnp.tanh(read + seen @ read / jnp.maximum(seen.sum(-1, keepdims=True), 1))


def top(params, hidden, mask):
    return hidden @ params["upper"]["out"]


def logits(params, tokens, mask):
    return top(params, trunk(params, tokens, mask), mask)


def scores(params, tokens, mask):
    each = trunk(params, tokens, mask) @ params["head"]
    if mask.dtype != bool:
        return each
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), -1), axis=1, keepdims=True)
    return jnp.where(last >= 0, jnp.take_along_axis(each, jnp.maximum(last, 0), axis=1), 0)[:, 0]


def weighted(rows, **said):
    return toys.preferences(rows, empty=(4,)).replace(**said)


TEXT = toys.sequences(12, empty=(3,))
HALVES = np.linspace(0.5, 2, 9, dtype=np.float32)
# name: (from accumulate and axis_name to an algorithm, batch, tokens in a row)
CASES = {
    "supervised": (
        partial(algorithms.supervised, logits, SGD, aggregation=sequence_mean),
        TEXT.replace(response_mask=TEXT.mask),  # First tokens, which nothing predicts, too.
        18,
    ),
    "supervised on ratings": (
        partial(algorithms.supervised, logits, SGD, loss=losses.unlikelihood),
        toys.rated(12, empty=(3,)),
        36,
    ),
    "a trunk, weights and text": (
        partial(
            algorithms.direct,
            top,
            SGD,
            trunk_fn=trunk,
            trainable="upper/*",
            supervised_weight=0.5,
        ),
        weighted(9, weight=HALVES, probability=HALVES / 2),
        24,
    ),
    "ratings and unrelated": (
        partial(algorithms.direct, logits, SGD, loss=losses.kto),
        toys.rated(9, empty=(3,)),
        24,
    ),
    "rankings": (
        partial(algorithms.direct, logits, SGD, loss=losses.plackett_luce),
        toys.ranked(8, empty=(2,)),
        34,
    ),
    "rewards": (
        partial(algorithms.reward_model, scores, SGD, centering=0.1, token_dropout=0.3),
        weighted(9, margin=HALVES),
        24,
    ),
}


def stepped(compile, algorithm, batch):
    state = jax.tree.map(jnp.copy, algorithm.init(PARAMS, KEY))  # A sharded step takes it over.
    for _ in range(2):  # A default reference is the policy itself until the first one.
        state, metrics = compile(algorithm.step)(state, batch)
    return state.params, metrics


@pytest.mark.parametrize(
    "name",
    [pytest.param("supervised", marks=pytest.mark.slow), "a trunk, weights and text"],
)
def test_the_vocabulary_for_responses_alone(name):
    make, batch, length = CASES[name]
    batch = TEXT if name == "supervised" else batch
    most = data.longest_response(batch)
    assert most + 1 < TEXT.tokens.shape[1]  # or there would be nothing to leave out
    whole = stepped(jax.jit, make(), batch)
    found = stepped(jax.jit, make(response_length=most), batch)
    chex.assert_trees_all_close(found, whole, rtol=1e-5, atol=1e-6)
    packed, _ = data.pack(batch, length)
    found = stepped(jax.jit, make(response_length=data.longest_response(packed)), packed)
    chex.assert_trees_all_close(found, whole, rtol=1e-5, atol=1e-6)
    params, metrics = stepped(jax.jit, make(response_length=most - 1), batch)
    assert metrics["skipped"] == 2 and jnp.isnan(metrics["loss"])
    chex.assert_trees_all_equal(params, PARAMS)
    with pytest.raises(ValueError, match="batch must hold Sequences; a list holds none"):
        data.longest_response([1])


SLOW = ("supervised on ratings", "ratings and unrelated", "rankings")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_packed_on_a_mesh_and_in_parts_equals_unpacked(name):
    """Rows are whole judgements, so that any cut of them is right."""
    make, batch, length = CASES[name]
    packed, report = data.pack(batch, length)
    assert packed.rows.tokens.shape == (4, length)
    assert report.full > 1.1 * report.full_before
    parts = 1 if name == "ratings and unrelated" else 2
    sharded = partial(parallel.shard_step, mesh=parallel.data_mesh())
    found = stepped(sharded, make(accumulate=parts), packed)
    chex.assert_trees_all_close(found, stepped(jax.jit, make(), batch), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_packed_and_pmapped():
    make, batch, length = CASES["rewards"]
    packed, _ = data.pack(batch, length)
    found = stepped(parallel.pmap_step, make(axis_name="data"), packed)
    chex.assert_trees_all_close(found, stepped(jax.jit, make(), packed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "batch", [toys.sequences(9, empty=(2,)), toys.rated(9, empty=(2,)), toys.ranked(9, empty=(2,))]
)
def test_what_is_packed_is_all_there(batch):
    """Unpacked again, in the order of the index, it is the batch as it was but for its padding."""
    packed, report = data.pack(batch, 30)
    back = laid_out(packed, lambda batch: [batch]).batch
    index = packed.index.reshape(-1)
    order = np.argsort(index)[np.sum(index < 0) :]
    assert index[order].tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    found, expected = (
        jax.tree.map(lambda x, n=n: np.asarray(x)[n], each)
        for each, n in ((back, order), (batch, index[order]))
    )
    chex.assert_trees_all_equal(found, expected)
    rows, ids = packed.rows, packed.rows.mask
    assert np.all((np.diff(ids, axis=1) >= 0) | (ids[:, 1:] == 0))
    assert not np.any(rows.tokens[ids == 0]) and not np.any(rows.response_mask[ids == 0])
    assert report.full == pytest.approx(np.mean(ids > 0)) and report.rows == len(ids)
    assert report.sequences == np.count_nonzero(packed.lengths)


def test_best_fit_and_the_most_in_a_row():
    mask = np.arange(6) < np.array([2, 6, 3, 4, 1, 1])[:, None]
    text = Sequences(np.ones([6, 6], np.int32), mask[:, ::-1], mask[:, ::-1])  # Padded on the left.
    packed, report = data.pack(text, 7)
    assert packed.index.tolist() == [[1, 4], [3, 2], [0, 5]]
    packed, report = data.pack(text, 30, most_per_row=4)
    assert packed.index.tolist() == [[1, 3, 2, 0], [4, 5, -1, -1]]
    assert packed.starts[0, :, 0].tolist() == [0, 6, 10, 13] and report.most_per_row == 4
    assert data.epochs(packed, 1, seed=0)(0).rows.tokens.shape == (1, 30)


WINDOWED = TransformerConfig(
    16,
    hidden_size=8,
    intermediate_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    sliding_window=2,
    sliding_layers=(True, False),
)
LEARNED = dataclasses.replace(WINDOWED, learned_positions=True, max_length=12)


@pytest.mark.parametrize("config", [LEARNED, pytest.param(WINDOWED, marks=pytest.mark.slow)])
def test_a_packed_row_reads_like_its_sequences(config):
    """Also with windows, learned positions, and tokens dropped out of a sequence's middle."""
    tokens = np.random.default_rng(0).integers(0, 16, [1, 12])
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]], np.int32) * (np.arange(12) != 5)
    alone = np.stack([ids[0] == n for n in (1, 2, 3)])
    shapes = jax.eval_shape(score_model(config).init, KEY)
    params = jax.tree.map(lambda x: np.sin(np.arange(x.size)).reshape(x.shape), shapes)

    @jax.jit
    def read(params, ids, alone):
        packed = score_model(config).score_fn(params, tokens, ids)
        values = value_model(config).value_fn(params, tokens, ids) if config is WINDOWED else ()
        each = np.repeat(tokens, 3, axis=0)
        return packed, token_score_model(config).score_fn(params, each, alone), values

    packed, expected, values = read(params, ids, alone)
    for real, scores in zip(alone, expected, strict=True):
        np.testing.assert_allclose(packed[0, real], scores[real], rtol=1e-5, atol=1e-6)
    assert np.ptp(packed) > 0.1
    if config is WINDOWED:  # Before the first token of each there is nothing to see.
        np.testing.assert_allclose(values[0, 1:4], packed[0, :3], rtol=1e-6)
        assert values[0, [0, 4, 7]].tolist() == [0, 0, 0]


def test_what_cannot_be_packed_is_refused():
    pairs = toys.preferences(4)
    refused = partial(pytest.raises, ValueError)
    with refused(
        match=r"length must be at least 1\d, not 9: row \d of the batch has so many tokens in"
    ):
        data.pack(pairs, 9)
    with refused(match="most_per_row must be at least 1, not 0"):
        data.pack(pairs, 9, most_per_row=0)
    with refused(match="nothing to pack: none of 2 rows"):
        data.pack(toys.sequences(2, empty=(0, 1)), 9)
    with refused(match="ratings of single tokens cannot be packed"):
        data.pack(toys.rated(4).replace(ratings=np.zeros([4, 7])), 20)
    with refused(match=r"must be of one shape, \[B, T\]: \[4, 5\] and \[4, 7\]"):
        data.pack(Preferences(pairs.chosen, toys.sequences(4, length=5)), 20)
    packed, _ = data.pack(toys.sequences(4), 20)
    with refused(match="packed already"):
        data.pack(packed.rows, 20)
    with pytest.raises(TypeError, match="must be Preferences, Rated or Ranked, not dict"):
        data.pack({}, 20)
    packed, _ = data.pack(pairs, 40)
    with refused(match=r"of packed rows \[2, 40\] score_fn must return a score at every token"):
        algorithm = algorithms.reward_model(toys.bag_scores, SGD)
        jax.eval_shape(algorithm.step, algorithm.init(toys.bag_params(), KEY), packed)
    with refused(match="accumulate must be 1 with ratings that have unrelated answers"):
        algorithm = algorithms.kto(logits, SGD, accumulate=2)
        packed, _ = data.pack(toys.rated(4), 40)
        jax.eval_shape(algorithm.step, algorithm.init(PARAMS, KEY), packed)
