"""Small transformers in several algorithms, for the tests of meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toys

from rlhf_jax import algorithms, data, models, parallel, sampling
from rlhf_jax.types import ActorCritic

CONFIG = models.TransformerConfig(
    vocab_size=96,
    hidden_size=16,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    max_length=16,
    tie_embeddings=False,
)
MODEL = models.language_model(CONFIG)


def optimizer():
    # Not Adam's usual eps: a gradient of nothing but rounding is not to become a whole step.
    return optax.adam(1e-2, eps=1e-3)


def supervised_algorithm():
    return algorithms.supervised(MODEL.factored_logits_fn, optimizer())


def supervised_batch():
    return toys.sequences(8)


def supervised():
    algorithm = supervised_algorithm()
    return algorithm, algorithm.init(params(), jax.random.key(1)), supervised_batch()


def direct():
    algorithm = algorithms.direct(MODEL.factored_logits_fn, optimizer())
    return algorithm, algorithm.init(params(), jax.random.key(1)), toys.preferences(8)


def tied_lora():
    """Adapters of a model whose embedding is its unembedding, with one head of keys for all."""
    model = models.language_model(
        models.TransformerConfig(96, 16, 48, 2, num_heads=4, num_kv_heads=1, max_length=16)
    )
    adapted = models.lora.add(jax.random.key(2), model.init(jax.random.key(0)), rank=2, alpha=4.0)
    adapted = jax.tree.map(lambda x: x + 0.01, adapted)
    algorithm = algorithms.direct(
        model.factored_logits_fn, optimizer(), trainable=models.lora.TRAINABLE
    )
    return algorithm, algorithm.init(adapted, jax.random.key(1)), toys.preferences(8)


def reward():
    scores = models.score_model(CONFIG)
    algorithm = algorithms.reward_model(scores.score_fn, optimizer())
    state = algorithm.init(scores.init(jax.random.key(0)), jax.random.key(1))
    return algorithm, state, toys.preferences(8)


def policy():
    """PPO: sampling inside, a critic, a reward model and a reference."""
    values, scores = models.value_model(CONFIG), models.score_model(CONFIG)
    algorithm = algorithms.policy_gradient(
        MODEL.factored_logits_fn,
        sampling.sampler(MODEL.decoder, max_new_tokens=4, eos_id=1),
        lambda p, s: scores.score_fn(p, s.tokens, s.mask),
        optimizer(),
        value_fn=values.value_fn,
        samples_per_prompt=2,
        minibatches=2,
    )
    both = ActorCritic(params(), values.init(jax.random.key(3)))
    rewards = scores.init(jax.random.key(4))
    state = algorithm.init(both, jax.random.key(1), reward=rewards)
    return algorithm, state, toys.prompts(8)


def shared_policy():
    """GRPO whose prompts are read once for their samples."""
    algorithm = algorithms.grpo(
        MODEL.factored_logits_fn,
        sampling.sampler(MODEL.decoder, max_new_tokens=4, eos_id=1),
        lambda p, s: jnp.sum(jnp.where(s.response_mask, s.tokens, 0), axis=-1) / 96,
        optimizer(),
        samples_per_prompt=2,
        share_prompts=True,
    )
    return algorithm, algorithm.init(params(), jax.random.key(1)), toys.prompts(8)


def shared_direct():
    """Pairs whose prompt is read once."""
    batch = toys.preferences(8)
    rejected = batch.rejected.tokens.copy()
    rejected[:, :2] = batch.chosen.tokens[:, :2]
    batch = batch.replace(rejected=batch.rejected.replace(tokens=rejected))
    algorithm = algorithms.direct(
        MODEL.factored_logits_fn, optimizer(), **data.shared_lengths(batch)
    )
    return algorithm, algorithm.init(params(), jax.random.key(1)), batch


def small_state():
    """Of step 3, and no model."""
    algorithm = algorithms.supervised(lambda p, t, m: p["w"][t], optax.sgd(0.1))
    state = algorithm.init({"w": jnp.arange(12.0).reshape(4, 3)}, jax.random.key(0))
    return state.replace(step=jnp.int32(3))


def params():
    return MODEL.init(jax.random.key(0))


MADE = (supervised, direct, tied_lora, reward, policy, shared_policy, shared_direct)
ALGORITHMS = {f.__name__: f for f in MADE}


def compiled(algorithm, state, batch, mesh):
    """The step for a mesh, and the shardings of its state."""
    shardings = parallel.state_shardings(state, mesh)
    step = parallel.shard_step(algorithm.step, mesh, state_shardings=shardings)
    return step.lower(state, batch).compile(), shardings


def after(algorithm, state, batch, mesh):
    """What a step on a mesh makes."""
    run, shardings = compiled(algorithm, state, batch, mesh)
    placed = jax.device_put(jax.tree.map(jnp.copy, state), shardings)
    found = run(placed, parallel.place(batch, mesh, batch_axis=0))
    for leaf, sharding in zip(jax.tree.leaves(found[0]), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return found, run


def worst(found, expected):
    """The largest difference of two states and their metrics, of what is not whole numbers."""
    pairs = zip(
        *(jax.tree.leaves((s.params, s.opt_state, m)) for s, m in (found, expected)), strict=True
    )
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0)) for a, b in pairs)
