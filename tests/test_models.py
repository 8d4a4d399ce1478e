"""The transformer against a plain NumPy one; what padding, caches and options may not change."""

import dataclasses
import functools
import itertools
import zlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax import models
from rlhf_jax.models import TransformerConfig, ngrams

CONFIG = TransformerConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_length=32,
    rope_theta=100.0,
)
TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]], np.int32)
ALL = np.ones_like(TOKENS, bool)


@functools.cache
def language_model(config):
    """The model, its parameters, and its compiled logits."""
    model = models.language_model(config)
    return model, shaken(model), jax.jit(model.logits_fn)


def shaken(model):
    """Parameters large enough for every part to matter, norms' scales included."""
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def numpy_logits(params, tokens, config):
    """One sequence, one position, one head at a time: the architecture as its papers write it."""
    params = jax.tree.map(np.float64, params)
    width, group = config.head_dim, config.num_heads // config.num_kv_heads

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2) + config.norm_epsilon) * scale

    def rotate(x, position):
        half = width // 2
        out = np.empty(width)
        for i in range(half):
            angle = position * config.rope_theta ** (-2 * i / width)
            out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
            out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
        return out

    xs = [params["embed"]["embedding"][token] for token in tokens]
    for layer in range(config.num_layers):
        p = jax.tree.map(lambda x, layer=layer: x[layer], params["layers"])
        hs = [norm(x, p["attention_norm"]["scale"]) for x in xs]
        split = {
            name: [(h @ p[name]["kernel"]).reshape(-1, width) for h in hs]
            for name in ("query", "key", "value")
        }
        for t in range(len(xs)):
            out = []
            for head in range(config.num_heads):
                query = rotate(split["query"][t][head], t)
                scores = np.array(
                    [
                        query @ rotate(split["key"][s][head // group], s) / np.sqrt(width)
                        for s in range(t + 1)
                    ]
                )
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out.append(sum(w * split["value"][s][head // group] for s, w in enumerate(weights)))
            xs[t] = xs[t] + np.concatenate(out) @ p["attention_out"]["kernel"]
        for t, x in enumerate(xs):
            h = norm(x, p["mlp_norm"]["scale"])
            gate = h @ p["gate"]["kernel"]
            mlp = gate / (1 + np.exp(-gate)) * (h @ p["up"]["kernel"])
            xs[t] = x + mlp @ p["down"]["kernel"]
    unembed = params["embed"]["embedding"].T if config.tie_embeddings else params["unembed"]
    return np.stack([norm(x, params["final_norm"]["scale"]) @ unembed for x in xs])


@pytest.mark.parametrize("tied", [True, False])
def test_transformer_equals_a_plain_numpy_one(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    _, params, logits_fn = language_model(config)
    assert ("unembed" in params) is not tied
    logits = logits_fn(params, TOKENS, ALL)
    for row in range(2):
        np.testing.assert_allclose(
            logits[row], numpy_logits(params, TOKENS[row], config), atol=1e-4, rtol=1e-4
        )


def test_factored_logits_multiply_out_to_the_logits():
    model, params, logits_fn = language_model(CONFIG)
    factored = jax.jit(model.factored_logits_fn)(params, TOKENS, ALL)
    np.testing.assert_allclose(
        factored.hidden @ factored.unembedding, logits_fn(params, TOKENS, ALL), atol=1e-5
    )


@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_changes_nothing(left):
    _, params, logits_fn = language_model(CONFIG)
    pad = ((0, 0), (3, 0) if left else (0, 3))
    tokens, mask = np.pad(TOKENS, pad, constant_values=13), np.pad(ALL, pad)
    padded = logits_fn(params, tokens, mask)
    kept = padded[:, 3:] if left else padded[:, :-3]
    np.testing.assert_allclose(kept, logits_fn(params, TOKENS, ALL), atol=1e-4)
    assert np.isfinite(padded).all()


def test_the_future_does_not_matter():
    _, params, logits_fn = language_model(CONFIG)
    other = TOKENS.copy()
    other[:, 4:] = 0
    a, b = (logits_fn(params, tokens, ALL)[:, :4] for tokens in (TOKENS, other))
    np.testing.assert_array_equal(a, b)


def test_reading_through_the_cache_in_pieces_equals_reading_at_once():
    model, params, logits_fn = language_model(CONFIG)
    mask = ALL.copy()
    mask[0, :2] = False  # padding on the left
    whole = logits_fn(params, TOKENS, mask)
    cache, read = model.decoder.init_cache(2, 8), jax.jit(model.decoder.apply)
    for start, end in ((0, 3), (3, 4), (4, 6)):
        piece = slice(start, end)
        logits, cache = read(params, TOKENS[:, piece], mask[:, piece], cache)
        np.testing.assert_allclose(logits, whole[:, end - 1], atol=1e-4)
    assert cache.length == 6


def test_top_layers_apart_are_the_same_model():
    whole, params, logits_fn = language_model(CONFIG)
    model = models.language_model(dataclasses.replace(CONFIG, num_top_layers=1))
    split = models.split_layers(params, 1)
    chex.assert_trees_all_equal(models.join_layers(split), params)
    chex.assert_trees_all_equal(
        model.init(jax.random.key(0)), models.split_layers(whole.init(jax.random.key(0)), 1)
    )
    mask = ALL.copy()
    mask[0, :2] = False

    @jax.jit
    def apart(below, split):
        hidden = model.trunk_fn(below, TOKENS, mask)
        logits = model.top_fn(split, hidden, mask)
        return hidden, logits.hidden @ logits.unembedding

    below = {name: split[name] for name in ("embed", "layers")}  # the trunk needs no more
    hidden, logits = apart(below, split)
    assert hidden.shape == (2, 6, 16)
    np.testing.assert_allclose(logits, logits_fn(params, TOKENS, mask), atol=1e-5)
    nothing_below = models.split_layers(params, 3)
    assert "layers" not in nothing_below
    chex.assert_trees_all_equal(models.join_layers(nothing_below), params)
    with pytest.raises(ValueError, match="layers and no top_layers, not"):
        models.split_layers(split, 1)
    with pytest.raises(ValueError, match="top must be from 0 to 3, the number of layers, not 4"):
        models.split_layers(params, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "batch"}, "norm must be one of rms, rms_from_one, layer, not 'batch'"),
        ({"activation": "tanh"}, "activation must be one of silu, gelu, gelu_tanh, relu, not"),
        ({"sliding_window": 0}, "sliding_window must be above 0, or None, not 0"),
        ({"sliding_layers": (True,) * 3}, "need a sliding_window"),
        ({"sliding_window": 2, "sliding_layers": (True,)}, "of each of the 3 layers, not of 1"),
        ({"num_top_layers": 4}, r"from 0 to num_layers \(3\), not 4"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_impossible_rope_scalings_are_refused():
    with pytest.raises(ValueError, match="kind must be one of linear, llama3, yarn, not 'ntk'"):
        models.RopeScaling("ntk", 2.0)
    with pytest.raises(ValueError, match="original_length must be at least 1, not None"):
        models.RopeScaling("yarn", 2.0)
    with pytest.raises(ValueError, match=r"slow \(1.0\) must be above 0 and below fast \(1.0\)"):
        models.RopeScaling("llama3", 2.0, 8, fast=1.0)
    yarn = models.RopeScaling("yarn", 2.0, 8)
    with pytest.raises(ValueError, match="by yarn in some layers only"):
        dataclasses.replace(CONFIG, sliding_window=3, local_rope_theta=9.0, rope_scaling=yarn)


def test_dtype_policy():
    config = dataclasses.replace(
        CONFIG, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, logits_dtype=jnp.float32
    )
    model = models.language_model(config)
    params = model.init(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    for logits_fn, dtype in ((model.logits_fn, "float32"), (model.factored_logits_fn, "bfloat16")):
        shape = jax.eval_shape(logits_fn, params, TOKENS, ALL)
        assert jax.tree.leaves(shape)[0].dtype == dtype
    assert model.decoder.init_cache(1, 4).keys.dtype == jnp.bfloat16


def test_score_is_read_at_the_last_real_token():
    model = models.score_model(CONFIG)
    params = shaken(model)
    score_fn = jax.jit(model.score_fn)
    short = score_fn(params, TOKENS[:, :4], ALL[:, :4])
    padded = score_fn(params, TOKENS, np.arange(6) < 4 * np.ones([2, 1]))
    np.testing.assert_allclose(short, padded, atol=1e-5)
    assert np.abs(short - score_fn(params, TOKENS, ALL)).max() > 1e-3
    nothing = score_fn(params, TOKENS, np.zeros_like(ALL))
    np.testing.assert_array_equal(nothing, [0, 0])


def test_a_language_model_fits_as_the_trunk_of_a_score_model():
    trunk = models.language_model(CONFIG).init(jax.random.key(0))
    params = models.score_model(CONFIG).init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes(trunk, params["trunk"])


def test_a_value_does_not_see_the_token_it_stands_before():
    model = models.value_model(CONFIG)
    params = shaken(model)
    value_fn = jax.jit(model.value_fn)
    values = value_fn(params, TOKENS, ALL)
    other = TOKENS.copy()
    other[:, 3] = 0
    changed = np.abs(value_fn(params, other, ALL) - values).max(axis=0) > 1e-6
    np.testing.assert_array_equal(changed, [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(values[:, 0], [0, 0])


def test_nnx_adapter_makes_a_pure_logits_fn():
    class Bigram(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(11, 4, rngs=rngs)
            self.out = nnx.Linear(4, 11, rngs=rngs)

        def __call__(self, tokens, mask):
            return self.out(self.embed(tokens))

    module = Bigram(nnx.Rngs(0))
    logits_fn, params = models.from_nnx(module)
    tokens = jnp.array([[1, 2, 3]])
    np.testing.assert_allclose(
        jax.jit(logits_fn)(params, tokens, None), module(tokens, None), atol=1e-6
    )
    gradient = jax.grad(lambda p: logits_fn(p, tokens, None).sum())(params)
    chex.assert_trees_all_equal_shapes(gradient, params)


def test_layers_side_by_side_are_the_same_model():
    _, params, logits = language_model(CONFIG)
    unrolled = models.language_model(dataclasses.replace(CONFIG, unroll=2))  # of three
    found = jax.jit(unrolled.logits_fn)(params, TOKENS, ALL)
    np.testing.assert_allclose(found, logits(params, TOKENS, ALL), atol=1e-5)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="unroll must be at least 1, not 0"):
        dataclasses.replace(CONFIG, unroll=0)
    with pytest.raises(ValueError, match=r"num_kv_heads \(3\) must divide num_heads \(4\)"):
        dataclasses.replace(CONFIG, num_kv_heads=3)
    with pytest.raises(ValueError, match="must be even"):
        dataclasses.replace(CONFIG, head_dim=5)
    with pytest.raises(ValueError, match="must divide hidden_size"):
        TransformerConfig(vocab_size=4, hidden_size=10, num_heads=4)
    model = models.language_model(dataclasses.replace(CONFIG, max_length=4))
    with pytest.raises(ValueError, match="6 tokens, but the model reads at most 4"):
        model.logits_fn(model.init(jax.random.key(0)), TOKENS, ALL)


def test_linen_apply_is_a_pure_function_of_params():
    module = models.Transformer(CONFIG)
    assert isinstance(module, nn.Module)
    _, params, _ = language_model(CONFIG)
    hidden, (keys, _) = module.apply({"params": params}, TOKENS, ALL)
    assert hidden.shape == (2, 6, 16)
    assert keys.shape == (3, 2, 2, 6, 6)


@pytest.mark.parametrize("presence", [False, True])
def test_ngram_model_by_hand(presence):
    model = models.ngram_model(12, buckets=1, bigram_weight=0.5, presence=presence)
    params = model.init(jax.random.key(0), np.eye(12)[:, :3])
    params |= {"word": jnp.arange(12.0), "pair": jnp.array([10.0]), "direction": jnp.ones(3)}
    tokens = np.array([[1, 5, 6, 5, 6, 2], [1, 5, 6, 5, 6, 2]])
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]], bool)
    # Words 5, 6 and 5, 6 and three pairs of the one bucket; then 5, 5, 6 and the one pair left.
    words, pairs = ([11, 11], [1, 1]) if presence else ([22, 16], [3, 1])
    expected = (np.array(words) + 0.5 * 10 * np.array(pairs)) / np.sqrt(np.array([4, 3]) + 1)
    np.testing.assert_allclose(jax.jit(model.score_fn)(params, tokens, mask), expected, rtol=1e-6)


def test_word_vectors_are_used_and_not_trained():
    model = models.ngram_model(12, buckets=8)
    vectors = np.arange(24.0).reshape(12, 2)
    params = model.init(jax.random.key(0), vectors)
    assert model.trained(params) == {
        "word": True, "pair": True, "direction": True, "vectors": False
    }  # fmt: skip
    tokens, mask = np.array([[1, 5, 6]]), np.ones([1, 3], bool)
    gradient = jax.grad(lambda p: model.score_fn(p, tokens, mask)[0])(params)
    np.testing.assert_array_equal(gradient["vectors"], 0)
    np.testing.assert_allclose(gradient["direction"], (vectors[5] + vectors[6]) / 3**0.5, rtol=1e-6)
    with pytest.raises(ValueError, match=r"vectors must be \[12, F\], not \(3, 2\)"):
        model.init(jax.random.key(0), vectors[:3])


WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "good", "not", "film", ".", "goodness", "dull"]


def hashed_features(text):
    """Words, pairs and pieces of a text with their weights; a piece once for each word it is in."""
    on, marked = False, []
    for word in text:
        on = on and word != "."
        marked.append((word, on))
        on = on or word == "not"
    whole = {(word,): 1.0 for word in marked} | dict.fromkeys(itertools.pairwise(marked), 0.6)
    return list(whole.items()) + [
        (f"<{word}>"[i : i + n], 0.35)
        for word in set(text)
        for n in (3, 4, 5)
        for i in range(len(word) + 3 - n)
    ]


def hashed_bucket(feature, buckets):
    if isinstance(feature, str):
        return zlib.crc32(feature.encode()) % buckets
    ids = [2 * WORDS.index(word) + negated for word, negated in feature]
    return int(ngrams._bucket(*np.array([*ids, 0], np.int32)[:2, None], buckets)[0])


def test_hashed_model_by_hand():
    texts = ["not good film . good film .", "goodness film", "film good", "dull . not dull dull"]
    texts = [text.split() for text in texts]
    tokens = np.zeros([4, 9], np.int32)
    for row, text in enumerate(texts):
        tokens[row, 1 : len(text) + 2] = [1, *map(WORDS.index, text)]
    model, both = (models.hashed_model(WORDS, outputs=n, buckets=2**16) for n in (None, 2))
    params = model.init(jax.random.key(0), tokens, tokens > 0)
    assert model.trained(params) == {"weight": True, "bias": True, "scale": False}
    draw = np.random.default_rng(0).standard_normal(2**16, np.float32)
    params = jax.device_get(params) | {"weight": draw, "bias": np.float32(0.7)}
    score_fn = jax.jit(model.score_fn)
    scores = score_fn(params, tokens, tokens > 0)
    of_texts = [hashed_features(text) for text in texts]
    everything = [feature for features in of_texts for feature, _ in features]
    for features, score in zip(of_texts, scores, strict=True):
        total = square = 0.0
        for feature, weight in features:
            bucket = hashed_bucket(feature, 2**16)
            rarity = np.log(5 / (1 + min(everything.count(feature), 4)))
            np.testing.assert_allclose(params["scale"][bucket], rarity, atol=1e-6)
            total += weight * rarity * params["weight"][bucket]
            square += (weight * rarity) ** 2
        np.testing.assert_allclose(score, total / square**0.5 + 0.7, rtol=1e-4)
    # What the mask hides is not there.
    alone = np.zeros_like(tokens)
    alone[:, 0] = WORDS.index("good")
    hidden, alone = (score_fn(params, x, x == WORDS.index("good"))[2] for x in (tokens, alone))
    np.testing.assert_allclose(hidden, alone, rtol=1e-6)
    # Of nothing there is nothing to say, and nothing to learn but the bias.
    params |= {"weight": np.stack([draw, -draw], axis=1), "bias": np.array([0.7, 2], np.float32)}

    def total(params, shown):
        scores = both.score_fn(params, tokens, (tokens > 0) & shown)
        return scores.sum(), scores

    gradient_fn = jax.jit(jax.grad(total, has_aux=True))
    gradient, empty = gradient_fn(params, False)
    np.testing.assert_array_equal(empty, np.tile(params["bias"], (4, 1)))
    assert not gradient["weight"].any()
    gradient, two = gradient_fn(params, True)
    np.testing.assert_allclose(two, np.stack([scores, 2.7 - scores], axis=1), rtol=1e-4)
    assert gradient["weight"].any()
    assert not gradient["scale"].any()


def test_hashed_model_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="several words, not one string"):
        models.hashed_model("good film")
    with pytest.raises(ValueError, match="outputs must be at least 1, not 0"):
        models.hashed_model(WORDS, outputs=0)
    with pytest.raises(ValueError, match="tokens and mask must have one shape"):
        models.hashed_model(WORDS).init(jax.random.key(0), TOKENS, ALL[:, 1:])
