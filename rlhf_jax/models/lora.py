r"""Low-rank adaptation (LoRA): small matrices beside frozen ones, added to a tree of parameters.

.. math:: y = x W + s \, (x A) B, \qquad A : [in, r], \quad B : [r, out], \quad s = \alpha / r

``add`` puts ``lora_a``, ``lora_b`` and ``adapter_scale`` beside a ``kernel``; every function of the
parameters then reads them (logits, scores, generation with a cache), for every linear layer of the
transformer is a ``Dense``. ``trainable=lora.TRAINABLE`` trains them alone:

    params = lora.add(key, params, rank=8, alpha=16)
    algorithm = algorithms.direct(model.logits_fn, optimizer, trainable=lora.TRAINABLE)

The reference is then the initial adapter on the same base, of which there is one copy. Several
adapters on one base are ``jax.vmap(model.logits_fn, (lora.axes(params), None, None))``.

The scale is a leaf by itself. Folded into ``A`` it would change what an optimiser's step is worth
(Adam's is as long whatever the scale); as a setting of the model it could be lost, or another than
the one that the adapter was trained with. No gradient goes to it, and it does not match
``TRAINABLE``.

Reference: Hu et al. 2021, eq. 3, https://arxiv.org/abs/2106.09685
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import checks, trees
from rlhf_jax.types import Key, Params, PyTree

__all__ = ["TARGETS", "TRAINABLE", "Dense", "add", "axes", "merge", "strip", "unmerge"]

# Every linear layer of the blocks: neither embedding nor heads.
TARGETS = ("*layers/*/kernel",)
# For an algorithm's trainable=: the adapters without their scale.
TRAINABLE = ("*lora_a", "*lora_b")

_LEAVES = ("lora_a", "lora_b", "adapter_scale")


class Dense(nn.Dense):
    """A linear layer that adds what an adapter beside its kernel makes of the inputs, if any."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """``x W``, and ``s (x A) B`` as two thin products: no matrix of ``W``'s size is made."""
        # As rows and not [B, T, ...]: XLA's CPU backend makes transposed copies of a gradient of
        # three axes before it multiplies.
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = super().__call__(rows).reshape(*inputs.shape[:-1], self.features)
        if not self.has_variable("params", "lora_a"):
            return outputs
        a, b, scale = (self.get_variable("params", name) for name in _LEAVES)
        scale = jax.lax.stop_gradient(scale)
        inputs, a, b, scale = nn.dtypes.promote_dtype(inputs, a, b, scale, dtype=self.dtype)
        return outputs + ((inputs @ a) * scale) @ b


def add(
    key: Key,
    params: Params,
    *,
    rank: int,
    alpha: float,
    targets: trees.Patterns = TARGETS,
    rank_stabilised: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> Params:
    """Parameters with an adapter beside each target; what they compute is what it was.

    ``A`` is normal with variance ``1 / in``, ``B`` is 0. Nothing of the base is copied.

    Args:
        key: for ``A``.
        params: nested dicts, as of ``LanguageModel.init``; kernels ``[..., in, out]``, stacked over
            layers or not.
        rank: ``r``, from 1 to the smaller of ``in`` and ``out``.
        alpha: the adapter's scale is ``alpha / rank``.
        targets: which kernels, by their paths (``trees``): ``("*query/kernel", "*value/kernel")``.
            By default all linear layers of the blocks.
        rank_stabilised: whether the scale is ``alpha / sqrt(rank)`` instead (rsLoRA), which leaves
            the step's size the same for all ranks.
        dtype: of the adapter, whatever the base's.

    Returns:
        The parameters, each target with ``lora_a[..., in, r]``, ``lora_b[..., r, out]`` and
        ``adapter_scale[...]``.

    Raises:
        ValueError: if a setting is impossible, a pattern matches no kernel, or a target has an
            adapter already.

    Reference: Hu et al. 2021, https://arxiv.org/abs/2106.09685; rsLoRA, Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732

    >>> params = {"layers": {"query": {"kernel": jnp.ones([2, 4, 6])}}}
    >>> adapted = add(jax.random.key(0), params, rank=3, alpha=6.0)
    >>> jax.tree.map(lambda x: list(x.shape), adapted["layers"]["query"])
    {'adapter_scale': [2], 'kernel': [2, 4, 6], 'lora_a': [2, 4, 3], 'lora_b': [2, 3, 6]}
    """
    checks.positive(rank=rank, alpha=alpha)
    kernels = [path for path in trees.paths(params) if path.split("/")[-1] == "kernel"]
    if not kernels:
        raise ValueError("params have no kernel: they must be nested dicts, as of a model's init")
    hits = trees.matches(kernels, targets, name="targets")
    chosen = [path for path, hit in zip(kernels, hits, strict=True) if hit]
    keys = dict(zip(chosen, jax.random.split(key, len(chosen)), strict=True))
    scale = alpha / (rank**0.5 if rank_stabilised else rank)

    def adapted(path: str, layer: dict[str, Any]) -> dict[str, Any]:
        if path not in keys:
            return layer
        if "lora_a" in layer:
            raise ValueError(f"{path} has an adapter already: merge or strip it first")
        *stack, inputs, outputs = layer["kernel"].shape
        if rank > min(inputs, outputs):
            found = f"{path} of {inputs} to {outputs}, not {rank}"
            raise ValueError(f"rank must be at most {min(inputs, outputs)} for {found}")
        a = jax.random.normal(keys[path], (*stack, inputs, rank), dtype) * inputs**-0.5
        return layer | {
            "lora_a": a.astype(dtype),
            "lora_b": jnp.zeros((*stack, rank, outputs), dtype),
            "adapter_scale": jnp.full(stack, scale, jnp.float32),
        }

    return _layers(params, adapted)


def merge(params: Params) -> Params:
    r"""The adapters added into their kernels: plain parameters, which compute the same.

    .. math:: W' = W + s A B

    The sum is of float32, and rounded to the kernel's dtype: what it loses is gone. To have the
    base again, keep it (``strip`` gives it back exactly) rather than subtract (``unmerge``).

    Args:
        params: with adapters.

    Returns:
        Parameters without, of the structure from before ``add``.

    Raises:
        ValueError: if there is no adapter.

    >>> params = {"layers": {"query": {"kernel": jnp.ones([4, 6])}}}
    >>> adapted = add(jax.random.key(0), params, rank=3, alpha=6.0)
    >>> bool((merge(adapted)["layers"]["query"]["kernel"] == 1).all())  # B is 0
    True
    """
    _check_adapted(params)
    return _layers(params, lambda _, layer: _bare(layer, _plus(layer["kernel"], layer, 1)))


def unmerge(merged: Params, params: Params) -> Params:
    """What ``merge`` made taken apart again, up to rounding.

    Args:
        merged: parameters that ``merge`` made, trained since or not.
        params: those it made them of; only the adapters are read.

    Returns:
        Parameters with these adapters, whose kernels are ``merged``'s less the adapters' products.

    Raises:
        ValueError: if there is no adapter, or ``merged`` has not the structure of the base.
    """
    _check_adapted(params)
    if jax.tree.structure(merged) != jax.tree.structure(strip(params)):
        raise ValueError("merged must have the structure of params without their adapters")
    leaves = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))

    def apart(path: str, layer: dict[str, Any]) -> dict[str, Any]:
        beside = {name: leaves.get(path.removesuffix("kernel") + name) for name in _LEAVES}
        adapter = {name: x for name, x in beside.items() if x is not None}
        return layer | adapter | {"kernel": _plus(layer["kernel"], adapter, -1)}

    return _layers(merged, apart)


