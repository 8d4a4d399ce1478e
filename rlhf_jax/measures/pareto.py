"""Several objectives at once: which points are best for some, and how much they cover together.

More is better in every objective; turn round what should be small.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["hypervolume", "non_dominated"]


def non_dominated(points: jax.Array) -> jax.Array:
    r"""The Pareto front: points that no other is at least as good as in all, and better in one.

    .. math:: \neg \exists j: \; p_j \ge p_i \text{ in all objectives and } p_j \ne p_i

    Args:
        points: ``float[N, M]``, points by objectives.

    Returns:
        ``bool[N]``; of equal points all or none, and never one with a NaN. Holds ``N`` by ``N`` by
        ``M`` booleans.

    Raises:
        ValueError: if ``points`` is not floating or not ``[N, M]``.

    >>> points = jnp.array([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0], [3.0, 1.0]])
    >>> non_dominated(points).tolist()
    [True, True, False, True]
    """
    points = _points(points)
    as_good = jnp.all(points[:, None] >= points, axis=-1)  # [j, i]
    better = jnp.any(points[:, None] > points, axis=-1)
    return ~jnp.any(as_good & better, axis=0) & ~jnp.any(jnp.isnan(points), axis=-1)


def hypervolume(points: jax.Array, reference: jax.Array) -> jax.Array:
    r"""The volume of what is better than the reference and not better than all of the points.

    .. math:: \operatorname{vol} \bigcup_i \{x : \text{reference} \le x \le p_i\}

    The one measure of a set of points that never falls when a point improves. Exact, by slicing:
    sorted by the last objective, each slice is a hypervolume in one objective fewer. It has
    gradients in the points where no two share a coordinate, so that a front can be spread by it.

    Args:
        points: ``float[N, M]``, ``M`` at least 1. Points on the front alone matter, and those that
            are not above the reference in all objectives add nothing.
        reference: ``float[M]``, the worst value of each objective that is worth something. The
            volume depends on it and on the objectives' units: compare sets only at equal ones.

    Returns:
        ``float32[]``, in the product of the objectives' units. Takes memory of the order of
        :math:`N^{M-1}`.

    Raises:
        ValueError: if ``points`` is not floating or not ``[N, M]``, or ``reference`` not ``[M]``.

    Reference: Zitzler and Thiele 1999, IEEE Transactions on Evolutionary Computation 3(4); by
    slicing, While et al. 2006, IEEE Transactions on Evolutionary Computation 10(1)

    >>> points = jnp.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> hypervolume(points, jnp.zeros(2)).item()  # 3 + 2 + 1 unit squares
    6.0
    """
    points = _points(points)
    if jnp.shape(reference) != points.shape[1:]:
        found = f"{list(jnp.shape(reference))} beside points {list(points.shape)}"
        raise ValueError(f"reference must be [M], one number an objective, not {found}")
    if points.shape[1] == 0:
        raise ValueError(f"points must have at least one objective, not {list(points.shape)}")
    return _volume(jnp.maximum(points - jnp.asarray(reference, jnp.float32), 0))


def _volume(points: jax.Array) -> jax.Array:
    """The hypervolume above 0 of points that are not below it."""
    count, objectives = points.shape
    if objectives == 1 or count == 0:
        return jnp.max(points, initial=0.0)
    points = points[jnp.argsort(-points[:, -1])]
    heights = points[:, -1]
    thickness = heights - jnp.append(heights[1:], 0)
    if objectives == 2:
        areas = jax.lax.cummax(points[:, 0])
    else:
        # The slice below the k-th point is covered by it and those before it.
        covered = jnp.tril(jnp.ones([count, count], bool))[:, :, None]
        areas = jax.vmap(_volume)(jnp.where(covered, points[:, :-1], 0))
    return jnp.sum(thickness * areas)


def _points(points: jax.Array) -> jax.Array:
    checks.floating(points=points)
    if jnp.ndim(points) != 2:
        raise ValueError(f"points must be [N, M], points by objectives, not {jnp.shape(points)}")
    return jnp.asarray(points, jnp.float32)
