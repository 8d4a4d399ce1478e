"""Heads on the frozen reference: the numbers of separate networks, with fewer forward passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, models, rewards
from rlhf_jax.sequences import align, last_token, token_log_probs
from rlhf_jax.types import ActorCritic, FactoredLogits

HEAD = models.linear_head(32)
# Large enough to matter, unlike fresh ones.
SCORE, CRITIC = (
    jax.tree.map(lambda x: 50 * x, HEAD.init(key)) for key in jax.random.split(jax.random.key(0))
)
TEXT = toys.sequences(8, empty=(2,))


def features(params, tokens):
    return jnp.tanh(params["embed"][tokens] @ params["mix"])


def plain_logits(params, tokens, mask):
    """The smallest model with features: compiled in a fraction of a transformer's time."""
    return FactoredLogits(features(params, tokens), params["unembed"])


def plain_params(seed):
    shapes = {"embed": [toys.VOCAB, 32], "mix": [32, 32], "unembed": [32, toys.VOCAB]}
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        name: 0.3 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def sample_fn(params, prompts, keys):
    """Eight answers that were written beforehand."""
    tokens = jnp.asarray(TEXT.tokens)
    log_probs = token_log_probs(plain_logits(params, tokens, TEXT.mask), tokens)
    return TEXT.replace(tokens=tokens, log_probs=log_probs)


def step_of(shared):
    """A step with a reward and a critic that are heads on the reference, or trunks with heads."""

    def score(params, tokens, mask):
        scores = HEAD.apply(params["head"], features(params["trunk"], tokens))
        return jnp.sum(jnp.where(last_token(mask), scores, 0), axis=-1)

    def value(params, tokens, mask):
        hidden = jax.lax.stop_gradient(features(params["trunk"], tokens))
        return align(HEAD.apply(params["head"], hidden))

    algorithm = algorithms.policy_gradient(
        plain_logits,
        sample_fn,
        None if shared else rewards.from_scores(score),
        optax.sgd(0.1),
        shared_fn=models.shared_trunk(plain_logits, HEAD) if shared else None,
        value_fn=models.feature_values(HEAD) if shared else value,
        samples_per_prompt=2,
    )
    trunk = plain_params(1)
    critic = CRITIC if shared else {"trunk": trunk, "head": CRITIC}
    reward = SCORE if shared else {"trunk": trunk, "head": SCORE}
    params = ActorCritic(plain_params(0), critic)
    state = algorithm.init(params, jax.random.key(0), reward=reward, reference=trunk)
    prompts = toys.prompts(4, length=2, empty=(3,))
    compiled = jax.jit(algorithm.step).lower(state, prompts).compile()
    after, metrics = compiled(state, prompts)
    head = after.params.critic if shared else after.params.critic["head"]
    return (after.params.policy, head, metrics), compiled.cost_analysis()["flops"]


def test_one_pass_of_the_reference_gives_the_numbers_of_separate_networks():
    shared, flops = step_of(True)
    apart, more = step_of(False)
    for x, y in zip(jax.tree.leaves(shared), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert abs(shared[2]["reward"]) > 0.05 and shared[2]["value_loss"] > 0.01
    assert np.abs(shared[1]["kernel"] - CRITIC["kernel"]).max() > 1e-3

    # Saved: a pass of the reward's trunk, and one of the critic's. (Without minibatches XLA sees
    # that a separate critic reads the same tokens for the advantages and in the update.)
    tokens = jnp.zeros([8, 7], jnp.int32)
    one = jax.jit(features).lower(plain_params(1), tokens).compile().cost_analysis()["flops"]
    assert (more - flops) / one > 1.9


def test_a_head_is_trained_on_the_frozen_trunk():
    params = {"trunk": plain_params(1), "head": SCORE}
    score_fn = models.trunk_scores(plain_logits, HEAD)
    algorithm = algorithms.reward_model(score_fn, optax.adam(0.1), trainable="head/*")
    state = algorithm.init(params, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * (32 + 1) + 1
    after, metrics = jax.jit(algorithm.step)(state, toys.preferences(8))
    jax.tree.map(np.testing.assert_array_equal, after.params["trunk"], params["trunk"])
    assert metrics["grad_norm"] > 0
    assert np.abs(after.params["head"]["kernel"] - SCORE["kernel"]).max() > 0.05


def test_heads_read_what_the_transformers_with_heads_read():
    config = models.TransformerConfig(
        vocab_size=toys.VOCAB, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2,
        num_kv_heads=2,
    )  # fmt: skip
    logits_fn = models.language_model(config).factored_logits_fn
    params = models.token_score_model(config).init(jax.random.key(2)) | {"head": SCORE}
    three = models.linear_head(32, outputs=3)
    wide = jax.tree.map(lambda x: jnp.concatenate([0 * x, x, -x], axis=-1), SCORE)
    trunk, both = params["trunk"], {"trunk": params["trunk"], "head": wide}

    @jax.jit
    def everything(tokens, mask):
        text = TEXT.replace(tokens=tokens, mask=mask)
        each = models.shared_trunk(logits_fn, HEAD, reward=lambda scores, text: scores)
        return {
            "whole": models.score_model(config).score_fn(params, tokens, mask),
            "tokens": models.token_score_model(config).score_fn(params, tokens, mask),
            "shared": models.shared_trunk(logits_fn, HEAD)(trunk, SCORE, text).rewards,
            "trained": models.trunk_scores(logits_fn, HEAD)(params, tokens, mask),
            "shared tokens": each(trunk, SCORE, text).rewards,
            "several": models.shared_trunk(logits_fn, three)(trunk, wide, text).rewards,
            "several trained": models.trunk_scores(logits_fn, three)(both, tokens, mask),
        }

    found = everything(TEXT.tokens, TEXT.mask)
    whole, tokens = found["whole"], found["tokens"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    rows = TEXT.mask.any(axis=1)
    assert np.abs(whole[rows]).min() > 1e-3 and whole[~rows] == 0
    last = np.maximum(TEXT.mask.sum(axis=1) - 1, 0)
    close(tokens[rows, last[rows]], whole[rows])
    close(found["shared"], whole)
    close(found["trained"], whole)
    close(found["shared tokens"], tokens)
    close(found["several"], np.stack([0 * whole, whole, -whole]))
    close(found["several trained"], found["several"].T)


def test_the_logits_must_be_factored():
    def dense(params, tokens, mask):
        return features(params, tokens) @ params["unembed"]

    with pytest.raises(TypeError, match="must return FactoredLogits, not ArrayImpl: of a"):
        models.shared_trunk(dense, HEAD)(plain_params(1), SCORE, TEXT)
