"""Samples that share a prompt, and slots that are refilled, say what separate prompts would."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from rlhf_jax import models, parallel, sampling
from rlhf_jax.models import cache as caches
from rlhf_jax.types import Prompts

EOS, NEW = 7, 12
CONFIG = models.TransformerConfig(
    vocab_size=23, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, max_length=24
)
KINDS = {
    "rotary": CONFIG,
    "learned positions and windows": dataclasses.replace(
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


def parameters(model):
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, model.init(jax.random.key(0)))


def repeated(prompts, samples):
    return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)


def plain(model, **settings):
    return sampling.sampler(model.decoder, max_new_tokens=NEW, eos_id=EOS, **settings)


def refilling(model, slots, **settings):
    settings = {"max_new_tokens": NEW, "eos_id": EOS} | settings
    return sampling.refilling_sampler(model.decoder, slots=slots, **settings)


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    """A model, its parameters, and three answers to each prompt, each of which was read itself."""
    model = models.language_model(KINDS[request.param])
    params = parameters(model)
    return model, params, jax.jit(plain(model))(params, repeated(PROMPTS, 3), KEYS)


def test_samples_of_a_prompt_that_is_read_once_are_those_of_repeated_prompts(case):
    model, params, expected = case
    lengths = set(np.asarray(expected.response_mask.sum(axis=1)).tolist())
    assert len(lengths) > 2, "the case must have unequal lengths"
    shared = jax.jit(plain(model))(params, PROMPTS, KEYS)
    chex.assert_trees_all_close(shared, expected, atol=1e-5)


@pytest.mark.parametrize(("slots", "at"), [(5, 2), (1, None), (40, 3)])
def test_refilled_slots_say_what_the_plain_sampler_says(case, slots, at):
    model, params, expected = case
    out = jax.jit(refilling(model, slots, refill_at=at))(params, PROMPTS, KEYS)
    chex.assert_trees_all_close(out, expected, atol=1e-5)


def test_sequences_end_and_begin_at_any_time():
    """With one key a prompt, without an end, and with one token: the edges of the queue."""
    model = models.language_model(CONFIG)
    params, prompts = parameters(model), repeated(PROMPTS, 3)
    for settings in ({"eos_id": None, "max_new_tokens": 3}, {"max_new_tokens": 1}):
        expected = jax.jit(plain_with(model, settings))(params, prompts, KEYS)
        out = jax.jit(refilling(model, 5, **settings))(params, prompts, KEYS)
        chex.assert_trees_all_close(out, expected, atol=1e-5)


def plain_with(model, settings):
    return sampling.sampler(model.decoder, **({"max_new_tokens": NEW, "eos_id": EOS} | settings))


def test_the_loop_reads_as_many_tokens_as_are_said():
    """Two slots for sequences of known lengths: no step is taken that none needs."""
    reads = []
    decoder = models.language_model(CONFIG).decoder

    def apply(params, tokens, mask, cache):
        """Counts down from the newest token to the end, which is 0."""
        jax.debug.callback(lambda mask: reads.append(np.asarray(mask)), mask)
        following = jnp.maximum(tokens[:, -1] - 1, 0)
        return jnp.where(jnp.arange(23) == following[:, None], 50.0, 0.0), cache

    decoder = decoder._replace(apply=apply, prepare=lambda params: params)
    sample = sampling.refilling_sampler(decoder, slots=2, max_new_tokens=12, eos_id=0)
    prompts = Prompts(jnp.array([[3], [1], [6], [2], [3]]), jnp.ones([5, 1], bool))
    out = jax.jit(sample)((), prompts, KEYS[:5])
    jax.effects_barrier()
    np.testing.assert_array_equal(out.response_mask.sum(axis=1), [3, 1, 6, 2, 3])
    np.testing.assert_array_equal(out.tokens[2], [6, 5, 4, 3, 2, 1, 0] + [0] * 6)
    steps = [mask for mask in reads if mask.shape == (2, 1)]
    # After the first tokens 2, 0, 5, 1 and 2 more are to be read: in 2 slots, 2 + 1 + 2 beside 5.
    assert len(reads) - len(steps) == 1
    assert sum(mask.sum() for mask in steps) == 10
    assert len(steps) == 7


def test_inside_vmap_and_on_a_mesh():
    model = models.language_model(CONFIG)
    both = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), parameters(model))
    prompts = repeated(PROMPTS, 2)
    sample, expected = refilling(model, 3), jax.jit(jax.vmap(plain(model), (0, None, None)))
    expected = expected(both, prompts, KEYS[:8])
    out = jax.jit(jax.vmap(sample, (0, None, None)))(both, prompts, KEYS[:8])
    chex.assert_trees_all_close(out, expected, atol=1e-5)
    mesh = parallel.data_mesh()
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = jax.device_put((prompts, KEYS[:8]), rows)
    first = jax.tree.map(lambda x: x[0], (both, expected))
    chex.assert_trees_all_close(jax.jit(sample)(first[0], *placed), first[1], atol=1e-5)


def test_a_mixture_shares_and_refills_too():
    model = models.language_model(CONFIG)
    pair = parameters(model), jax.tree.map(lambda x: 0.9 * x, parameters(model))
    mixture = sampling.geometric_mixture(model.decoder, reference_weight=0.3)
    mixed = model._replace(decoder=mixture)
    expected = jax.jit(plain(mixed))(pair, repeated(PROMPTS, 3), KEYS)
    out = jax.jit(refilling(mixed, 5))(pair, PROMPTS, KEYS)
    chex.assert_trees_all_close(out, expected, atol=1e-5)


def test_a_cache_in_bfloat16_is_close(case):
    model, params, expected = case
    small = models.language_model(dataclasses.replace(model.config, cache_dtype=jnp.bfloat16))
    assert small.decoder.init_cache(1, 2).keys.dtype == jnp.bfloat16
    cache = small.decoder.init_cache(12, 16)
    logits, _ = small.decoder.apply(params, expected.tokens, expected.mask, cache)
    exact, _ = model.decoder.apply(
        params, expected.tokens, expected.mask, model.decoder.init_cache(12, 16)
    )
    assert 0 < jnp.abs(logits - exact).max() < 0.05 * jnp.ptp(exact)
    assert logits.dtype == exact.dtype == jnp.float32


def test_a_decoder_without_forks_reads_each_prompt_for_each_sample():
    prompts = toys.prompts(3)
    out = toys.sample_fn()(toys.bigram_params(), prompts, KEYS[:6])
    expected = toys.sample_fn()(toys.bigram_params(), repeated(prompts, 2), KEYS[:6])
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
        refilling(models.language_model(CONFIG), **settings)


def test_what_cannot_be_refilled_is_refused():
    with pytest.raises(ValueError, match="refilling needs a decoder with fork and refill"):
        sampling.refilling_sampler(toys.BIGRAM, slots=2, max_new_tokens=2)
    with pytest.raises(ValueError, match="as many for each prompt: 4 prompts"):
        refilling(models.language_model(CONFIG), 2)({}, PROMPTS, KEYS[:6])
    cache = partial(caches.empty, dtype=jnp.float32)((1, 2, 1, 3, 4))
    with pytest.raises(ValueError, match="continues another cannot be continued"):
        caches.fork(caches.fork(cache, 2, 3), 2, 3)
