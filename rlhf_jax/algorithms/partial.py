"""Training a part of the parameters: one copy of what does not train, read by policy and reference.

``TrainState.params`` is always the whole tree. The gradient, the optimiser's state and a default
reference are of the part that trains, with ``None`` for the other leaves: what they would be of the
rest, the policy's own arrays are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax import trees
from rlhf_jax.types import Params, PyTree, TrunkFn

__all__ = ["frozen_reference", "read_trunk", "split_trainable", "whole_reference"]


def split_trainable(params: Params, trainable: trees.Patterns | None) -> tuple[Params, Params]:
    """What trains, and the rest.

    Args:
        params: the parameters.
        trainable: patterns of paths; ``None`` for all.

    Returns:
        As ``trees.split``.

    Raises:
        ValueError: if a pattern matches nothing, or an array that can have no gradient.
    """
    trained, rest = trees.split(params, trainable, name="trainable")
    if trainable is not None:
        for path, leaf in zip(trees.paths(trained), jax.tree.leaves(trained), strict=True):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                found = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
                raise ValueError(f"trainable matches {path}, {found}, which has no gradient")
    return trained, rest


def frozen_reference(
    reference: Params | None, params: Params, trained: Params, *, trunk: bool = False
) -> Params:
    """The reference as the state holds it: without what it has in common with the policy.

    Args:
        reference: as it was given to ``init``, whole or a part.
        params: the policy's.
        trained: the part of them that trains.
        trunk: whether the two share a trunk, so that nothing else may differ.

    Returns:
        By default ``trained``; else ``reference`` without the arrays that do not train and are the
        policy's very own.

    Raises:
        ValueError: if the reference lacks something that trains; or, with ``trunk``, if it has
            something of its own that does not.
    """
    if reference is None:
        return trained
    whole = jax.tree.leaves(params, is_leaf=lambda x: x is None)
    alike = trees.skeleton(reference) == trees.skeleton(params)
    if not alike:
        if trunk:
            raise ValueError("with trunk_fn, reference must be of the structure of params")
        return reference
    leaves = jax.tree.leaves(reference, is_leaf=lambda x: x is None)
    trains = [x is not None for x in jax.tree.leaves(trained, is_leaf=lambda x: x is None)]
    names = trees.paths(jax.tree.map(lambda _: 0, params, is_leaf=lambda x: x is None))
    kept = []
    for name, theirs, ours, moves in zip(names, leaves, whole, trains, strict=True):
        if theirs is None and moves:
            raise ValueError(
                f"reference lacks {name}, which trains: give its value to compare with"
            )
        own = moves or theirs is not ours
        if trunk and own and not moves and theirs is not None:
            raise ValueError(
                f"with trunk_fn the reference shares what does not train, but it has {name} of its "
                "own: give trees.split(reference, trainable)[0], the rest being the policy's"
            )
        kept.append(theirs if own else None)
    return jax.tree.structure(params, is_leaf=lambda x: x is None).unflatten(kept)


def whole_reference(reference: Params, params: Params) -> Params:
    """The reference to read with: what it lacks is the policy's."""
    leaves = jax.tree.leaves(reference, is_leaf=lambda x: x is None)
    return trees.join(reference, params) if any(x is None for x in leaves) else reference


def read_trunk(
    trunk_fn: TrunkFn, trained: Params, rest: Params, tokens: jax.Array, mask: jax.Array
) -> PyTree:
    """What the lower layers make of the tokens, as a constant.

    Args:
        trunk_fn: ``(params, tokens, mask) -> hidden``.
        trained: the part of the parameters that trains.
        rest: the other part.
        tokens: ``int32[B, T]``.
        mask: ``bool[B, T]``.

    Returns:
        What ``trunk_fn`` returns, without a gradient.

    Raises:
        ValueError: if it depends on something that trains.
    """

    def read(trained: Params) -> PyTree:
        return trunk_fn(trees.join(trained, rest), tokens, mask)

    leaves, structure = jax.tree.flatten(trained)
    if leaves and _depends(lambda leaves: read(structure.unflatten(leaves)), leaves):
        moved = [
            path
            for n, path in enumerate(trees.paths(trained))
            if _depends(
                lambda x, n=n: read(structure.unflatten([*leaves[:n], x, *leaves[n + 1 :]])),
                leaves[n],
            )
        ]
        more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
        raise ValueError(
            f"trunk_fn reads what trains, {', '.join(moved[:4])}{more}: trainable must leave the "
            "trunk alone, or do without trunk_fn"
        )
    return jax.lax.stop_gradient(read(trained))


def _depends(function: Callable[[PyTree], PyTree], argument: PyTree) -> bool:
    """Whether what a function returns depends on its argument: batch the one, ask of the other."""
    batched = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *jnp.shape(x)), jnp.result_type(x)), argument
    )
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), batched)
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        return True
    return False
