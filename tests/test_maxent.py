"""Maximum causal entropy against enumeration, and rewards found again from what people do."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import worlds

STATES, ACTIONS = 5, 3


def random_process(key, discount=0.9):
    moves, earns = jax.random.split(key)
    transitions = jax.random.dirichlet(moves, jnp.full(STATES, 0.3), (STATES, ACTIONS))
    return worlds.MDP(transitions, jax.random.normal(earns, [STATES, ACTIONS]), discount)


START = jnp.full(STATES, 1 / STATES)


def certain_process(seed=0):
    """Every action leads to one state, so that a likelihood is a fraction of e to the return."""
    rng = np.random.default_rng(seed)
    return worlds.MDP(
        np.eye(4, dtype=np.float32)[rng.integers(0, 4, [4, 2])],
        rng.normal(size=[4, 2]).astype(np.float32),
    )


def test_a_trajectory_is_as_likely_as_e_to_its_return():
    mdp, horizon, temperature = certain_process(), 4, 0.7
    solution = worlds.soft_value_iteration(mdp, horizon=horizon, temperature=temperature)
    actions = np.array(list(product(range(2), repeat=horizon)))
    states = np.zeros_like(actions)
    for step in range(1, horizon):
        moves = mdp.transitions[states[:, step - 1], actions[:, step - 1]]
        states[:, step] = moves.argmax(axis=1)
    every = worlds.Trajectories(states, actions)
    returns = np.tensordot(worlds.visits(every, (4, 2)), mdp.rewards, 2)
    likely = np.exp(returns / temperature)
    np.testing.assert_allclose(
        np.exp(worlds.trajectory_log_probs(solution.log_policy, every)),
        likely / likely.sum(),
        rtol=1e-4,
    )
    np.testing.assert_allclose(solution.values[0, 0], temperature * np.log(likely.sum()), rtol=1e-5)


def test_without_a_horizon_it_is_the_limit_of_long_ones_and_of_reason():
    mdp = random_process(jax.random.key(0))
    forever = worlds.soft_value_iteration(mdp)
    long = worlds.soft_value_iteration(mdp, horizon=200)
    np.testing.assert_allclose(forever.values, long.values[0], rtol=1e-5)
    np.testing.assert_allclose(forever.log_policy, long.log_policy[0], atol=1e-5)
    rational = worlds.soft_value_iteration(mdp, temperature=1e-3)
    exact = worlds.value_iteration(mdp)
    np.testing.assert_allclose(rational.values, exact.values, atol=0.01 * np.log(ACTIONS) + 1e-3)
    np.testing.assert_array_equal(rational.log_policy.argmax(axis=1), exact.policy)


@pytest.mark.parametrize("horizon", [4, None])
def test_the_gradient_is_a_difference_of_occupancies_and_that_of_the_likelihood(horizon):
    """With demonstrators of another temperature, whose occupancy is exact."""
    mdp = random_process(jax.random.key(1))
    settings = {"discount": 0.9, "horizon": horizon}
    people = worlds.soft_value_iteration(mdp, temperature=0.5, horizon=horizon)
    demonstrations = worlds.occupancy(mdp, jnp.exp(people.log_policy), START)
    rewards = jax.random.normal(jax.random.key(2), [STATES, ACTIONS])

    def loss(rewards):
        return worlds.maxent_loss(rewards, mdp.transitions, demonstrations, START, **settings)

    def likelihood(rewards):
        """By step, as what people do in a state changes with the time left."""
        found = worlds.soft_value_iteration(mdp._replace(rewards=rewards), horizon=horizon)
        if horizon is None:
            return -jnp.sum(demonstrations * found.log_policy)
        here, total = START, 0.0
        for step in range(horizon):
            done = here[:, None] * jnp.exp(people.log_policy[step])
            total -= jnp.sum(done * found.log_policy[step])
            here = 0.9 * jnp.einsum("sa,sat->t", done, mdp.transitions)
        return total

    (value, slope), (expected, by_hand) = jax.jit(
        lambda x: (jax.value_and_grad(loss)(x), jax.value_and_grad(likelihood)(x))
    )(rewards)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(slope, by_hand, atol=1e-4)
    asked = worlds.soft_value_iteration(mdp._replace(rewards=rewards), horizon=horizon)
    difference = worlds.occupancy(mdp, jnp.exp(asked.log_policy), START) - demonstrations
    np.testing.assert_allclose(slope, difference, atol=1e-4)
    assert np.abs(slope).max() > 0.1


def test_sampled_trajectories_visit_what_the_occupancy_says():
    mdp = random_process(jax.random.key(3))
    policy = jnp.exp(worlds.soft_value_iteration(mdp, horizon=6).log_policy)
    done = worlds.rollouts(jax.random.key(0), mdp, policy, START, trajectories=20_000, length=6)
    seen = worlds.visits(done, (STATES, ACTIONS), discount=0.9)
    expected = worlds.occupancy(mdp, policy, START)
    np.testing.assert_allclose(expected.sum(), (1 - 0.9**6) / 0.1, rtol=1e-5)
    np.testing.assert_allclose(seen.mean(axis=0), expected, atol=0.02)
    still = policy[0]
    forever = worlds.occupancy(mdp, still, START)
    long = worlds.occupancy(mdp, jnp.broadcast_to(still, [200, *still.shape]), START)
    np.testing.assert_allclose(forever, long, rtol=1e-4)


def test_the_policy_found_is_worth_what_the_expert_s_is():
    """science.md: at least .95 of the expert's gold, here above what chance earns."""
    horizon, features = 8, 4

    @jax.jit
    @jax.vmap
    def study(key):
        world, looks, wants, people = jax.random.split(key, 4)
        mdp = random_process(world, 1.0)
        phi = jax.random.normal(looks, [STATES, ACTIONS, features])
        mdp = mdp._replace(rewards=phi @ jax.random.normal(wants, [features]))
        expert = jnp.exp(worlds.soft_value_iteration(mdp, horizon=horizon).log_policy)
        done = worlds.rollouts(people, mdp, expert, START, trajectories=100, length=horizon)
        shown = worlds.visits(done, (STATES, ACTIONS)).mean(axis=0)
        adam = optax.adam(optax.cosine_decay_schedule(0.3, 200))
        fit = worlds.maxent_irl(
            mdp.transitions, phi, shown, START, adam, horizon=horizon, steps=200, l2=1e-3
        )
        policies = jnp.exp(fit.solution.log_policy), expert, jnp.full_like(expert, 1 / ACTIONS)
        ours, theirs, chance = (
            jnp.vdot(worlds.occupancy(mdp, policy, START), mdp.rewards) for policy in policies
        )
        return (ours - chance) / (theirs - chance), fit.gap

    share, gap = study(jax.random.split(jax.random.key(0), 16))
    assert share.min() >= 0.9
    assert share.mean() >= 0.95
    assert gap.max() < 0.05


