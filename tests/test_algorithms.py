"""What every algorithm promises, and what each of them learns."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from cases import CASES, names

from rlhf_jax import aggregates, algorithms, divergences, implicit_rewards, losses, sequences
from rlhf_jax.types import ActorCritic, Prompts, Sequences, TrainState


def stacked(case, count):
    return jax.tree.map(lambda *x: np.stack(x), *(case.batch(seed) for seed in range(count)))


@pytest.mark.parametrize("name", names())
def test_a_step_is_the_body_of_a_scan_and_compiles_once(name):
    case = CASES[name]
    algorithm = case.build()
    state = case.init(algorithm)
    assert isinstance(state, TrainState)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(n=1)(algorithm.step))
    looped, rows = state, []
    for seed in range(3):
        looped, metrics = step(looped, case.batch(seed))
        chex.assert_trees_all_equal_shapes_and_dtypes(looped, state)
        rows.append(metrics)
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert {"loss", "grad_norm", "skipped"} <= set(metrics)
    assert looped.step == 3
    scanned, history = jax.jit(partial(jax.lax.scan, algorithm.step))(state, stacked(case, 3))
    chex.assert_trees_all_close(scanned.params, looped.params, atol=1e-6)
    chex.assert_trees_all_close(
        history, jax.tree.map(lambda *x: jnp.stack(x), *rows), atol=1e-5, rtol=1e-5
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, looped.params, state.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ["supervised", "reward_model", "slic", "rloo"])
def test_jit_equals_eager(name):
    case = CASES[name]
    algorithm = case.build()
    state = case.init(algorithm)
    eager, metrics = algorithm.step(state, case.batch(0))
    jitted, expected = jax.jit(algorithm.step)(state, case.batch(0))
    chex.assert_trees_all_close((jitted.params, expected), (eager.params, metrics), atol=1e-5)


@pytest.mark.parametrize("name", ["reward_model", "ppo"])
def test_vmap_over_keys(name):
    case = CASES[name]
    algorithm = case.build()
    state = case.init(algorithm)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: state.replace(key=key))(keys)
    many, _ = jax.jit(jax.vmap(algorithm.step, (0, None)))(states, case.batch(0))
    alone, _ = jax.jit(algorithm.step)(state.replace(key=keys[1]), case.batch(0))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], many.params), alone.params, atol=1e-5)


@pytest.mark.parametrize("name", ["supervised", "dpo", "ipo", "slic"])
def test_padding_rows_and_what_they_hold_do_not_matter(name):
    case = CASES[name]
    algorithm, batch = case.build(), case.batch(0)
    step, state = jax.jit(algorithm.step), case.init(algorithm)
    response = batch if isinstance(batch, Sequences) else batch.chosen
    kept = np.flatnonzero(response.response_mask.any(axis=1))
    assert len(kept) < len(response.mask)
    without, _ = step(state, jax.tree.map(lambda x: x[kept], batch))
    with_padding, _ = step(state, batch)
    chex.assert_trees_all_close(without.params, with_padding.params, atol=1e-6)


def test_padding_prompts_do_not_matter():
    """Their samples are drawn and scored, and neither count nor shift anyone else's key."""
    case = CASES["rloo"]
    algorithm, batch = case.build(), toys.prompts(8, empty=(6, 7))
    step, state = jax.jit(algorithm.step), case.init(algorithm)
    without, a = step(state, jax.tree.map(lambda x: x[:6], batch))
    with_padding, b = step(state, batch)
    chex.assert_trees_all_close((without.params, a), (with_padding.params, b), atol=1e-5)


