"""Preference losses by hand, against formulas in NumPy, at the extremes, and what they refuse."""

from functools import partial
from itertools import permutations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from rlhf_jax import losses


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return np.log(sigmoid(x))


def discopop(w, r, tau):
    s = sigmoid((w - r) / tau)
    return -(1 - s) * log_sigmoid(w - r) + s * np.exp(r - w)


def exo(w, r, rate):
    q = sigmoid(w - r)
    return q * np.log(q / (1 - rate)) + (1 - q) * np.log((1 - q) / rate)


def davidson(w, r, tied, nu):
    weights = np.stack([np.exp(w), np.exp(r), nu * np.exp((w + r) / 2)])
    return -np.log(weights[2 if tied else 0] / weights.sum(0))


def rao_kupper(w, r, tied, theta):
    w, r = np.exp(w), np.exp(r)
    win = w / (w + theta * r)
    tie = (theta**2 - 1) * w * r / ((w + theta * r) * (r + theta * w))
    return -np.log(tie if tied else win)


def tied(loss, **keywords):
    return lambda c, r: loss(c, r, jnp.ones(c.shape, bool), **keywords)


# Each with the paper's formula, written without care for overflow, for float64.
LOSSES = {
    "bradley_terry": (losses.bradley_terry, lambda w, r: -log_sigmoid(w - r)),
    "bradley_terry, margin": (
        partial(losses.bradley_terry, margin=0.3),
        lambda w, r: -log_sigmoid(w - r - 0.3),
    ),
    "hinge": (losses.hinge, lambda w, r: np.maximum(0, 1 - w + r)),
    "squared": (partial(losses.squared, tau=0.2), lambda w, r: (w - r - 2.5) ** 2),
    "exponential": (losses.exponential, lambda w, r: np.exp(r - w)),
    "thurstone": (losses.thurstone, lambda w, r: -np.log(norm.cdf(w - r))),
    "smoothed": (
        partial(losses.smoothed, flip_rate=0.2),
        lambda w, r: -0.8 * log_sigmoid(w - r) - 0.2 * log_sigmoid(r - w),
    ),
    "unbiased": (
        partial(losses.unbiased, flip_rate=0.2),
        lambda w, r: (-0.8 * log_sigmoid(w - r) + 0.2 * log_sigmoid(r - w)) / 0.6,
    ),
    "exo_pair": (partial(losses.exo_pair, flip_rate=0.1), partial(exo, rate=0.1)),
    "discopop": (partial(losses.discopop, tau=0.3), partial(discopop, tau=0.3)),
    "discopop, wide": (partial(losses.discopop, tau=2.0), partial(discopop, tau=2.0)),
    "nca_pair": (
        losses.nca_pair,
        lambda w, r: -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-r),
    ),
    "bco_pair": (
        partial(losses.bco_pair, shift=0.4),
        lambda w, r: -log_sigmoid(w - 0.4) - log_sigmoid(0.4 - r),
    ),
    "sppo_hard": (losses.sppo_hard, lambda w, r: (w - 0.5) ** 2 + (r + 0.5) ** 2),
    "apo_zero": (losses.apo_zero, lambda w, r: 1 - sigmoid(w) + sigmoid(r)),
    "apo_down": (losses.apo_down, lambda w, r: sigmoid(w) + 1 - sigmoid(w - r)),
    "davidson": (
        partial(losses.davidson, tie_weight=0.7),
        partial(davidson, tied=False, nu=0.7),
    ),
    "davidson, tied": (
        tied(losses.davidson, tie_weight=0.7),
        partial(davidson, tied=True, nu=0.7),
    ),
    "rao_kupper": (
        partial(losses.rao_kupper, threshold=np.log(1.5)),
        partial(rao_kupper, tied=False, theta=1.5),
    ),
    "rao_kupper, tied": (
        tied(losses.rao_kupper, threshold=np.log(1.5)),
        partial(rao_kupper, tied=True, theta=1.5),
    ),
}
every_loss = pytest.mark.parametrize(("loss", "formula"), LOSSES.values(), ids=LOSSES)
REWARDS = 2 * np.random.default_rng(0).normal(size=[2, 32])


@every_loss
def test_value_and_gradient_are_those_of_the_formula(loss, formula):
    chosen, rejected = REWARDS
    rows = jnp.float32(chosen), jnp.float32(rejected)
    np.testing.assert_allclose(loss(*rows), formula(chosen, rejected), rtol=2e-5, atol=1e-6)
    gradients = jax.grad(lambda c, r: loss(c, r).sum(), (0, 1))(*rows)
    h = 1e-5
    slopes = [
        (formula(chosen + h, rejected) - formula(chosen - h, rejected)) / (2 * h),
        (formula(chosen, rejected + h) - formula(chosen, rejected - h)) / (2 * h),
    ]
    np.testing.assert_allclose(gradients, slopes, rtol=1e-4, atol=1e-5)


