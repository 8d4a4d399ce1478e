"""Maximum causal entropy: how people act who do the better thing the more often, and why.

The forward problem is ``soft_value_iteration``: from a reward to the policy of somebody who is
noisily rational. The inverse one is ``maxent_irl``: from what somebody was seen to do to the reward
that explains it best. Both are exact, on the tables of ``worlds.MDP``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import checks
from rlhf_jax.worlds.tabular import (
    MDP,
    Trajectories,
    check_bounded,
    check_process,
    check_start,
    check_trajectories,
    occupancy,
)

__all__ = [
    "MaxEntFit",
    "SoftSolution",
    "maxent_irl",
    "maxent_loss",
    "shaped",
    "soft_value_iteration",
    "trajectory_log_probs",
]


class SoftSolution(NamedTuple):
    """What is best under a bonus for entropy; with a leading ``[H]`` where time is limited.

    Attributes:
        values: ``float[S]``, the expected return and entropy to come.
        action_values: ``float[S, A]``, of an action, and of this policy after it.
        log_policy: ``float[S, A]`` in nats.
    """

    values: jax.Array
    action_values: jax.Array
    log_policy: jax.Array


class MaxEntFit(NamedTuple):
    """A reward fitted to demonstrations.

    Attributes:
        weights: ``float[F]``, of the features.
        rewards: ``float[S, A]``, what the features are worth together.
        solution: the ``SoftSolution`` of these rewards: how the demonstrators are thought to act.
        gap: ``float[]``, the largest difference between a feature's expectation under that policy
            and in the demonstrations. 0 at the optimum, but for regularisation and further terms.
        losses: ``float[steps]``, before each step.
    """

    weights: jax.Array
    rewards: jax.Array
    solution: SoftSolution
    gap: jax.Array
    losses: jax.Array


def soft_value_iteration(
    mdp: MDP,
    *,
    temperature: float | jax.Array = 1.0,
    horizon: int | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 50,
) -> SoftSolution:
    r"""The policy that is best if entropy is worth something: the maximum causal entropy policy.

    .. math::
        Q(s, a) = r(s, a) + \gamma \sum_{s'} P(s' \mid s, a) V(s'), \qquad
        V(s) = \tau \log \sum_a e^{Q(s, a) / \tau}, \qquad
        \pi(a \mid s) = e^{(Q(s, a) - V(s)) / \tau}

    Of all policies it has the largest expected return plus ``temperature`` times the entropy of its
    actions. With a horizon it is found backwards from the end; without one by soft policy
    iteration, which is Newton's method on the equations above and takes a handful of steps. May be
    compiled and vmapped. The values' gradient is right, by the rewards ``occupancy``; without a
    horizon the second derivatives are not.

    Args:
        mdp: the process. Two actions that do the same are together likelier than one: unlike in
            ``value_iteration``, doubling an action changes what is found.
        temperature: tau, reward per nat; the smaller, the more rational. At 0 it would be
            ``value_iteration``.
        horizon: ``H``, after how many steps all ends; ``None`` for never.
        tolerance: without a horizon, the last change of a value relative to the largest or 1, after
            which one more step is taken.
        max_iterations: where it stops in any case.

    Returns:
        A ``SoftSolution``.

    Raises:
        ValueError: if the process is none (see ``value_iteration``), ``temperature`` is not
            positive, or neither a horizon nor a discount below 1 bounds the return.

    Reference: Ziebart et al. 2010, "Modeling Interaction via the Principle of Maximum Causal
    Entropy", ICML; soft policy iteration, Haarnoja et al. 2018, https://arxiv.org/abs/1801.01290

    >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> mdp = MDP(stay_or_go, jnp.array([[1.0, 5.0], [0.0, 0.0]]))
    >>> jnp.exp(soft_value_iteration(mdp, horizon=2).log_policy[0, 0]).tolist()
    [0.580543, 0.419457]
    """
    check_process(mdp)
    check_bounded(mdp, horizon)
    checks.positive(temperature=temperature)
    if horizon is not None:

        def before(values, _):
            found = _softly_best(mdp, values, temperature)
            return found.values, found

        end = jnp.zeros_like(mdp.rewards[:, 0])
        return jax.lax.scan(before, end, None, length=horizon, reverse=True)[1]

    # The loop has no derivative. One step more has that of the optimum: the policy is best there,
    # so its own change adds nothing to the values.
    constant = jax.lax.stop_gradient((mdp, temperature))

    def sweep(state):
        values, _, iterations = state
        after = _improved(constant[0], values, constant[1])
        change = jnp.max(jnp.abs(after - values)) / jnp.maximum(jnp.max(jnp.abs(after)), 1)
        return after, change, iterations + 1

    def unfinished(state):
        _, change, iterations = state
        return (change > tolerance) & (iterations < max_iterations)

    start = jnp.zeros(len(mdp.rewards), mdp.rewards.dtype)
    values, *_ = jax.lax.while_loop(
        unfinished, sweep, (start, jnp.full((), jnp.inf, start.dtype), 0)
    )
    return _softly_best(mdp, _improved(mdp, values, temperature), temperature)


def trajectory_log_probs(
    log_policy: jax.Array, trajectories: Trajectories, *, discount: float | jax.Array = 1.0
) -> jax.Array:
    r"""How likely a policy was to act as it did, given where that led.

    .. math:: \ell_b = \sum_t \gamma^t \log \pi(a_{b,t} \mid s_{b,t})

    What the process did is no merit of the policy and left out (the *causal* likelihood).

    Args:
        log_policy: ``float[S, A]`` in nats, or ``float[H, S, A]``, of each step.
        trajectories: of ``B`` rows and ``T`` columns, ``T`` at most ``H``.
        discount: with a discounted process give its discount: what is done later then counts less,
            and the likelihood is the one whose gradient is a difference of discounted features.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes do not fit, or a state or action is not of the process (not
            checked of traced arguments).

    >>> log_policy = jnp.log(jnp.array([[0.5, 0.5], [0.1, 0.9]]))
    >>> done = Trajectories(jnp.array([[0, 1]]), jnp.array([[1, 0]]))
    >>> jnp.exp(trajectory_log_probs(log_policy, done)).tolist()
    [0.05]
    """
    checks.floating(log_policy=log_policy)
    if jnp.ndim(log_policy) not in (2, 3):
        found = list(jnp.shape(log_policy))
        raise ValueError(f"log_policy must be [S, A] or [H, S, A], not {found}")
    check_trajectories(trajectories, jnp.shape(log_policy)[-2:])
    states, actions = trajectories
    length = states.shape[1]
    if jnp.ndim(log_policy) == 2:
        log_policy = jnp.broadcast_to(log_policy, (length, *jnp.shape(log_policy)))
    if len(log_policy) < length:
        raise ValueError(f"trajectories of {length} steps, but a policy of {len(log_policy)}")
    weights = jnp.asarray(discount, log_policy.dtype) ** jnp.arange(length)
    return jnp.sum(weights * log_policy[jnp.arange(length), states, actions], axis=-1)


def maxent_loss(
    rewards: jax.Array,
    transitions: jax.Array,
    demonstrations: jax.Array,
    start: jax.Array,
    *,
    discount: float | jax.Array = 1.0,
    horizon: int | None = None,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    r"""How badly a reward explains demonstrations, if people act by maximum causal entropy.

    .. math::
        L(r) = \frac1\tau \left(\sum_s p_0(s) V_r(s) - \sum_{s,a} \rho_D(s, a) \, r(s, a)\right),
        \qquad \nabla_r L = \frac{\rho_{\pi_r} - \rho_D}{\tau}

    The gradient is how much more often the policy of this reward does a thing than the
    demonstrators do: of features, ``E_pi[phi] - E_demo[phi]``. The loss is convex in the reward,
    and with demonstrations that follow the transitions exactly it is the negative
    ``trajectory_log_probs`` of a demonstration; with a sample of them the two differ by what the
    process happened to do, and this one is the dual that is minimised.

    Args:
        rewards: ``float[S, A]``.
        transitions: ``float[S, A, S]``.
        demonstrations: ``float[S, A]``, how often a demonstration does what where, discounted: the
            mean of ``visits``, or the demonstrators' ``occupancy``.
        start: ``float[S]``, where demonstrations begin.
        discount: of the process.
        horizon: how long a demonstration is; ``None`` if they have no end.
        temperature: tau, how irrational the demonstrators are; it only sets the reward's unit.

    Returns:
        ``float[]`` in nats, a demonstration.

    Raises:
        ValueError: as ``soft_value_iteration`` and ``occupancy``, or if ``demonstrations`` is not
            of the rewards' shape or sums to another number of steps (not checked if traced).

    Reference: Ziebart 2010, "Modeling Purposeful Adaptive Behavior with the Principle of Maximum
    Causal Entropy", PhD thesis, Carnegie Mellon University; for deterministic processes, Ziebart et
    al. 2008, "Maximum Entropy Inverse Reinforcement Learning", AAAI

    >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> stayed, start = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([1.0, 0.0])
    >>> maxent_loss(jnp.zeros([2, 2]), stay_or_go, stayed, start, horizon=1).item()
    0.693147
    """
    mdp = MDP(transitions, rewards, discount)
    solution = soft_value_iteration(mdp, temperature=temperature, horizon=horizon)
    check_start(mdp, start)
    _check_demonstrations(mdp, demonstrations, horizon)
    first = solution.values if horizon is None else solution.values[0]
    return (jnp.vdot(start, first) - jnp.vdot(demonstrations, rewards)) / temperature


def maxent_irl(
    transitions: jax.Array,
    features: jax.Array,
    demonstrations: jax.Array,
    start: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    discount: float | jax.Array = 1.0,
    horizon: int | None = None,
    temperature: float | jax.Array = 1.0,
    steps: int = 300,
    l2: float | jax.Array = 0.0,
    demonstration_weight: float | jax.Array = 1.0,
    further: Callable[[jax.Array], jax.Array] | None = None,
) -> MaxEntFit:
    r"""The reward, of features, that explains demonstrations best (maximum-entropy inverse RL).

    .. math:: \min_w \; c \, L(r_w) + \ell(r_w) + \tfrac{\lambda}{2} \|w\|^2, \qquad
              r_w(s, a) = w \cdot \phi(s, a)

    ``L`` is ``maxent_loss``; at its minimum the policy's expected features are the demonstrators'.
    The further term is what else is known of the reward. With comparisons of trajectories it is
    ``lambda rewards: jnp.mean(losses.bradley_terry(better @ rewards.ravel(), worse @
    rewards.ravel()))``, with flattened ``visits``: learning from demonstrations and preferences.
    Another start from 0 each time; a pure function, which may be compiled and vmapped.

    Args:
        transitions: ``float[S, A, S]``.
        features: ``float[S, F]``, of states, or ``float[S, A, F]``, of actions in states.
        demonstrations: ``float[S, A]``, see ``maxent_loss``.
        start: ``float[S]``, where demonstrations begin.
        optimizer: any optax transformation, line searches included.
        discount: of the process.
        horizon: how long a demonstration is; ``None`` if they have no end.
        temperature: tau, how irrational the demonstrators are.
        steps: how many optimiser steps.
        l2: lambda. Without one, what is never demonstrated can be worth minus infinity.
        demonstration_weight: ``c``, such as the number of demonstrations, if the further term is a
            sum over comparisons too; 0 to learn from the further term alone.
        further: ``(rewards[S, A]) -> float[]``, a further term of the loss.

    Returns:
        A ``MaxEntFit``. Rewards that differ by a shaping (``shaped``) explain demonstrations
        equally well: which of them is found, the features and ``l2`` decide. It cannot check that
        the steps were enough: see ``gap`` and ``losses``.

    Raises:
        ValueError: as ``maxent_loss``, or if the features are not of the process's states.

    Reference: Ziebart et al. 2008, AAAI; Ziebart 2010 (see ``maxent_loss``); with preferences,
    after Ibarz et al. 2018, https://arxiv.org/abs/1811.06521

    >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> start, stayed = jnp.array([1.0, 0.0]), jnp.array([[0.75, 0.25], [0.0, 0.0]])
    >>> fit = maxent_irl(stay_or_go, jnp.eye(4).reshape(2, 2, 4), stayed, start, optax.sgd(1.0),
    ...     horizon=1)
    >>> (fit.rewards[0, 0] - fit.rewards[0, 1]).item()  # log 3
    1.0986
    """
    checks.floating(features=features)
    shape = jnp.shape(transitions)[:2]
    if jnp.shape(features)[:-1] not in (shape[:1], shape) or jnp.ndim(features) < 2:
        found = f"{list(jnp.shape(features))} for transitions {list(jnp.shape(transitions))}"
        raise ValueError(f"features must be [S, F] or [S, A, F], not {found}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if jnp.ndim(features) == 2:
        features = features[:, None]
    features = jnp.broadcast_to(features, (*shape, features.shape[-1]))
    optimizer = optax.with_extra_args_support(optimizer)

    def rewards_of(weights):
        return jnp.tensordot(features, weights, 1, precision="highest")

    def loss(weights):
        rewards = rewards_of(weights)
        explained = maxent_loss(
            rewards,
            transitions,
            demonstrations,
            start,
            discount=discount,
            horizon=horizon,
            temperature=temperature,
        )
        known = 0.0 if further is None else further(rewards)
        return demonstration_weight * explained + known + 0.5 * l2 * jnp.sum(weights**2)

    def step(carry, _):
        weights, state = carry
        value, gradient = jax.value_and_grad(loss)(weights)
        updates, state = optimizer.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), value

    weights = jnp.zeros(features.shape[-1], features.dtype)
    carry = (weights, optimizer.init(weights))
    (weights, _), losses = jax.lax.scan(step, carry, None, length=steps)
    mdp = MDP(transitions, rewards_of(weights), discount)
    solution = soft_value_iteration(mdp, temperature=temperature, horizon=horizon)
    more = occupancy(mdp, jnp.exp(solution.log_policy), start) - demonstrations
    gap = jnp.max(jnp.abs(jnp.tensordot(more, features, 2, precision="highest")))
    return MaxEntFit(weights, mdp.rewards, solution, gap, losses)


def shaped(mdp: MDP, potential: jax.Array) -> MDP:
    r"""Another reward for the same wishes: shaped by a potential.

    .. math:: r'(s, a) = r(s, a) + \gamma \sum_{s'} P(s' \mid s, a) \, U(s') - U(s)

    Without a horizon, policies keep their order and the (soft) optimum stays: no demonstration
    tells the two rewards apart, and no others explain it as well. In a process with other
    transitions they are different wishes.

    Args:
        mdp: the process.
        potential: ``float[S]``, ``U``.

    Returns:
        An ``MDP`` with the shaped rewards.

    Raises:
        ValueError: if the shapes do not fit or are not floating.

    Reference: Ng et al. 1999, "Policy invariance under reward transformations", ICML; that there
    are no others, Cao et al. 2021, https://arxiv.org/abs/2106.03498

    >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> shaped(MDP(stay_or_go, jnp.zeros([2, 2]), 0.5), jnp.array([0.0, 1.0])).rewards.tolist()
    [[0.0, 0.5], [-0.5, -0.5]]
    """
    check_process(mdp)
    checks.floating(potential=potential)
    checks.alike(potential=potential, states=mdp.rewards[:, 0])
    after = jnp.tensordot(mdp.transitions, potential, 1, precision="highest")
    return mdp._replace(rewards=mdp.rewards + mdp.discount * after - potential[:, None])


def _softly_best(mdp: MDP, values: jax.Array, temperature: float | jax.Array) -> SoftSolution:
    """What is best now, if the states after are worth these values."""
    after = jnp.tensordot(mdp.transitions, values, 1, precision="highest")
    action_values = mdp.rewards + mdp.discount * after
    scaled = action_values / temperature
    return SoftSolution(
        temperature * jax.nn.logsumexp(scaled, axis=-1), action_values, jax.nn.log_softmax(scaled)
    )


def _improved(mdp: MDP, values: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """The values of the policy that is best by these values: a step of soft policy iteration."""
    log_policy = _softly_best(mdp, values, temperature).log_policy
    policy = jnp.exp(log_policy)
    earned = jnp.sum(policy * (mdp.rewards - temperature * log_policy), axis=-1)
    chain = jnp.einsum("sa,sat->st", policy, mdp.transitions, precision="highest")
    return jnp.linalg.solve(jnp.eye(len(chain)) - mdp.discount * chain, earned)


def _check_demonstrations(mdp: MDP, demonstrations: jax.Array, horizon: int | None) -> None:
    checks.floating(demonstrations=demonstrations)
    checks.alike(demonstrations=demonstrations, rewards=mdp.rewards)
    if isinstance(demonstrations, jax.core.Tracer) or isinstance(mdp.discount, jax.core.Tracer):
        return
    table = np.asarray(demonstrations)
    if np.any(table < 0):
        raise ValueError(f"demonstrations must not be negative: {table.min()}")
    if horizon is not None:
        steps = float(np.sum(np.float64(mdp.discount) ** np.arange(horizon)))
        if abs(table.sum() - steps) > 1e-3 * steps:
            raise ValueError(
                f"demonstrations must sum to the discounted steps of one demonstration, {steps:g}, "
                f"not {table.sum():g}: the mean of visits, or occupancy"
            )