def test_dpo_loss_and_gradient_by_hand():
    """beta is applied once, over the response alone, against the reference given."""
    batch, beta = toys.preferences(4), 0.3
    params, reference = toys.bigram_params(), toys.bigram_params(1)
    algorithm = algorithms.direct(toys.bigram_logits, optax.sgd(1.0), beta=beta)
    state = algorithm.init(params, jax.random.key(0), reference)
    after, metrics = algorithm.step(state, batch)

    def response_log_prob(table, side):
        log_probs = jax.nn.log_softmax(table)
        out = []
        for tokens, counts in zip(side.tokens, side.response_mask, strict=True):
            ts = [t for t in range(1, len(tokens)) if counts[t]]
            out.append(sum(log_probs[tokens[t - 1], tokens[t]] for t in ts))
        return jnp.stack(out)

    def loss(table):
        leads = [
            response_log_prob(table, side) - response_log_prob(reference["table"], side)
            for side in (batch.chosen, batch.rejected)
        ]
        return jnp.mean(-jax.nn.log_sigmoid(beta * (leads[0] - leads[1])))

    value, gradient = jax.value_and_grad(loss)(params["table"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(after.params["table"], params["table"] - gradient, atol=1e-5)


def test_dpo_starts_at_log_2_against_a_copy_of_itself():
    algorithm = algorithms.direct(toys.bigram_logits, optax.sgd(0.1))
    state = algorithm.init(toys.bigram_params(), jax.random.key(0))
    _, metrics = algorithm.step(state, toys.preferences(8))
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-6)
    assert metrics["accuracy"] == 0.5


def test_the_design_page_s_lines_work_as_they_stand():
    algorithm = algorithms.direct(
        toys.bigram_logits,
        optax.adam(1e-2),
        beta=0.1,
        loss=lambda chosen, rejected: jnp.square(chosen - rejected - 1),
    )
    state = algorithm.init(toys.bigram_params(), jax.random.key(0))
    state, metrics = algorithm.step(state, toys.preferences(8))
    batches = jax.tree.map(lambda x: np.stack([x] * 60), toys.preferences(8))
    state, history = jax.jit(partial(jax.lax.scan, algorithm.step))(state, batches)
    assert history["loss"][-1] < 0.5 * metrics["loss"]


def test_supervised_reaches_the_entropy_of_its_text():
    text = toys.sequences(64, length=20)
    algorithm = algorithms.supervised(toys.bigram_logits, optax.adam(0.1))
    state = algorithm.init(toys.bigram_params(), jax.random.key(0))
    batches = jax.tree.map(lambda x: np.stack([x] * 200), text)
    _, history = jax.jit(partial(jax.lax.scan, algorithm.step))(state, batches)
    pairs = np.zeros([toys.VOCAB, toys.VOCAB])
    for tokens, counts in zip(text.tokens, text.response_mask, strict=True):
        for t in np.flatnonzero(counts):
            pairs[tokens[t - 1], tokens[t]] += 1
    conditional = pairs / np.maximum(pairs.sum(axis=1, keepdims=True), 1)
    entropy = -(pairs * np.log(np.where(conditional > 0, conditional, 1))).sum() / pairs.sum()
    np.testing.assert_allclose(history["loss"][-1], entropy, atol=2e-3)


def test_reward_model_recovers_bradley_terry_strengths():
    """On one-token texts it is the Bradley-Terry model: fitted weights are the true ones."""
    truth = np.linspace(-1.5, 1.5, toys.VOCAB)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, toys.VOCAB, [2, 20_000])
    wins = rng.random(20_000) < 1 / (1 + np.exp(truth[second] - truth[first]))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    ones = np.ones([20_000, 1], bool)

    def side(tokens):
        return Sequences(tokens[:, None].astype(np.int32), ones, ones)

    algorithm = algorithms.reward_model(toys.bag_scores, optax.adam(0.05))
    state = algorithm.init(toys.bag_params(), jax.random.key(0))
    batch = toys.Preferences(side(chosen), side(rejected))
    step = jax.jit(algorithm.step)
    for _ in range(200):
        state, _ = step(state, batch)
    weights = np.asarray(state.params["weights"])
    np.testing.assert_allclose(weights - weights.mean(), truth, atol=0.1)


def bandit(**settings):
    """One token, its reward known: the optimum is the reference tilted by reward over beta."""
    sample = toys.sample_fn(new_tokens=1, eos_id=None)

    def reward_fn(weights, sequences):
        return weights[sequences.tokens[:, -1]]

    algorithm = algorithms.policy_gradient(
        toys.bigram_logits,
        sample,
        reward_fn,
        optax.adam(optax.cosine_decay_schedule(0.1, 400)),
        samples_per_prompt=16,
        **settings,
    )
    prompts = Prompts(np.full([64, 1], 3, np.int32), np.ones([64, 1], bool))
    return algorithm, prompts


