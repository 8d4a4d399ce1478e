"""What the conversions and the batches share: which rows were answered, and checks."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback.forms import Feedback, Ranking, Steps
from rlhf_jax.types import PyTree, Sequences

__all__ = [
    "answered",
    "check_order",
    "check_same_structure",
    "check_steps",
    "refuse",
    "without_log_probs",
]


def answered(feedback: Feedback, shape: int | tuple[int, ...]) -> jax.Array:
    """Which rows have an answer, all of them if nothing is said."""
    if feedback.answered is None:
        return jnp.ones(shape, bool)
    answered = jnp.asarray(feedback.answered)
    checks.booleans(answered=answered)
    return answered


def without_log_probs(first, second, *, only_if_missing=False):
    """Two sides of one structure, if they are ``Sequences``."""
    sides = (first, second)
    if not all(isinstance(side, Sequences) for side in sides):
        return sides
    if only_if_missing and not any(side.log_probs is None for side in sides):
        return sides
    return tuple(side.replace(log_probs=None) for side in sides)


def refuse(name: str, values: jax.Array, wrong: jax.Array, wanted: str) -> None:
    """Unless traced, an error that names the first value that is wrong."""
    if isinstance(wrong, jax.core.Tracer) or not np.any(wrong):
        return
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    found, place = np.asarray(values)[where], ", ".join(map(str, where))
    raise ValueError(f"{name} must be {wanted}, not {found} as in [{place}]")


def check_order(ranking: Ranking) -> tuple[int, ...]:
    """The shape of a ranking's order, each row of which has every index once."""
    checks.integers(order=ranking.order)
    shape = jnp.shape(ranking.order)
    if len(shape) != 2:
        raise ValueError(f"order must be [B, N], not {list(shape)}")
    twice = jnp.any(jnp.sort(ranking.order, axis=1) != jnp.arange(shape[1]), axis=1)
    wrong = twice & answered(ranking, shape[0])
    refuse("order", ranking.order, wrong, f"0 to {shape[1] - 1}, each once")
    return shape


def check_steps(steps: Steps) -> tuple[jax.Array, jax.Array]:
    """The marks and the mask."""
    checks.alike(marks=steps.marks, ends=steps.ends, mask=steps.mask)
    checks.booleans(mask=steps.mask)
    if jnp.ndim(steps.marks) != 2:
        raise ValueError(f"marks must be [B, S], not {list(jnp.shape(steps.marks))}")
    return jnp.asarray(steps.marks, jnp.float32), jnp.asarray(steps.mask)


def check_same_structure(**sides: PyTree) -> None:
    """The two are pytrees of one structure with arrays of one shape."""
    (a, first), (b, second) = sides.items()
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise ValueError(f"{a} and {b} must be pytrees of one structure")
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        checks.alike(**{a: x, b: y})
