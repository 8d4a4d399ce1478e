"""Prompts that are read once for all their answers: the numbers of reading each sequence whole."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, data, forks, losses, models, parallel, rewards
from rlhf_jax.models import TransformerConfig, attention
from rlhf_jax.sequences import positions
from rlhf_jax.types import FactoredLogits, Forked, Preferences, Ranked, Rated, Sequences

SGD, KEY = optax.sgd(0.3), jax.random.key(3)
SAMPLES, START, LENGTH = 3, 4, 5
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, toys.VOCAB, [6, START + LENGTH])
TOKENS[:, :START] = np.repeat(TOKENS[::SAMPLES, :START], SAMPLES, axis=0)
MASK = np.ones(TOKENS.shape, bool)
MASK[:SAMPLES, :2] = False  # One prompt is shorter, and some answers are.
MASK[1, -3:] = MASK[3, -1:] = False
TOKENS, MASK = jnp.asarray(TOKENS), jnp.asarray(MASK)

SHAPES = {
    "a llama": {"num_kv_heads": 2, "rope_theta": 50.0, "num_layers": 1},
    "windows and soft caps": {
        "num_layers": 1,
        "sliding_window": 4,
        "local_rope_theta": 20.0,
        "attention_softcap": 3.0,
    },
    "learned positions, jax's attention": {
        "sliding_window": 4,
        "sliding_layers": (True, False),
        "learned_positions": True,
        "attention": "xla",
    },
    "a top layer apart, scanned": {"num_top_layers": 1, "remat": True},
}


def test_forks_and_back():
    forked = forks.fork(TOKENS, SAMPLES, START)
    assert forked.shape == (2, START + SAMPLES * LENGTH)
    chex.assert_trees_all_equal(forks.unfork(forked, SAMPLES, START), TOKENS)
    features = jnp.stack([TOKENS, TOKENS + 1], axis=-1)
    back = forks.unfork(forks.fork(features, SAMPLES, START), SAMPLES, START)
    chex.assert_trees_all_equal(back, features)
    assert Forked(forked, SAMPLES, START).length == START + LENGTH
    with pytest.raises(ValueError, match=r"samples=4 must divide the 6 rows"):
        forks.fork(TOKENS, 4, START)


NAMES = [
    name if SHAPES[name].get("num_layers") == 1 else pytest.param(name, marks=pytest.mark.slow)
    for name in SHAPES
]


@pytest.mark.parametrize("name", NAMES)
def test_a_transformer_reads_the_same(name):
    shape = {"num_layers": 2} | SHAPES[name]
    model = models.language_model(TransformerConfig(toys.VOCAB, 16, 24, **shape))
    params = model.init(KEY)
    weights = jnp.where(MASK[..., None], 0.01 * jax.random.normal(KEY, (*TOKENS.shape, 16)), 0)

    def loss(params, read):
        logits = read(params, TOKENS, MASK)
        return jnp.sum(weights * logits.hidden) + jnp.sum(jnp.sin(logits.unembedding)), logits

    once = forks.prompts_once(model.factored_logits_fn, SAMPLES, LENGTH)
    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params, once)
    (_, whole), expected = jax.value_and_grad(loss, has_aux=True)(params, model.factored_logits_fn)
    real = MASK[..., None]
    chex.assert_trees_all_close(found.hidden * real, whole.hidden * real, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_an_answer_sees_no_other():
    """Nothing but its prompt and itself: another answer may be anything."""
    model = models.token_score_model(TransformerConfig(toys.VOCAB, 16, 24, num_layers=1))
    params = model.init(KEY)
    once = jax.jit(forks.prompts_once(model.score_fn, SAMPLES, LENGTH), static_argnums=())
    changed = TOKENS.at[1, START:].set(0)
    before, after = once(params, TOKENS, MASK), once(params, changed, MASK)
    others = np.array([0, 2, 3, 4, 5])
    chex.assert_trees_all_equal(before[others], after[others])
    assert not jnp.allclose(before[1, START:], after[1, START:], rtol=1e-3)


def test_different_prompts_are_no_numbers():
    def read(params, tokens, mask):
        return params * tokens

    once = forks.prompts_once(read, SAMPLES, LENGTH)
    found = once(1.0, TOKENS.at[1, 2].add(1), MASK)
    assert jnp.isnan(found).all(axis=1).tolist() == [False, True] + [False] * 4
    found = once(1.0, TOKENS, MASK.at[5, 0].set(False))
    assert jnp.isnan(found).all(axis=1).tolist() == [False] * 5 + [True]
    assert not jnp.isnan(once(1.0, TOKENS, MASK)).any()
    assert forks.prompts_once(read, 1, LENGTH)(1.0, TOKENS, MASK).shape == TOKENS.shape
    for settings, message in (
        ((0, 1), "samples must be at least 1, not 0"),
        ((2, -1), "response_length must be at least 0, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            forks.prompts_once(read, *settings)

    def plain(params, tokens, mask):
        return jnp.where(mask, tokens, 0)

    def broken(params, tokens, mask):
        return params["weight"]

    with pytest.raises(TypeError, match=r"read_fn must know forked rows"):
        forks.prompts_once(plain, SAMPLES, LENGTH)(1.0, TOKENS, MASK)
    with pytest.raises(TypeError, match=r"not subscriptable"):
        forks.prompts_once(broken, SAMPLES, LENGTH)(1.0, TOKENS, MASK)
    with pytest.raises(ValueError, match=r"response_length=10, but there are 9 columns in all"):
        forks.prompts_once(read, SAMPLES, 10)(1.0, TOKENS, MASK)


def test_a_cache_is_of_one_sequence_a_row():
    model = models.language_model(TransformerConfig(toys.VOCAB, 16, 24, num_layers=1))
    forked = Forked(forks.fork(MASK, SAMPLES, START), SAMPLES, START)
    with pytest.raises(ValueError, match=r"a cache is of one sequence a row"):
        model.decoder.apply(model.init(KEY), TOKENS[:2], forked, model.decoder.init_cache(2, 9))


def test_too_long_for_the_model_is_a_sequence_and_not_a_row():
    config = TransformerConfig(toys.VOCAB, 16, 24, num_layers=1, max_length=START + LENGTH)
    model = models.language_model(config)
    params = model.init(KEY)
    forks.prompts_once(model.logits_fn, SAMPLES, LENGTH)(params, TOKENS, MASK)
    longer = jnp.pad(TOKENS, ((0, 0), (0, 1))), jnp.pad(MASK, ((0, 0), (0, 1)))
    with pytest.raises(ValueError, match=r"10 tokens, but the model reads at most 9"):
        forks.prompts_once(model.logits_fn, SAMPLES, LENGTH + 1)(params, *longer)


@pytest.mark.parametrize("new", [1, 2])
def test_blocks_are_joined_for_several_queries(new, monkeypatch):
    """By jax's attention, as cuDNN's would be; for one more token they are read where they lie."""
    asked = []

    def spy(*arguments, **settings):
        asked.append(arguments[1].shape)
        return real(*arguments, **settings)

    real = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    keys = jax.random.split(KEY, 5)
    queries = jax.random.normal(keys[0], [4, new, 4, 8])
    blocks = [
        attention.KeyBlock(
            *(jax.random.normal(key, [rows, 2, columns, 8]) for key in jax.random.split(keys[n])),
            jax.random.bernoulli(keys[n + 2], 0.7, [4, new, columns]).at[..., 0].set(True),
        )
        for n, (rows, columns) in enumerate([(2, 3), (4, 5)], 1)
    ]
    plain, theirs = (
        attention.attend(queries, blocks, scale=0.3, implementation=name)
        for name in ("einsum", "xla")
    )
    chex.assert_trees_all_close(plain, theirs, rtol=1e-5, atol=1e-6)
    assert asked == ([(4, 8, 2, 8)] if new > 1 else [])


# A model that sees all before it, and is told of forked rows in the plainest way: it unforks them.
PARAMS = {
    "embed": jax.random.normal(jax.random.key(0), [toys.VOCAB, 6]),
    "place": jax.random.normal(jax.random.key(1), [12, 6]),
    "out": jax.random.normal(jax.random.key(2), [6, toys.VOCAB]),
    "head": jax.random.normal(jax.random.key(3), [6]),
}


def hidden(params, tokens, mask):
    if isinstance(mask, Forked):
        fold = mask.samples, mask.prompt_length
        whole = hidden(params, forks.unfork(tokens, *fold), forks.unfork(mask.mask, *fold))
        return forks.fork(whole, *fold)
    read = params["embed"][tokens] + params["place"][positions(mask)]
    seen = jnp.tril(jnp.ones([mask.shape[1]] * 2, bool)) & mask[:, None, :]
    return jnp.tanh(read + seen @ read / jnp.maximum(seen.sum(-1, keepdims=True), 1))


def logits(params, tokens, mask):
    return FactoredLogits(hidden(params, tokens, mask), params["out"])


def top(params, read, mask):
    return FactoredLogits(read, params["out"])


def scores(params, tokens, mask):
    each = hidden(params, tokens, mask) @ params["head"]
    if isinstance(mask, Forked):
        return each
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), -1), axis=1, keepdims=True)
    return jnp.where(last >= 0, jnp.take_along_axis(each, jnp.maximum(last, 0), axis=1), 0)[:, 0]


def side(rows, seed):
    """Text with padding in front and behind; the prompt depends on the row alone."""
    text = toys.sequences(rows, seed=seed, empty=(3,))
    prompts = np.random.default_rng(9).integers(2, toys.VOCAB, [rows, 2])
    tokens, mask, response = (np.zeros([rows, 11], x.dtype) for x in jax.tree.leaves(text)[:3])
    for row in range(rows):
        place = row % 4 + np.arange(7)
        tokens[row, place], mask[row, place] = text.tokens[row], text.mask[row]
        tokens[row, place[:2]], response[row, place] = prompts[row], text.response_mask[row]
        mask[row, place[0]] &= row % 3 != 1  # or the prompt is one token
    response[5, np.flatnonzero(response[5])[1]] = False  # the user's word between two answers
    return Sequences(np.where(mask, tokens, 0), mask, response & mask)


PAIRS = Preferences(side(8, 0), side(8, 1))
ANSWERS = [side(8, seed) for seed in range(3)]
RANKED = Ranked(
    jax.tree.map(lambda *x: np.stack(x, axis=1), *ANSWERS),
    np.argsort(RANDOM.random([8, 3]), axis=1),
)
BATCHES = {
    "pairs": (partial(algorithms.dpo, logits, SGD, supervised_weight=0.3), PAIRS),
    "rankings": (partial(algorithms.direct, logits, SGD, loss=losses.plackett_luce), RANKED),
    "ratings, unrelated": (
        partial(algorithms.kto, logits, SGD),
        Rated(ANSWERS[0], np.arange(8) % 2 == 0, ANSWERS[1]),
    ),
    "rewards": (partial(algorithms.reward_model, scores, SGD, centering=0.1), PAIRS),
    "a trunk": (partial(algorithms.dpo, top, SGD, trunk_fn=hidden, trainable="out"), PAIRS),
}


def stepped(compile, algorithm, batch):
    state = jax.tree.map(jnp.copy, algorithm.init(PARAMS, KEY))
    for _ in range(2):
        state, metrics = compile(algorithm.step)(state, batch)
    return state.params, metrics


SLOW = ("rankings", "ratings, unrelated")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BATCHES]
)
def test_the_sides_of_a_judgement_share_their_prompt(name):
    make, batch = BATCHES[name]
    lengths = data.shared_lengths(batch)
    assert lengths == {"prompt_length": 2, "response_length": 5}
    whole = stepped(jax.jit, make(), batch)
    chex.assert_trees_all_close(
        stepped(jax.jit, make(**lengths), batch), whole, rtol=1e-5, atol=1e-6
    )
    roomy = {"prompt_length": 4, "response_length": 6}
    sharded = partial(parallel.shard_step, mesh=parallel.data_mesh())
    found = stepped(sharded, make(accumulate=1 if "ratings" in name else 2, **roomy), batch)
    chex.assert_trees_all_close(found, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairs", "rewards"])
def test_shared_and_pmapped(name):
    make, batch = BATCHES[name]
    shared = make(axis_name="data", **data.shared_lengths(batch))
    found = stepped(parallel.pmap_step, shared, batch)
    chex.assert_trees_all_close(found, stepped(jax.jit, make(), batch), rtol=1e-5, atol=1e-6)


def test_what_is_longer_or_of_another_prompt_is_no_number():
    make, batch = BATCHES["rewards"]
    other = PAIRS.replace(rejected=side(8, 1).replace(tokens=np.where(PAIRS.rejected.mask, 5, 0)))
    state = make().init(PARAMS, KEY)
    for lengths, batch, message in (
        ((1, 5), PAIRS, "prompt_length=1 must be at least 2"),
        ((2, 4), PAIRS, "response_length=4 must be at least 5"),
        ((2, 5), other, "the sides of a judgement must have one prompt"),
    ):
        settings = dict(zip(("prompt_length", "response_length"), lengths, strict=True))
        algorithm = make(**settings)
        after, metrics = jax.jit(algorithm.step)(state, batch)
        assert metrics["skipped"] == 1 and jnp.isnan(metrics["loss"])
        chex.assert_trees_all_equal(after.params, PARAMS)
        with pytest.raises(ValueError, match=message):
            algorithms.laid.laid_out(batch, **settings)


def test_settings_that_cannot_be():
    packed, _ = data.pack(PAIRS, 24)
    for settings, batch, message in (
        ({"prompt_length": 2}, PAIRS, "prompt_length=2 needs a response_length beside it"),
        ({"prompt_length": 0, "response_length": 5}, PAIRS, "prompt_length must be at least 1"),
        ({"prompt_length": 2, "response_length": 5}, packed, "must be None for a packed batch"),
    ):
        with pytest.raises(ValueError, match=message):
            algorithms.laid.laid_out(batch, **settings)
    with pytest.raises(ValueError, match=r"token_dropout=0.5 hides other tokens"):
        algorithms.reward_model(scores, SGD, token_dropout=0.5, prompt_length=2, response_length=5)
    with pytest.raises(ValueError, match=r"batch must not be packed"):
        data.shared_lengths(packed)
    forgets = partial(algorithms.reward_model, lambda p, t, m: t[:, 0] * p["head"][0], SGD)
    with pytest.raises(ValueError, match=r"rows with a shared prompt .* score at every token"):
        stepped(jax.jit, forgets(prompt_length=2, response_length=5), PAIRS)


def sample_fn(params, prompts, keys):
    """Answers of unequal lengths, written beforehand, whatever the prompt."""
    count, start = len(keys), prompts.tokens.shape[1]
    answers = side(count, 2)
    tokens = np.concatenate([np.zeros([count, start], int), answers.tokens[:, 3:]], axis=1)
    behind = jnp.asarray(np.arange(tokens.shape[1]) >= start)
    rows = jnp.repeat(prompts.tokens, count // len(prompts.tokens), axis=0)
    tokens = jnp.asarray(tokens).at[:, :start].set(rows)
    ahead = jnp.repeat(prompts.mask, count // len(prompts.mask), axis=0)
    length = jnp.asarray(1 + np.arange(count) % 5)[:, None]
    real = behind & (jnp.arange(tokens.shape[1]) < start + length)
    mask = real | jnp.pad(ahead, ((0, 0), (0, tokens.shape[1] - start)))
    return Sequences(tokens, mask, real, jnp.where(real, -2.0, 0.0))


def policy(read=logits, **settings):
    return algorithms.grpo(read, sample_fn, toys.bag_reward, SGD, samples_per_prompt=2, **settings)


PROMPTS = toys.prompts(4, seed=2, empty=(2,))


def policy_stepped(compile, algorithm):
    state = algorithm.init(PARAMS, KEY, toys.bag_params(2))
    for _ in range(2):
        state, metrics = compile(algorithm.step)(jax.tree.map(jnp.copy, state), PROMPTS)
    return state.params, metrics


@pytest.mark.parametrize(
    "settings",
    [pytest.param({}, marks=pytest.mark.slow), {"accumulate": 2, "entropy_weight": 0.1}],
)
def test_policy_gradients_share_prompts(settings):
    whole = policy_stepped(jax.jit, policy(**settings))
    once = policy(share_prompts=True, **settings)
    chex.assert_trees_all_close(policy_stepped(jax.jit, once), whole, rtol=1e-4, atol=1e-6)
    sharded = partial(parallel.shard_step, mesh=parallel.data_mesh(jax.devices()[:2]))
    chex.assert_trees_all_close(policy_stepped(sharded, once), whole, rtol=1e-4, atol=1e-6)


def test_a_trunk_is_read_once_too():
    settings = {"read": top, "trunk_fn": hidden, "trainable": "out"}
    whole = policy_stepped(jax.jit, policy(**settings))
    found = policy_stepped(jax.jit, policy(share_prompts=True, **settings))
    chex.assert_trees_all_close(found, whole, rtol=1e-4, atol=1e-6)


def test_a_reward_on_the_reference_too():
    """A function of rows, whatever it is for, becomes one that reads prompts once."""
    head = models.linear_head(6)
    text = Sequences(TOKENS, MASK, MASK & (jnp.arange(START + LENGTH) >= START))
    once = forks.prompts_once(logits, SAMPLES, LENGTH)
    found, whole = (
        models.shared_trunk(read, head)(PARAMS, head.init(KEY), text) for read in (once, logits)
    )
    chex.assert_trees_all_close(found.rewards, whole.rewards, rtol=1e-5)
    chex.assert_trees_all_close(found.logits, whole.logits, rtol=1e-5, atol=1e-6)


def test_minibatches_keep_the_samples_of_a_prompt_together():
    """Torn from its neighbours, a sample would have another prompt than they, and no number."""
    _, metrics = policy_stepped(jax.jit, policy(share_prompts=True, minibatches=2, epochs=2))
    assert metrics["skipped"] == 0 and jnp.isfinite(metrics["loss"])
    with pytest.raises(ValueError, match=r"which share_prompts keeps together.* 8 minibatches"):
        policy_stepped(jax.jit, policy(share_prompts=True, minibatches=8))


def test_online_pairs_share_prompts():
    judge = rewards.judge(toys.bag_reward)
    make = partial(algorithms.online_dpo, logits, sample_fn, judge, SGD)
    whole, found = (policy_stepped(jax.jit, make(share_prompts=shared)) for shared in (False, True))
    chex.assert_trees_all_close(found, whole, rtol=1e-4, atol=1e-6)