BETA = 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_coefficient": BETA},
        {
            "kl_coefficient": BETA,
            "reward_penalty": None,
            "loss_penalty": divergences.kl_k2,
            "policy_loss": losses.ppo_clip,
            "minibatches": 2,
        },
        {
            "kl_coefficient": BETA,
            "value_fn": lambda params, tokens, mask: params["value"] * jnp.ones(tokens.shape),
            "policy_loss": losses.ppo_clip,
            "minibatches": 2,
        },
    ],
    ids=["rloo", "penalty in the loss", "ppo"],
)
def test_policy_gradient_reaches_the_exact_tilt(settings):
    """pi* is proportional to pi_ref exp(r / beta)."""
    algorithm, prompts = bandit(**settings)
    params = toys.bigram_params()
    rewards = jnp.linspace(-1, 1, toys.VOCAB)
    if "value_fn" in settings:
        params = ActorCritic(params, {"value": jnp.float32(0)})
    state = algorithm.init(params, jax.random.key(0), rewards)

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda s, _: algorithm.step(s, prompts), state, None, length=400)

    state, history = run(state)
    reference = toys.bigram_params()["table"][3]
    optimum = jax.nn.log_softmax(jax.nn.log_softmax(reference) + rewards / BETA)
    learnt = state.params.policy if "value_fn" in settings else state.params
    assert divergences.exact_kl(learnt["table"][3], optimum) < 1e-2
    assert divergences.exact_kl(reference, optimum) > 0.5, "the case must be far from its start"
    expected = divergences.exact_kl(optimum, reference)
    np.testing.assert_allclose(jnp.mean(history["kl"][-50:]), expected, atol=0.1)


def test_an_adaptive_coefficient_holds_its_target():
    coefficient = divergences.adaptive_coefficient(1.0, target=0.5)
    algorithm, prompts = bandit(kl_coefficient=coefficient)
    state = algorithm.init(toys.bigram_params(), jax.random.key(0), jnp.linspace(-1, 1, toys.VOCAB))
    _, history = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: algorithm.step(s, prompts), s, None, length=400)
    )(state)
    np.testing.assert_allclose(jnp.mean(history["kl"][-50:]), 0.5, atol=0.05)


def test_a_non_finite_reward_skips_the_step_and_is_counted():
    algorithm = CASES["rloo"].build()
    good = CASES["rloo"].init(algorithm)
    bad = good.replace(
        frozen=good.frozen._replace(reward={"weights": jnp.full(toys.VOCAB, jnp.nan)})
    )
    step = jax.jit(algorithm.step)
    once, metrics = step(bad, CASES["rloo"].batch(0))
    twice, metrics = step(once, CASES["rloo"].batch(1))
    assert (metrics["skipped"], twice.skipped, twice.step) == (2, 2, 2)
    chex.assert_trees_all_equal(
        (twice.params, twice.opt_state, twice.extra), (good.params, good.opt_state, good.extra)
    )
    healed, metrics = step(twice.replace(frozen=good.frozen), CASES["rloo"].batch(2))
    assert (metrics["skipped"], healed.skipped) == (0, 0)
    assert not np.array_equal(healed.params["table"], good.params["table"])


def test_a_judge_that_only_watches_is_reported_and_cannot_stop_anything():
    def watch(judge, sequences):
        scores = toys.bag_reward(judge, sequences)
        return {"gold": scores, "nothing": scores * jnp.nan, "half": jnp.float32(0.5)}

    def run(**settings):
        algorithm = algorithms.policy_gradient(
            toys.bigram_logits, toys.sample_fn(), toys.bag_reward, optax.sgd(0.3), **settings
        )
        judge, prompts = toys.bag_params(2), toys.prompts(8, empty=(2,))
        state = algorithm.init(toys.bigram_params(), jax.random.key(7), judge, watched=judge)
        return jax.jit(algorithm.step)(state, prompts)

    state, metrics = run(watch=watch)
    np.testing.assert_allclose(metrics["gold"], metrics["reward"], rtol=1e-6)
    assert (metrics["half"], metrics["skipped"]) == (0.5, 0)
    assert np.isnan(metrics["nothing"])
    chex.assert_trees_all_close(state.params, run()[0].params, atol=1e-6)


@pytest.mark.parametrize("name", ["supervised", "reward_model", "dpo", "ppo"])
def test_non_finite_parameters_of_the_loss_skip_the_step(name):
    algorithm = CASES[name].build()
    state = CASES[name].init(algorithm)
    broken = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    after, metrics = jax.jit(algorithm.step)(broken, CASES[name].batch(0))
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(after.opt_state, broken.opt_state)


def test_minibatches_partition_the_samples():
    """With a constant surrogate, four minibatches of SGD sum to four times one."""

    def constant(log_probs, old_log_probs, advantages, mask):
        return jnp.where(mask, log_probs - jax.lax.stop_gradient(log_probs), 0)

    def moved(**settings):
        algorithm = algorithms.policy_gradient(
            toys.bigram_logits,
            toys.sample_fn(eos_id=None),
            toys.bag_reward,
            optax.sgd(1e-4),
            policy_loss=constant,
            reward_penalty=None,
            **settings,
        )
        state = algorithm.init(toys.bigram_params(), jax.random.key(0), toys.bag_params())
        after, _ = jax.jit(algorithm.step)(state, toys.prompts(8))
        return after.params["table"] - state.params["table"]

    np.testing.assert_allclose(moved(minibatches=4), 4 * moved(), atol=1e-6)


