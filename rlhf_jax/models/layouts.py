"""How a transformer's parameters lie: all layers stacked, the top ones apart, each by itself.

Stacked, they compile in the same time however deep the model. But a loop over stacked layers first
copies each layer's matrices out of the stack, on a CPU, for every token: half as much time again as
their products with sixteen rows take. With ``config.unrolled_decoding`` generation therefore takes
the layers apart, once a call, and those of the cache with them.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.models.cache import KVCache, apart
from rlhf_jax.models.configuration import TransformerConfig
from rlhf_jax.types import Params

__all__ = ["join_layers", "prepared", "split_layers", "unstack_layers"]


def prepared(config: TransformerConfig, params: Params, cache: KVCache) -> tuple[Params, KVCache]:
    """Parameters and cache as generation reads them many times over: a ``Decoder.prepare``.

    Matrices are of the dtype that is computed in, and, if ``config.unrolled_decoding`` says so,
    each layer is by itself.
    """

    def cast(path: tuple, x: jax.Array) -> jax.Array:
        matrix = path[-1].key in ("kernel", "embedding", "unembed")
        return x.astype(config.dtype) if matrix else x

    params = jax.tree_util.tree_map_with_path(cast, params)
    if not config.unrolled_decoding:
        return params, cache
    return unstack_layers(params), apart(cache)


def unstack_layers(params: Params) -> Params:
    """Parameters whose layers are each by themselves, under ``layers_0``, ``layers_1`` and so on.

    Args:
        params: stacked, in one piece or two.

    Returns:
        A copy of the layers; the rest is what it was.

    >>> params = unstack_layers({"layers": {"bias": jnp.arange(2)}})
    >>> {name: int(layer["bias"]) for name, layer in params.items()}
    {'layers_0': 0, 'layers_1': 1}
    """
    layers = join_layers(params)["layers"]
    rest = {name: x for name, x in params.items() if name not in ("layers", "top_layers")}
    count = jax.tree.leaves(layers)[0].shape[0]
    return rest | {f"layers_{n}": jax.tree.map(lambda x, n=n: x[n], layers) for n in range(count)}


def split_layers(params: Params, top: int) -> Params:
    """Parameters of a transformer as those of one with ``num_top_layers=top``.

    Args:
        params: with ``"layers"``, in one piece.
        top: how many of the last layers go under ``"top_layers"``; 0 changes nothing.

    Returns:
        The same numbers in the other layout.

    Raises:
        ValueError: they are split already, or have fewer layers.

    >>> params = split_layers({"layers": {"bias": jnp.arange(3)}}, 1)
    >>> {name: stack["bias"].tolist() for name, stack in params.items()}
    {'layers': [0, 1], 'top_layers': [2]}
    """
    if "layers" not in params or "top_layers" in params:
        raise ValueError(f"params must have layers and no top_layers, not {', '.join(params)}")
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    if not 0 <= top <= count:
        raise ValueError(f"top must be from 0 to {count}, the number of layers, not {top}")
    rest = {name: value for name, value in params.items() if name != "layers"}
    if top < count:
        rest["layers"] = jax.tree.map(lambda x: x[: count - top] if top else x, params["layers"])
    if top:
        rest["top_layers"] = jax.tree.map(lambda x: x[count - top :], params["layers"])
    return rest


def join_layers(params: Params) -> Params:
    """Parameters of a transformer as those of one with ``num_top_layers=0``.

    Args:
        params: in either layout.

    Returns:
        The same numbers, all layers under ``"layers"``.

    >>> split = {"layers": {"bias": jnp.arange(2)}, "top_layers": {"bias": jnp.array([2])}}
    >>> join_layers(split)["layers"]["bias"].tolist()
    [0, 1, 2]
    """
    stacks = [params[name] for name in ("layers", "top_layers") if name in params]
    rest = {name: value for name, value in params.items() if name != "top_layers"}
    if len(stacks) == 2:
        stacks = [jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)]
    return rest | {"layers": stacks[0]}