@every_loss
def test_per_example_and_the_same_compiled(loss, formula):
    chosen, rejected = jnp.float32(REWARDS)
    value = loss(chosen, rejected)
    chex.assert_shape(value, chosen.shape)
    chex.assert_trees_all_close(jax.jit(loss)(chosen, rejected), value, rtol=1e-5)
    chex.assert_trees_all_close(jax.vmap(loss)(chosen, rejected), value, rtol=1e-5)
    np.testing.assert_array_equal(loss(chosen[::-1], rejected[::-1]), value[::-1])


@every_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_with_finite_gradients_at_the_extremes(loss, formula, dtype):
    ends = jnp.array([-1e4, -100, -1, 0, 1, 100, 1e4], dtype)
    chosen, rejected = (x.ravel() for x in jnp.meshgrid(ends, ends))
    assert np.isfinite(np.float32(loss(chosen, rejected))).all()
    for gradient in jax.grad(lambda c, r: loss(c, r).sum(), (0, 1))(chosen, rejected):
        assert np.isfinite(np.float32(gradient)).all()


@every_loss
def test_bad_rewards_are_refused(loss, formula):
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match="shape"):
        loss(x, x[:2])
    with pytest.raises(ValueError, match=r"must be (floating|integers|boolean)"):
        loss(x, x.astype(int))


UP = set(LOSSES) - {"discopop", "discopop, wide", "apo_down", "davidson, tied", "rao_kupper, tied"}


@pytest.mark.parametrize("name", sorted(UP))
def test_a_pair_in_the_wrong_order_is_turned(name):
    def loss(chosen, rejected):
        return LOSSES[name][0](chosen, rejected).sum()

    up, down = jax.grad(loss, (0, 1))(jnp.array([-0.3]), jnp.array([0.3]))
    assert up < 0 < down


def test_apo_down_lowers_both_and_the_rejected_further():
    up, down = jax.grad(losses.apo_down, (0, 1))(jnp.float32(0), jnp.float32(1.0))
    assert 0 < up < down


def test_discopop_is_not_convex_as_its_docstring_says():
    slope = jax.grad(losses.discopop)
    assert slope(jnp.float32(0), jnp.float32(0)) > 0
    assert slope(jnp.float32(2), jnp.float32(0)) < 0


@pytest.mark.parametrize("name", ["davidson, tied", "rao_kupper, tied"])
def test_a_tie_draws_the_two_together(name):
    loss = LOSSES[name][0]
    up, down = jax.grad(lambda c, r: loss(c, r).sum(), (0, 1))(jnp.array([1.0]), jnp.array([0.0]))
    assert down < 0 < up
    np.testing.assert_allclose(up, -down, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "keywords", "message"),
    [
        (losses.squared, {"tau": 0}, "tau must be positive, not 0"),
        (losses.squared, {"tau": float("nan")}, "tau must be positive, not nan"),
        (losses.discopop, {"tau": -1}, "tau must be positive, not -1"),
        (
            losses.smoothed,
            {"flip_rate": 0.5},
            "flip_rate must be at least 0 and below 0.5, not 0.5",
        ),
        (
            losses.unbiased,
            {"flip_rate": 0.5},
            "flip_rate must be at least 0 and below 0.5, not 0.5",
        ),
        (losses.unbiased, {"flip_rate": -0.1}, "flip_rate must be at least 0"),
        (losses.exo_pair, {"flip_rate": 0}, "flip_rate must be above 0 and below 0.5, not 0"),
        (losses.alternative_optimal_transport, {"flip_rate": 0.6}, "flip_rate must be"),
        (losses.davidson, {"tie_weight": 0}, "tie_weight must be positive, not 0"),
        (losses.rao_kupper, {"threshold": 0}, "threshold must be positive, not 0"),
        (losses.davidson, {"tied": jnp.zeros(3)}, "tied must be boolean"),
        (losses.rao_kupper, {"tied": jnp.zeros(2, bool)}, "shape"),
    ],
)
def test_bad_hyperparameters_are_refused(loss, keywords, message):
    with pytest.raises(ValueError, match=message):
        loss(jnp.zeros(3), jnp.zeros(3), **keywords)


