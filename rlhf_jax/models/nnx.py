"""Adapter: a flax nnx module as a pure function of its parameters."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from rlhf_jax.types import Params

__all__ = ["from_nnx"]


def from_nnx(module: nnx.Module) -> tuple[Callable[..., Any], Params]:
    """Splits a module into a function ``(params, *args) -> output`` and its parameters.

    Only ``nnx.Param`` variables are parameters; the others (a normalisation's statistics, say) stay
    as they are in the function, and what a call writes to them is lost.

    Args:
        module: any nnx module, one whose call is ``(tokens, mask) -> logits`` to make a
            ``LogitsFn``.

    Returns:
        The function and the parameters, a pytree.

    >>> import jax.numpy as jnp
    >>> apply, params = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> apply(params, jnp.ones([1, 3])).shape
    (1, 2)
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(params: Params, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graph, params, rest)(*args, **kwargs)

    return apply, params
