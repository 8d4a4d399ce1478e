"""The worlds in which whole runs are made: what is exact there, is; the truth is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from rlhf_jax import divergences, feedback, humans, worlds
from rlhf_jax.feedback import Pairs

KEYS = jax.random.split(jax.random.key(0), 4)
FEATURES = jax.random.normal(KEYS[0], (12, 3))
TRUTH = jnp.array([1.0, -0.5, 0.3])
WORLD = worlds.bandit(
    FEATURES @ TRUTH, features=FEATURES, ref_log_probs=jax.random.normal(KEYS[1], (12,))
)


def test_answers_are_sequences_of_which_the_utility_is_known():
    answers = WORLD.answers(jnp.array([3, 0]))
    assert answers.tokens.tolist() == [[0, 3], [0, 0]]
    np.testing.assert_array_equal(answers.response_mask, [[False, True]] * 2)
    np.testing.assert_allclose(WORLD.utility(answers), WORLD.utilities[jnp.array([3, 0])])
    scores = WORLD.score_fn(TRUTH, answers.tokens, answers.mask)
    np.testing.assert_allclose(scores, WORLD.utility(answers), rtol=1e-6)
    np.testing.assert_allclose(WORLD.rewards(TRUTH), WORLD.utilities, rtol=1e-6)


def test_the_policy_says_what_its_parameters_are():
    prompts, keys = WORLD.prompts(4000)(None), jax.random.split(KEYS[2], 4000)
    answers = jax.jit(WORLD.sample_fn)(WORLD.reference, prompts, keys)
    share = jnp.bincount(answers.tokens[:, 1], length=12) / 4000
    np.testing.assert_allclose(share, jax.nn.softmax(WORLD.reference), atol=0.03)
    asked = WORLD.pairs(4000)(KEYS[2], WORLD.reference, ())
    for side in (asked.first, asked.second):
        share = jnp.bincount(side.tokens[:, 1], length=12) / 4000
        np.testing.assert_allclose(share, jax.nn.softmax(WORLD.reference), atol=0.03)
    chances = jax.nn.log_softmax(WORLD.reference)[answers.tokens[:, 1]]
    np.testing.assert_allclose(answers.log_probs[:, 1], chances, rtol=1e-6)
    logits = WORLD.logits_fn(WORLD.reference, answers.tokens, answers.mask)
    np.testing.assert_array_equal(logits[7, 0], WORLD.reference)


@pytest.mark.parametrize("count", [12, 300])  # added up by a product; searched
def test_what_is_impossible_is_never_drawn(count):
    number = np.arange(count)
    policy = jnp.array(np.where((number >= 3) & (number < count - 3), 0.0, -np.inf))
    pairs = jax.jit(worlds.bandit(jnp.zeros(count)).pairs(20_000))(KEYS[2], policy, ())
    share = np.bincount(pairs.first.tokens[:, 1], minlength=count) / 20_000
    assert not share[:3].any() and not share[-3:].any()
    np.testing.assert_allclose(share[3:-3], 1 / (count - 6), atol=0.02)


def test_the_exact_policy_is_the_tilt():
    init, step = WORLD.exact(0.3)
    state, metrics = step(init(WORLD.reference, KEYS[0], reward=TRUTH), WORLD.prompts(1)(None))
    optimum = worlds.tilt(WORLD.reference, WORLD.utilities, beta=0.3)
    np.testing.assert_allclose(state.params, optimum, rtol=1e-5)
    kl = divergences.exact_kl(optimum, WORLD.reference)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)
    # Again from there: it is of the reference, and not of the policy, that the tilt is.
    np.testing.assert_allclose(step(state, None)[0].params, optimum, rtol=1e-5)


def test_newtons_fit_is_the_minimum_of_the_loss():
    pairs = WORLD.pairs(200)(KEYS[2], WORLD.reference, ())
    human = humans.boltzmann(WORLD.utility)
    batch = feedback.to_batch(pairs, human(KEYS[3], pairs))
    init, step = WORLD.newton(0.01)
    state, history = jax.lax.scan(
        lambda s, _: step(s, batch), init(jnp.zeros(3), KEYS[0]), length=8
    )
    lead = np.asarray(FEATURES)[batch.chosen.tokens[:, 1]]
    lead = lead - np.asarray(FEATURES)[batch.rejected.tokens[:, 1]]

    def loss(params):
        return np.mean(np.logaddexp(0, -lead @ params)) + 0.01 * params @ params

    found = scipy.optimize.minimize(loss, np.zeros(3), tol=1e-10)
    np.testing.assert_allclose(state.params, found.x, atol=1e-3)
    assert history["change"][-1] < 1e-4


def test_newtons_fit_knows_weights_padding_and_soft_labels():
    pairs = Pairs(WORLD.answers(jnp.array([1, 2, 3])), WORLD.answers(jnp.array([4, 5, 6])))
    answer = feedback.Comparison(
        preference=jnp.array([1.0, 0.0, 1.0]), answered=jnp.array([True, True, False])
    )
    batch = feedback.to_batch(pairs, answer)
    algorithm = WORLD.newton(0.1)
    start, step = algorithm.init(jnp.zeros(3), KEYS[0]), jax.jit(algorithm.step)
    rows = jnp.array([0, 0, 0, 1])
    copies = jax.tree.map(lambda x: x[rows], batch)
    weighted = batch.replace(weight=jnp.array([3.0, 1.0, 9.0]))
    np.testing.assert_allclose(
        step(start, copies)[0].params, step(start, weighted)[0].params, rtol=1e-5
    )
    tossed = batch.replace(probability=jnp.full(3, 0.5))
    np.testing.assert_allclose(step(start, tossed)[0].params, 0, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"features must be \[3, D\]"):
        worlds.bandit(jnp.zeros(3), features=jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"ref_log_probs must be \[3\], not \[2\]"):
        worlds.bandit(jnp.zeros(3), ref_log_probs=jnp.zeros(2))
    with pytest.raises(ValueError, match="one key a sequence, as many for each prompt: 2 prompts"):
        WORLD.sample_fn(WORLD.reference, WORLD.prompts(2)(None), KEYS[:3])
    with pytest.raises(ValueError, match="at_most must be at least 1"):
        worlds.word_values(jnp.zeros(3), at_most=0)


@pytest.mark.slow
def test_a_token_languages_pairs_answer_one_prompt():
    values = jnp.linspace(-1, 1, 8)
    world = worlds.token_language(
        worlds.word_values(values, at_most=2),
        vocab_size=8,
        prompt_length=2,
        new_tokens=3,
        hidden_size=8,
        num_layers=1,
    )
    pairs = jax.jit(world.pairs(5))(KEYS[0], world.model.init(KEYS[1]), ())
    first, second = pairs.first, pairs.second
    assert first.tokens.shape == (5, 5)
    np.testing.assert_array_equal(first.tokens[:, :2], second.tokens[:, :2])
    assert (first.tokens[:, 2:] != second.tokens[:, 2:]).any()
    for row, said in zip(first.tokens[:, 2:], world.utility(first), strict=True):
        counts = np.bincount(row, minlength=8)
        np.testing.assert_allclose(said, np.minimum(counts, 2) @ values, rtol=1e-5)


def test_people_who_prefer_without_a_utility():
    pairs = Pairs(WORLD.answers(jnp.zeros(4000, int)), WORLD.answers(jnp.ones(4000, int)))
    human = humans.preferring(lambda first, second: jnp.full(4000, 0.8))
    assert abs(human(KEYS[0], pairs).preference.mean() - 0.8) < 0.03
