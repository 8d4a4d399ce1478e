"""What functions demand of their arguments: a ``ValueError`` with the argument's name and value.

Shapes and dtypes are known while JAX traces, so those are always checked. Values are not: one that
is being traced is taken on trust.
"""

import inspect
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "alike",
    "booleans",
    "finite",
    "flip_rate",
    "floating",
    "integers",
    "number_or_alike",
    "pair",
    "positive",
    "probability",
    "table",
    "takes",
    "token_arrays",
    "vectors",
    "within",
]


def _traced(value: float | jax.Array) -> bool:
    return isinstance(value, jax.core.Tracer)


def alike(**arrays: jax.Array) -> None:
    """All have one shape.

    >>> alike(chosen=jnp.zeros(3), rejected=jnp.zeros(2))
    Traceback (most recent call last):
    ValueError: chosen and rejected must have one shape, not (3,) and (2,)
    """
    shapes = [jnp.shape(array) for array in arrays.values()]
    if len(set(shapes)) > 1:
        names, found = " and ".join(arrays), " and ".join(map(str, shapes))
        raise ValueError(f"{names} must have one shape, not {found}")


def number_or_alike(array: jax.Array, **values: float | jax.Array) -> None:
    """The values are numbers or of ``array``'s shape: another might broadcast to something else.

    >>> number_or_alike(jnp.zeros(2), margin=jnp.zeros([2, 1]))
    Traceback (most recent call last):
    ValueError: margin must be a number or of the shape (2,), not (2, 1)
    """
    for name, value in values.items():
        if jnp.shape(value) not in ((), jnp.shape(array)):
            found = f"the shape {jnp.shape(array)}, not {jnp.shape(value)}"
            raise ValueError(f"{name} must be a number or of {found}")


def _typed(kind: type, word: str, arrays: dict[str, jax.Array]) -> None:
    for name, array in arrays.items():
        try:
            chex.assert_type(array, kind)
        except AssertionError:
            found = f"{jnp.result_type(array)}{list(jnp.shape(array))}"
            raise ValueError(f"{name} must be {word}, not {found}") from None


def floating(**arrays: jax.Array) -> None:
    """All are of a floating dtype.

    >>> floating(rewards=jnp.array([1, 2]))
    Traceback (most recent call last):
    ValueError: rewards must be floating, not int32[2]
    """
    _typed(float, "floating", arrays)


def integers(**arrays: jax.Array) -> None:
    """All are of an integer dtype."""
    _typed(int, "integers", arrays)


def booleans(**arrays: jax.Array) -> None:
    """All are boolean."""
    _typed(bool, "boolean", arrays)


def pair(chosen: jax.Array, rejected: jax.Array) -> None:
    """The two are floating and of one shape."""
    alike(chosen=chosen, rejected=rejected)
    floating(chosen=chosen, rejected=rejected)


def vectors(**arrays: jax.Array) -> None:
    """All are of rank 1."""
    for name, array in arrays.items():
        if jnp.ndim(array) != 1:
            raise ValueError(f"{name} must be of rank 1, not {list(jnp.shape(array))}")


def finite(mask: jax.Array, **arrays: jax.Array) -> None:
    """All are finite wherever ``mask``, which may broadcast, is true; but not what is traced.

    >>> finite(jnp.array([False, True]), ratings=jnp.array([jnp.nan, jnp.nan]))
    Traceback (most recent call last):
    ValueError: ratings must be finite where the mask is true, not nan as in [1]
    """
    for name, array in arrays.items():
        if _traced(array) or _traced(mask):
            continue
        wrong = np.asarray(mask) & ~np.isfinite(np.asarray(array))
        if np.any(wrong):
            where = tuple(np.argwhere(wrong)[0].tolist())
            found = f"{np.asarray(array)[where]} as in {list(where)}"
            raise ValueError(f"{name} must be finite where the mask is true, not {found}")


