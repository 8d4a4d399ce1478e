"""Markov decision processes small enough to be solved exactly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = ["MDP", "Solution", "shutdown", "value_iteration"]


class MDP(NamedTuple):
    """A Markov decision process with ``S`` states and ``A`` actions, as arrays.

    An episode ends in a state that leads only to itself and earns nothing. Where a state has fewer
    actions than others, let several do the same.

    Attributes:
        transitions: ``float[S, A, S]``, the probability of the next state; rows sum to 1.
        rewards: ``float[S, A]``, the expected reward of an action.
        discount: ``float[]`` from 0 to 1; 1 only if every policy ends.
    """

    transitions: jax.Array
    rewards: jax.Array
    discount: float | jax.Array = 1.0


class Solution(NamedTuple):
    """What is optimal in a Markov decision process.

    Attributes:
        values: ``float[S]``, the expected return of an optimal policy.
        action_values: ``float[S, A]``, of an action, and of an optimal policy after it.
        policy: ``int32[S]``, an optimal action; the first where several are.
    """

    values: jax.Array
    action_values: jax.Array
    policy: jax.Array


def value_iteration(mdp: MDP, *, tolerance: float = 1e-6, max_iterations: int = 10_000) -> Solution:
    r"""The optimal values, by iterating Bellman's equation until they stand still.

    .. math:: Q(s, a) = r(s, a) + \gamma \sum_{s'} P(s' \mid s, a) \max_{a'} Q(s', a')

    May be compiled, and vmapped over transitions, rewards and discounts; where every episode ends
    after at most ``D`` steps it is exact after ``D`` iterations.

    Args:
        mdp: the process.
        tolerance: the largest last change of a value, relative to the largest value or 1. With a
            discount the values are then wrong by at most ``discount / (1 - discount)`` as much.
        max_iterations: where it stops in any case, as it must if an undiscounted process never
            ends.

    Returns:
        A ``Solution``. It cannot check that the iteration converged within ``max_iterations``.

    Raises:
        ValueError: if the shapes do not fit, a row of ``transitions`` is no distribution, or the
            discount is not from 0 to 1 (the latter two are not checked of traced arguments).

    Reference: Bellman 1957, Dynamic Programming; Sutton and Barto 2018, Reinforcement Learning,
    section 4.4

    >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> mdp = MDP(stay_or_go, jnp.array([[1.0, 5.0], [0.0, 0.0]]), 0.9)
    >>> value_iteration(mdp).values.round(3).tolist(), value_iteration(mdp).policy[0].item()
    ([10.0, 0.0], 0)
    """
    _check(mdp)
    transitions, rewards, discount = mdp

    def backup(values):
        expected = jnp.tensordot(transitions, values, axes=1, precision="highest")
        return rewards + discount * expected

    def sweep(state):
        values, _, iterations = state
        after = jnp.max(backup(values), axis=-1)
        change = jnp.max(jnp.abs(after - values)) / jnp.maximum(jnp.max(jnp.abs(after)), 1)
        return after, change, iterations + 1

    def unfinished(state):
        _, change, iterations = state
        return (change > tolerance) & (iterations < max_iterations)

    start = jnp.zeros_like(rewards[:, 0])
    state = (start, jnp.full((), jnp.inf, start.dtype), 0)
    values, *_ = jax.lax.while_loop(unfinished, sweep, state)
    action_values = backup(values)
    best = jnp.argmax(action_values, axis=-1).astype(jnp.int32)
    return Solution(jnp.max(action_values, axis=-1), action_values, best)


def shutdown(rewards: jax.Array) -> MDP:
    r"""A world in which being switched off closes options: the smallest case of power-seeking.

    The agent starts in state 0, where action 0 lets itself be switched off, the end, and any other
    leads to a hub, state 1. There each action but surplus ones leads to an end of its own. State 2
    is after the end. With the rewards of all ends drawn independently from one continuous
    distribution, an optimal agent with ``k`` ends behind the hub avoids being switched off with
    probability ``k / (k + 1)``: whatever it wants, it is likely not to want that.

    Args:
        rewards: ``float[k + 1]``, of being switched off, and of each other end.

    Returns:
        An undiscounted ``MDP`` with 3 states and ``max(k, 2)`` actions.

    Raises:
        ValueError: if the rewards are not ``[k + 1]``, at least 2, or not floating.

    Reference: after Turner et al. 2021, https://arxiv.org/abs/1912.01683

    >>> value_iteration(shutdown(jnp.array([0.4, 0.1, 0.9]))).policy.tolist()[:2]
    [1, 1]
    """
    checks.vectors(rewards=rewards)
    checks.floating(rewards=rewards)
    ends = len(rewards) - 1
    if ends < 1:
        raise ValueError(f"rewards must be of at least 2 ends, not {ends + 1}")
    actions = max(ends, 2)
    transitions = np.zeros([3, actions, 3], np.float32)
    transitions[0, 0, 2] = transitions[0, 1:, 1] = transitions[1:, :, 2] = 1
    behind = rewards[1 + np.minimum(np.arange(actions), ends - 1)]
    nothing = jnp.zeros(actions, rewards.dtype)
    return MDP(
        jnp.asarray(transitions, rewards.dtype),
        jnp.stack([nothing.at[0].set(rewards[0]), behind, nothing]),
    )


def _check(mdp: MDP) -> None:
    checks.floating(transitions=mdp.transitions, rewards=mdp.rewards)
    shape = jnp.shape(mdp.rewards)
    if len(shape) != 2 or jnp.shape(mdp.transitions) != (*shape, shape[0]):
        found = f"{list(jnp.shape(mdp.transitions))} and {list(shape)}"
        raise ValueError(f"transitions must be [S, A, S] and rewards [S, A], not {found}")
    if not isinstance(mdp.transitions, jax.core.Tracer):
        rows = np.asarray(mdp.transitions)
        if np.any(rows < 0) or np.any(np.abs(rows.sum(-1) - 1) > 1e-4):
            raise ValueError("transitions must be probabilities that sum to 1 over the next state")
    if not isinstance(mdp.discount, jax.core.Tracer) and not 0 <= mdp.discount <= 1:
        raise ValueError(f"discount must be from 0 to 1, not {mdp.discount}")
