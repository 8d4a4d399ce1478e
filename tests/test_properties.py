"""What every loss and implicit reward promises, on arrays that nobody chose.

A new function is one more entry of ``FUNCTIONS``, under the kind of arguments that it takes.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax import advantages, implicit_rewards, losses

# One shape each, so that each function is compiled once a dtype: rows, tokens, answers to a prompt.
B, T, N = 4, 3, 3


def floats(*shape, low=-1e4, high=1e4):
    elements = st.floats(low, high, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, shape, elements=elements)


def integers(*shape, low, high):
    return hnp.arrays(np.int32, shape, elements=st.integers(low, high))


def some(*shape):
    return hnp.arrays(bool, shape)


def _first_but_not_last(mask):
    mask[0, 0], mask[-1] = True, False
    return mask


MASK = some(B, T).map(_first_but_not_last)  # something counts, and one row is padding
LOG_PROBS = floats(B, T, high=0)
RANKINGS = st.lists(st.permutations(range(N)), min_size=B, max_size=B).map(np.int32)

# The arguments in their order.
KINDS = {
    "pairs": {"chosen": floats(B), "rejected": floats(B)},
    "ties": {"chosen": floats(B), "rejected": floats(B), "tied": some(B)},
    "singles": {"rewards": floats(B), "desirable": some(B), "kl": floats()},
    "ratings": {"scores": floats(B), "ratings": integers(B, low=0, high=3)},
    "rankings": {"scores": floats(B, N), "rankings": RANKINGS},
    "policy": {
        "log_probs": LOG_PROBS,
        "old_log_probs": LOG_PROBS,
        "advantages": floats(B, T),
        "mask": MASK,
    },
    "values": {"values": floats(B, T), "old_values": floats(B, T), "returns": floats(B, T)},
    "text": {"log_probs": LOG_PROBS, "mask": MASK},
    "controlled": {"log_probs": LOG_PROBS, "mask": MASK, "control": some(B, T)},
    "rewarded": {"log_probs": LOG_PROBS, "mask": MASK, "rewards": floats(B, T)},
    "rewarded rows": {"log_probs": LOG_PROBS, "mask": MASK, "rewards": floats(B)},
    "labelled": {"log_probs": LOG_PROBS, "mask": MASK, "rewards": some(B)},
    "advantages": {"log_probs": LOG_PROBS, "mask": MASK, "advantages": floats(B, T)},
    "implicit": {"log_probs": LOG_PROBS, "ref_log_probs": LOG_PROBS, "mask": MASK},
}


def _named(*functions: Callable, **others: Callable) -> dict[str, Callable]:
    return {function.__name__: function for function in functions} | others


# Those that see two rewards only through their difference, and rankings.
SHIFTED = {
    "pairs": _named(
        losses.bradley_terry,
        losses.hinge,
        losses.squared,
        losses.exponential,
        losses.thurstone,
        losses.smoothed,
        losses.unbiased,
        losses.discopop,
        exo_pair=partial(losses.exo_pair, flip_rate=0.1),
        bradley_terry_margin=partial(losses.bradley_terry, margin=0.3),
    ),
    "ties": _named(losses.davidson, losses.rao_kupper),
    "rankings": _named(losses.plackett_luce, losses.rrhf),
}
FUNCTIONS = {
    "pairs": SHIFTED["pairs"]
    | _named(
        losses.nca_pair,
        losses.bco_pair,
        losses.sppo_hard,
        losses.apo_zero,
        losses.apo_down,
        losses.alternative_optimal_transport,
    ),
    "ties": SHIFTED["ties"],
    "singles": _named(losses.kto, losses.apo_zero_unpaired),
    "ratings": _named(ordinal=partial(losses.ordinal, cutpoints=jnp.array([-2.0, 0.0, 0.5]))),
    "rankings": SHIFTED["rankings"],
    "policy": _named(
        losses.reinforce,
        losses.ppo_clip,
        losses.sequence_clip,
        losses.soft_gate,
        losses.clipped_is,
        losses.vespo,
        losses.awr,
        losses.rwr,
        dual_clip=partial(losses.ppo_clip, dual_clip=3.0),
    ),
    "values": _named(losses.squared_value, losses.clipped_value),
    "text": _named(losses.cross_entropy),
    "controlled": _named(losses.conditional),
    "rewarded": _named(losses.filtered, losses.unlikelihood, losses.reward_weighted),
    "rewarded rows": _named(losses.unlikelihood, losses.reward_weighted),
    "labelled": _named(losses.filtered, losses.unlikelihood),
    "advantages": _named(losses.advantage_weighted),
    "implicit": _named(
        implicit_rewards.log_ratio,
        implicit_rewards.mean_log_ratio,
        implicit_rewards.log_prob,
        implicit_rewards.mean_log_prob,
        implicit_rewards.log_odds,
        implicit_rewards.forward_kl,
        implicit_rewards.jensen_shannon,
        implicit_rewards.alpha_divergence,
        alpha_2=partial(implicit_rewards.alpha_divergence, alpha=2.0),
    ),
}
MASKED = [kind for kind, names in KINDS.items() if "mask" in names]
# Compares the quantiles of the batch, where equal rewards share theirs in the order they stand in.
SORTS = {"alternative_optimal_transport"}
# A reward that is only compared with a threshold may be an integer.
COMPARES = {"filtered", "unlikelihood"}


def of(kinds):
    return pytest.mark.parametrize("kind", kinds)


def examples(count):
    """The same examples in every run."""
    return settings(derandomize=True, database=None, deadline=None, max_examples=count)


def arguments(data, kind, kinds=KINDS):
    drawn = data.draw(st.fixed_dictionaries(kinds[kind]))
    return {key: drawn[key] for key in kinds[kind]}


def is_float(array):
    return jnp.issubdtype(array.dtype, jnp.floating)


@cache
def compiled(kind):
    """``arguments -> {function's name: (result, gradient by each floating argument)}``."""

    def one(function, given):
        def total(variable):
            result = function(*((given | variable)[key] for key in KINDS[kind]))
            return jnp.sum(result), result

        variable = {key: array for key, array in given.items() if is_float(array)}
        gradients, result = jax.grad(total, has_aux=True)(variable)
        return result, gradients

    def all_of_them(given):
        return {name: one(function, given) for name, function in FUNCTIONS[kind].items()}

    run = jax.jit(all_of_them)
    # As NumPy arrays: to index others would compile once more.
    return lambda given: jax.device_get(run(given))


@of(FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_finite_with_finite_gradients(kind, dtype):
    @examples(15)
    @given(st.data())
    def check(data):
        given = arguments(data, kind)
        cast = {k: v.astype(dtype) if is_float(v) else v for k, v in given.items()}
        for name, (result, gradients) in compiled(kind)(cast).items():
            for array in (result, *gradients.values()):
                assert np.isfinite(np.float32(array)).all(), name

    check()


@of(MASKED)
def test_what_is_masked_has_no_loss_and_no_gradient_whatever_it_holds(kind):
    anything = np.float32([np.inf, -np.inf, np.nan, 1e30, -1e30, 1.0])

    @examples(15)
    @given(st.data())
    def check(data):
        given = arguments(data, kind)
        hidden = {2: ~given["mask"], 1: ~given["mask"].any(axis=-1)}

        def filled(junk):
            return {
                key: np.where(hidden[array.ndim], junk(key, array), array)
                if is_float(array)
                else array
                for key, array in given.items()
            }

        def drawn(key, array):
            values = hnp.arrays(np.float32, array.shape, elements=st.sampled_from(anything))
            return data.draw(values)

        results = compiled(kind)(filled(drawn))
        clean = compiled(kind)(filled(lambda key, array: np.zeros_like(array)))
        for name, (result, gradients) in results.items():
            expected, slopes = clean[name]
            np.testing.assert_array_equal(result, expected, name)
            np.testing.assert_array_equal(result[hidden[result.ndim]], 0, name)
            for key, gradient in gradients.items():
                np.testing.assert_array_equal(gradient, slopes[key], name)
                np.testing.assert_array_equal(gradient[hidden[gradient.ndim]], 0, name)

    check()


@of(FUNCTIONS)
def test_rows_may_be_in_any_order(kind):
    @examples(10)
    @given(st.data(), st.permutations(range(B)))
    def check(data, order):
        given, order = arguments(data, kind), np.array(order)
        moved = {key: array[order] if array.ndim else array for key, array in given.items()}
        one, other = compiled(kind)(given), compiled(kind)(moved)
        for name in one.keys() - SORTS:
            # A gradient by a number sums over the rows.
            expected = jax.tree.map(lambda array: array[order] if array.ndim else array, one[name])
            for mine, theirs in zip(*map(jax.tree.leaves, (other[name], expected)), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, err_msg=name)

    check()


# test_preference_losses.py has it of the others
@of([kind for kind in FUNCTIONS if kind not in ("pairs", "ties")])
def test_compiled_and_vmapped_it_is_the_same(kind):
    functions = FUNCTIONS[kind]

    def every(given):
        return {name: f(*(given[key] for key in KINDS[kind])) for name, f in functions.items()}

    mapped = jax.jit(jax.vmap(every))

    @examples(3)
    @given(st.data())
    def check(data):
        # Over a further axis: what is [B, T] stays so.
        pair = [arguments(data, kind) for _ in range(2)]
        both = mapped({key: np.stack([one[key] for one in pair]) for key in pair[0]})
        for row, one in enumerate(pair):
            eager = every({key: jnp.asarray(array) for key, array in one.items()})
            for name, (result, _) in compiled(kind)(one).items():
                for value in (result, both[name][row]):
                    np.testing.assert_allclose(value, eager[name], 1e-5, 1e-6, err_msg=name)

    check()


# --- what a constant added to all rewards changes ---------------------------------------------


def eighths(*shape):
    """So that sums are exact."""
    return integers(*shape, low=-800, high=800).map(lambda x: x / np.float32(8))


EIGHTHS = {
    "pairs": {"chosen": eighths(B), "rejected": eighths(B)},
    "ties": {"chosen": eighths(B), "rejected": eighths(B), "tied": some(B)},
    "rankings": {"scores": eighths(B, N), "rankings": RANKINGS},
}
SHIFTS = st.integers(-100, 100).map(np.float32)


@of(SHIFTED)
def test_a_constant_added_to_all_rewards_changes_nothing(kind):
    @examples(15)
    @given(st.data(), SHIFTS)
    def check(data, shift):
        given = arguments(data, kind, EIGHTHS)
        moved = {key: array + shift if is_float(array) else array for key, array in given.items()}
        before, after = compiled(kind)(given), compiled(kind)(moved)
        for name in SHIFTED[kind]:
            (loss, slopes), (moved_loss, moved_slopes) = before[name], after[name]
            np.testing.assert_allclose(moved_loss, loss, 1e-5, 1e-4, err_msg=name)
            for key, slope in slopes.items():
                np.testing.assert_allclose(moved_slopes[key], slope, 1e-5, 1e-4, err_msg=name)
            # and so the gradients of a row sum to nothing
            rows = np.concatenate([slope.reshape(B, -1) for slope in slopes.values()], axis=-1)
            total, scale = rows.sum(axis=-1), np.abs(rows).max()
            np.testing.assert_allclose(total, 0, atol=1e-5 * scale + 1e-6, err_msg=name)

    check()


@pytest.mark.parametrize(
    "advantage",
    [
        advantages.leave_one_out,
        advantages.group_normalised,
        partial(advantages.group_normalised, scale=False),
    ],
)
def test_a_constant_added_to_a_prompts_rewards_changes_no_advantage(advantage):
    @examples(15)
    @given(EIGHTHS["rankings"]["scores"], SHIFTS)
    def check(rewards, shift):
        expected = advantage(jnp.array(rewards))
        np.testing.assert_allclose(advantage(rewards + shift), expected, atol=1e-3)
        np.testing.assert_allclose(np.sum(expected, axis=-1), 0, atol=1e-3)

    check()


# --- what is refused --------------------------------------------------------------------------


@of(FUNCTIONS)
def test_arguments_that_do_not_fit_are_refused_by_name(kind):
    def refused(name, arguments, *words):
        with pytest.raises(ValueError) as error:
            FUNCTIONS[kind][name](*arguments.values())
        for word in words:
            assert word in str(error.value), (name, error.value)

    @examples(1)
    @given(st.data())
    def check(data):
        given = {key: jnp.asarray(array) for key, array in arguments(data, kind).items()}
        for name in FUNCTIONS[kind]:
            for key, array in given.items():
                if not array.ndim:
                    continue
                refused(name, given | {key: array[1:]}, key, str(array[1:].shape))
                if is_float(array) and not (key == "rewards" and name in COMPARES):
                    other, message = array.astype(int), "must be floating, not int32"
                elif array.dtype == bool and key not in ("mask", "rewards"):
                    other, message = array.astype(float), "must be boolean, not float32"
                elif array.dtype == jnp.int32:
                    other, message = array.astype(float), "must be integers, not float32"
                else:
                    continue
                refused(name, given | {key: other}, f"{key} {message}")
            if "mask" in given:
                nothing = {"mask": jnp.zeros([B, T], bool)}
                refused(name, given | nothing, "mask [4, 3] has no true entry")
                flat = {key: array.ravel() for key, array in given.items()}
                refused(name, flat, "log_probs", "must be [B, T], not (12,)")

    check()


@pytest.mark.parametrize(
    ("kind", "name", "setting", "message"),
    [
        ("rewarded", "unlikelihood", {"weight": -1}, "weight must be positive, not -1"),
        ("rewarded", "reward_weighted", {"temperature": 0}, "temperature must be positive, not 0"),
        ("advantages", "advantage_weighted", {"temperature": -2}, "temperature must be positive"),
        ("advantages", "advantage_weighted", {"maximum": 0}, "maximum must be positive, not 0"),
        ("pairs", "smoothed", {"flip_rate": float("nan")}, "at least 0 and below 0.5, not nan"),
        ("pairs", "exo_pair", {"flip_rate": 0.5}, "flip_rate must be above 0 and below 0.5"),
        ("singles", "kto", {"undesirable_weight": -1}, "undesirable_weight must be positive"),
        ("pairs", "bradley_terry", {"margin": jnp.ones([B, 1])}, r"margin .*\(4,\), not \(4, 1\)"),
        ("pairs", "bco_pair", {"shift": jnp.ones([B, 1])}, r"shift .*\(4,\), not \(4, 1\)"),
        ("ties", "davidson", {"tie_weight": jnp.ones([B, 1])}, r"tie_weight .*, not \(4, 1\)"),
        ("ties", "rao_kupper", {"threshold": jnp.ones(2)}, r"threshold .*, not \(2,\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(kind, name, setting, message):
    with pytest.raises(ValueError, match=message):
        given = {"rewarded": [(B, T), (B, T), B], "advantages": [(B, T)] * 3}.get(kind, [B, B, B])
        arrays = [jnp.ones(shape) for shape in given[: len(KINDS[kind])]]
        booleans = {"mask", "tied", "desirable"}
        arrays = [a > 0 if k in booleans else a for k, a in zip(KINDS[kind], arrays, strict=True)]
        FUNCTIONS[kind][name](*arrays, **setting)