def test_a_reward_is_found_up_to_shaping():
    """From all that the demonstrators do, of features that can be any reward."""
    mdp = random_process(jax.random.key(4))
    expert = worlds.soft_value_iteration(mdp)
    shown = worlds.occupancy(mdp, jnp.exp(expert.log_policy), START)
    size = STATES * ACTIONS
    fit = jax.jit(
        lambda shown: worlds.maxent_irl(
            mdp.transitions,
            jnp.eye(size).reshape(STATES, ACTIONS, size),
            shown,
            START,
            optax.adam(optax.cosine_decay_schedule(0.2, 300)),
            discount=0.9,
            steps=300,
        )
    )(shown)
    np.testing.assert_allclose(fit.solution.log_policy, expert.log_policy, atol=0.02)
    zero = mdp._replace(rewards=jnp.zeros_like(mdp.rewards))
    shapings = jax.vmap(lambda potential: worlds.shaped(zero, potential).rewards)(jnp.eye(STATES))
    difference = np.ravel(fit.rewards - mdp.rewards)
    basis = np.reshape(shapings, [STATES, size]).T
    potential, *_ = np.linalg.lstsq(basis, difference, rcond=None)
    assert np.abs(difference).max() > 0.3
    np.testing.assert_allclose(basis @ potential, difference, atol=0.05)
    # And a shaped reward asks for the same.
    again = worlds.soft_value_iteration(worlds.shaped(mdp, jnp.arange(5.0)))
    np.testing.assert_allclose(again.log_policy, expert.log_policy, atol=1e-4)
