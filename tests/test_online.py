"""Online DPO and Nash-MD: where they end is known on a finite world."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, divergences, rewards, sampling
from rlhf_jax.types import Prompts

PROMPT = 3
ONE = toys.sample_fn(new_tokens=1, eos_id=None)
STEPS = 400
OPTIMIZER = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
MANY = Prompts(np.full([256, 1], PROMPT, np.int32), np.ones([256, 1], bool))


def trained(algorithm, judge, steps=STEPS):
    state = algorithm.init(toys.bigram_params(), jax.random.key(0), judge)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.step(s, MANY), s, None, steps))
    state, history = run(state)
    return jax.nn.log_softmax(state.params["table"][PROMPT]), history


def reference():
    return jax.nn.log_softmax(toys.bigram_params()["table"][PROMPT])


def test_online_dpo_reaches_the_exact_tilt():
    beta, worth = 0.5, jnp.linspace(-1, 1, toys.VOCAB)
    judge_fn = rewards.judge(lambda weights, sequences: weights[sequences.tokens[:, -1]])
    algorithm = algorithms.online_dpo(toys.bigram_logits, ONE, judge_fn, OPTIMIZER, beta=beta)
    learnt, history = trained(algorithm, worth)
    optimum = jax.nn.log_softmax(reference() + worth / beta)
    assert divergences.exact_kl(learnt, optimum) < 1e-2
    assert divergences.exact_kl(reference(), optimum) > 0.5, "the case must be far from its start"
    expected = divergences.exact_kl(optimum, reference())
    np.testing.assert_allclose(jnp.mean(history["kl"][-50:]), expected, atol=0.1)
    assert 0.5 < history["confidence"].min() <= history["confidence"].max() < 1


def table_judge(table, first, second):
    return table[first.tokens[:, -1], second.tokens[:, -1]]


def test_nash_md_reaches_the_equilibrium_of_preferences_that_go_in_circles():
    """Fixed point: pi proportional to pi_ref exp(P(. beats the mixture) / tau)."""
    tau, alpha = 0.1, 0.5
    lead = np.random.default_rng(0).normal(0, 2, [toys.VOCAB, toys.VOCAB])
    table = jax.nn.sigmoid(jnp.asarray(lead - lead.T))
    log_ref = np.asarray(reference(), np.float64)

    def equilibrium(alpha):
        policy = log_ref
        for _ in range(2000):
            mixture = np.exp((1 - alpha) * policy + alpha * log_ref)
            mixture /= mixture.sum()
            target = log_ref + np.asarray(table) @ mixture / tau
            policy = 0.9 * policy + 0.1 * (target - np.log(np.exp(target).sum()))
        return policy, mixture

    policy, mixture = equilibrium(alpha)
    opponent_fn = toys.mixture_fn(alpha, new_tokens=1, eos_id=None)
    algorithm = algorithms.nash_md(
        toys.bigram_logits, ONE, opponent_fn, table_judge, OPTIMIZER, kl_coefficient=tau
    )
    learnt, history = trained(algorithm, table)
    assert divergences.exact_kl(learnt, jnp.asarray(policy)) < 1e-2
    for other in (log_ref, equilibrium(0.0)[0]):
        assert divergences.exact_kl(learnt, jnp.asarray(other)) > 0.03, "too easy a case"
    expected = np.exp(policy) @ np.asarray(table) @ mixture
    np.testing.assert_allclose(jnp.mean(history["win_rate"][-50:]), expected, atol=0.02)


def test_a_judge_that_decides_picks_the_chosen():
    """Token 2 beats all others, 5 loses to all: only those two are sampled here."""
    params = {"table": jnp.full([toys.VOCAB, toys.VOCAB], -30.0).at[:, 2].set(0).at[:, 5].set(0)}

    def judge_fn(_, first, second):
        return jnp.where(
            first.tokens[:, -1] == second.tokens[:, -1],
            0.5,
            1.0 * (first.tokens[:, -1] == 2),
        )

    algorithm = algorithms.online_dpo(toys.bigram_logits, ONE, judge_fn, optax.sgd(5.0))
    state = algorithm.init(params, jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(state, MANY)
    row = after.params["table"][PROMPT]
    assert row[2] > 0 > row[5]
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["confidence"], 0.75, atol=0.1)
    assert (metrics["length"], metrics["kl"]) == (1, 0)
    np.testing.assert_allclose(metrics["entropy"], np.log(2), atol=1e-3)


@pytest.mark.parametrize("name", ["online_dpo", "nash_md"])
def test_a_judge_without_an_answer_skips_the_step(name):
    def silent(_, first, second):
        return jnp.full(first.tokens.shape[0], jnp.nan)

    further = (toys.mixture_fn(0.5, 1, None),) if name == "nash_md" else ()
    build = getattr(algorithms, name)
    algorithm = build(toys.bigram_logits, ONE, *further, silent, OPTIMIZER)
    state = algorithm.init(toys.bigram_params(), jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(state, MANY)
    assert metrics["skipped"] == 1
    np.testing.assert_array_equal(after.params["table"], state.params["table"])


def test_a_mixture_is_between_the_two():
    policy, other = toys.bigram_params(0), toys.bigram_params(1)
    tokens, mask = jnp.array([[2, 3]]), jnp.ones([1, 2], bool)
    ends = []
    for weight in (0.0, 0.3, 1.0):
        mixture = sampling.geometric_mixture(toys.BIGRAM, reference_weight=weight)
        logits, _ = mixture.apply((policy, other), tokens, mask, mixture.init_cache(1, 4))
        ends.append(jax.nn.log_softmax(logits[0]))
    rows = [jax.nn.log_softmax(p["table"][3]) for p in (policy, other)]
    np.testing.assert_allclose(ends[0], rows[0], rtol=1e-5)
    np.testing.assert_allclose(ends[2], rows[1], rtol=1e-5)
    np.testing.assert_allclose(
        ends[1], jax.nn.log_softmax(0.7 * rows[0] + 0.3 * rows[1]), rtol=1e-5
    )
    with pytest.raises(ValueError, match="reference_weight must be from 0 to 1"):
        sampling.geometric_mixture(toys.BIGRAM, reference_weight=1.5)