def strip(params: Params) -> Params:
    """The base, exactly as it was before ``add``.

    >>> params = {"layers": {"query": {"kernel": jnp.ones([4, 6])}}}
    >>> adapted = add(jax.random.key(0), params, rank=3, alpha=6.0)
    >>> strip(adapted)["layers"]["query"]["kernel"] is params["layers"]["query"]["kernel"]
    True
    """
    return _layers(params, lambda _, layer: _bare(layer, layer["kernel"]))


def axes(params: Params) -> PyTree:
    """What ``jax.vmap`` is to map over where several adapters are on one base.

    The adapters' leaves are then ``[M, ...]``, and all others as they are: one base, and one scale.

    Args:
        params: with adapters, stacked or not.

    Returns:
        0 for ``lora_a`` and ``lora_b``, ``None`` for the rest: for ``in_axes``.

    Raises:
        ValueError: if there is no adapter.

    >>> params = {"layers": {"query": {"kernel": jnp.ones([4, 6])}}}
    >>> several = jax.vmap(
    ...     lambda key: add(key, params, rank=3, alpha=6.0),
    ...     out_axes=axes(add(jax.random.key(0), params, rank=3, alpha=6.0)),
    ... )(jax.random.split(jax.random.key(0), 5))
    >>> several["layers"]["query"]["lora_a"].shape, several["layers"]["query"]["kernel"].shape
    ((5, 4, 3), (4, 6))
    """
    _check_adapted(params)
    return trees.axes(params, TRAINABLE)


def _is_adapter(path: str) -> bool:
    return path.split("/")[-1] in _LEAVES


def _check_adapted(params: Params) -> None:
    if not any(map(_is_adapter, trees.paths(params))):
        raise ValueError("params have no adapter: lora.add makes one")


def _layers(
    tree: PyTree, change: Callable[[str, dict[str, Any]], dict[str, Any]], path: str = ""
) -> PyTree:
    """A tree with every layer that has a kernel changed; ``change`` is told the kernel's path."""
    if not isinstance(tree, Mapping):
        return tree
    if "kernel" in tree:
        return change(f"{path}kernel", dict(tree))
    return {name: _layers(inner, change, f"{path}{name}/") for name, inner in tree.items()}


def _plus(kernel: jax.Array, layer: dict[str, Any], sign: int) -> jax.Array:
    """A kernel and, once or less once, the product of the adapter beside it, if any."""
    if "lora_a" not in layer:
        return kernel
    a, b, scale = (layer[name].astype(jnp.float32) for name in _LEAVES)
    product = scale[..., None, None] * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + sign * product).astype(kernel.dtype)


def _bare(layer: dict[str, Any], kernel: jax.Array) -> dict[str, Any]:
    return {name: x for name, x in layer.items() if name not in _LEAVES} | {"kernel": kernel}