def test_hyperparameters_may_be_traced():
    rates = jnp.array([0.1, 0.3])
    chosen, rejected = jnp.float32(REWARDS)
    values = jax.vmap(lambda rate: losses.unbiased(chosen, rejected, flip_rate=rate))(rates)
    for rate, value in zip(rates, values, strict=True):
        expected = losses.unbiased(chosen, rejected, flip_rate=float(rate))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4])
def test_unbiased_has_the_clean_loss_and_gradient_on_average_over_flips(rate):
    def flipped_on_average(loss, chosen, rejected):
        return (1 - rate) * loss(chosen, rejected) + rate * loss(rejected, chosen)

    rows = jnp.float32(REWARDS)
    robust = partial(losses.unbiased, flip_rate=rate)
    mean = partial(flipped_on_average, robust)
    np.testing.assert_allclose(mean(*rows), losses.bradley_terry(*rows), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda c: mean(c, rows[1]).sum())(rows[0])
    clean = jax.grad(lambda c: losses.bradley_terry(c, rows[1]).sum())(rows[0])
    np.testing.assert_allclose(gradient, clean, rtol=1e-4, atol=1e-5)
    # which is not so for the conservative one
    smooth = flipped_on_average(partial(losses.smoothed, flip_rate=rate), *rows)
    assert np.abs(smooth - losses.bradley_terry(*rows)).max() > 0.05


@pytest.mark.parametrize("loss", [losses.smoothed, losses.exo_pair])
def test_the_smoothed_label_is_reached_at_a_finite_lead(loss):
    best = jnp.array([np.log(9.0)])
    value, slope = jax.value_and_grad(lambda c: loss(c, jnp.zeros(1), flip_rate=0.1)[0])(best)
    assert abs(slope[0]) < 1e-6
    assert value <= loss(best + 0.5, jnp.zeros(1), flip_rate=0.1)
    assert value <= loss(best - 0.5, jnp.zeros(1), flip_rate=0.1)


@pytest.mark.parametrize(
    "loss",
    [partial(losses.davidson, tie_weight=0.6), partial(losses.rao_kupper, threshold=0.6)],
)
def test_win_loss_and_tie_are_all_that_can_happen(loss):
    first, second = jnp.float32(REWARDS)
    ties = jnp.ones(first.shape, bool)
    total = sum(
        jnp.exp(-value)
        for value in (loss(first, second), loss(second, first), loss(first, second, ties))
    )
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    np.testing.assert_allclose(loss(first, second, ties), loss(second, first, ties), rtol=1e-5)


def test_few_ties_are_bradley_terry():
    rows = jnp.float32(REWARDS)
    expected = losses.bradley_terry(*rows)
    np.testing.assert_allclose(losses.davidson(*rows, tie_weight=1e-6), expected, rtol=1e-4)
    np.testing.assert_allclose(losses.rao_kupper(*rows, threshold=1e-6), expected, rtol=1e-4)


# --- over the batch ---------------------------------------------------------------------------


def test_optimal_transport_by_hand():
    chosen, rejected = jnp.array([3.0, 1.0]), jnp.array([0.0, 4.0])
    value = jax.jit(losses.alternative_optimal_transport)(chosen, rejected)
    np.testing.assert_allclose(value, [np.log1p(np.e), np.log1p(np.exp(-1))], rtol=1e-6)
    # paired: the policy's leads are 3 + 1 and -3 + 0, the reference's sorted are 0 and 1
    ref_lead = jnp.array([1.0, 0.0])
    value = losses.alternative_optimal_transport(chosen, rejected, ref_lead=ref_lead)
    np.testing.assert_allclose(value, [np.log1p(np.exp(-3)), np.log1p(np.exp(3))], rtol=1e-6)


def test_optimal_transport_does_not_know_the_pairs_and_follows_its_rows():
    chosen, rejected = jnp.float32(REWARDS)
    value = losses.alternative_optimal_transport(chosen, rejected, flip_rate=0.1)
    np.testing.assert_array_equal(
        losses.alternative_optimal_transport(chosen, rejected[::-1], flip_rate=0.1), value
    )
    np.testing.assert_array_equal(
        losses.alternative_optimal_transport(chosen[::-1], rejected, flip_rate=0.1), value[::-1]
    )
    up, down = jax.grad(lambda c, r: losses.alternative_optimal_transport(c, r).sum(), (0, 1))(
        chosen, rejected
    )
    assert (up < 0).all()
    assert (down > 0).all()


def test_optimal_transport_refuses_what_it_cannot_sort():
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"must be (of rank 1|\[B, T\])"):
        losses.alternative_optimal_transport(x[None], x[None])
    with pytest.raises(ValueError, match="shape"):
        losses.alternative_optimal_transport(x, x[:1])
    with pytest.raises(ValueError, match="shape"):
        losses.alternative_optimal_transport(x, x, ref_lead=x[:1])


