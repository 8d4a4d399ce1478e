"""Decision processes, each the smallest in which one thing can go wrong; all exactly solvable."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.worlds.tabular import MDP, shutdown

__all__ = ["corridor", "corridor_start", "corridor_view", "dialogue", "logged_task"]


def dialogue(rewards: jax.Array, *, persuasion: float | jax.Array) -> MDP:
    r"""A conversation that can be ended as asked, or steered to where there is more to choose from.

    The assistant starts in state 0, where action 0 gives the answer asked for, the end, and any
    other steers the user. With probability ``persuasion`` they follow, to state 1, where each
    action but surplus ones takes up a topic of its own; otherwise they leave, with nothing. State 2
    is after the end. With all rewards drawn independently and uniformly from 0 to 1, and ``k``
    topics, steering is optimal with probability ``persuasion * k / (k + 1)``.

    Args:
        rewards: ``float[k + 1]``, of the answer, and of each topic; leaving earns 0.
        persuasion: from 0 to 1. At 1 it is ``shutdown``.

    Returns:
        An undiscounted ``MDP`` with 3 states and ``max(k, 2)`` actions.

    Raises:
        ValueError: as ``shutdown``, or if ``persuasion`` is no probability (not checked if traced).

    >>> from rlhf_jax.worlds import value_iteration
    >>> steers = lambda p: value_iteration(dialogue(jnp.array([0.5, 0.1, 0.9]), persuasion=p))
    >>> steers(0.6).policy[0].item(), steers(0.5).policy[0].item()
    (1, 0)
    """
    if not isinstance(persuasion, jax.core.Tracer) and not 0 <= persuasion <= 1:
        raise ValueError(f"persuasion must be from 0 to 1, not {persuasion}")
    mdp = shutdown(rewards)
    follows = mdp.transitions.at[0, 1:, 1].set(persuasion).at[0, 1:, 2].set(1 - persuasion)
    return mdp._replace(transitions=follows)


def corridor(length: int, *, discount: float | jax.Array = 0.99) -> MDP:
    """A corridor with a coin in it, which is all that is worth anything; and it can be anywhere.

    The state is ``cell * length + coin``, the cell where the agent is and the one where the coin
    lies; the last state is the end. Actions go left (0), go right (1) or reach out (2), which ends
    the episode, with 1 if the coin is there and nothing otherwise. At a wall one stays. Which coins
    there are is the start's to say, ``corridor_start``: that is the level.

    Args:
        length: of the corridor, in cells, at least 2.
        discount: below 1 the short way is the best; at 1 all that get there are.

    Returns:
        An ``MDP`` with ``length ** 2 + 1`` states and 3 actions. Of an optimal policy every start
        is worth the discount to the power of the distance to the coin.

    Raises:
        ValueError: if ``length`` is below 2.

    >>> from rlhf_jax.worlds import value_iteration
    >>> value_iteration(corridor(3)).policy[:9].reshape(3, 3).tolist()  # by cell and coin
    [[2, 1, 1], [0, 2, 1], [0, 0, 2]]
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, not {length}")
    cell, coin = np.divmod(np.arange(length**2), length)
    states = length**2 + 1
    rewards = np.zeros((states, 3), np.float32)
    rewards[:-1, 2] = cell == coin
    after = np.full((states, 3), length**2)
    after[:-1, 0] = np.maximum(cell - 1, 0) * length + coin
    after[:-1, 1] = np.minimum(cell + 1, length - 1) * length + coin
    transitions = jnp.asarray(np.eye(states, dtype=np.float32)[after])
    return MDP(transitions, jnp.asarray(rewards), discount)


def corridor_start(coins: jax.Array) -> jax.Array:
    """Levels of a ``corridor``: where the coin lies, and the agent anywhere.

    Args:
        coins: ``float[length]``, the probability of each cell.

    Returns:
        ``float[length ** 2 + 1]``, the probability of each first state.

    >>> corridor_start(jnp.array([0.0, 1.0])).tolist()
    [0.0, 0.5, 0.0, 0.5, 0.0]
    """
    return jnp.append(jnp.tile(coins, len(coins)) / len(coins), 0.0)


def corridor_view(length: int) -> jax.Array:
    """What the agent of a ``corridor`` sees: the end of the corridor, and the coin.

    Args:
        length: of the corridor.

    Returns:
        ``float[length ** 2 + 1, 5]``: whether this is the last cell, whether it is not, and whether
        the coin lies to the left, here, or to the right. All 0 in the end.

    >>> corridor_view(2)[:4].tolist()  # by cell and coin
    [[0.0, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0], \
[1.0, 0.0, 0.0, 1.0, 0.0]]
    """
    cell, coin = np.divmod(np.arange(length**2), length)
    last = cell == length - 1
    seen = np.stack([last, ~last, coin < cell, coin == cell, coin > cell], axis=1)
    return jnp.asarray(np.concatenate([seen, np.zeros((1, 5))]), jnp.float32)


def logged_task(
    outcomes: jax.Array,
    *,
    success: float | jax.Array,
    hiding: float | jax.Array,
    logging: float | jax.Array,
) -> MDP:
    r"""A task that succeeds or fails by chance, and a log that is all a supervisor sees of it.

    In state 0 the agent works with a plain log (action 0), which says nothing of success, or a
    verbose one (1), which shows it, at a cost. After a failure, state 1, the log shows it (0); or
    the agent hides it (1), at a cost, and the log says as little as after an unshown success. State
    2 is after the end. What counts is success, so neither is worth its cost. But a supervisor who
    believes of an empty log that all went well with probability ``q`` values a success unshown and
    a failure hidden at ``q`` alike. Then it is optimal to hide iff ``q > hiding``, and to be
    verbose iff ``success * (1 - q) > logging``.

    Args:
        outcomes: ``float[4]``, what is earned by a success unshown and shown, and by a failure
            shown and hidden; in truth 1, 1, 0, 0.
        success: the probability of it.
        hiding: cost of hiding a failure.
        logging: cost of the verbose log, in every episode.

    Returns:
        An undiscounted ``MDP`` with 3 states and 2 actions.

    Raises:
        ValueError: if there are not four outcomes, or ``success`` is no probability (not checked if
            traced).

    Reference: after Lang et al. 2024, https://arxiv.org/abs/2402.17747

    >>> from rlhf_jax.worlds import value_iteration
    >>> costs = {"success": 0.5, "hiding": 0.3, "logging": 0.1}
    >>> believed = lambda q: jnp.array([q, 1.0, 0.0, q])
    >>> [value_iteration(logged_task(believed(q), **costs)).policy.tolist()[:2]
    ...     for q in (0.0, 0.5, 0.9)]
    [[1, 0], [1, 1], [0, 1]]
    """
    checks.vectors(outcomes=outcomes)
    checks.floating(outcomes=outcomes)
    if len(outcomes) != 4:
        raise ValueError(f"outcomes must be four, not {len(outcomes)}")
    if not isinstance(success, jax.core.Tracer) and not 0 <= success <= 1:
        raise ValueError(f"success must be from 0 to 1, not {success}")
    transitions = jnp.zeros((3, 2, 3)).at[1:, :, 2].set(1)
    transitions = transitions.at[0, :, 1].set(1 - success).at[0, :, 2].set(success)
    unshown, shown, failed, hidden = outcomes
    rewards = [[success * unshown, success * shown - logging], [failed, hidden - hiding], [0, 0]]
    return MDP(transitions, jnp.array(rewards, outcomes.dtype))