def within(size: int, **indices: jax.Array) -> None:
    """All are from 0 and below ``size``; what is traced is not looked at.

    >>> within(2, rater=jnp.array([0, 2]))
    Traceback (most recent call last):
    ValueError: rater must be from 0 to 1, not 0 to 2
    """
    for name, index in indices.items():
        if _traced(index) or not np.size(index):
            continue
        index = np.asarray(index)  # np.min of a JAX array would itself be traced
        low, high = index.min(), index.max()
        if low < 0 or high >= size:
            raise ValueError(f"{name} must be from 0 to {size - 1}, not {low} to {high}")


def table(mask: jax.Array, **arrays: jax.Array) -> None:
    """``mask`` and all others are ``[N, K]``, items by raters; the mask is boolean; all are finite.

    >>> table(jnp.array([True]), ratings=jnp.array([1]))
    Traceback (most recent call last):
    ValueError: ratings must be [N, K], not [1]
    """
    alike(**arrays, mask=mask)
    booleans(mask=mask)
    if jnp.ndim(mask) != 2:
        raise ValueError(f"{' and '.join(arrays)} must be [N, K], not {list(jnp.shape(mask))}")
    finite(mask, **arrays)


def token_arrays(mask: jax.Array, **arrays: jax.Array) -> None:
    """``mask`` and all others are ``[B, T]``, the others floating, and something counts.

    A row in which nothing counts is padding and fine; a batch of nothing else is a mistake.

    >>> token_arrays(jnp.array([[False, False]]), log_probs=jnp.zeros([1, 2]))
    Traceback (most recent call last):
    ValueError: mask [1, 2] has no true entry: nothing counts
    """
    alike(**arrays, mask=mask)
    floating(**arrays)
    if jnp.ndim(mask) != 2:
        raise ValueError(f"{' and '.join(arrays)} must be [B, T], not {jnp.shape(mask)}")
    if not _traced(mask) and not np.any(np.asarray(mask)):
        raise ValueError(f"mask {list(jnp.shape(mask))} has no true entry: nothing counts")


def positive(**values: float | jax.Array) -> None:
    """All are above 0.

    >>> positive(tau=0.0)
    Traceback (most recent call last):
    ValueError: tau must be positive, not 0.0
    """
    for name, value in values.items():
        if not _traced(value) and not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name} must be positive, not {value}")


def probability(**values: float | jax.Array) -> None:
    """All are from 0 to 1.

    >>> probability(level=1.5)
    Traceback (most recent call last):
    ValueError: level must be from 0 to 1, not 1.5
    """
    for name, value in values.items():
        if not _traced(value) and not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
            raise ValueError(f"{name} must be from 0 to 1, not {value}")


def takes(function: Callable, name: str, *arguments: str, keywords: tuple[str, ...] = ()) -> None:
    """``function`` can be called with these arguments by position, and these by keyword.

    >>> takes(jnp.square, "loss", "chosen", "rejected")
    Traceback (most recent call last):
    ValueError: loss will be called as loss(chosen, rejected), but square takes (x)
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError:
        own_name = getattr(getattr(function, "func", function), "__name__", "it")
        kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        if keywords:
            kinds.add(inspect.Parameter.KEYWORD_ONLY)
        taken = [p.name for p in signature.parameters.values() if p.kind in kinds]
        call = f"{name}({', '.join([*arguments, *(f'{keyword}=' for keyword in keywords)])})"
        raise ValueError(
            f"{name} will be called as {call}, but {own_name} takes ({', '.join(taken)})"
        ) from None


def flip_rate(value: float | jax.Array, *, may_be_zero: bool = True) -> None:
    """``value`` is a rate of flipped labels, below one half.

    >>> flip_rate(0.5)
    Traceback (most recent call last):
    ValueError: flip_rate must be at least 0 and below 0.5, not 0.5
    """
    if _traced(value):
        return
    if not (0 <= value < 0.5) or (value == 0 and not may_be_zero):
        low = "at least 0" if may_be_zero else "above 0"
        raise ValueError(f"flip_rate must be {low} and below 0.5, not {value}")
