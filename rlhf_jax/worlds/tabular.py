"""Markov decision processes small enough to be solved exactly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.types import Key

__all__ = [
    "MDP",
    "Solution",
    "Trajectories",
    "combination_lock",
    "occupancy",
    "rollouts",
    "shutdown",
    "value_iteration",
    "visits",
]


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


class Trajectories(NamedTuple):
    """What was done, from the start on; one that has ended stays in its end.

    Attributes:
        states: ``int32[B, T]``.
        actions: ``int32[B, T]``, taken in these states.
    """

    states: jax.Array
    actions: jax.Array


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
    check_process(mdp)
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


def occupancy(mdp: MDP, policy: jax.Array, start: jax.Array) -> jax.Array:
    r"""How often a policy is expected to do what where, discounted.

    .. math:: \rho(s, a) = \sum_t \gamma^t P(s_t = s, a_t = a)

    The expected return of the policy is ``vdot(occupancy, rewards)``, and its expected features are
    the same sum with the features. It sums to ``1 / (1 - discount)``, or over a horizon to as many
    discounted steps.

    Args:
        mdp: the process; its rewards do not matter.
        policy: ``float[S, A]``, the probability of each action; or ``float[H, S, A]``, of each step
            of a process that stops after ``H``.
        start: ``float[S]``, the probability of the first state.

    Returns:
        ``float[S, A]``.

    Raises:
        ValueError: if the shapes do not fit, ``start`` is no distribution, or neither a horizon nor
            a discount below 1 bounds the sum (values are not checked of traced arguments).

    Reference: Puterman 1994, Markov Decision Processes, section 6.9

    >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> mdp = MDP(stay_or_go, jnp.zeros([2, 2]), 0.5)
    >>> occupancy(mdp, jnp.full([2, 2], 0.5), jnp.array([1.0, 0.0])).tolist()
    [[0.6667, 0.6667], [0.3333, 0.3333]]
    """
    check_process(mdp)
    check_start(mdp, start)
    _check_policy(mdp, policy)
    if jnp.ndim(policy) == 2:
        check_bounded(mdp, horizon=None)
        chain = jnp.einsum("sa,sat->ts", policy, mdp.transitions, precision="highest")
        return jnp.linalg.solve(jnp.eye(len(chain)) - mdp.discount * chain, start)[:, None] * policy

    def following(here, policy):
        done = here[:, None] * policy
        after = jnp.einsum("sa,sat->t", done, mdp.transitions, precision="highest")
        return mdp.discount * after, done

    return jnp.sum(jax.lax.scan(following, start, policy)[1], axis=0)


def rollouts(
    key: Key, mdp: MDP, policy: jax.Array, start: jax.Array, *, trajectories: int, length: int
) -> Trajectories:
    """Trajectories of a policy.

    Args:
        key: of all of them.
        mdp: the process.
        policy: ``float[S, A]``, the probability of each action, or ``float[H, S, A]``, of each
            step, ``H`` at least ``length``.
        start: ``float[S]``, the probability of the first state.
        trajectories: ``B``, how many.
        length: ``T``, how long each is, in steps.

    Returns:
        ``Trajectories`` of ``B`` rows and ``T`` columns.

    Raises:
        ValueError: if the shapes do not fit, or ``start`` is no distribution.

    >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> go = jnp.array([[0.0, 1.0], [0.0, 1.0]])
    >>> mdp, start = MDP(stay_or_go, jnp.zeros([2, 2])), jnp.array([1.0, 0.0])
    >>> rollouts(jax.random.key(0), mdp, go, start, trajectories=1, length=3).states.tolist()
    [[0, 1, 1]]
    """
    check_process(mdp)
    check_start(mdp, start)
    _check_policy(mdp, policy)
    if jnp.ndim(policy) == 2:
        policy = jnp.broadcast_to(policy, (length, *jnp.shape(policy)))
    if len(policy) < length:
        raise ValueError(f"length must be at most the policy's {len(policy)} steps, not {length}")
    # Choices by Gumbel's trick, all their randomness drawn at once.
    keys, size = jax.random.split(key, 3), (length, trajectories)
    acts, moves = (
        jax.random.gumbel(k, (*size, n))
        for k, n in zip(keys[:2], jnp.shape(mdp.rewards)[::-1], strict=True)
    )

    def step(states, given):
        policy, act, move = given
        actions = jnp.argmax(jnp.log(policy[states]) + act, axis=-1)
        after = jnp.argmax(jnp.log(mdp.transitions[states, actions]) + move, axis=-1)
        return after, (states, actions)

    states = jax.random.categorical(keys[2], jnp.log(start), shape=(trajectories,))
    _, (states, actions) = jax.lax.scan(step, states, (policy[:length], acts, moves))
    return Trajectories(states.T.astype(jnp.int32), actions.T.astype(jnp.int32))


def visits(
    trajectories: Trajectories, shape: tuple[int, int], *, discount: float | jax.Array = 1.0
) -> jax.Array:
    r"""How often each trajectory did what where, discounted.

    .. math:: n_b(s, a) = \sum_t \gamma^t \, 1[s_{b,t} = s, a_{b,t} = a]

    Their mean estimates ``occupancy``, their products with the rewards are the returns, and with
    the features the trajectories' features.

    Args:
        trajectories: of ``B`` rows.
        shape: ``(S, A)``.
        discount: of the process.

    Returns:
        ``float32[B, S, A]``.

    Raises:
        ValueError: if the two arrays are not ``[B, T]``, or a state or action is not of the process
            (not checked of traced arguments).

    >>> done = Trajectories(jnp.array([[0, 1]]), jnp.array([[1, 0]]))
    >>> visits(done, (2, 2), discount=0.5).tolist()
    [[[0.0, 1.0], [0.5, 0.0]]]
    """
    check_trajectories(trajectories, shape)
    states, actions = trajectories
    rows = jnp.arange(len(states))[:, None]
    weights = jnp.asarray(discount, jnp.float32) ** jnp.arange(states.shape[1])
    return jnp.zeros([len(states), *shape]).at[rows, states, actions].add(weights)


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


def combination_lock(combination: jax.Array, rewards: jax.Array) -> MDP:
    """A world in which chance achieves nothing: a lock, and behind it a choice of prizes.

    State ``d`` is after ``d`` right actions, each the next of the combination; a wrong one ends the
    episode with nothing. Behind the last, each action takes a prize of its own. Of random
    trajectories one in ``A ** D`` gets there.

    Args:
        combination: ``int[D]``, the right actions.
        rewards: ``float[A]``, of the prizes.

    Returns:
        An undiscounted ``MDP`` with ``D + 2`` states and ``A`` actions; the start is state 0, the
        last state the end, and an episode has at most ``D + 1`` steps.

    Raises:
        ValueError: if the arrays are not of rank 1, or an action of the combination is none (not
            checked of a traced combination).

    >>> value_iteration(combination_lock(jnp.array([1, 0]), jnp.array([2.0, 3.0]))).policy.tolist()
    [1, 0, 1, 0]
    """
    checks.vectors(combination=combination, rewards=rewards)
    checks.integers(combination=combination)
    checks.floating(rewards=rewards)
    depth, actions = len(combination), len(rewards)
    if not isinstance(combination, jax.core.Tracer):
        wrong = (np.asarray(combination) < 0) | (np.asarray(combination) >= actions)
        if np.any(wrong):
            found = np.asarray(combination)[wrong].tolist()
            raise ValueError(f"combination must be of actions 0 to {actions - 1}, not {found}")
    right = jnp.arange(actions) == combination[:, None]
    after = jnp.where(right, jnp.arange(1, depth + 1)[:, None], depth + 1)
    after = jnp.concatenate([after, jnp.full([2, actions], depth + 1)])
    return MDP(
        jax.nn.one_hot(after, depth + 2, dtype=rewards.dtype),
        jnp.zeros([depth + 2, actions], rewards.dtype).at[depth].set(rewards),
    )


def check_process(mdp: MDP) -> None:
    """The shapes fit, and probabilities and discount are such."""
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


def check_bounded(mdp: MDP, horizon: int | None) -> None:
    """A horizon or a discount below 1 bounds what is summed over all time."""
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1, not {horizon}")
    if horizon is None and not isinstance(mdp.discount, jax.core.Tracer) and mdp.discount >= 1:
        raise ValueError(f"discount must be below 1 without a horizon, not {mdp.discount}")


def _check_policy(mdp: MDP, policy: jax.Array) -> None:
    shape = jnp.shape(mdp.rewards)
    if jnp.shape(policy)[-2:] != shape or jnp.ndim(policy) > 3:
        found = f"{list(jnp.shape(policy))} for rewards {list(shape)}"
        raise ValueError(f"policy must be [S, A] or [H, S, A], not {found}")


def check_start(mdp: MDP, start: jax.Array) -> None:
    """``start`` is a distribution over the states."""
    checks.floating(start=start)
    checks.alike(start=start, states=mdp.rewards[:, 0])
    if not isinstance(start, jax.core.Tracer):
        row = np.asarray(start)
        if np.any(row < 0) or abs(row.sum() - 1) > 1e-4:
            raise ValueError(f"start must be probabilities that sum to 1, not to {row.sum()}")


def check_trajectories(trajectories: Trajectories, shape: tuple[int, int]) -> None:
    """Two ``[B, T]`` of states and actions that there are."""
    checks.alike(**trajectories._asdict())
    checks.integers(**trajectories._asdict())
    for (name, array), size in zip(trajectories._asdict().items(), shape, strict=True):
        if jnp.ndim(array) != 2:
            raise ValueError(f"{name} must be [B, T], not {list(jnp.shape(array))}")
        if not isinstance(array, jax.core.Tracer):
            rows, columns = np.nonzero((np.asarray(array) < 0) | (np.asarray(array) >= size))
            if len(rows):
                worst = int(np.asarray(array)[rows[0], columns[0]])
                raise ValueError(
                    f"{name} must be from 0 to {size - 1}, not {worst} (trajectory {rows[0]}, "
                    f"step {columns[0]})"
                )
