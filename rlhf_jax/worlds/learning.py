"""Learning in a decision process by doing: what solving it exactly is compared with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import advantages, losses
from rlhf_jax.algorithms.common import advance, new_state, updated
from rlhf_jax.types import Algorithm, Batch, Key, Metrics, Params, TrainState
from rlhf_jax.worlds.tabular import MDP, Trajectories, check_process, check_start, rollouts

__all__ = ["reinforce"]


def reinforce(
    mdp: MDP,
    start: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    episodes: int,
    length: int,
    watch: Callable[[Trajectories, jax.Array], Metrics] | None = None,
) -> Algorithm:
    r"""REINFORCE on a table: in each state, what was followed by more than usual is done more.

    .. math:: \nabla J \approx \frac1B \sum_{b,t} (G_{b,t} - \bar G_{-b,t})
              \nabla \log \pi(a_{b,t} \mid s_{b,t}), \qquad G_{b,t} = \sum_{u \ge t} r_{b,u}

    with the mean over the other episodes as the baseline. As long as all episodes earn the same
    nothing is learnt, which is what makes a world hard in which chance earns nothing.

    Args:
        mdp: the process, undiscounted; may be traced.
        start: ``float[S]``, the probability of the first state.
        optimizer: any optax transformation.
        episodes: ``B``, how many a step plays, at least 2.
        length: of an episode, in steps.
        watch: ``(trajectories, returns[B]) -> {name: float[]}``, further metrics of the episodes.

    Returns:
        An ``Algorithm`` whose parameters are the policy's logits ``float[S, A]``, and whose
        ``step`` looks at no batch: ``None`` will do. Metrics: ``reward``, an episode.

    Raises:
        ValueError: if the process or ``start`` is none (see ``value_iteration``), ``episodes`` is
            below 2 or ``length`` below 1.

    Reference: Williams 1992, Machine Learning 8

    >>> from rlhf_jax.worlds import combination_lock
    >>> lock = combination_lock(jnp.array([1]), jnp.array([1.0, 1.0]))
    >>> start = jnp.array([1.0, 0.0, 0.0])
    >>> init, step = reinforce(lock, start, optax.sgd(1.0), episodes=16, length=2)
    >>> state, metrics = step(init(jnp.zeros([3, 2]), jax.random.key(0)))
    >>> bool(state.params[0, 1] > state.params[0, 0])
    True
    """
    check_process(mdp)
    check_start(mdp, start)
    for name, number, least in (("episodes", episodes, 2), ("length", length, 1)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")

    def init(params: Params, key: Key) -> TrainState:
        return new_state(params, optimizer, key)

    def step(state: TrainState, batch: Batch = None) -> tuple[TrainState, Metrics]:
        played = rollouts(
            jax.random.fold_in(state.key, state.step),
            mdp,
            jax.nn.softmax(state.params),
            start,
            trajectories=episodes,
            length=length,
        )
        earned = mdp.rewards[played.states, played.actions]
        to_go = jnp.cumsum(earned[:, ::-1], axis=1)[:, ::-1]
        better = advantages.leave_one_out(to_go.T).T

        def loss(params: Params) -> jax.Array:
            log_probs = jax.nn.log_softmax(params)[played.states, played.actions]
            everywhere = jnp.ones(log_probs.shape, bool)
            return losses.reinforce(log_probs, log_probs, better, everywhere).sum() / episodes

        gradient = jax.grad(loss)(state.params)
        params, opt_state = updated(optimizer, gradient, state.params, state.opt_state)
        metrics = {"reward": jnp.mean(to_go[:, 0])}
        watched = {} if watch is None else watch(played, to_go[:, 0])
        return advance(state, metrics, params=params, opt_state=opt_state, watched=watched)

    return Algorithm(init, step)
