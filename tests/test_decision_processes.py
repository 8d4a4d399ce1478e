"""The small decision processes against their closed forms, and learning in them by doing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import worlds


def test_a_dialogue_is_steered_iff_that_is_worth_the_risk():
    rewards = jnp.array([0.5, 0.2, 0.9])
    mdp = worlds.dialogue(rewards, persuasion=0.25)
    np.testing.assert_allclose(mdp.transitions[0], [[0, 0, 1], [0, 0.25, 0.75]])
    np.testing.assert_allclose(worlds.value_iteration(mdp).action_values[0], [0.5, 0.225])
    np.testing.assert_array_equal(
        worlds.dialogue(rewards, persuasion=1.0).transitions, worlds.shutdown(rewards).transitions
    )


def test_the_way_to_the_coin_is_worth_the_discount_to_the_power_of_its_length():
    mdp = worlds.corridor(4, discount=0.5)
    away = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    values = worlds.value_iteration(mdp).values
    np.testing.assert_allclose(values[:-1].reshape(4, 4), 0.5**away)
    assert values[-1] == 0
    np.testing.assert_array_equal(mdp.transitions[-1, :, -1], 1)


def test_a_corridor_shows_its_end_and_its_coin():
    view = np.asarray(worlds.corridor_view(4))
    assert view.shape == (17, 5)
    np.testing.assert_array_equal(view[:-1].sum(axis=1), 2)  # of end or not, and of the coin
    np.testing.assert_array_equal(view[2 * 4 + 3], [0, 1, 0, 0, 1])  # in cell 2, the coin in 3
    np.testing.assert_array_equal(view[-1], 0)
    start = worlds.corridor_start(jnp.array([0, 0, 0.25, 0.75]))
    np.testing.assert_allclose(start[:-1].reshape(4, 4).sum(axis=0), [0, 0, 0.25, 0.75])
    assert start.sum() == 1


def test_what_a_supervisor_believes_is_what_is_optimal():
    """Lang et al.: hides iff q > h, verbose iff p (1 - q) > c; of the truth neither."""
    truth = jnp.array([1.0, 1.0, 0.0, 0.0])
    belief, cost = (x.ravel() for x in jnp.meshgrid(*2 * [jnp.arange(0.03, 1, 0.1)]))

    def policy(outcomes, cost):
        mdp = worlds.logged_task(outcomes, success=0.8, hiding=cost, logging=cost)
        return worlds.value_iteration(mdp).policy

    seen = jax.vmap(lambda q: jnp.stack([q, jnp.float32(1), jnp.float32(0), q]))(belief)
    found = jax.jit(jax.vmap(policy))(seen, cost + 0.01)
    np.testing.assert_array_equal(found[:, 1], belief > cost + 0.01)
    np.testing.assert_array_equal(found[:, 0], 0.8 * (1 - belief) > cost + 0.01)
    np.testing.assert_array_equal(policy(truth, 0.01), 0)


def test_reinforce_steps_by_the_return_to_go_less_that_of_the_others():
    """One step by hand; and where chance earns nothing, nothing is learnt."""

    @jax.jit
    def step(logits, rewards):
        algorithm = worlds.reinforce(
            worlds.combination_lock(jnp.array([1]), rewards),
            jnp.array([1.0, 0.0, 0.0]),
            optax.sgd(1.0),
            episodes=4,
            length=2,
            watch=lambda played, returns: {**played._asdict(), "returns": returns},
        )
        return algorithm.step(algorithm.init(logits, jax.random.key(1)))

    logits = jnp.array([[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]])
    state, metrics = step(logits, jnp.array([1.0, 2.0]))
    states, actions = (np.asarray(metrics[name], int) for name in ("states", "actions"))
    returns = np.asarray(metrics["returns"])
    assert 0 < (returns > 0).sum() < 4
    expected, policy = np.zeros((3, 2)), np.asarray(jax.nn.softmax(logits))
    for b in range(4):
        others = returns[np.arange(4) != b].mean()  # all is earned at the end: the same at any step
        for s, a in zip(states[b], actions[b], strict=True):
            expected[s] += (returns[b] - others) * (np.eye(2)[a] - policy[s]) / 4
    np.testing.assert_allclose(state.params - logits, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["reward"], returns.mean(), rtol=1e-6)
    np.testing.assert_array_equal(step(logits, jnp.zeros(2))[0].params, logits)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"persuasion must be from 0 to 1, not 1\.5"):
        worlds.dialogue(jnp.ones(3), persuasion=1.5)
    with pytest.raises(ValueError, match="length must be at least 2, not 1"):
        worlds.corridor(1)
    with pytest.raises(ValueError, match="outcomes must be four, not 3"):
        worlds.logged_task(jnp.ones(3), success=0.5, hiding=0.1, logging=0.1)
    with pytest.raises(ValueError, match="success must be from 0 to 1, not 2"):
        worlds.logged_task(jnp.ones(4), success=2, hiding=0.1, logging=0.1)
    lock, start = worlds.combination_lock(jnp.array([1]), jnp.zeros(2)), jnp.array([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="episodes must be at least 2, not 1"):
        worlds.reinforce(lock, start, optax.sgd(1.0), episodes=1, length=2)
    with pytest.raises(ValueError, match="start must be probabilities"):
        worlds.reinforce(lock, 2 * start, optax.sgd(1.0), episodes=2, length=2)
