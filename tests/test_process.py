"""Feedback on parts of an answer, from the marks to the policy's step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import advantages, algorithms, feedback, losses, rewards, sequences
from rlhf_jax.types import ActorCritic, Sequences

TOKENS = np.array([[2, 3, 9, 4, 9, 0], [5, 9, 7, 8, 2, 9], [2, 3, 9, 4, 9, 0]], np.int32)
MASK = np.arange(6) < np.array([[5], [6], [5]])
TEXT = Sequences(TOKENS, MASK, MASK & (np.arange(6) > 0))
STEPS = feedback.Steps(
    marks=np.array([[1.0, 0.0], [0.5, 1.0], [np.nan, 1.0]]),
    ends=np.array([[2, 4], [1, 5], [-7, 99]]),
    mask=np.ones([3, 2], bool),
    rater=np.array([4, 5, 4]),
    answered=np.array([True, True, False]),
)


def token_scores(params, tokens, mask):
    return params["weights"][tokens]


def test_steps_become_ratings_of_the_tokens_they_end_with():
    batch = feedback.step_labels(TEXT, STEPS)
    rows, columns = [0, 0, 1, 1], [2, 4, 1, 5]
    assert ([rows, columns] == np.argwhere(batch.rating_mask).T).all()
    np.testing.assert_array_equal(batch.ratings[rows, columns], [1, 0, 0.5, 1])
    np.testing.assert_array_equal(batch.rater, [4, 5, 4])


def test_segments_are_good_if_nothing_in_them_is_marked_bad():
    marks = np.zeros([3, 6], np.float32)
    marks[0, 1], marks[1, 1], marks[1, 3], marks[2, 1] = -0.5, 1.0, -1.0, -1.0
    spans = feedback.Spans(marks=marks, answered=np.array([True, True, False]))
    batch = feedback.segment_labels(TEXT, spans, rewards.ends_after(9)(TEXT))
    np.testing.assert_array_equal(batch.ratings[batch.rating_mask], [False, True, True, False])
    assert not batch.rating_mask[2].any()
    whole = feedback.segment_labels(TEXT, spans, rewards.whole_answer(TEXT))
    np.testing.assert_array_equal(whole.ratings[whole.rating_mask], [False, False])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"marks": [1.0, 2.0]}, r"row 0 has a mark .* not from 0 to 1, in step 1"),
        ({"ends": [2, 2]}, "row 0 has two steps that end at column 2"),
        ({"ends": [0, 2]}, "row 0 has a step that ends outside it, at column 0"),
        ({"ends": [2, 9]}, "ends must be from 0 to 5, not 9"),
    ],
)
def test_marks_that_do_not_fit_are_refused(change, message):
    changed = {name: getattr(STEPS, name).copy() for name in change}
    for name, row in change.items():
        changed[name][0] = row
    with pytest.raises(ValueError, match=message):
        feedback.step_labels(TEXT, STEPS.replace(**changed))


def test_spans_that_do_not_fit_are_refused():
    ends = rewards.ends_after(9)(TEXT)
    for column, message in ((0, "outside its response, at column 0"), (3, "after its last")):
        spans = feedback.Spans(marks=-np.eye(6)[[column] * 3])
        with pytest.raises(ValueError, match=f"row 0 has a bad token {message}"):
            feedback.segment_labels(TEXT, spans, ends & (np.arange(6) < 3))
    with pytest.raises(ValueError, match="as many rows, not 2 and 3"):
        feedback.step_labels(jax.tree.map(lambda x: x[:2], TEXT), STEPS)


def test_a_process_reward_model_learns_from_the_steps_alone():
    algorithm = algorithms.reward_model(
        token_scores, optax.adam(0.1), loss=losses.binary_cross_entropy
    )
    # A world in which a step is wrong if it ends with 3, and right if it ends with 4.
    rng = np.random.default_rng(0)
    tokens = rng.choice([3, 4, 7], [32, 6]).astype(np.int32)
    tokens[:, [1, 4]] = rng.choice([3, 4], [32, 2])
    mask = np.ones_like(tokens, bool)
    steps = feedback.Steps(
        marks=(tokens[:, [1, 4]] == 4).astype(np.float32),
        ends=np.tile([1, 4], [32, 1]),
        mask=np.ones([32, 2], bool),
    )
    text = Sequences(tokens, mask, mask)
    world = jax.jit(feedback.step_labels)(text, steps)
    state = algorithm.init(toys.bag_params(), jax.random.key(0))
    scores = np.asarray(state.params["weights"])[tokens[:, [1, 4]]]
    by_hand = np.mean(np.log1p(np.exp(scores)) - steps.marks * scores)
    step = lambda state, _: algorithm.step(state, world)  # noqa: E731
    state, history = jax.jit(lambda state: jax.lax.scan(step, state, None, 60))(state)
    np.testing.assert_allclose(history["loss"][0], by_hand, rtol=1e-5)
    assert history["loss"][-1] < 0.05
    ends_fn = lambda sequences: sequences.response_mask & np.isin(np.arange(6), [1, 4])  # noqa: E731
    reward_fn = rewards.from_steps(token_scores, ends_fn, combine="minimum")
    whole = jax.jit(reward_fn)(state.params, text)
    right = feedback.rating_from_steps(steps).value == 1
    assert whole[right].min() > 0.9 and whole[~right].max() < 0.1

    centred = algorithms.reward_model(
        token_scores, optax.sgd(0.1), loss=losses.binary_cross_entropy, centering=0.1
    )
    with pytest.raises(ValueError, match=r"one reward a sequence, but there are .* \[1, 32, 6\]"):
        jax.eval_shape(centred.step, state, world)


# Four answers, two to each of two prompts, of a policy that is a table of bigrams.
FOUR = Sequences(
    np.array([[2, 3, 4, 9], [2, 9, 5, 0], [3, 4, 9, 6], [3, 9, 9, 9]], np.int32),
    np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]], bool),
    np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]], bool),
)
EARNED = np.array([[0, 0, 0, 1], [0, 1, 2, 0], [0, 0, 1, 2], [0, 1, 1, 1]], np.float32)
VALUES = np.where(FOUR.response_mask, 0.25 * FOUR.tokens, 0).astype(np.float32)


def dense_reward(params, text):
    """1 for each 9, and 2 for an end without one; the rest, padding too, is not to be counted."""
    earned = jnp.where(text.tokens == 9, 1.0, jnp.where(sequences.last_token(text.mask), 2, 0))
    return jnp.where(text.response_mask, earned, 77.0)


def by_hand(kind):
    """Advantages, one token at a time."""
    mask, out = FOUR.response_mask, np.zeros_like(EARNED)
    if kind == "group":
        totals = EARNED.sum(axis=1).reshape(2, 2)
        return np.where(mask, (totals - totals[:, ::-1]).reshape(4, 1), 0)
    values, decay = (VALUES, 0.95) if kind == "critic" else (0 * VALUES, 0.9)
    for row in range(4):
        following, advantage = 0.0, 0.0
        for t in reversed(np.flatnonzero(mask[row])):
            advantage = EARNED[row, t] + following - values[row, t] + decay * advantage
            following, out[row, t] = values[row, t], advantage
    return out


@pytest.mark.parametrize("kind", ["group", "tokens", "critic"])
def test_dense_rewards_make_the_advantages_computed_by_hand(kind):
    def sample_fn(params, prompts, keys):
        log_probs = sequences.token_log_probs(toys.bigram_logits(params, FOUR.tokens, 0), tokens)
        return FOUR.replace(tokens=tokens, log_probs=log_probs)

    tokens = jnp.asarray(FOUR.tokens)
    settings = {
        "group": {"samples_per_prompt": 2},
        "tokens": {
            "samples_per_prompt": 1,
            "per_token": True,
            "advantage": partial(advantages.gae, gae_lambda=0.9),
        },
        "critic": {
            "samples_per_prompt": 1,
            "value_fn": lambda params, tokens, mask: params * jnp.asarray(VALUES),
        },
    }[kind]
    algorithm = algorithms.policy_gradient(
        toys.bigram_logits, sample_fn, dense_reward, optax.sgd(1.0), kl_coefficient=0.0, **settings
    )
    policy = toys.bigram_params()
    params = ActorCritic(policy, jnp.float32(1)) if kind == "critic" else policy
    prompts = toys.prompts(2 if kind == "group" else 4, length=1)
    prompts = prompts.replace(mask=np.ones_like(prompts.mask))
    state = algorithm.init(params, jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(state, prompts)
    np.testing.assert_allclose(metrics["reward"], EARNED.sum() / 4)

    def loss(policy):
        log_probs = sequences.token_log_probs(policy["table"][tokens], tokens)
        return -jnp.sum(by_hand(kind) * log_probs) / FOUR.response_mask.sum()

    moved = after.params.policy if kind == "critic" else after.params
    expected = policy["table"] - jax.grad(loss)(policy)["table"]
    np.testing.assert_allclose(moved["table"], expected, atol=1e-5)
    if kind == "group":  # Answers that begin among the prompts' columns are nothing to learn from.
        after, metrics = jax.jit(algorithm.step)(state, toys.prompts(2, length=2))
        assert np.isnan(metrics["length"]) and metrics["skipped"] == 1
        with pytest.raises(ValueError, match="the prompts' 4 columns and the responses behind"):
            jax.eval_shape(algorithm.step, state, toys.prompts(2, length=4))


def above_the_mean(rewards, values, mask):
    """What is still to come, against the mean of all samples at the same place."""
    to_come = advantages.gae(rewards, values, mask, gae_lambda=1.0)
    return to_come - jnp.mean(to_come, axis=0)


def test_a_reward_where_it_is_earned_teaches_more_than_its_sum_at_the_end():
    """Equal samples, equal totals, one advantage: the sum blames every token for those before it.

    What is to come shrinks along the answer, so the baseline must know the place: against one mean
    of all tokens (``reinforce_plus_plus``) the dense reward learns more slowly here, not faster.
    """
    seeds = 8
    wanted = jnp.where(jnp.arange(toys.VOCAB) % 2 == 0, 1.0, 0.0)

    def earned(params, text):
        dense = rewards.at_ends(token_scores, lambda text: text.response_mask)(params, text)
        total = jnp.where(rewards.whole_answer(text), jnp.sum(dense, axis=-1, keepdims=True), 0)
        return jnp.where(params["dense"], dense, total)

    algorithm = algorithms.policy_gradient(
        toys.bigram_logits,
        toys.sample_fn(new_tokens=12, eos_id=None),
        earned,
        optax.adam(0.1),
        samples_per_prompt=1,
        per_token=True,
        advantage=above_the_mean,
        kl_coefficient=0.0,
    )
    # Both, with every seed, in one program.
    reward = {"weights": wanted, "dense": True}
    policy, reward = jax.tree.map(
        lambda x: jnp.stack([x] * 2 * seeds), (toys.bigram_params(), reward)
    )
    reward["dense"] = jnp.arange(2 * seeds) < seeds
    many = algorithms.ensemble(algorithm, 2 * seeds, own_frozen=True)
    state = many.init(policy, jax.random.key(0), reward=reward)
    prompts = jax.tree.map(lambda x: jnp.stack([x] * 15), toys.prompts(4))
    state, _ = jax.jit(partial(jax.lax.scan, many.step))(state, prompts)
    even = jnp.sum(jax.nn.softmax(state.params["table"])[:, :, ::2], axis=-1)
    chances = np.asarray(jnp.mean(even, axis=-1)).reshape(2, seeds)  # whatever came before
    lead = chances[0].mean() - chances[1].mean()
    assert lead > 0.02 and lead > 3 * np.hypot(*chances.std(axis=1, ddof=1)) / seeds**0.5
