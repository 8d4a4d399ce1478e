"""What the humans share: their types, their utilities, their draws."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback import Feedback
from rlhf_jax.types import Key, PyTree

__all__ = [
    "Human",
    "Rate",
    "Utility",
    "given",
    "given_options",
    "happens",
    "probability",
    "refuse",
    "row_count",
    "rows_where",
    "said",
    "steps_of",
]

# key, examples of B rows -> feedback of B rows
Human = Callable[[Key, PyTree], Feedback]
# examples of B rows -> float[B], how much the human likes each
Utility = Callable[[PyTree], jax.Array]
# A probability, or what says how probable it is in each row: examples of B rows -> float[B]
Rate = float | jax.Array | Callable[[PyTree], jax.Array]

Answer = TypeVar("Answer", bound=Feedback)


def probability(**values: Rate) -> None:
    """All are functions or from 0 to 1.

    >>> probability(rate=1.5)
    Traceback (most recent call last):
    ValueError: rate must be from 0 to 1, not 1.5
    """
    for name, value in values.items():
        if callable(value) or isinstance(value, jax.core.Tracer):
            continue
        if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
            raise ValueError(f"{name} must be from 0 to 1, not {value}")


def row_count(examples: PyTree) -> int:
    """``B``, the length of every array.

    >>> row_count((jnp.zeros([2, 3]), jnp.zeros(2)))
    2
    """
    return _leading(examples, 1, "examples must be arrays with as many rows each")[0]


def _leading(tree: PyTree, axes: int, wanted: str) -> tuple[int, ...]:
    """The lengths of the first ``axes``, which all arrays share."""
    found = {jnp.shape(leaf)[:axes] for leaf in jax.tree.leaves(tree)}
    if len(found) != 1 or len(min(found)) < axes:
        shapes = ", ".join(sorted(map(str, found))) or "none at all"
        raise ValueError(f"{wanted}, not {shapes}")
    return found.pop()


def given(function: Utility, examples: PyTree, name: str = "utility") -> jax.Array:
    """``function(examples)``, which must be ``[B]``, in float32."""
    values, rows = jnp.asarray(function(examples)), row_count(examples)
    if values.shape != (rows,):
        raise ValueError(f"{name} must return [{rows}], one for each row, not {list(values.shape)}")
    return values.astype(jnp.float32)


def given_options(utility: Utility, options: PyTree, name: str = "examples") -> jax.Array:
    """``float32[B, N]``, the utility of each option; the arrays are ``[B, N, ...]``.

    >>> given_options(lambda score: 2 * score, jnp.array([[0.0, 1.0, 2.0]])).tolist()
    [[0.0, 2.0, 4.0]]
    """
    _leading(options, 2, f"{name} must be arrays [B, N, ...], as many rows and options each")
    return jax.vmap(lambda one: given(utility, one), in_axes=1, out_axes=1)(options)


def happens(key: Key, rate: Rate, examples: PyTree) -> jax.Array:
    """``bool[B]``, true in each row independently with its probability."""
    rates, rows = given(rate, examples, "rate") if callable(rate) else rate, row_count(examples)
    if jnp.shape(rates) not in ((), (rows,)):
        found = list(jnp.shape(rates))
        raise ValueError(f"rate must be a number or [{rows}], one for each row, not {found}")
    return jax.random.uniform(key, (rows,)) < rates


def rows_where(condition: jax.Array, first: Answer, second: Answer) -> Answer:
    """The rows of ``first`` where ``condition: bool[B]`` holds, elsewhere those of ``second``.

    Where one of them does not say who answered, or that all did, it is said for it.
    """
    if type(first) is type(second):
        rows = jnp.shape(condition)
        for name, value in {"answered": jnp.ones(rows, bool), "rater": jnp.full(rows, -1)}.items():
            columns = getattr(first, name), getattr(second, name)
            if (columns[0] is None) != (columns[1] is None):
                first, second = (
                    side.replace(**{name: value}) if column is None else side
                    for side, column in zip((first, second), columns, strict=True)
                )
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise ValueError(
            "the two humans must answer in one form, with the same fields given, not "
            f"{jax.tree.structure(first)} and {jax.tree.structure(second)}"
        )

    def chosen(x, y):
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(x) - 1)), x, y)

    return jax.tree.map(chosen, first, second)


def steps_of(
    correct: Callable[[PyTree], tuple[jax.Array, jax.Array]], examples: PyTree
) -> tuple[jax.Array, jax.Array]:
    """Whether each step of a solution is right and where there is one, both ``bool[B, S]``."""
    right, mask = correct(examples)
    checks.alike(correct=right, mask=mask)
    checks.booleans(correct=right, mask=mask)
    if jnp.ndim(right) != 2:
        raise ValueError(f"correct must return [B, S], not {list(jnp.shape(right))}")
    return jnp.asarray(right), jnp.asarray(mask)


def said(answer: Feedback) -> jax.Array:
    """Where there is an answer: ``bool[B]``, or ``bool[]`` if all answered."""
    return jnp.array(True) if answer.answered is None else jnp.asarray(answer.answered)


def refuse(name: str, values: jax.Array, wrong: jax.Array, wanted: str) -> None:
    """Unless they are traced, an error that names the first value that is wrong.

    >>> refuse("label", jnp.array([1, 7]), jnp.array([False, True]), "0 or 1")
    Traceback (most recent call last):
    ValueError: each label must be 0 or 1, not 7 as in [1]
    """
    if isinstance(wrong, jax.core.Tracer) or not np.any(wrong):
        return
    where = tuple(np.argwhere(np.asarray(wrong))[0].tolist())
    found = np.asarray(values)[where]
    raise ValueError(f"each {name} must be {wanted}, not {found} as in {list(where)}")
