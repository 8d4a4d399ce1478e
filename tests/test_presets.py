"""Methods by name: what each is made of, and that each takes a step."""

import jax
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import advantages, algorithms, divergences, implicit_rewards, losses, sequences
from rlhf_jax.algorithms import presets
from rlhf_jax.types import ActorCritic

# Of implicit reward and loss, as in the README's table; the loss of a lead is named by its value.
DIRECT = {
    "dpo": (implicit_rewards.log_ratio, np.log1p(np.exp(-0.3))),
    "cdpo": (implicit_rewards.log_ratio, np.log1p(np.exp(-0.3)) + 0.1 * 0.3),
    "rdpo": (implicit_rewards.log_ratio, np.log1p(np.exp(-0.3)) - 0.1 * 0.3 / 0.8),
    "ipo": (implicit_rewards.log_ratio, (0.3 - 5) ** 2),
    "slic": (implicit_rewards.log_prob, 0.7),
    "cpo": (implicit_rewards.log_prob, np.log1p(np.exp(-0.3))),
    "simpo": (implicit_rewards.mean_log_prob, np.log1p(np.exp(0.7))),
    "orpo": (implicit_rewards.log_odds, np.log1p(np.exp(-0.3))),
}
# Of advantage, policy loss, penalty in the reward, penalty in the loss, aggregation.
POLICY = {
    "reinforce": ("no_baseline", "reinforce", "kl_k1", None, "sequence_sum"),
    "rloo": ("leave_one_out", "reinforce", "kl_k1", None, "sequence_sum"),
    "remax": ("greedy_baseline", "reinforce", "kl_k1", None, "sequence_sum"),
    "raft": ("best_of_n", "reinforce", None, None, "sequence_sum"),
    "reinforce_plus_plus": ("reinforce_plus_plus", "ppo_clip", "kl_k1", None, "token_mean"),
    "ppo": ("gae", "ppo_clip", "kl_k1", None, "token_mean"),
    "grpo": ("group_normalised", "ppo_clip", None, "kl_k3", "sequence_mean"),
    "dr_grpo": ("group_normalised", "ppo_clip", None, None, "sequence_sum"),
    "dapo": ("group_normalised", "ppo_clip", None, None, "token_mean"),
    "gspo": ("group_normalised", "sequence_clip", None, None, "sequence_mean"),
    "cispo": ("group_normalised", "clipped_is", None, None, "token_mean"),
}
FEEDBACK = {"kto": toys.rated, "rrhf": toys.ranked}


def settings(name):
    """A preset's keywords over the defaults of what it is a partial of."""
    preset = getattr(algorithms, name)
    return (preset.func.__kwdefaults__ or {}) | preset.keywords


def test_every_preset_is_known_here():
    assert {*DIRECT, *POLICY, *FEEDBACK} == set(presets.__all__)


@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_preset_is_its_implicit_reward_and_loss(name):
    given = settings(name)
    reward, value = DIRECT[name]
    assert given["implicit_reward"] is reward
    chosen, rejected = np.float32([1.5]), np.float32([1.2])
    np.testing.assert_allclose(given["loss"](chosen, rejected), [value], rtol=1e-5)


@pytest.mark.parametrize("name", POLICY)
def test_a_policy_preset_is_its_row_of_the_table(name):
    given = settings(name)
    advantage, loss, in_reward, in_loss, aggregation = POLICY[name]

    def inner(function):
        return getattr(function, "func", function)

    assert inner(given["advantage"]) is getattr(advantages, advantage)
    assert inner(given["policy_loss"]) is getattr(losses, loss)
    assert given["reward_penalty"] is (in_reward and getattr(divergences, in_reward))
    assert given["loss_penalty"] is (in_loss and getattr(divergences, in_loss))
    assert given["aggregation"] is getattr(sequences, aggregation)


@pytest.mark.parametrize("name", [*DIRECT, *FEEDBACK])
def test_a_direct_preset_learns(name):
    algorithm = getattr(algorithms, name)(toys.bigram_logits, optax.adam(0.02))
    state = algorithm.init(toys.bigram_params(), jax.random.key(0))
    batch, step = FEEDBACK.get(name, toys.preferences)(8), jax.jit(algorithm.step)
    first = step(state, batch)[1]["loss"]
    for _ in range(20):
        state, metrics = step(state, batch)
    assert metrics["loss"] < first


@pytest.mark.parametrize("name", POLICY)
def test_a_policy_preset_learns(name):
    further = {}
    params = toys.bigram_params()
    if name == "ppo":
        params = ActorCritic(params, toys.bag_params(4))
        further = {"value_fn": toys.bag_values}
    if name == "remax":
        further = {"baseline_fn": toys.sample_fn(temperature=0)}
    algorithm = getattr(algorithms, name)(
        toys.bigram_logits, toys.sample_fn(), toys.bag_reward, optax.adam(0.05), **further
    )
    state = algorithm.init(params, jax.random.key(0), toys.bag_params(2))
    step, rewards = jax.jit(algorithm.step), []
    for seed in range(30):
        state, metrics = step(state, toys.prompts(16, seed=seed))
        rewards.append(metrics["reward"])
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05


def test_what_a_preset_lacks_is_named():
    def build(name, **further):
        return getattr(algorithms, name)(
            toys.bigram_logits, toys.sample_fn(), toys.bag_reward, optax.sgd(0.1), **further
        )

    with pytest.raises(ValueError, match=r"advantage\(rewards\), but greedy_baseline takes"):
        build("remax")
    with pytest.raises(ValueError, match=r"advantage\(rewards, baseline\), but leave_one_out"):
        build("rloo", baseline_fn=toys.sample_fn())
    with pytest.raises(ValueError, match=r"advantage\(rewards, values, mask\), but leave_one_out"):
        build("rloo", per_token=True)
    with pytest.raises(ValueError, match="needs an advantage of tokens"):
        build("rloo", value_fn=toys.bag_values, per_token=False)
    with pytest.raises(ValueError, match="baseline_fn is for an advantage of answers"):
        build("ppo", value_fn=toys.bag_values, baseline_fn=toys.sample_fn())


def test_the_coefficient_of_ppo_adapts():
    algorithm = algorithms.ppo(
        toys.bigram_logits,
        toys.sample_fn(),
        toys.bag_reward,
        optax.sgd(0.1),
        value_fn=toys.bag_values,
    )
    params = ActorCritic(toys.bigram_params(), toys.bag_params(4))
    state = algorithm.init(params, jax.random.key(0), toys.bag_params(2))
    after, metrics = jax.jit(algorithm.step)(state, toys.prompts(16))
    assert metrics["kl"] < 6
    before = state.extra.kl_coefficient
    assert after.extra.kl_coefficient < before == metrics["kl_coefficient"]