def test_impossible_settings_are_refused():
    def build(**settings):
        return algorithms.policy_gradient(
            toys.bigram_logits, toys.sample_fn(), toys.bag_reward, optax.sgd(0.1), **settings
        )

    with pytest.raises(ValueError, match="epochs must be at least 1"):
        build(epochs=0)
    with pytest.raises(ValueError, match="a greedy policy has no gradient"):
        build(temperature=0.0)
    algorithm = build(minibatches=3)
    state = algorithm.init(toys.bigram_params(), jax.random.key(0), toys.bag_params())
    with pytest.raises(ValueError, match=r"32 sequences .* cannot be cut into 3 minibatches"):
        algorithm.step(state, toys.prompts(8))
    with pytest.raises(ValueError, match=r"ActorCritic\(policy, critic\)"):
        build(value_fn=toys.bag_values).init(toys.bigram_params(), jax.random.key(0))
    with pytest.raises(ValueError, match="typed key"):
        algorithm.init(toys.bigram_params(), jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"rewards \[B\] or \[B, T\], .* not \[8, 32\]"):
        wrong = algorithms.policy_gradient(
            toys.bigram_logits, toys.sample_fn(), lambda p, s: s.log_probs.T, optax.sgd(0.1)
        )
        wrong.step(wrong.init(toys.bigram_params(), jax.random.key(0)), toys.prompts(8))
    with pytest.raises(ValueError, match="either reward_fn or shared_fn"):
        algorithms.policy_gradient(toys.bigram_logits, toys.sample_fn(), None, optax.sgd(0.1))
    with pytest.raises(ValueError, match="token_dropout"):
        algorithms.reward_model(toys.bag_scores, optax.sgd(0.1), token_dropout=1.0)


def test_simpo_needs_no_reference():
    algorithm = algorithms.direct(
        toys.bigram_logits,
        optax.sgd(0.1),
        beta=2.0,
        loss=partial(losses.bradley_terry, margin=0.5),
        implicit_reward=implicit_rewards.mean_log_prob,
        reference_free=True,
    )
    state = algorithm.init(toys.bigram_params(), jax.random.key(0))
    assert jax.tree.leaves(state.frozen) == []
    _, metrics = algorithm.step(state, toys.preferences(8))
    assert np.isfinite(metrics["loss"])


def test_aggregations_are_one_keyword():
    def loss(aggregation):
        algorithm = algorithms.supervised(
            toys.bigram_logits, optax.sgd(0.1), aggregation=aggregation
        )
        state = algorithm.init(toys.bigram_params(), jax.random.key(0))
        return float(algorithm.step(state, toys.sequences(8))[1]["loss"])

    by_length = partial(sequences.constant_length, length=7)
    assert len({loss(sequences.token_mean), loss(sequences.sequence_mean), loss(by_length)}) == 3


def test_a_reward_may_be_of_tokens_and_of_several_models():
    """A reward given out token by token, or as the mean of three, moves the policy as its sum."""

    def of_tokens(params, sequences):
        mask = sequences.response_mask
        return jnp.where(mask, params["weights"][sequences.tokens], jnp.nan)

    def of_models(params, sequences):
        return jnp.array([0.5, 1.0, 1.5])[:, None] * toys.bag_reward(params, sequences)

    found = {}
    for name, reward_fn, settings in (
        ("whole", toys.bag_reward, {}),
        ("tokens", of_tokens, {}),
        ("models", of_models, {"aggregate": aggregates.mean}),
    ):
        algorithm = algorithms.policy_gradient(
            toys.bigram_logits, toys.sample_fn(), reward_fn, optax.sgd(0.3), **settings
        )
        state = algorithm.init(toys.bigram_params(), jax.random.key(0), toys.bag_params())
        state, metrics = jax.jit(algorithm.step)(state, toys.prompts(8, empty=(2,)))
        found[name] = state.params["table"], metrics
    for name in ("tokens", "models"):
        np.testing.assert_allclose(found[name][0], found["whole"][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name][1]["reward"], found["whole"][1]["reward"], rtol=1e-5)
    metrics = found["models"][1]
    np.testing.assert_allclose(metrics["reward_2"], 3 * metrics["reward_0"], rtol=1e-5)
