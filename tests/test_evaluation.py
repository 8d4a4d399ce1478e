"""What is measured on fresh samples, against the algorithms' own numbers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from rlhf_jax import divergences, evaluation, measures


@pytest.fixture
def evaluate():
    judges = {"bag": toys.bag_reward}
    return evaluation.policy_evaluation(toys.bigram_logits, toys.sample_fn(), judges)


def test_a_policy_does_not_differ_from_itself(evaluate):
    params, prompts = toys.bigram_params(), toys.prompts(32)
    answers, measured = evaluate(
        params, params, {"bag": toys.bag_params()}, prompts, jax.random.key(0)
    )
    np.testing.assert_allclose(measured["kl"], 0, atol=1e-5)
    np.testing.assert_allclose(measured["bag"], toys.bag_reward(toys.bag_params(), answers))
    np.testing.assert_array_equal(measured["length"], answers.response_mask.sum(axis=1))
    expected = measures.distinct_n(answers.tokens, answers.response_mask, 2)
    np.testing.assert_allclose(measured["distinct_2"], expected)


def test_kl_of_one_token_answers_is_the_exact_one():
    sample = toys.sample_fn(new_tokens=1, eos_id=None)
    evaluate = evaluation.policy_evaluation(toys.bigram_logits, sample, {})
    policy, reference = toys.bigram_params(), toys.bigram_params(1)
    prompts = jax.tree.map(lambda x: np.repeat(x[:1], 20_000, axis=0), toys.prompts(1, length=1))
    _, measured = evaluate(policy, reference, {}, prompts, jax.random.key(0))
    last = prompts.tokens[0, -1]
    exact = divergences.exact_kl(policy["table"][last], reference["table"][last])
    np.testing.assert_allclose(measured["kl"].mean(), exact, atol=0.02)
    assert exact > 0.1


def test_the_same_key_draws_alike_for_another_policy(evaluate):
    """So that before and after differ by the policy alone."""
    judge, prompts = {"bag": toys.bag_params()}, toys.prompts(64)
    near = {"table": toys.bigram_params()["table"] + 1e-4}
    a, _ = evaluate(toys.bigram_params(), near, judge, prompts, jax.random.key(1))
    b, _ = evaluate(near, near, judge, prompts, jax.random.key(1))
    assert jnp.mean(a.tokens == b.tokens) > 0.97
