"""Samples that share a prompt, and slots that are refilled, say what separate prompts would."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from rlhf_jax import models, parallel, sampling
from rlhf_jax.models import cache as caches
from rlhf_jax.types import Decoder, Prompts

EOS, NEW, VOCAB = 7, 12, 23
CONFIG = models.TransformerConfig(
    vocab_size=VOCAB, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, max_length=24
)
# Rotary positions with layers in a loop; and learned ones with windows and layers apart.
KINDS = {
    "rotary": CONFIG,
    "others": dataclasses.replace(
        CONFIG,
        learned_positions=True,
        sliding_window=3,
        sliding_layers=(True, False),
        num_top_layers=1,
        unrolled_decoding=True,
    ),
}
PROMPTS = Prompts(
    jnp.array([[0, 0, 3, 4], [5, 6, 1, 8], [0, 9, 9, 2], [0, 0, 0, 1]]),
    jnp.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]], bool),
)
KEYS = jax.random.split(jax.random.key(5), 12)


def repeated(prompts, samples):
    return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)


def plain(decoder, **settings):
    return sampling.sampler(decoder, **({"max_new_tokens": NEW, "eos_id": EOS} | settings))


def refilling(decoder, slots, **settings):
    settings = {"max_new_tokens": NEW, "eos_id": EOS} | settings
    return sampling.refilling_sampler(decoder, slots=slots, **settings)


@pytest.fixture(scope="module", params=["rotary", pytest.param("others", marks=pytest.mark.slow)])
def case(request):
    """A model, its parameters, and three answers to each prompt, each of which was read itself."""
    model = models.language_model(KINDS[request.param])
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, model.init(jax.random.key(0)))
    sample = jax.jit(plain(model.decoder))
    return model, params, lambda keys: sample(params, repeated(PROMPTS, 3), keys)


def test_samples_of_a_prompt_that_is_read_once_are_those_of_repeated_prompts(case):
    model, params, expected = case
    lengths = np.asarray(expected(KEYS).response_mask.sum(axis=1))
    assert len(set(lengths.tolist())) > 2, "the case must have unequal lengths"
    shared = jax.jit(plain(model.decoder))(params, PROMPTS, KEYS)
    chex.assert_trees_all_close(shared, expected(KEYS), atol=1e-5)


def test_refilled_slots_say_what_the_plain_sampler_says(case):
    """Also inside vmap. The slots do not divide the sequences."""
    model, params, expected = case
    sample = refilling(model.decoder, 5, refill_at=2)
    keys = jnp.stack([KEYS, KEYS[::-1]])
    out = jax.jit(jax.vmap(sample, (None, None, 0)))(params, PROMPTS, keys)
    each = jax.tree.map(lambda *x: jnp.stack(x), expected(KEYS), expected(KEYS[::-1]))
    chex.assert_trees_all_close(out, each, atol=1e-5)


def test_on_a_mesh(case):
    model, params, expected = case
    rows = jax.sharding.NamedSharding(parallel.data_mesh(), jax.sharding.PartitionSpec("data"))
    out = jax.jit(refilling(model.decoder, 3))(params, *jax.device_put((PROMPTS, KEYS), rows))
    chex.assert_trees_all_close(out, expected(KEYS), atol=1e-5)


def test_a_cache_in_bfloat16_and_attention_by_jax_are_close(case):
    model, params, _ = case

    def read(**changes):
        decoder = models.language_model(dataclasses.replace(model.config, **changes)).decoder
        cache = decoder.init_cache(4, 4)
        assert cache.keys.dtype == changes.get("cache_dtype", jnp.float32)
        return jax.jit(decoder.apply)(params, *jax.tree.leaves(PROMPTS), cache)[0]

    exact, rough = read(), read(cache_dtype=jnp.bfloat16, attention="xla")
    assert 0 < jnp.abs(rough - exact).max() < 0.05 * jnp.ptp(exact)
    assert rough.dtype == jnp.float32


# A model without layers: what follows depends on the sum of all tokens before.
SUMMING = Decoder(
    init_cache=lambda batch, length: jnp.zeros([batch], jnp.int32),
    apply=lambda table, tokens, mask, total: (
        table[(total + jnp.sum(jnp.where(mask, tokens, 0), axis=-1)) % VOCAB],
        total + jnp.sum(jnp.where(mask, tokens, 0), axis=-1),
    ),
    vocab_size=VOCAB,
    max_length=64,
    fork=lambda total, samples, length: jnp.repeat(total, samples),
    refill=lambda total, slots, source, rows: total.at[slots].set(source[rows], mode="drop"),
)
TABLE = 2 * jax.random.normal(jax.random.key(3), [VOCAB, VOCAB])


@pytest.mark.parametrize(
    ("slots", "settings"),
    [
        (40, {"eos_id": None, "max_new_tokens": 3, "refill_at": 3}),  # more slots than sequences
        (5, {"max_new_tokens": 1}),
        (1, {"temperature": 0.7, "top_k": 4, "pad_id": 3}),
        pytest.param(4, {"max_new_tokens": 2, "refill_at": 4}, marks=pytest.mark.slow),
        pytest.param(5, {"temperature": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_sequences_end_and_begin_at_any_time(slots, settings):
    without = {name: value for name, value in settings.items() if name != "refill_at"}
    expected = jax.jit(plain(SUMMING, **without))(TABLE, repeated(PROMPTS, 3), KEYS)
    out = jax.jit(refilling(SUMMING, slots, **settings))(TABLE, PROMPTS, KEYS)
    chex.assert_trees_all_close(out, expected, atol=1e-6)


@pytest.mark.slow
def test_a_mixture_shares_and_refills_too():
    mixture = sampling.geometric_mixture(SUMMING, reference_weight=0.3)
    tables = TABLE, TABLE[::-1]
    expected = jax.jit(plain(mixture))(tables, repeated(PROMPTS, 3), KEYS)
    for sample in (plain(mixture), refilling(mixture, 5)):
        chex.assert_trees_all_close(jax.jit(sample)(tables, PROMPTS, KEYS), expected, atol=1e-5)


def test_no_step_is_taken_that_no_slot_needs():
    """Two slots for sequences of known lengths."""
    reads = []

    def apply(params, tokens, mask, cache):
        """Counts down from the newest token to the end, which is 0."""
        jax.debug.callback(lambda mask: reads.append(np.asarray(mask)), mask)
        following = jnp.maximum(tokens[:, -1:] - 1, 0)
        return jnp.where(jnp.arange(VOCAB) == following, 50.0, 0.0), cache

    sample = refilling(SUMMING._replace(apply=apply), 2, eos_id=0)
    prompts = Prompts(jnp.array([[3], [1], [6], [2], [3]]), jnp.ones([5, 1], bool))
    out = jax.jit(sample)((), prompts, KEYS[:5])
    jax.effects_barrier()
    np.testing.assert_array_equal(out.response_mask.sum(axis=1), [3, 1, 6, 2, 3])
    np.testing.assert_array_equal(out.tokens[2], [6, 5, 4, 3, 2, 1, 0] + [0] * 6)
    steps = [mask for mask in reads if mask.shape == (2, 1)]
    assert len(reads) - len(steps) == 1  # all prompts together
    # Behind the first tokens 2, 0, 5, 1 and 2 more are said: 5 in one slot, 2 + 1 + 2 in the other.
    assert sum(int(mask.sum()) for mask in steps) == 10
    assert len(steps) == 5


def test_a_decoder_without_forks_reads_each_prompt_for_each_sample():
    prompts, sample = toys.prompts(3), jax.jit(toys.sample_fn())
    out = sample(toys.bigram_params(), prompts, KEYS[:6])
    expected = sample(toys.bigram_params(), repeated(prompts, 2), KEYS[:6])
    chex.assert_trees_all_close(out, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slots": 0}, "slots must be at least 1, not 0"),
        ({"slots": 4, "refill_at": 5}, r"refill_at must be from 1 to slots \(4\), not 5"),
        ({"slots": 4, "refill_at": 0}, r"refill_at must be from 1 to slots \(4\), not 0"),
        ({"slots": 4, "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"slots": 4, "temperature": -1.0}, "temperature must not be negative"),
        ({"slots": 4, "pad_id": 23}, "pad_id 23 is not in a vocabulary of 23"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        refilling(SUMMING, **settings)


def test_what_cannot_be_refilled_is_refused():
    with pytest.raises(ValueError, match="refilling needs a decoder with fork and refill"):
        sampling.refilling_sampler(toys.BIGRAM, slots=2, max_new_tokens=2)
    with pytest.raises(ValueError, match="as many for each prompt: 4 prompts"):
        refilling(SUMMING, 2)(TABLE, PROMPTS, KEYS[:6])
    cache = caches.empty((1, 2, 1, 3, 4), jnp.float32)
    with pytest.raises(ValueError, match="continues another cannot be continued"):
        caches.fork(caches.fork(cache, 2, 3), 2, 3)
    with pytest.raises(ValueError, match="attention must be one of auto, einsum, xla, cudnn"):
        dataclasses.replace(CONFIG, attention="flash")
