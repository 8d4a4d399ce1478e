"""Heads on the frozen reference: the numbers of separate networks, with fewer forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, models, rewards, sampling
from rlhf_jax.sequences import align, last_token
from rlhf_jax.types import ActorCritic, FactoredLogits, Sequences

CONFIG = models.TransformerConfig(
    vocab_size=toys.VOCAB, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2,
    num_kv_heads=2, max_length=16,
)  # fmt: skip
MODEL, HEAD = models.language_model(CONFIG), models.linear_head(32)
KEYS = jax.random.split(jax.random.key(0), 4)
TRUNK = MODEL.init(KEYS[1])
# Large enough to matter, unlike fresh ones.
SCORE, CRITIC = (jax.tree.map(lambda x: 50 * x, HEAD.init(key)) for key in KEYS[2:])
TEXT = toys.sequences(6, empty=(2,))


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


DECODER = toys.BIGRAM._replace(
    apply=lambda params, tokens, mask, cache: (
        features(params, tokens[:, -1]) @ params["unembed"],
        cache,
    )
)


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
        sampling.sampler(DECODER, max_new_tokens=4, eos_id=toys.EOS),
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
    prompts = toys.prompts(4, empty=(3,))
    compiled = jax.jit(algorithm.step).lower(state, prompts).compile()
    after, metrics = compiled(state, prompts)
    head = after.params.critic if shared else after.params.critic["head"]
    return (after.params.policy, head, metrics), compiled.cost_analysis()["flops"]


def test_one_pass_of_the_reference_gives_the_numbers_of_separate_networks():
    shared, flops = step_of(True)
    apart, more = step_of(False)
    for x, y in zip(jax.tree.leaves(shared), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert abs(shared[2]["reward"]) > 0.1 and shared[2]["value_loss"] > 0.1
    assert np.abs(shared[1]["kernel"] - CRITIC["kernel"]).max() > 1e-3

    # Saved: a pass of the reward's trunk, and one of the critic's. (Without minibatches XLA sees
    # that a separate critic reads the same tokens for the advantages and in the update.)
    tokens = jnp.zeros([8, 7], jnp.int32)
    one = jax.jit(features).lower(plain_params(1), tokens).compile().cost_analysis()["flops"]
    assert (more - flops) / one > 1.9


def test_a_head_is_trained_on_the_frozen_trunk():
    score_fn = models.trunk_scores(MODEL.factored_logits_fn, HEAD)
    params = {"trunk": TRUNK, "head": SCORE}
    own = models.score_model(CONFIG).score_fn
    np.testing.assert_allclose(
        score_fn(params, TEXT.tokens, TEXT.mask), own(params, TEXT.tokens, TEXT.mask), rtol=1e-5
    )
    optimizer = optax.masked(optax.adam(0.1), {"trunk": False, "head": True})
    algorithm = algorithms.reward_model(score_fn, optimizer)
    state = algorithm.init(params, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * (32 + 1) + 1
    after, metrics = jax.jit(algorithm.step)(state, toys.preferences(8))
    for x, y in zip(jax.tree.leaves(after.params["trunk"]), jax.tree.leaves(TRUNK), strict=True):
        np.testing.assert_array_equal(x, y)
    assert metrics["grad_norm"] > 0
    assert np.abs(after.params["head"]["kernel"] - SCORE["kernel"]).max() > 0.05


def test_several_outputs_and_rewards_of_tokens():
    several = models.linear_head(32, outputs=3)
    params = several.init(jax.random.key(5))
    found = models.shared_trunk(MODEL.factored_logits_fn, several)(TRUNK, params, TEXT)
    single = {name: x[..., 1:2] for name, x in params.items()}
    one = models.shared_trunk(MODEL.factored_logits_fn, HEAD)(TRUNK, single, TEXT)
    assert found.rewards.shape == (3, 6)
    np.testing.assert_allclose(found.rewards[1], one.rewards, rtol=1e-5)
    np.testing.assert_array_equal(one.rewards[2], 0)
    scores = models.trunk_scores(MODEL.factored_logits_fn, several)(
        {"trunk": TRUNK, "head": params}, TEXT.tokens, TEXT.mask
    )
    np.testing.assert_allclose(scores, found.rewards.T, rtol=1e-6)
    every = models.shared_trunk(MODEL.factored_logits_fn, HEAD, reward=lambda scores, text: scores)
    dense = every(TRUNK, single, TEXT).rewards
    token_scores = models.token_score_model(CONFIG).score_fn
    expected = token_scores({"trunk": TRUNK, "head": single}, TEXT.tokens, TEXT.mask)
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-6)


def test_the_logits_must_be_factored():
    text = Sequences(TEXT.tokens, TEXT.mask, TEXT.response_mask)
    with pytest.raises(TypeError, match="must return FactoredLogits, not ArrayImpl: of a"):
        models.shared_trunk(MODEL.logits_fn, HEAD)(TRUNK, SCORE, text)
