"""Plain Python functions as rewards, inside compiled steps, on one device and several."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import toys

from rlhf_jax import algorithms, checkpoint, parallel, rewards, training
from rlhf_jax.rewards import RewardError
from rlhf_jax.types import Prompts, Sequences

LETTERS = "_.abcdefghi"  # of the toys' tokens: 0 is padding, 1 end-of-text
STEPS, CHUNK = 6, 2


def decode(ids):
    return "".join(LETTERS[i] for i in ids)


def text(*rows):
    """Prompt and completion of each row, the prompt padded on the left, the completion right."""
    width = [max(len(row[side]) for row in rows) for side in (0, 1)]
    joined = [p.rjust(width[0], "_") + c.ljust(width[1], "_") for p, c in rows]
    tokens = np.array([[LETTERS.index(x) for x in row] for row in joined], np.int32)
    return Sequences(tokens, tokens > 0, (tokens > 0) & (np.arange(sum(width)) >= width[0]))


TEXT = text(("ab", "cd."), ("c", "ee"), ("d", ""), ("abc", "f."))


def ask(fn, sequences=TEXT, **settings):
    return rewards.from_python(fn, decode, **settings)((), sequences)


def test_what_the_function_is_shown():
    shown = {}

    def fn(prompts, completions, completion_ids, answer, **rest):
        shown.update(prompts=prompts, completions=completions, ids=completion_ids, answer=answer)
        shown.update(rest)
        return np.array([1, 2, 3])

    columns = {p: {"answer": p.upper(), "n": len(p)} for p in ("ab", "c", "abc", "never")}
    given = ask(fn, columns=columns, special_ids=[1])
    np.testing.assert_array_equal(given, [1, 2, 0, 3])  # the row without a response is not shown
    assert shown == {
        "prompts": ["ab", "c", "abc"],
        "completions": ["cd", "ee", "f"],
        "ids": [[4, 5, 1], [6, 6], [7, 1]],
        "answer": ["AB", "C", "ABC"],
        "n": [2, 1, 3],
    }
    empty = TEXT.replace(response_mask=np.zeros_like(TEXT.mask))
    np.testing.assert_array_equal(ask(lambda completions: 1 / 0, empty), 0)


def test_a_tokenizer_leaves_out_its_special_tokens():
    tokenizer = SimpleNamespace(
        decode=lambda ids, skip_special_tokens: decode(i for i in ids if i != 1)
    )
    fn = lambda completions: [float(x.isalpha()) for x in completions]  # noqa: E731
    found = rewards.from_python(fn, tokenizer)((), TEXT)
    np.testing.assert_array_equal(found, [1, 1, 0, 1])


def fails_on_e(completions):
    if any("e" in completion for completion in completions):
        raise KeyError("no grade")
    return [1.0] * len(completions)


def fails_on_many(completions):
    return [1.0] if len(completions) == 1 else 1 / 0


@pytest.mark.parametrize(
    ("fn", "settings", "message"),
    [
        (fails_on_e, {}, "fails_on_e failed on row 1: KeyError: 'no grade'\n.*'c'\n.*'ee'"),
        (fails_on_many, {}, "on 3 rows together, though on none of them alone: ZeroDivisionError"),
        (lambda completions: [1.0], {}, "must return a list of 3 numbers, one a row, not 1"),
        (lambda completions: 1.0, {}, "must return a list of 3 numbers, one a row, not float"),
        (lambda completions: "123", {}, "one a row, not str"),
        (lambda completions: [1, "2", 3], {}, "finite numbers, not '2', as for row 1\n.*'c'"),
        (lambda completions: [1, 2, np.nan], {}, "finite numbers, not nan, as for row 2\n.*'abc'"),
        (lambda completions: [1, None, 3], {}, "not None, as for row 1; say what None is worth by"),
        (
            lambda completions, x: [0] * 3,
            {"columns": {"ab": {"x": 1}, "abc": {"x": 2}}},
            "columns lacks row 1's prompt; it has 'ab'\n  prompt: 'c'",
        ),
    ],
)
def test_what_goes_wrong_is_said_with_the_text(fn, settings, message):
    with rewards.deferred() as failures:
        found = ask(fn, **settings)
    np.testing.assert_array_equal(found, np.nan)
    assert len(failures) == 1
    with pytest.raises(RewardError, match=message):
        raise failures[0]


def test_an_answer_that_none_applies_to_may_be_worth_something():
    np.testing.assert_array_equal(ask(lambda completions: [1, None, 3], missing=0), [1, 0, 0, 3])


async def later(completions):
    return [1.0]


@pytest.mark.parametrize(
    ("fn", "settings", "message"),
    [
        (lambda completions, x: x, {}, "needs x, but is called with .*: give the rest as columns"),
        (later, {}, "later is asynchronous"),
        (fails_on_e, {"missing": np.nan}, "missing must be finite"),
        (fails_on_e, {"columns": {}}, "columns has no prompt"),
        (fails_on_e, {"columns": {"a": {"x": 1}, "b": {}}}, r"'a' has \['x'\], 'b' has \[\]"),
        (fails_on_e, {"columns": {"a": {"prompts": 1}}}, "cannot be called prompts"),
    ],
)
def test_what_cannot_work_is_refused_at_once(fn, settings, message):
    with pytest.raises(ValueError, match=message):
        ask(fn, **settings)
    with pytest.raises(ValueError, match="decode must be a tokenizer or a function"):
        rewards.from_python(fails_on_e, "ab")


def test_an_exception_in_a_compiled_program_names_text_and_cause():
    compiled = jax.jit(rewards.from_python(fails_on_e, decode))
    with pytest.raises(Exception, match=r"KeyError: 'no grade'\s+prompt: 'c'\s+completion: 'ee'"):
        jax.block_until_ready(compiled((), TEXT))
    np.testing.assert_array_equal(compiled((), TEXT.replace(tokens=TEXT.tokens % 6)), [1, 1, 0, 1])


def test_copies_are_asked_in_one_call():
    calls = []

    def fn(completions):
        calls.append(completions)
        return [len(x) for x in completions]

    reward_fn = rewards.from_python(fn, decode)
    both = jax.tree.map(lambda x: np.stack([x, x[::-1]]), TEXT)
    found = jax.jit(jax.vmap(lambda sequences: reward_fn((), sequences)))(both)
    np.testing.assert_array_equal(found, [[3, 2, 0, 2], [2, 0, 2, 3]])
    assert calls == [["cd.", "ee", "f.", "f.", "ee", "cd."]]


def test_large_batches_go_to_the_host_in_pieces_that_cannot_block():
    """See _BLOCK: more than 100 KiB at once may wait for ever, where devices are simulated."""
    fn = lambda completion_ids: [float(sum(ids)) for ids in completion_ids]  # noqa: E731
    reward_fn = rewards.from_python(fn, decode=lambda ids: "")
    tokens = np.random.default_rng(0).integers(1, 9, [60, 700]).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    large = Sequences(tokens, mask, mask & (np.arange(700) >= 5))
    np.testing.assert_array_equal(reward_fn((), large), tokens[:, 5:].sum(axis=1))
    assert "i32[16384]" in str(jax.make_jaxpr(reward_fn)((), large))


class Weighing:
    """The toys' reward, in Python; it fails on a text of its choice."""

    weights, broken_on = np.asarray(toys.bag_params(2)["weights"]), None

    def __init__(self):
        self.heard = []

    def __call__(self, completions, completion_ids):
        self.heard.append(completions)
        if any(x == self.broken_on for x in completions):
            raise KeyError("no grade")
        return [sum(float(self.weights[i]) for i in ids) for ids in completion_ids]


