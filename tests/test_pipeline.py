"""A whole run as one function: on the finite bandit, where what is best is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import algorithms, divergences, feedback, humans, rewards, training, worlds
from rlhf_jax.pipeline import Learners, Pipeline, algorithm, run

UTILITIES = jnp.array([0.0, 1.0, 2.0, 0.5])
WORLD = worlds.bandit(UTILITIES, ref_log_probs=jnp.array([0.5, 0.0, -0.5, 0.0]))
BETA = 0.5
EXACT = Pipeline(
    query=WORLD.pairs(64),
    human=humans.boltzmann(WORLD.utility),
    reward=WORLD.newton(1e-3),
    policy=WORLD.exact(BETA),
)
START = Learners(WORLD.reference, jnp.zeros(4))
SETTINGS = {"reward_steps": 5, "policy_steps": 1, "prompts": WORLD.prompts(4)}
OPTIMUM = worlds.tilt(WORLD.reference, UTILITIES, beta=BETA)


def measure(key, policy, reward):
    return {"gold": jax.nn.softmax(policy) @ UTILITIES}


@pytest.fixture(scope="module")
def whole():
    """24 rounds for each key, what is remembered growing."""
    settings = SETTINGS | {"rounds": 24, "memory": 24, "measure": measure}
    return jax.jit(partial(run, EXACT, params=START, **settings))


def test_it_ends_where_the_truth_leads(whole):
    state, history = whole(jax.random.key(0))
    policy, reward = (learner.params for learner in state.params)
    # 1,536 comparisons, in the end of what is tilted: three standard errors from the best answer's.
    off = abs(reward - reward[2] - UTILITIES + UTILITIES[2])
    assert (off <= 3 * jnp.array([0.28, 0.12, 0, 0.19])).all(), off
    assert divergences.exact_kl(policy, OPTIMUM) < 0.05
    before = jax.nn.softmax(WORLD.reference) @ UTILITIES
    assert history["gold"][-1] > before + 0.5
    np.testing.assert_array_equal(history["labels"], 64 * np.arange(1, 25))
    assert set(history) >= {"policy_kl", "policy_reward", "reward_loss", "reward_accuracy", "gold"}
    assert {x.shape for x in history.values()} == {(24,)}


def test_many_runs_are_one_program(whole):
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(whole))(keys)
    for n, key in enumerate(keys):
        alone = whole(key)
        jax.tree.map(
            lambda x, y, n=n: np.testing.assert_allclose(x[n], y, rtol=2e-4, atol=2e-5),
            (together[0].params.policy.params, together[1]),
            (alone[0].params.policy.params, alone[1]),
        )


def test_any_number_it_is_built_with_can_be_swept():
    def gold(beta, rate):
        human = humans.with_mistakes(EXACT.human, rate=rate)
        pipeline = EXACT._replace(human=human, policy=WORLD.exact(beta))
        settings = SETTINGS | {"rounds": 1, "measure": measure}
        pipeline = pipeline._replace(query=WORLD.pairs(4000))
        return run(pipeline, jax.random.key(0), START, **settings)[1]["gold"][0]

    found = jax.jit(jax.vmap(gold))(jnp.array([0.5, 5.0, 0.5]), jnp.array([0.0, 0.0, 0.5]))
    assert found[0] > found[1] + 0.3, "a stronger penalty leaves less"
    assert found[0] > found[2] + 0.3, "of coin tosses nothing is learnt"


def test_a_policy_gradient_and_a_neural_fit_do_the_same():
    rloo = algorithms.rloo(
        WORLD.logits_fn,
        WORLD.sample_fn,
        rewards.from_scores(WORLD.score_fn),
        optax.adam(0.1),
        samples_per_prompt=8,
        kl_coefficient=BETA,
    )

    fitted = algorithms.reward_model(WORLD.score_fn, optax.adam(0.1))
    pipeline = EXACT._replace(reward=fitted, policy=rloo, query=WORLD.pairs(256))
    settings = {"reward_steps": 40, "policy_steps": 60, "batch_size": 256, "memory": 4}
    settings["prompts"] = WORLD.prompts(16)
    go = jax.jit(partial(run, pipeline, params=START, rounds=4, **settings))
    state, _ = go(jax.random.key(0))
    assert divergences.exact_kl(state.params.policy.params, OPTIMUM) < 0.15
    assert state.params.reward.step == 160 and state.params.policy.step == 240
    # The policy is trained on the newest reward.
    np.testing.assert_array_equal(state.params.policy.frozen.reward, state.params.reward.params)
    np.testing.assert_array_equal(state.params.policy.frozen.reference, WORLD.reference)


def test_a_direct_method_learns_from_the_feedback_itself():
    dpo = algorithms.dpo(WORLD.logits_fn, optax.adam(0.05), beta=BETA)
    pipeline = EXACT._replace(reward=None, policy=dpo, query=WORLD.pairs(512))
    go = jax.jit(partial(run, pipeline, rounds=4, policy_steps=40, memory=4))
    state, history = go(jax.random.key(0), Learners(WORLD.reference))
    assert divergences.exact_kl(state.params.policy.params, OPTIMUM) < 0.05
    assert history["policy_accuracy"].shape == (4,)


def test_what_is_remembered():
    def query(key, policy, reward):
        return WORLD.answers(jnp.arange(2))

    def human(key, examples):
        return feedback.Rating(value=jnp.full(2, 1.0), answered=jnp.array([True, False]))

    pipeline = Pipeline(
        query,
        human,
        algorithms.reward_model(
            WORLD.score_fn,
            optax.sgd(0.0),
            loss=lambda scores, ratings: jnp.square(scores - ratings),
        ),
        WORLD.exact(BETA),
    )
    settings = {"reward_steps": 1, "policy_steps": 0, "prompts": WORLD.prompts(1)}
    init, step = algorithm(pipeline, memory=2, **settings)
    state = init(START, jax.random.key(0))
    assert not state.extra.sequences.response_mask.any(), "padding, before anyone was asked"
    state, metrics = step(state)
    kept = state.extra.sequences.response_mask
    assert kept.shape == (2, 2, 2) and metrics["labels"] == 2
    np.testing.assert_array_equal(kept[:, :, 1], [[True, False], [False, False]])
    state, _ = step(state)
    np.testing.assert_array_equal(state.extra.ratings, [[1, 0], [1, 0]])


@pytest.mark.slow
def test_a_reward_model_that_begins_anew():
    fitted = algorithms.reward_model(WORLD.score_fn, optax.sgd(1.0))
    settings = SETTINGS | {"reward_steps": 1, "rounds": 3}
    go = partial(run, EXACT._replace(reward=fitted), jax.random.key(0), START)
    kept, anew = (jax.jit(partial(go, relearn=x, **settings))()[0] for x in (False, True))
    assert kept.params.reward.step == anew.params.reward.step == 3
    newest = jax.tree.map(lambda x: x[0], anew.extra)
    once, _ = fitted.step(fitted.init(START.reward, jax.random.key(1)), newest)
    np.testing.assert_allclose(anew.params.reward.params, once.params, rtol=1e-5)
    assert not np.allclose(kept.params.reward.params, once.params, rtol=0.1)


def test_a_round_is_a_step_like_any_other():
    rounds = algorithm(EXACT, **SETTINGS)
    state = rounds.init(START, jax.random.key(0))
    fitted = training.fit(rounds, state, np.int32, steps=4, chunk=2)
    whole, history = jax.jit(partial(run, EXACT, rounds=4, params=START, **SETTINGS))(
        jax.random.key(0)
    )
    policies = (x.params.policy.params for x in (fitted.state, whole))
    np.testing.assert_allclose(*policies, rtol=1e-5)
    rows = [row["policy_kl"] for row in fitted.history]
    np.testing.assert_allclose(rows, history["policy_kl"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        ({}, {"policy_steps": -1}, "policy_steps must be at least 0, not -1"),
        ({}, {"memory": 0}, "memory must be at least 1"),
        ({}, {"prompts": None}, "prompts must be given"),
        ({"reward": None}, {}, "reward_steps must be 0"),
    ],
)
def test_what_is_impossible_is_refused(changed, settings, message):
    with pytest.raises(ValueError, match=message):
        algorithm(EXACT._replace(**changed), **(SETTINGS | settings))


def test_a_policy_without_a_place_for_a_reward_is_refused():
    dpo = algorithms.dpo(WORLD.logits_fn, optax.sgd(0.1))
    with pytest.raises(ValueError, match="a field reward or judge"):
        run(EXACT._replace(policy=dpo), jax.random.key(0), START, rounds=1, **SETTINGS)
