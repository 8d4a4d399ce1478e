"""A part of the parameters trains; the rest exists once, and is read once where it is a trunk."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, checkpoint, models, parallel, rewards, training, trees
from rlhf_jax.algorithms import Demonstrated, PolicyAndReward
from rlhf_jax.sequences import token_log_probs
from rlhf_jax.types import ActorCritic, FactoredLogits

KEY = jax.random.key(7)
TEXT = toys.sequences(8, empty=(2,))


def two_parts(seed=0):
    shapes = {"embed": [toys.VOCAB, 8], "mix": [8, 8], "bend": [8, 8], "out": [8, toys.VOCAB]}
    keys = jax.random.split(jax.random.key(seed), 4)
    arrays = {
        name: 0.5 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return {
        "lower": {"embed": arrays["embed"], "mix": arrays["mix"]},
        "upper": {"bend": arrays["bend"], "out": arrays["out"]},
    }


# Jitted so that every use of it shows in the program.
@jax.jit
def trunk(params, tokens, mask):
    return jnp.tanh(params["lower"]["embed"][tokens] @ params["lower"]["mix"])


def top(params, hidden, mask):
    hidden = hidden + jnp.tanh(hidden @ params["upper"]["bend"])
    return FactoredLogits(hidden, params["upper"]["out"])


def whole(params, tokens, mask):
    return top(params, trunk(params, tokens, mask), mask)


PARAMS = two_parts()
# Another policy on the same trunk.
REFERENCE = {"lower": PARAMS["lower"], "upper": two_parts(1)["upper"]}


def sample_fn(params, prompts, keys):
    """Eight answers that were written beforehand."""
    tokens = jnp.asarray(TEXT.tokens)
    return TEXT.replace(
        tokens=tokens, log_probs=token_log_probs(whole(params, tokens, TEXT.mask), tokens)
    )


def stepped(algorithm, state, batch):
    return jax.jit(algorithm.step)(state, batch)


# One algorithm for several tests, which is compiled once.
@functools.cache
def on_trunk(axis_name=None):
    settings = {"trainable": "upper/*", "trunk_fn": trunk, "axis_name": axis_name}
    return algorithms.dpo(top, optax.adam(0.1), beta=0.5, **settings)


def close(a, b, **tolerances):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **({"rtol": 1e-5, "atol": 1e-6} | tolerances))


def test_nothing_exists_twice(tmp_path):
    """In the state, in a checkpoint, in a run that goes on from one."""
    algorithm = algorithms.direct(whole, optax.adam(0.1), trainable="upper/*")
    state = algorithm.init(PARAMS, KEY)
    fit = partial(training.fit, algorithm, batches=lambda n: toys.preferences(8, n), chunk=2)
    straight = fit(state, steps=4).state
    broken = fit(state, steps=2).state
    leaves = [x for x in jax.tree.leaves(broken) if x.dtype == jnp.float32]
    sizes = [x.size for x in leaves]
    lower, upper = (sum(x.size for x in jax.tree.leaves(PARAMS[n])) for n in ("lower", "upper"))
    assert sum(sizes) == lower + 4 * upper  # the policy, two moments, the reference
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
    checkpoint.save(tmp_path, broken, config={})
    found, _ = checkpoint.restore(tmp_path, state, config={})
    assert jax.tree.structure(found) == jax.tree.structure(broken)
    close(fit(found, steps=4).state.params, straight.params, rtol=0, atol=0)


def test_the_trunk_is_read_once_for_all():
    """Two epochs of two minibatches, a reference, a reward and a critic: one forward pass."""
    head = models.linear_head(8)
    score, critic = (
        jax.tree.map(lambda x: 50 * x, head.init(key)) for key in jax.random.split(KEY)
    )

    def built(logits_fn, **settings):
        return algorithms.ppo(
            logits_fn,
            sample_fn,
            None,
            optax.adam(0.1),
            shared_fn=models.shared_trunk(logits_fn, head),
            value_fn=models.feature_values(head),
            samples_per_prompt=2,
            epochs=2,
            minibatches=2,
            trainable=("policy/upper/*", "critic/*"),
            **settings,
        )

    params, prompts, found = ActorCritic(PARAMS, critic), toys.prompts(4, length=2, empty=(3,)), {}
    for name, algorithm in {"apart": built(whole), "once": built(top, trunk_fn=trunk)}.items():
        state = algorithm.init(params, KEY, reward=score, reference=REFERENCE)
        after, metrics = stepped(algorithm, state, prompts)
        reads = str(jax.make_jaxpr(algorithm.step)(state, prompts)).count("name=trunk")
        found[name] = (after.params, metrics), reads
    close(found["once"][0], found["apart"][0])
    # The sampler's own pass, and then one; or the reference's and the update's.
    assert (found["once"][1], found["apart"][1]) == (2, 3)
    policy = found["once"][0][0].policy
    assert np.abs(policy["upper"]["out"] - PARAMS["upper"]["out"]).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, policy["lower"], PARAMS["lower"])


def test_a_part_trains_as_if_the_rest_had_no_gradient():
    """On a trunk that is read once: on one device, on a mesh, by pmap."""
    batch = toys.preferences(8, empty=(1, 6))

    algorithm = on_trunk()
    state = algorithm.init(PARAMS, KEY, REFERENCE)
    assert jax.tree.leaves(state.frozen["lower"]) == []
    assert str(jax.make_jaxpr(algorithm.step)(state, batch)).count("name=trunk") == 1
    mesh = parallel.data_mesh()
    copied = parallel.place(jax.tree.map(jnp.copy, state), mesh)
    expected, metrics = stepped(algorithm, state, batch)
    assert np.abs(expected.params["upper"]["out"] - PARAMS["upper"]["out"]).max() > 0.05
    jax.tree.map(np.testing.assert_array_equal, expected.params["lower"], PARAMS["lower"])
    upper = sum(x.size for x in jax.tree.leaves(PARAMS["upper"]))
    assert sum(x.size for x in jax.tree.leaves(expected.opt_state)) == 2 * upper + 1

    labels = {"lower": "still", "upper": "moves"}
    masked = {"moves": optax.adam(0.1), "still": optax.set_to_zero()}
    full = algorithms.dpo(whole, optax.multi_transform(masked, labels), beta=0.5)
    after, found = stepped(full, full.init(PARAMS, KEY, REFERENCE), batch)
    close(after.params, expected.params)
    close(found["loss"], metrics["loss"])
    assert found["grad_norm"] > metrics["grad_norm"]
    for after, found in (
        parallel.pmap_step(on_trunk("data").step)(state, batch),
        parallel.shard_step(algorithm.step, mesh)(copied, batch),
    ):
        close((after.params, found), (expected.params, metrics))

    bad = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, PARAMS))
    after, _ = stepped(algorithm, bad, batch)
    assert after.skipped == 1 and (after.opt_state[0].mu["upper"]["out"] == 0).all()


def test_members_share_what_does_not_train():
    tops = jax.vmap(lambda seed: two_parts(seed)["upper"])(jnp.arange(3))
    params = {"lower": PARAMS["lower"], "upper": tops}
    batch = toys.preferences(8)
    alone = on_trunk()
    together = algorithms.ensemble(alone, 3, trainable="upper/*", own_frozen=True)
    state = together.init(params, KEY)
    assert state.params["lower"]["mix"].shape == (8, 8)
    assert state.frozen["upper"]["out"].shape[0] == 3 and state.frozen["lower"]["mix"] is None
    after, _ = stepped(together, state, batch)
    for m in range(3):
        own = {"lower": PARAMS["lower"], "upper": jax.tree.map(lambda x, m=m: x[m], tops)}
        expected, _ = stepped(alone, alone.init(own, KEY), batch)
        found = jax.tree.map(lambda x, m=m: x[m], after.params["upper"])
        close(found, expected.params["upper"])
    assert after.params["lower"]["mix"].shape == (8, 8)
    whole_trains = algorithms.ensemble(
        algorithms.dpo(whole, optax.sgd(0.1)), 3, trainable="upper/*"
    )
    state = whole_trains.init(params, KEY, reference=PARAMS)
    with pytest.raises(ValueError, match="trains parameters that its members are to share"):
        jax.eval_shape(whole_trains.step, state, batch)


def test_every_algorithm_takes_it():
    """Traced only: that the parts fit is seen in their shapes."""
    prompts = toys.prompts(4, length=2)
    settings = {"trainable": "upper/*"}
    judge = rewards.judge(lambda params, text: jnp.sum(text.response_mask, axis=-1) * 1.0)

    def opponent_fn(both, prompts, keys):
        return sample_fn(both[1], prompts, keys)

    def reward_fn(params, text):
        return params * jnp.sum(text.response_mask, axis=-1)

    rows = toys.prompts(8, length=2)
    adam = optax.adam(0.1)
    inverse = algorithms.gail(
        whole, sample_fn, reward_fn, adam, adam, policy=partial(algorithms.rloo, **settings),
        samples_per_prompt=4,
    )  # fmt: skip
    game = inverse.init(PolicyAndReward(PARAMS, jnp.float32(1)), KEY)
    two = toys.prompts(2, length=2)
    taken = {
        "supervised": (algorithms.supervised(whole, adam, **settings), TEXT),
        "online_dpo": (
            algorithms.online_dpo(whole, sample_fn, judge, adam, **settings),
            prompts,
        ),
        "nash_md": (
            algorithms.nash_md(whole, sample_fn, opponent_fn, judge, adam, **settings),
            rows,
        ),
        "remax": (
            algorithms.remax(
                top,
                lambda params, prompts, keys: jax.tree.map(
                    lambda x: x[: len(keys)], sample_fn(params, prompts, keys)
                ),
                reward_fn,
                adam,
                baseline_fn=sample_fn,
                trunk_fn=trunk,
                **settings,
            ),
            rows,
        ),
    }
    states = {}
    for name, (algorithm, batch) in taken.items():
        given = {"reward": jnp.float32(1)} if name == "remax" else {}
        states[name] = (algorithm.init(PARAMS, KEY, **given), algorithm, batch)
    states["gail"] = (game, inverse, Demonstrated(TEXT, two))
    for state, algorithm, batch in states.values():
        after, _ = jax.eval_shape(algorithm.step, state, batch)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        upper = sum(x.size for x in jax.tree.leaves(PARAMS["upper"]))
        moments = state.opt_state.policy if state is game else state.opt_state
        assert sum(x.size for x in jax.tree.leaves(moments)) == 2 * upper + 1


def test_what_does_not_fit_is_named():
    batch = toys.preferences(8)

    def dpo(logits_fn=whole, **settings):
        return algorithms.dpo(logits_fn, optax.sgd(0.1), **settings)

    top_of_tree = "lower/embed, lower/mix, upper/bend, upper/out"
    with pytest.raises(ValueError, match=rf"trainable 'up/\*' matches nothing: .* {top_of_tree}"):
        dpo(trainable=("upper/*", "up/*")).init(PARAMS, KEY)
    with pytest.raises(ValueError, match="trainable is empty"):
        dpo(trainable=()).init(PARAMS, KEY)
    with pytest.raises(ValueError, match=r"matches lower/embed, int8\[11, 8\], which has no grad"):
        rounded = {**PARAMS["lower"], "embed": PARAMS["lower"]["embed"].astype(jnp.int8)}
        dpo(trainable="*").init({**PARAMS, "lower": rounded}, KEY)
    for trainable, moved in ((("upper/*", "*/mix"), "lower/mix"), (None, "lower/embed, lower/mix")):
        algorithm = dpo(top, trainable=trainable, trunk_fn=trunk)
        with pytest.raises(ValueError, match=f"trunk_fn reads what trains, {moved}: trainable"):
            algorithm.step(algorithm.init(PARAMS, KEY), batch)
    onto = dpo(top, trainable="upper/*", trunk_fn=trunk)
    with pytest.raises(ValueError, match="shares what does not train, but it has lower/embed"):
        onto.init(PARAMS, KEY, two_parts(1))
    part, _ = trees.split(two_parts(1), "upper/*")
    kept = onto.init(PARAMS, KEY, part).frozen
    assert kept["upper"]["out"] is part["upper"]["out"] and kept["lower"]["mix"] is None
    with pytest.raises(ValueError, match="reference lacks upper/bend, which trains"):
        onto.init(PARAMS, KEY, trees.split(PARAMS, "*/out")[0])
    with pytest.raises(ValueError, match="of the structure of params"):
        onto.init(PARAMS, KEY, PARAMS["upper"])
    other = two_parts(1)
    assert dpo(trainable="upper/*").init(PARAMS, KEY, other).frozen["lower"]["mix"] is not None
    with pytest.raises(ValueError, match="one structure"):
        trees.join(part, {"lower": 1})
    with pytest.raises(ValueError, match=r"called as shared_fn\(reference, reward, sequences, hid"):
        algorithms.rloo(
            top, sample_fn, None, optax.sgd(0.1), trunk_fn=trunk, trainable="upper/*",
            shared_fn=lambda reference, params, sequences: None,
        )  # fmt: skip
