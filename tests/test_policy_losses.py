"""Policy losses by hand, against formulas in NumPy, at the extremes, and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import losses


def surrogate(ratio, a, low=0.2, high=0.2):
    return np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a)


def answer_ratio(x, old, mask):
    return np.exp(((x - old) * mask).sum(-1) / np.maximum(mask.sum(-1), 1))[:, None]


def dual(x, old, a, mask):
    objective = surrogate(np.exp(x - old), a)
    return -np.where(a < 0, np.maximum(objective, 1.5 * a), objective)


def gate(x, old, a, mask):
    tau = np.where(a > 0, 2.0, 5.0)
    return -4 / tau / (1 + np.exp(-tau * (np.exp(x - old) - 1))) * a


def gamma_weight(x, old, a, mask):
    w = np.exp(((x - old) * mask).sum(-1, keepdims=True))
    k, scale = np.where(a >= 0, 2.0, 3.0), np.where(a >= 0, 3.0, 2.0)
    return w**k * np.exp(scale * (1 - w)) * a


def self_normalised(x, old, a, mask):
    weights = np.exp(a / 0.5)
    return weights / weights[mask].mean()


# Each with the paper's formula, written without care for overflow, for float64.
RATIOS = {
    "ppo_clip": (losses.ppo_clip, lambda x, old, a, m: -surrogate(np.exp(x - old), a)),
    "ppo_clip, asymmetric": (
        partial(losses.ppo_clip, clip_range=0.1, clip_range_high=0.4),
        lambda x, old, a, m: -surrogate(np.exp(x - old), a, 0.1, 0.4),
    ),
    "ppo_clip, dual": (partial(losses.ppo_clip, dual_clip=1.5), dual),
    "sequence_clip": (
        losses.sequence_clip,
        lambda x, old, a, m: -surrogate(answer_ratio(x, old, m), a, 3e-4, 4e-4),
    ),
    "sequence_clip, wide": (
        partial(losses.sequence_clip, clip_range=0.2, clip_range_high=None),
        lambda x, old, a, m: -surrogate(answer_ratio(x, old, m), a),
    ),
    "soft_gate": (partial(losses.soft_gate, temperature=2.0, negative_temperature=5.0), gate),
}
# And these with the weight of -log_prob, which is not differentiated.
WEIGHTS = {
    "reinforce": (losses.reinforce, lambda x, old, a, m: a),
    "clipped_is": (
        partial(losses.clipped_is, clip_range_high=0.2),
        lambda x, old, a, m: np.minimum(np.exp(x - old), 1.2) * a,
    ),
    "clipped_is, both": (
        partial(losses.clipped_is, clip_range=0.3, clip_range_high=0.2),
        lambda x, old, a, m: np.clip(np.exp(x - old), 0.7, 1.2) * a,
    ),
    "vespo": (losses.vespo, gamma_weight),
    "awr": (
        partial(losses.awr, temperature=0.5, maximum=3.0),
        lambda x, old, a, m: np.minimum(np.exp(a / 0.5), 3.0),
    ),
    "rwr": (partial(losses.rwr, temperature=0.5), self_normalised),
}
LOSSES = {name: loss for name, (loss, _) in (RATIOS | WEIGHTS).items()}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)

RNG = np.random.default_rng(0)
SHAPE = 6, 5
MASK = np.arange(5) < np.array([5, 3, 1, 4, 0, 5])[:, None]
MASK[0, 2] = False
OLD = -RNG.uniform(1, 3, SHAPE)
LOG_PROBS = OLD + RNG.normal(size=SHAPE) / 3
ESTIMATES = RNG.normal(size=SHAPE)
MASK_ALL = jnp.array(np.ones(SHAPE, bool))
ARRAYS = jnp.float32(LOG_PROBS), jnp.float32(OLD), jnp.float32(ESTIMATES), jnp.array(MASK)


def slopes(loss, log_probs=ARRAYS[0], rest=ARRAYS[1:]):
    return jax.grad(lambda x: loss(x, *rest).sum())(log_probs)


def at(loss, ratios, advantages):
    """Value and gradient of a few tokens whose old log-probabilities are 0, as arrays ``[B, T]``.

    The rest is padding: all tests share one shape, so that each operation is compiled once.
    """
    ratios, advantages = np.broadcast_arrays(np.atleast_2d(ratios), np.atleast_2d(advantages))
    part = tuple(map(slice, ratios.shape))
    log_probs, old, estimates = np.zeros([3, *SHAPE], np.float32)
    mask = np.zeros(SHAPE, bool)
    log_probs[part], estimates[part], mask[part] = np.log(ratios), advantages, True
    rest = jnp.array(old), jnp.array(estimates), jnp.array(mask)
    value, gradient = loss(log_probs, *rest), slopes(loss, jnp.array(log_probs), rest)
    return np.array(value)[part], np.array(gradient)[part]


@pytest.mark.parametrize(("loss", "formula"), RATIOS.values(), ids=RATIOS)
def test_value_and_gradient_are_those_of_the_formula(loss, formula):
    def total(x):
        return np.where(MASK, formula(x, OLD, ESTIMATES, MASK), 0).sum()

    expected = np.where(MASK, formula(LOG_PROBS, OLD, ESTIMATES, MASK), 0)
    np.testing.assert_allclose(loss(*ARRAYS), expected, rtol=1e-5, atol=1e-6)
    steps = 1e-6 * np.eye(MASK.size).reshape(-1, *SHAPE)
    rises = [(total(LOG_PROBS + h) - total(LOG_PROBS - h)) / 2e-6 for h in steps]
    np.testing.assert_allclose(slopes(loss), np.reshape(rises, SHAPE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss", "formula"), WEIGHTS.values(), ids=WEIGHTS)
def test_value_and_gradient_are_those_of_the_weight(loss, formula):
    weight = np.where(MASK, formula(LOG_PROBS, OLD, ESTIMATES, MASK), 0)
    np.testing.assert_allclose(loss(*ARRAYS), -weight * LOG_PROBS, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes(loss), -weight, rtol=1e-5, atol=1e-6)


@every_loss
def test_the_same_compiled_and_advantages_are_constants(loss):
    log_probs, old, estimates, mask = ARRAYS
    compiled = jax.jit(lambda *x: (loss(*x), slopes(loss, x[0], x[1:])))
    value, gradient = compiled(*ARRAYS)
    np.testing.assert_allclose(value, loss(*ARRAYS), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, slopes(loss), rtol=1e-5, atol=1e-7)
    for array in compiled(log_probs, old, estimates, ~MASK_ALL):  # a device with padding alone
        np.testing.assert_array_equal(array, np.zeros(SHAPE))
    moved = jax.grad(lambda o, a: loss(log_probs, o, a, mask).sum(), (0, 1))(old, estimates)
    for gradient in moved:
        np.testing.assert_array_equal(gradient, np.zeros(SHAPE))


@every_loss
def test_masked_tokens_have_no_loss_and_no_gradient_whatever_they_hold(loss):
    wild = np.resize([300.0, -300.0, -np.inf, np.inf, np.nan], SHAPE)
    filled = [jnp.where(MASK, x, s * wild) for x, s in zip(ARRAYS, (1, -1, 1), strict=False)]
    value, gradient = loss(*filled, MASK), slopes(loss, filled[0], (*filled[1:], MASK))
    np.testing.assert_array_equal(value, loss(*ARRAYS))
    np.testing.assert_array_equal(gradient, slopes(loss))
    assert not value[~MASK].any()
    assert not gradient[~MASK].any()


@every_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_with_finite_gradients_at_the_extremes(loss, dtype):
    log_ratios, estimates = [-1e4, -100, -20, 20, 100, 1e4], [-1e4, -1, 0, 1, 1e4]
    log_probs = jnp.array(np.repeat(log_ratios, 5).reshape(SHAPE), dtype)
    rest = jnp.zeros(SHAPE, dtype), jnp.array(np.tile(estimates, [6, 1]), dtype), MASK_ALL
    value, gradient = loss(log_probs, *rest), slopes(loss, log_probs, rest)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert np.isfinite(value).all()
    assert np.isfinite(np.float32(gradient)).all()


@every_loss
def test_other_shapes_and_an_empty_mask_are_refused(loss):
    x = np.zeros([2, 3], np.float32)
    with pytest.raises(ValueError, match="shape"):
        loss(x, x, x[:, :1], x == 0)
    with pytest.raises(ValueError, match=r"must be \[B, T\]"):
        loss(x[0], x[0], x[0], x[0] == 0)
    with pytest.raises(ValueError, match="nothing counts"):
        loss(x, x, x, x > 0)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (losses.ppo_clip, {"clip_range": 0.0}),
        (losses.ppo_clip, {"clip_range_high": -0.1}),
        (losses.ppo_clip, {"dual_clip": 1.0}),
        (losses.sequence_clip, {"clip_range": -1.0}),
        (losses.clipped_is, {"clip_range": 0.0}),
        (losses.clipped_is, {"clip_range_high": 0.0}),
        (losses.soft_gate, {"temperature": 0.0}),
        (losses.soft_gate, {"negative_temperature": -1.0}),
        (losses.vespo, {"power": 0.0}),
        (losses.vespo, {"decay": 0.0}),
        (losses.vespo, {"negative_power": 0.0}),
        (losses.vespo, {"negative_decay": 0.0}),
        (losses.awr, {"temperature": 0.0}),
        (losses.awr, {"maximum": 0.0}),
        (losses.rwr, {"temperature": 0.0}),
    ],
)
def test_impossible_settings_are_refused(loss, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} must be (positive|above 1).* not {value}"):
        loss(*ARRAYS, **settings)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.3, 2.0, -1.2 * 2, 0),  # clipped above: no gradient
        (0.7, -2.0, 0.8 * 2, 0),  # clipped below: no gradient
        (1.3, -2.0, 1.3 * 2, 1.3 * 2),  # the pessimistic side is never clipped
        (0.7, 2.0, -0.7 * 2, -0.7 * 2),
        (1.0, 2.0, -2.0, -2.0),  # on policy: the plain policy gradient
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, expected, slope):
    found = at(losses.ppo_clip, ratio, advantage)
    np.testing.assert_allclose(np.ravel(found), [expected, slope], atol=1e-6)


def test_ppo_clip_may_be_asymmetric():
    value, _ = at(partial(losses.ppo_clip, clip_range_high=0.4), [1.3, 1.5, 0.7], [1, 1, -1])
    np.testing.assert_allclose(value, [[-1.3, -1.4, 0.8]], atol=1e-6)


def test_a_dual_clip_ends_the_gradient_of_bad_tokens_only():
    clip = partial(losses.ppo_clip, dual_clip=3.0)
    value, gradient = at(clip, [2.5, 4, 4, 0.5], [-2, -2, 2, -2])
    np.testing.assert_allclose(value, [[5, 6, -2.4, 1.6]], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[5, 0, 0, 0]], rtol=1e-6)


def test_sequence_clip_by_hand():
    """The ratio is the geometric mean; either all tokens of an answer have a gradient, or none."""
    clip = partial(losses.sequence_clip, clip_range=0.2, clip_range_high=0.2)
    value, gradient = at(clip, [[1.21, 1.0], [1.44, 2.25]], 1.0)
    np.testing.assert_allclose(value, [[-1.1, -1.1], [-1.2, -1.2]], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1.1, -1.1], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("name", sorted((RATIOS | WEIGHTS).keys() - {"awr", "rwr"}))
def test_on_policy_the_gradient_is_that_of_reinforce(name):
    """With one advantage an answer, whatever bounds the ratio."""
    _, old, estimates, mask = ARRAYS
    rest = old, jnp.broadcast_to(estimates[:, :1], SHAPE), mask
    found = slopes(LOSSES[name], old, rest)
    np.testing.assert_allclose(found, slopes(losses.reinforce, old, rest), rtol=1e-5, atol=1e-6)


def test_a_clipped_weight_still_has_a_gradient():
    """That is what CISPO is for; ppo_clip has none here."""
    _, gradient = at(losses.clipped_is, [9, 0.1], 1)
    np.testing.assert_allclose(gradient, [[-5, -0.1]], rtol=1e-6)
    _, gradient = at(losses.ppo_clip, [9, 0.1], 1)
    np.testing.assert_allclose(gradient, [[0, -0.1]], rtol=1e-6)


def test_soft_gate_fades_on_both_sides_and_faster_for_the_bad():
    ratios = np.array([0.1, 0.5, 1, 2, 10])
    _, gradient = at(losses.soft_gate, ratios, [[1.0], [-1.0]])
    up, down = abs(gradient) / ratios  # by the ratio, not by its logarithm
    np.testing.assert_allclose([up[2], down[2]], 1, rtol=1e-6)
    assert (up[[0, 1, 3, 4]] < 1).all()
    assert (down[[0, 1, 3, 4]] < up[[0, 1, 3, 4]]).all()
    assert up[4] < 1e-3


def test_vespo_is_highest_at_its_mode():
    """w = k / lambda; at w = 1 the weight is 1."""
    _, gradient = at(losses.vespo, [[0.2], [0.5], [2 / 3], [0.8], [1.0], [3.0]], 1)
    assert np.argmax(-gradient) == 2
    np.testing.assert_allclose(gradient[4], -1, rtol=1e-6)


def test_awr_by_hand():
    awr = partial(losses.awr, temperature=2.0, maximum=3.0)
    value, _ = at(awr, np.exp([-2, -2]), [-1, 5])
    np.testing.assert_allclose(value, [[2 * np.exp(-0.5), 6]], rtol=1e-6)


def test_rwr_knows_no_constant_and_averages_one():
    _, old, rewards, mask = ARRAYS
    ones = -jnp.ones(SHAPE)
    weights = losses.rwr(ones, old, rewards, mask)
    np.testing.assert_allclose(weights[MASK].mean(), 1, rtol=1e-6)
    shifted = losses.rwr(ones, old, rewards + 1000, mask)
    np.testing.assert_allclose(shifted, weights, rtol=1e-3)
    np.testing.assert_allclose(losses.rwr(ones, old, rewards, mask, temperature=1e6)[MASK], 1, 1e-5)


def test_rwr_normalises_over_all_devices():
    """The fifth and the sixth row, alone on a device, have nothing that counts."""
    pairs = [x.reshape(3, 2, 5) for x in ARRAYS]
    pairs[-1] = pairs[-1].at[2].set(False)
    whole = [x.reshape(SHAPE) for x in pairs]

    def on_a_device(x, *rest):
        loss = partial(losses.rwr, temperature=0.1, axis_name="data")
        return loss(x, *rest), slopes(loss, x, rest)

    value, gradient = jax.pmap(on_a_device, axis_name="data")(*pairs)
    loss = partial(losses.rwr, temperature=0.1)
    np.testing.assert_allclose(value.reshape(SHAPE), loss(*whole), rtol=1e-5)
    np.testing.assert_allclose(gradient.reshape(SHAPE), slopes(loss, whole[0], whole[1:]), 1e-5)
