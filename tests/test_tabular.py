"""Value iteration against every policy solved exactly; power-seeking; refusals."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import worlds


def test_most_rewards_favour_staying_on():
    """science.md: an optimal agent avoids being switched off with probability k / (k + 1)."""
    ends = np.array([1, 2, 4, 8])
    rewards = jax.random.uniform(jax.random.key(0), [4, 20_000, 9])
    # Of eight ends behind the hub, all but k are worse than being switched off ever is.
    rewards = jnp.where(jnp.arange(9) > ends[:, None, None], -1, rewards)

    @jax.jit
    @partial(jnp.vectorize, signature="(e)->(),()")
    def start(rewards):
        solution = worlds.value_iteration(worlds.shutdown(rewards))
        return solution.policy[0], solution.values[0]

    policy, values = start(rewards)
    np.testing.assert_allclose(jnp.mean(policy > 0, axis=1), ends / (ends + 1), atol=0.02)
    np.testing.assert_allclose(values, rewards.max(axis=-1), rtol=1e-6)


def test_the_world_of_one_end_behind_the_hub():
    mdp = worlds.shutdown(jnp.array([0.4, 0.6]))
    np.testing.assert_array_equal(mdp.transitions.argmax(axis=2), [[2, 1], [2, 2], [2, 2]])
    np.testing.assert_array_equal(mdp.transitions.sum(axis=2), np.ones([3, 2]))
    np.testing.assert_allclose(mdp.rewards, [[0.4, 0], [0.6, 0.6], [0, 0]])


def random_mdp(states=4, actions=2, discount=0.9):
    rng = np.random.default_rng(0)
    transitions = rng.dirichlet(np.ones(states), [states, actions])
    return worlds.MDP(
        jnp.float32(transitions), jnp.float32(rng.normal(size=[states, actions])), discount
    )


def test_value_iteration_finds_the_best_of_all_policies():
    mdp = random_mdp()
    solution = worlds.value_iteration(mdp)
    states = np.arange(4)
    best = np.full(4, -np.inf)
    for policy in product(range(2), repeat=4):
        chain, earned = np.asarray(mdp.transitions)[states, policy], mdp.rewards[states, policy]
        values = np.linalg.solve(np.eye(4) - mdp.discount * chain, earned)
        if (values >= best).all():
            best, best_policy = values, policy
    np.testing.assert_allclose(solution.values, best, atol=1e-4)
    np.testing.assert_array_equal(solution.policy, best_policy)
    np.testing.assert_allclose(solution.action_values.max(axis=1), solution.values)
    after = mdp.rewards + mdp.discount * mdp.transitions @ solution.values
    np.testing.assert_allclose(solution.action_values, after, atol=1e-4)


def test_an_undiscounted_process_that_never_ends_is_stopped():
    forever = worlds.MDP(jnp.ones([1, 1, 1]), jnp.ones([1, 1]))
    assert worlds.value_iteration(forever, max_iterations=10).values[0] == 11  # and one last look


def test_bad_processes_are_refused():
    mdp = random_mdp()
    solve = worlds.value_iteration
    with pytest.raises(ValueError, match=r"transitions must be \[S, A, S\] and rewards \[S, A\]"):
        solve(mdp._replace(rewards=mdp.rewards.T))
    with pytest.raises(ValueError, match="probabilities that sum to 1"):
        solve(mdp._replace(transitions=2 * mdp.transitions))
    with pytest.raises(ValueError, match=r"discount must be from 0 to 1, not 1\.1"):
        solve(mdp._replace(discount=1.1))
    with pytest.raises(ValueError, match="rewards must be floating"):
        solve(mdp._replace(rewards=jnp.ones([4, 2], int)))
    with pytest.raises(ValueError, match="at least 2 ends, not 1"):
        worlds.shutdown(jnp.ones(1))
