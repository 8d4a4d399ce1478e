"""What the humans share: their types, their utilities, their draws."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.feedback import Feedback
from rlhf_jax.types import Key, PyTree

__all__ = ["Human", "Rate", "Utility", "given", "happens", "probability", "row_count", "rows_where"]

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
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or () in lengths:
        found = sorted(map(str, lengths))
        raise ValueError(f"examples must be arrays with as many rows each, not {', '.join(found)}")
    return lengths.pop()[0]


def given(function: Utility, examples: PyTree, name: str = "utility") -> jax.Array:
    """``function(examples)``, which must be ``[B]``, in float32."""
    values, rows = jnp.asarray(function(examples)), row_count(examples)
    if values.shape != (rows,):
        raise ValueError(f"{name} must return [{rows}], one for each row, not {list(values.shape)}")
    return values.astype(jnp.float32)


def happens(key: Key, rate: Rate, examples: PyTree) -> jax.Array:
    """``bool[B]``, true in each row independently with its probability."""
    rates = given(rate, examples, "rate") if callable(rate) else rate
    return jax.random.uniform(key, (row_count(examples),)) < rates


def rows_where(condition: jax.Array, first: Answer, second: Answer) -> Answer:
    """The rows of ``first`` where ``condition: bool[B]`` holds, elsewhere those of ``second``."""
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise ValueError(
            "the two humans must answer in one form, with the same fields given, not "
            f"{jax.tree.structure(first)} and {jax.tree.structure(second)}"
        )

    def chosen(x, y):
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(x) - 1)), x, y)

    return jax.tree.map(chosen, first, second)
