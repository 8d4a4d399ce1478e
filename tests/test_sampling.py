"""Generation: its distribution, its log-probabilities, its ends and its keys."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import models, sampling, sequences
from rlhf_jax.sampling import draws
from rlhf_jax.types import Prompts

EOS = 7
CONFIG = models.TransformerConfig(
    vocab_size=23, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, max_length=24
)
MODEL = models.language_model(CONFIG)
PARAMS = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, MODEL.init(jax.random.key(0)))
LOGITS_FN = jax.jit(MODEL.logits_fn)
PROMPTS = Prompts(
    jnp.array([[0, 0, 3, 4], [5, 6, 1, 8], [0, 9, 9, 2], [0, 0, 0, 1]]),
    jnp.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]], bool),
)
KEYS = jax.random.split(jax.random.key(5), 4)


@pytest.fixture(scope="module")
def sampled():
    sample = jax.jit(sampling.sampler(MODEL.decoder, max_new_tokens=12, eos_id=EOS))
    return sample(PARAMS, PROMPTS, KEYS)


def test_log_probs_are_those_of_the_uncached_model(sampled):
    logits = LOGITS_FN(PARAMS, sampled.tokens, sampled.mask)
    log_probs = sequences.token_log_probs(logits, sampled.tokens)
    expected = jnp.where(sampled.response_mask, log_probs, 0)
    np.testing.assert_allclose(sampled.log_probs, expected, atol=1e-4)
    assert (sampled.log_probs[:, 4] < 0).all()


def test_a_response_ends_with_its_end_of_text():
    sample = sampling.sampler(MODEL.decoder, max_new_tokens=12, eos_id=EOS, pad_id=0)
    many = jax.tree.map(lambda x: jnp.repeat(x, 16, axis=0), PROMPTS)
    out = jax.jit(sample)(PARAMS, many, jax.random.split(jax.random.key(1), 64))
    tokens, mask = np.asarray(out.tokens[:, 4:]), np.asarray(out.response_mask[:, 4:])
    ended = (tokens == EOS).any(axis=1)
    assert 0 < ended.sum() < len(ended), "the case must have both"
    for row, counted in zip(tokens, mask, strict=True):
        length = int(np.argmax(row == EOS)) + 1 if (row == EOS).any() else 12
        np.testing.assert_array_equal(counted, np.arange(12) < length)
        np.testing.assert_array_equal(row[length:], 0)
    np.testing.assert_array_equal(out.mask[:, 4:], mask)
    np.testing.assert_array_equal(out.response_mask[:, :4], False)


def test_the_loop_ends_when_all_have(sampled):
    """With a model that says end-of-text at once, one token is drawn and none is read."""
    reads = []

    def apply(params, tokens, mask, cache):
        jax.debug.callback(lambda: reads.append(tokens.shape[1]))
        return jnp.where(jnp.arange(23) == EOS, 50.0, 0.0) * jnp.ones([4, 1]), cache

    decoder = MODEL.decoder._replace(apply=apply)
    sample = sampling.sampler(decoder, max_new_tokens=12, eos_id=EOS)
    out = jax.jit(sample)(PARAMS, PROMPTS, KEYS)
    jax.effects_barrier()
    np.testing.assert_array_equal(out.response_mask.sum(axis=1), [1, 1, 1, 1])
    assert reads == [4]


def test_a_sequence_depends_on_its_own_key_and_prompt_alone(sampled):
    order = jnp.array([2, 0])
    part = jax.tree.map(lambda x: x[order], PROMPTS)
    sample = sampling.sampler(MODEL.decoder, max_new_tokens=12, eos_id=EOS)
    alone = jax.jit(sample)(PARAMS, part, KEYS[order])
    chex.assert_trees_all_close(alone, jax.tree.map(lambda x: x[order], sampled), atol=1e-5)


def test_jit_equals_eager(sampled):
    few = jax.tree.map(lambda x: x[:2], PROMPTS)
    eager = sampling.sampler(MODEL.decoder, max_new_tokens=12, eos_id=EOS)(PARAMS, few, KEYS[:2])
    chex.assert_trees_all_close(eager, jax.tree.map(lambda x: x[:2], sampled), atol=1e-5)


def test_greedy_equals_a_loop_over_the_uncached_model():
    sample = jax.jit(sampling.sampler(MODEL.decoder, max_new_tokens=6, temperature=0.0))
    out = sample(PARAMS, PROMPTS, KEYS)
    tokens = jnp.pad(PROMPTS.tokens, ((0, 0), (0, 6)))
    mask = jnp.pad(PROMPTS.mask, ((0, 0), (0, 6)))
    for column in range(4, 10):
        best = jnp.argmax(LOGITS_FN(PARAMS, tokens, mask)[:, column - 1], axis=-1)
        tokens, mask = tokens.at[:, column].set(best), mask.at[:, column].set(True)
    np.testing.assert_array_equal(out.tokens, tokens)
    np.testing.assert_array_equal(out.log_probs, 0)


def test_filter_logits_by_hand():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))

    def kept(**settings):
        return np.exp(sampling.filter_logits(logits, **settings))[0]

    np.testing.assert_allclose(kept(), [0.1, 0.4, 0.2, 0.3], rtol=1e-5)
    np.testing.assert_allclose(kept(top_k=2), [0, 4 / 7, 0, 3 / 7], rtol=1e-5)
    np.testing.assert_allclose(kept(top_p=0.69), [0, 4 / 7, 0, 3 / 7], rtol=1e-5)
    np.testing.assert_allclose(kept(top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9], rtol=1e-5)
    np.testing.assert_allclose(kept(top_p=0.01), [0, 1, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(kept(temperature=0.5), np.array([1, 16, 4, 9]) / 30, rtol=1e-5)
    np.testing.assert_allclose(kept(temperature=0), [0, 1, 0, 0])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.5}])
def test_samples_follow_the_distribution_they_report(settings):
    sample = jax.jit(sampling.sampler(MODEL.decoder, max_new_tokens=1, **settings))
    prompts = jax.tree.map(lambda x: jnp.repeat(x[:1], 8000, axis=0), PROMPTS)
    out = sample(PARAMS, prompts, jax.random.split(jax.random.key(2), 8000))
    logits = LOGITS_FN(PARAMS, PROMPTS.tokens[:1], PROMPTS.mask[:1])[0, -1]
    expected = np.exp(sampling.filter_logits(logits[None], **settings))[0]
    counts = np.bincount(out.tokens[:, -1], minlength=23) / 8000
    np.testing.assert_allclose(counts, expected, atol=0.02)
    np.testing.assert_allclose(np.exp(out.log_probs[:, -1]), expected[out.tokens[:, -1]], rtol=1e-4)


def test_vmap_over_parameters_and_keys(sampled):
    sample = sampling.sampler(MODEL.decoder, max_new_tokens=12, eos_id=EOS)
    both = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), PARAMS)
    keys = jnp.stack([KEYS, KEYS])
    out = jax.jit(jax.vmap(sample, (0, None, 0)))(both, PROMPTS, keys)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], out), sampled, atol=1e-5)
    assert (out.tokens[0] != out.tokens[1]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"eos_id": 23}, "eos_id 23 is not in a vocabulary of 23"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sampling.sampler(MODEL.decoder, **({"max_new_tokens": 4} | settings))


def test_a_response_longer_than_the_context_is_refused():
    decoder = models.language_model(dataclasses.replace(CONFIG, max_length=10)).decoder
    sample = partial(sampling.sampler(decoder, max_new_tokens=7), PARAMS, PROMPTS)
    with pytest.raises(ValueError, match="prompts of 4 and responses of 7 tokens make 11, but"):
        sample(KEYS)
    for wrong in (KEYS[:2], KEYS[:0], jnp.tile(KEYS, 2)[:6], KEYS[:, None]):
        with pytest.raises(ValueError, match="as many for each prompt: 4 prompts, keys of shape"):
            sampling.sampler(decoder, max_new_tokens=6)(PARAMS, PROMPTS, wrong)


@pytest.mark.parametrize("vocabulary", [1, 7, 64, 200])
def test_draws_never_hit_what_has_no_probability(vocabulary):
    weights = jnp.where(jnp.arange(vocabulary) % 3 == vocabulary // 2 % 3, 1.0, 0.0)
    weights = weights.at[vocabulary // 2].set(0.5)
    keys = jax.random.split(jax.random.key(0), 20_000)
    logits = 3 + jnp.log(weights) * jnp.ones([20_000, 1])  # which need not be normalised
    drawn, log_probs = draws.categorical(jax.vmap(jax.random.uniform)(keys), logits)
    expected = jnp.log(weights / weights.sum())[drawn]
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)
    counts = np.bincount(drawn, minlength=vocabulary)
    assert len(counts) == vocabulary
    assert (counts[np.asarray(weights) == 0] == 0).all()
    np.testing.assert_allclose(counts / 20_000, weights / weights.sum(), atol=0.015)
