"""Pareto fronts and hypervolumes by hand, by inclusion and exclusion, and by Monte Carlo."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.measures import hypervolume, non_dominated


def test_the_front_by_hand():
    nan = jnp.nan
    points = jnp.array([[1.0, 3], [2, 2], [2, 2], [2, 1], [3, 0], [nan, 9], [3, -1]])
    expected = [True, True, True, False, True, False, False]
    assert jax.jit(non_dominated)(points).tolist() == expected
    assert non_dominated(jnp.ones([1, 3])).tolist() == [True]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_that_of_the_union_of_boxes(objectives):
    points = np.random.default_rng(objectives).uniform(0.2, 1, [5, objectives])
    points[0, 0] = -0.3  # not above the reference in all
    points[4] = points[2]  # a point twice is a point once
    reference = np.linspace(-0.1, 0.1, objectives)
    edges = np.maximum(points - reference, 0)
    union = sum(
        (-1) ** (size + 1) * edges[list(some)].min(axis=0).prod()
        for size in range(1, 6)
        for some in combinations(range(5), size)
    )
    found = jax.jit(hypervolume)(jnp.float32(points), jnp.float32(reference))
    np.testing.assert_allclose(found, union, rtol=1e-5)


def test_hypervolume_by_monte_carlo_and_of_the_front_alone():
    generator = np.random.default_rng(0)
    points = np.abs(generator.normal(size=[20, 3]))
    points /= np.linalg.norm(points, axis=1, keepdims=True) * generator.uniform(1, 2, [20, 1])
    draws = generator.uniform(size=[40_000, 3])
    below = (draws[:, None] <= points).all(axis=-1).any(axis=-1)
    volume, points = jax.jit(hypervolume), jnp.float32(points)
    found = volume(points, jnp.zeros(3))
    np.testing.assert_allclose(found, below.mean(), atol=4 * 0.5 / 200)
    front = non_dominated(points)
    assert 3 < front.sum() < 20
    np.testing.assert_allclose(volume(points * front[:, None], jnp.zeros(3)), found, rtol=1e-5)


def test_the_gradient_is_the_face_that_would_move():
    points = jnp.array([[1.0, 3.0], [2.0, 2.0], [0.5, 0.5], [-1.0, 9.0]])
    volume = jax.jit(jax.value_and_grad(hypervolume))
    value, gradient = volume(points, jnp.zeros(2))
    assert value == 5
    np.testing.assert_allclose(gradient, [[1, 1], [2, 1], [0, 0], [0, 0]], atol=1e-6)
    assert volume(points - 10, jnp.zeros(2))[0] == 0
    assert hypervolume(jnp.zeros([0, 2]), jnp.zeros(2)) == 0


def test_bad_input():
    with pytest.raises(ValueError, match="points must be floating"):
        non_dominated(jnp.ones([2, 2], int))
    with pytest.raises(ValueError, match=r"points must be \[N, M\]"):
        hypervolume(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"reference must be \[M\].* not \[3\] beside points \[4"):
        hypervolume(jnp.ones([4, 2]), jnp.ones(3))
    with pytest.raises(ValueError, match="at least one objective"):
        hypervolume(jnp.ones([4, 0]), jnp.ones(0))