# --- rankings and ratings ---------------------------------------------------------------------


def test_plackett_luce_by_hand_and_for_two_is_bradley_terry():
    scores, ranking = jnp.log(jnp.array([[1.0, 2.0, 3.0]])), jnp.array([[2, 0, 1]])
    value = jax.jit(losses.plackett_luce)(scores, ranking)
    np.testing.assert_allclose(jnp.exp(-value), [3 / 6 * 1 / 3], rtol=1e-6)
    pairs = jnp.float32(REWARDS).T
    order = jnp.tile(jnp.array([0, 1]), (len(pairs), 1))
    two = losses.plackett_luce(pairs, order)
    np.testing.assert_allclose(two, losses.bradley_terry(*pairs.T), rtol=1e-5, atol=1e-6)


def test_plackett_luce_is_a_distribution_over_the_rankings():
    every = jnp.array(list(permutations(range(4))))
    scores = jnp.tile(jnp.array([0.3, -1.0, 2.0, 0.0]), (len(every), 1))
    values = losses.plackett_luce(scores, every)
    np.testing.assert_allclose(jnp.exp(-values).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(losses.plackett_luce(scores + 7, every), values, rtol=1e-4)
    chex.assert_trees_all_close(jax.vmap(losses.plackett_luce)(scores, every), values, rtol=1e-5)


def test_plackett_luce_lifts_the_best_lowers_the_worst_and_survives_large_scores():
    ranking = jnp.array([[2, 0, 1]])
    gradient = jax.grad(lambda s: losses.plackett_luce(s, ranking)[0])(jnp.zeros([1, 3]))
    np.testing.assert_allclose(gradient, [[1 / 3 - 1 / 2, 1 / 3 + 1 / 2, 1 / 3 - 1]], atol=1e-6)
    large = jnp.array([[1e4, -1e4, -1e4]])
    value, gradient = jax.value_and_grad(lambda s: losses.plackett_luce(s, ranking)[0])(large)
    np.testing.assert_allclose(value, 2e4)
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match="shape"):
        losses.plackett_luce(large, ranking[:, :2])
    with pytest.raises(ValueError, match=r"must be (floating|integers|boolean)"):
        losses.plackett_luce(large, large)


def test_rrhf_by_hand_and_for_two_is_the_hinge_without_a_margin():
    scores, ranking = jnp.array([[-1.0, -3.0, -2.0]]), jnp.array([[1, 0, 2]])
    # the best is 2 below the second and 1 below the third; these two are in order
    value, gradient = jax.value_and_grad(lambda s: losses.rrhf(s, ranking)[0])(scores)
    assert value == 3
    np.testing.assert_array_equal(gradient, [[1, -2, 1]])
    np.testing.assert_array_equal(losses.rrhf(scores, jnp.array([[0, 2, 1]])), [0])
    pairs = jnp.float32(REWARDS).T
    two = losses.rrhf(pairs, jnp.tile(jnp.array([0, 1]), (len(pairs), 1)))
    np.testing.assert_allclose(two, losses.hinge(*pairs.T, margin=0.0))


def test_ordinal_is_a_distribution_over_the_ratings():
    cutpoints, scores = jnp.array([-2.0, -0.5, 1.0]), jnp.float32(REWARDS[0])
    levels = [
        jax.jit(losses.ordinal)(scores, jnp.full(scores.shape, level), cutpoints=cutpoints)
        for level in range(4)
    ]
    np.testing.assert_allclose(jnp.exp(-jnp.stack(levels)).sum(0), 1, rtol=1e-5)
    expected = sigmoid(1.0 - REWARDS[0]) - sigmoid(-0.5 - REWARDS[0])
    np.testing.assert_allclose(jnp.exp(-levels[2]), expected, rtol=1e-4)
    ratings = jnp.arange(len(scores)) % 4
    loss = partial(losses.ordinal, cutpoints=cutpoints)
    chex.assert_trees_all_close(jax.vmap(loss)(scores, ratings), loss(scores, ratings), rtol=1e-5)