@functools.cache
def policy_gradient(reward_fn, axis_name=None):
    return algorithms.policy_gradient(
        toys.bigram_logits, toys.sample_fn(), reward_fn, optax.adam(0.1), axis_name=axis_name
    )


def start(algorithm, reward=()):
    return algorithm.init(toys.bigram_params(), jax.random.key(7), reward)


def batches(step):
    """Four words for prompts, and padding."""
    tokens = np.array([[0, 2], [3, 4], [5, 6], [0, 0]], np.int32)
    return Prompts(np.roll(tokens, step, axis=0), np.roll(tokens > 0, step, axis=0))


WEIGHING = Weighing()
REWARD = rewards.from_python(WEIGHING, decode)


@functools.cache
def uninterrupted():
    """The run as it should be, and a text that comes up in its last step and not before."""
    algorithm = policy_gradient(REWARD)
    WEIGHING.heard.clear()
    fitted = training.fit(algorithm, start(algorithm), batches, steps=STEPS, chunk=CHUNK)
    assert len(WEIGHING.heard) == STEPS
    before = set().union(*WEIGHING.heard[:-1])
    return fitted, next(x for x in WEIGHING.heard[-1] if x not in before)


def close(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


def test_it_is_the_reward_that_it_would_be_in_jax():
    sequences = toys.sequences(6, empty=(2,))
    expected = toys.bag_reward(toys.bag_params(2), sequences)
    np.testing.assert_allclose(REWARD((), sequences), expected, rtol=1e-5)


@pytest.mark.slow
def test_chunks_of_steps_on_a_mesh_are_those_of_one_device():
    algorithm, (expected, _) = policy_gradient(REWARD), uninterrupted()
    compile = functools.partial(parallel.shard_step, mesh=parallel.data_mesh(), batch_axis=1)
    state = start(algorithm)
    fitted = training.fit(algorithm, state, batches, steps=STEPS, chunk=CHUNK, compile=compile)
    close(fitted.state.params, expected.state.params)
    close(fitted.history, expected.history)


def test_a_failure_loses_nothing(tmp_path, monkeypatch):
    expected, unheard = uninterrupted()
    algorithm = policy_gradient(REWARD)

    def fit(state):
        saving = checkpoint.checkpoints(tmp_path, config={}, every=CHUNK)
        return training.fit(algorithm, state, batches, steps=STEPS, chunk=CHUNK, callbacks=[saving])

    monkeypatch.setattr(WEIGHING, "broken_on", unheard)
    said = f"KeyError: 'no grade'\n  prompt: '.*'\n  completion: {unheard!r}"
    with pytest.raises(RewardError, match=said):
        fit(start(algorithm))
    state, _ = checkpoint.restore(tmp_path, checkpoint.template(start(algorithm)), config={})
    assert state.step == STEPS - 1 and state.skipped == 0
    monkeypatch.undo()
    fitted = fit(state)
    jax.tree.map(np.testing.assert_array_equal, fitted.state.params, expected.state.params)
    assert fitted.history == expected.history[-1:]


def test_pmapped_steps_are_those_of_one_device_and_a_failing_one_changes_nothing(monkeypatch):
    """Raised in the program it would keep the other devices waiting, and then end the process."""
    expected, unheard = uninterrupted()
    algorithm = policy_gradient(REWARD, "data")
    step, state = parallel.pmap_step(algorithm.step), start(algorithm)
    for i in range(STEPS):
        before, (state, metrics) = state, step(state, batches(i))
        row = {name: float(value) for name, value in metrics.items()}
        close(row | {"step": i + 1}, expected.history[i])
    close(state.params, expected.state.params)

    monkeypatch.setattr(WEIGHING, "broken_on", unheard)
    with rewards.deferred() as failures:
        after, metrics = step(before, batches(STEPS - 1))
        jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
        assert metrics["skipped"] == 1 and np.isnan(metrics["reward"])
        asked = len(WEIGHING.heard)
        jax.block_until_ready(step(after, batches(STEPS)))
    assert len(failures) == 1 and failures[0].completion == unheard
    assert len(WEIGHING.heard) == asked
