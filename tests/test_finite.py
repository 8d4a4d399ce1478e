"""The finite bandit: the exact tilt, and the preference losses whose optimum it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import divergences, implicit_rewards, losses, worlds

REFERENCE = jnp.log(jnp.array([0.5, 0.3, 0.2]))
REWARDS = jnp.array([1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    ("beta", "policy", "value"),
    [
        (1.0, [0.43327, 0.09563, 0.47110], 1.143252),
        (0.5, [0.24772, 0.02012, 0.73217], 1.351155),
    ],
)
def test_tilt_of_the_science_page(beta, policy, value):
    log_probs = worlds.tilt(REFERENCE, REWARDS, beta=beta)
    np.testing.assert_allclose(jnp.exp(log_probs), policy, atol=1e-5)
    kl = divergences.exact_kl(log_probs, REFERENCE)
    if beta == 1:
        np.testing.assert_allclose(kl, 0.232212, atol=1e-6)
    worth = worlds.tilt_value(REFERENCE, REWARDS, beta=beta)
    np.testing.assert_allclose(worth, value, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(log_probs) @ REWARDS - beta * kl, worth, atol=1e-6)


def test_no_policy_is_worth_more_and_the_limits_are_the_ends():
    others = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    penalties = 0.5 * np.sum(others * (np.log(others) - REFERENCE), axis=1)
    worth = others @ REWARDS - penalties
    assert worth.max() < worlds.tilt_value(REFERENCE, REWARDS, beta=0.5)
    betas = jnp.array([[1e-3], [1e6]])  # one penalty a row
    rows = (jnp.tile(x, (2, 1)) for x in (REFERENCE, REWARDS))
    greedy, unmoved = jnp.exp(worlds.tilt(*rows, beta=betas))
    np.testing.assert_allclose(greedy, [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(unmoved, jnp.exp(REFERENCE), atol=1e-5)


def test_the_impossible_stays_impossible_and_logits_will_do():
    log_probs = worlds.tilt(jnp.array([3.0, -jnp.inf, 3.0]), jnp.array([0.0, 99.0, 0.0]))
    np.testing.assert_allclose(jnp.exp(log_probs), [0.5, 0, 0.5], atol=1e-6)
    shifted = worlds.tilt_value(REFERENCE + 7, REWARDS)
    np.testing.assert_allclose(shifted, worlds.tilt_value(REFERENCE, REWARDS), atol=1e-6)


def test_bad_arguments_are_refused():
    for function in (worlds.tilt, worlds.tilt_value):
        with pytest.raises(ValueError, match="beta must be positive, not 0"):
            function(REFERENCE, REWARDS, beta=0)
        with pytest.raises(ValueError, match="shape"):
            function(REFERENCE, REWARDS[:2])
        with pytest.raises(ValueError, match="must be floating"):
            function(REFERENCE, jnp.arange(3))


# --- where direct preference optimisation ends ------------------------------------------------

ANSWERS, STEPS, BETA, TAU = 6, 2000, 0.5, 0.4
PRIOR = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), [ANSWERS]))
TRUTH = 1.5 * jax.random.normal(jax.random.key(1), [ANSWERS])
GRADED = worlds.bradley_terry_preferences(TRUTH)  # of full support
CERTAIN = (TRUTH[:, None] > TRUTH) + 0.5 * jnp.eye(ANSWERS)


@partial(jax.jit, static_argnames=("loss", "beta"))
def direct(preferences, *, loss, beta):
    """A table policy trained on the population's preferences; its log-probs after each step."""
    pairs = jnp.exp(PRIOR[:, None] + PRIOR)  # both answers come from the reference
    optimizer = optax.adam(0.05)

    def rewards(logits):
        columns = jax.nn.log_softmax(logits)[:, None], PRIOR[:, None]  # answers of one token
        return implicit_rewards.log_ratio(*columns, jnp.ones([ANSWERS, 1], bool))

    def step(carry, _):
        logits, state = carry
        gradient = jax.grad(
            lambda x: worlds.mean_loss(beta * rewards(x), pairs * preferences, loss=loss)
        )(logits)
        updates, state = optimizer.update(gradient, state)
        logits = optax.apply_updates(logits, updates)
        return (logits, state), jax.nn.log_softmax(logits)

    return jax.lax.scan(step, (PRIOR, optimizer.init(PRIOR)), length=STEPS)[1]


DPO = partial(direct, loss=losses.bradley_terry, beta=BETA)
IPO = partial(direct, loss=partial(losses.squared, tau=TAU), beta=1.0)


def lead(log_probs):
    """The largest lead of one answer over another, in log-ratios."""
    return jnp.ptp(log_probs - PRIOR)


def test_dpo_reaches_the_exact_tilt_of_the_reward_behind_the_preferences():
    optimum = worlds.tilt(PRIOR, TRUTH, beta=BETA)
    assert divergences.exact_kl(PRIOR, optimum) > 0.5, "the case must be far from its start"
    assert divergences.exact_kl(DPO(GRADED)[-1], optimum) < 1e-3


def test_ipo_reaches_the_exact_tilt_of_the_win_rate_against_the_reference():
    runs = jax.vmap(IPO)(jnp.stack([GRADED, CERTAIN]))
    for preferences, run in zip((GRADED, CERTAIN), runs, strict=True):
        optimum = worlds.tilt(PRIOR, worlds.win_rates(preferences, PRIOR), beta=TAU)
        assert divergences.exact_kl(PRIOR, optimum) > 0.02
        assert divergences.exact_kl(run[-1], optimum) < 1e-3
    # A win rate is at most 1, so no lead is above 1 / tau, however sure the preferences are.
    assert lead(runs[1, -1]) < 1 / TAU


def test_dpo_has_no_end_where_preferences_are_certain():
    run = DPO(CERTAIN)
    leads = jax.vmap(lead)(run[jnp.array([STEPS // 4, STEPS // 2, STEPS - 1])])
    assert (jnp.diff(leads) > 2).all()
    assert leads[-1] > 5 / TAU