def test_ordinal_moves_scores_to_the_rating_and_cutpoints_too_and_is_always_finite():
    def loss(scores, cutpoints, ratings):
        return losses.ordinal(scores, ratings, cutpoints=cutpoints).sum()

    cutpoints, ratings = jnp.array([-1.0, 1.0]), jnp.array([0, 1, 2])
    slope, cut = jax.grad(loss, (0, 1))(jnp.zeros(3), cutpoints, ratings)
    assert slope[0] > 0 > slope[2]
    np.testing.assert_allclose(slope[1], 0, atol=1e-7)
    h = 1e-2
    for i, value in enumerate(cut):
        step = h * jnp.eye(2)[i]
        rise = loss(jnp.zeros(3), cutpoints + step, ratings)
        fall = loss(jnp.zeros(3), cutpoints - step, ratings)
        np.testing.assert_allclose(value, (rise - fall) / (2 * h), atol=1e-3)
    for extreme in (-1e4, 1e4):
        value, gradients = jax.value_and_grad(loss, (0, 1))(
            jnp.full(3, extreme), cutpoints, ratings
        )
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_ordinal_with_one_cutpoint_is_bradley_terry_against_it():
    scores = jnp.array([0.7, 0.7])
    value = losses.ordinal(scores, jnp.array([1, 0]), cutpoints=jnp.array([0.2]))
    expected = losses.bradley_terry(jnp.array([0.7, 0.2]), jnp.array([0.2, 0.7]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_ordinal_refuses():
    x, ratings, cutpoints = jnp.zeros(3), jnp.zeros(3, int), jnp.zeros(2)
    with pytest.raises(ValueError, match="shape"):
        losses.ordinal(x, ratings[:2], cutpoints=cutpoints)
    with pytest.raises(ValueError, match=r"must be (floating|integers|boolean)"):
        losses.ordinal(x, x, cutpoints=cutpoints)
    with pytest.raises(ValueError, match=r"must be (of rank 1|\[B, T\])"):
        losses.ordinal(x, ratings, cutpoints=cutpoints[None])


# --- single answers ---------------------------------------------------------------------------

LABELS = jnp.array([True, False, True])


def test_kto_by_hand():
    rewards = jnp.array([1.0, 1.0, -2.0])
    loss = partial(losses.kto, desirable_weight=2.0, undesirable_weight=0.5)
    value = jax.jit(loss)(rewards, LABELS, 0.5)
    expected = [2 * (1 - sigmoid(0.5)), 0.5 * (1 - sigmoid(-0.5)), 2 * (1 - sigmoid(-2.5))]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(loss(rewards, LABELS, jnp.full(3, 0.5)), value)
    np.testing.assert_array_equal(loss(rewards, LABELS, -0.5), loss(rewards, LABELS, 0.0))
    chex.assert_trees_all_close(
        jax.vmap(lambda r, y: loss(r, y, 0.5))(rewards, LABELS), value, rtol=1e-6
    )


def test_the_kl_of_kto_has_no_gradient():
    slope = jax.grad(lambda kl: losses.kto(jnp.ones(3), LABELS, kl).sum())(0.5)
    assert slope == 0


def test_apo_zero_unpaired_is_apo_zero_taken_apart():
    chosen, rejected = jnp.float32(REWARDS)
    good = losses.apo_zero_unpaired(chosen, jnp.ones(chosen.shape, bool))
    bad = losses.apo_zero_unpaired(rejected, jnp.zeros(chosen.shape, bool))
    np.testing.assert_allclose(good + bad, losses.apo_zero(chosen, rejected), rtol=1e-5)
    weighted = losses.apo_zero_unpaired(jnp.zeros(3), LABELS, 9.0, undesirable_weight=3.0)
    np.testing.assert_allclose(weighted, [0.5, 1.5, 0.5])


@pytest.mark.parametrize("loss", [losses.kto, losses.apo_zero_unpaired])
def test_unpaired_losses_move_good_up_and_bad_down_and_refuse(loss):
    gradient = jax.grad(lambda r: loss(r, LABELS, 0.1).sum())(jnp.zeros(3))
    assert (gradient * jnp.where(LABELS, 1, -1) < 0).all()
    for extreme in (-1e4, 1e4):
        value = loss(jnp.full(3, extreme), LABELS, 0.1)
        assert np.isfinite(value).all()
    with pytest.raises(ValueError, match="shape"):
        loss(jnp.zeros(2), LABELS, 0.0)
    with pytest.raises(ValueError, match=r"must be (floating|integers|boolean)"):
        loss(jnp.zeros(3), LABELS.astype(int), 0.0)
    with pytest.raises(ValueError, match="desirable_weight must be positive, not 0"):
        loss(jnp.zeros(3), LABELS, 0.0, desirable_weight=0)


def test_kto_refuses_a_kl_of_another_shape():
    with pytest.raises(ValueError, match="shape"):
        losses.kto(jnp.zeros(3), LABELS, jnp.zeros([3, 1]))
