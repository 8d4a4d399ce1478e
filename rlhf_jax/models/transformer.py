"""One transformer for many architectures, in flax linen, and its use as pure functions.

By default it is a Llama: pre-normalised with RMSNorm, rotary positions, grouped-query attention,
SwiGLU. ``TransformerConfig`` says in plain words what Qwen, Mistral, Gemma and GPT-2 do otherwise,
and ``pretrained.config_from`` reads it from a published ``config.json``. Layers are scanned: their
parameters are stacked along a first axis, and compilation takes as long for 30 layers as for one.
What differs between layers (which of them see no further than a window) is looked up by the layer's
number.

Reference: Touvron et al. 2023, https://arxiv.org/abs/2302.13971; SwiGLU, Shazeer 2020,
https://arxiv.org/abs/2002.05202; soft caps and norms after a layer, Gemma Team 2024,
https://arxiv.org/abs/2408.00118; normalised queries and keys, Dehghani et al. 2023,
https://arxiv.org/abs/2302.05442
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import cache as caches
from rlhf_jax.models import layouts
from rlhf_jax.models.attention import KeyBlock, attend, rotary_frequencies, rotate
from rlhf_jax.models.cache import KVCache
from rlhf_jax.models.configuration import TransformerConfig
from rlhf_jax.models.contexts import context_of
from rlhf_jax.models.lora import Dense
from rlhf_jax.placing import looked_up, placed
from rlhf_jax.types import Decoder, FactoredLogits, Forked, Key, LogitsFn, Params
from rlhf_jax.vocabulary import logits_of

__all__ = [
    "KVCache",
    "LanguageModel",
    "Transformer",
    "TransformerConfig",
    "language_model",
]

_ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
    "relu": nn.relu,
}


class _RMSNormFromOne(nn.Module):
    """RMSNorm whose parameter is what its scale has beyond 1."""

    epsilon: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        normalised = nn.RMSNorm(epsilon=self.epsilon, use_scale=False, dtype=jnp.float32)(x)
        return (normalised * (1 + scale.astype(jnp.float32))).astype(self.dtype)


def _norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
    kind = {
        "rms": nn.RMSNorm,
        "rms_from_one": _RMSNormFromOne,
        "layer": partial(nn.LayerNorm, use_fast_variance=False),
    }[config.norm]
    return kind(
        epsilon=config.norm_epsilon, dtype=config.dtype, param_dtype=config.param_dtype, name=name
    )


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, layer, context):
        config = self.config
        width = config.resolved_head_dim
        dense = partial(Dense, dtype=config.dtype, param_dtype=config.param_dtype)
        norm = partial(_norm, config)

        def heads(count, name):
            projected = dense(count * width, use_bias=config.qkv_bias, name=name)(h)
            apart = projected.reshape(*h.shape[:2], count, width)
            return placed(apart, "rows", None, "heads")

        h = norm("attention_norm")(x)
        queries = heads(config.num_heads, "query")
        keys = heads(config.num_kv_heads, "key")
        values = heads(config.num_kv_heads, "value")
        if config.query_key_norm:
            queries, keys = norm("query_norm")(queries), norm("key_norm")(keys)
        if not config.learned_positions:
            queries, keys = self.rotated(queries, keys, layer, context)
        attended = self.attended if context.prompt is None else self.forked
        h, read = attended(queries, keys, values, layer, context)
        h = dense(config.hidden_size, use_bias=config.attention_out_bias, name="attention_out")(h)
        x = x + (norm("attention_post_norm")(h) if config.post_norms else h)

        h = norm("mlp_norm")(x)
        activation = _ACTIVATIONS[config.activation]
        inner = partial(dense, config.intermediate_size, use_bias=config.mlp_bias)
        # Kept for the backward pass are the products alone. To compute the rest again takes less
        # than to write and read it.
        again = partial(jax.checkpoint, prevent_cse=False)
        if config.gated_mlp:
            gate = inner(name="gate")(h)
            h = again(lambda gate, up: activation(gate) * up)(gate, inner(name="up")(h))
        else:
            h = again(activation)(inner(name="up")(h))
        h = dense(config.hidden_size, use_bias=config.mlp_bias, name="down")(h)
        x = x + (norm("mlp_post_norm")(h) if config.post_norms else h)
        return placed(x, "rows"), read

    def slides(self, layer):
        """Whether this layer does: looked up, as it is one program for all of them."""
        return jnp.asarray(np.array(self.config.resolved_sliding_layers))[layer]

    def rotated(self, queries, keys, layer, context):
        config = self.config
        width = config.resolved_head_dim
        frequencies = rotary_frequencies(width, config.rope_theta, config.rope_scaling)
        if config.local_rope_theta is not None:
            local = rotary_frequencies(width, config.local_rope_theta)
            frequencies = jnp.where(self.slides(layer), local, frequencies)
        return [rotate(x, context.positions, frequencies) for x in (queries, keys)]

    def block(self, keys, values, layer, seen, near):
        """Keys and values ``[B, G, T, D]``, and what of them is seen in this layer."""
        if self.config.sliding_window is not None:
            seen = jnp.where(self.slides(layer), near, seen)
        return KeyBlock(keys, values, seen)

    def attend(self, queries, *blocks):
        config, scale = self.config, self.config.resolved_query_scale
        if config.rope_scaling is not None:
            scale *= config.rope_scaling.resolved_attention_factor**2
        settings = {"softcap": config.attention_softcap, "implementation": config.attention}
        return attend(queries, blocks, scale=scale, **settings)

    def attended(self, queries, keys, values, layer, context):
        """What is read of the rows' own tokens and of those in the cache; the keys and values."""
        cache, block = context.cache, partial(self.block, layer=layer)
        keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
        read, blocks = (keys, values), []
        if cache is not None:
            keys = caches.insert(cache.keys[layer], keys, cache.length, 2)
            values = caches.insert(cache.values[layer], values, cache.length, 2)
            if isinstance(cache.keys, tuple):  # They are written where they lie.
                read = keys, values
            if (prefix := cache.prefix) is not None:
                ahead = prefix.keys[layer], prefix.values[layer]
                blocks.append(block(*ahead, seen=context.before, near=context.before_near))
        blocks.append(block(keys, values, seen=context.seen, near=context.near))
        return self.attend(queries, *blocks), read

    def forked(self, queries, keys, values, layer, context):
        """As ``attended``, of prompts by themselves and of answers behind their prompt."""
        block, prompt = partial(self.block, layer=layer), context.prompt
        start, answers = prompt.seen.shape[1], context.seen.shape[:2]

        def apart(x):
            return x[:, :start], x[:, start:].reshape(*answers, *x.shape[2:])

        of_prompts, of_answers = zip(*map(apart, (queries, keys, values)), strict=True)
        (asked, *ahead), (answered, *own) = of_prompts, of_answers
        ahead, own = ([x.swapaxes(1, 2) for x in both] for both in (ahead, own))
        first = self.attend(asked, block(*ahead, seen=prompt.seen, near=prompt.near))
        behind = self.attend(
            answered,
            block(*ahead, seen=context.before, near=context.before_near),
            block(*own, seen=context.seen, near=context.near),
        )
        mixed = jnp.concatenate([first, behind.reshape(len(first), -1, first.shape[-1])], axis=1)
        return mixed, (keys, values)


class Transformer(nn.Module):
    """Tokens to the last hidden state. ``(tokens, mask, cache) -> (hidden, keys and values)``.

    ``unrolled``: each layer's parameters are by themselves, ``layers_0`` and so on, and so are its
    keys and values, as ``layouts.prepared`` makes them, instead of being stacked.
    """

    config: TransformerConfig
    unrolled: bool = False

    def setup(self):
        config = self.config
        embed = partial(
            nn.Embed,
            features=config.hidden_size,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            embedding_init=nn.initializers.normal(0.02),
        )
        self.embed = embed(config.vocab_size)
        if config.learned_positions:
            self.position_embed = embed(config.max_length)
        if not config.tie_embeddings:
            self.unembed = self.param(
                "unembed",
                nn.initializers.normal(0.02),
                (config.hidden_size, config.vocab_size),
                config.param_dtype,
            )
        if self.unrolled:
            self.layers = [Block(config) for _ in range(config.num_layers)]
        elif config.num_top_layers < config.num_layers:
            self.layers = self.stack(config.num_layers - config.num_top_layers)
        if config.num_top_layers:
            self.top_layers = self.stack(config.num_top_layers)
        self.final_norm = _norm(config)

    def stack(self, count: int) -> nn.Module:
        """So many layers, scanned."""
        remat = self.config.remat
        policy = getattr(jax.checkpoint_policies, str(remat), None)  # None keeps nothing
        block = nn.remat(Block, prevent_cse=False, policy=policy) if remat else Block
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=count,
            unroll=self.config.unroll,
        )(self.config)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, cache: KVCache | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Reads ``tokens[B, S]`` behind those in the cache.

        Args:
            tokens: ``int32[B, S]``.
            mask: ``bool[B, S]``, false on padding, on either side; or, without a cache, segment
                ids ``int32[B, S]``, of several sequences in a row, or ``Forked``, of several
                answers behind a prompt.
            cache: of the tokens before, or ``None``.

        Returns:
            The hidden state ``dtype[B, S, hidden_size]`` and the new tokens' keys and values, each
            ``dtype[L, B, num_kv_heads, S, head_dim]``.
        """
        context = context_of(self.config, mask, cache)
        hidden, below = self.lower(tokens, context)
        hidden, above = self.upper(hidden, context)
        both = [stack for stack in (below, above) if stack is not None]
        if len(both) == 2:
            both = [jax.tree.map(lambda *x: jnp.concatenate(x), *both)]
        return self.final_norm(hidden), both[0]

    def lower(self, tokens, context):
        """The embedding and the layers under the top ones."""
        config = self.config
        hidden = looked_up(self.embed.embedding.astype(config.dtype), tokens)
        if config.embedding_scale != 1:
            hidden *= jnp.asarray(config.embedding_scale, hidden.dtype)
        if config.learned_positions:
            hidden += self.position_embed(context.positions)
        count = config.num_layers - config.num_top_layers
        if self.unrolled:
            read = []
            for number, layer in enumerate(self.layers):
                hidden, new = layer(hidden, number, context)
                read.append(new)
            return hidden, tuple(zip(*read, strict=True))
        return self.layers(hidden, jnp.arange(count), context) if count else (hidden, None)

    def upper(self, hidden, context):
        """The top layers, if they are apart."""
        config = self.config
        numbers = jnp.arange(config.num_layers - config.num_top_layers, config.num_layers)
        return self.top_layers(hidden, numbers, context) if len(numbers) else (hidden, None)

    def trunk(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The residual stream ``dtype[B, T, hidden_size]`` below the top layers."""
        return self.lower(tokens, context_of(self.config, mask, None))[0]

    def top(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """The last hidden state, of what ``trunk`` gave."""
        return self.final_norm(self.upper(hidden, context_of(self.config, mask, None))[0])


class LanguageModel(NamedTuple):
    """A language model as pure functions of its parameters.

    Attributes:
        init: ``key -> params``.
        logits_fn: a ``LogitsFn`` that returns an array ``logits_dtype[B, T, V]``.
        factored_logits_fn: a ``LogitsFn`` that returns ``FactoredLogits``, for training.
        decoder: for ``sampling.sampler``.
        config: its shape.
        trunk_fn: ``(params, tokens[B, T], mask[B, T]) -> hidden[B, T, hidden_size]``, the residual
            stream below the ``num_top_layers``, whose parameters it does not need.
        top_fn: ``(params, hidden, mask) -> FactoredLogits``, the rest of ``factored_logits_fn``.
    """

    init: Callable[[Key], Params]
    logits_fn: LogitsFn
    factored_logits_fn: LogitsFn
    decoder: Decoder
    config: TransformerConfig
    trunk_fn: Callable[[Params, jax.Array, jax.Array], jax.Array]
    top_fn: Callable[[Params, jax.Array, jax.Array], FactoredLogits]


def language_model(config: TransformerConfig) -> LanguageModel:
    """A transformer language model as pure functions.

    Args:
        config: its shape.

    Returns:
        A ``LanguageModel``.

    >>> model = language_model(TransformerConfig(vocab_size=16, hidden_size=8, num_layers=2))
    >>> params = model.init(jax.random.key(0))
    >>> tokens = jnp.array([[3, 1, 4]])
    >>> model.logits_fn(params, tokens, jnp.ones([1, 3], bool)).shape
    (1, 3, 16)
    """
    module = Transformer(config)
    # The same numbers in each layout.
    whole = Transformer(dataclasses.replace(config, num_top_layers=0))
    unrolled = whole.clone(unrolled=True)

    @jax.jit  # Op by op, the initialisation of a deep model takes many times as long.
    def init(key: Key) -> Params:
        tokens, mask = jnp.zeros([1, 2], jnp.int32), jnp.ones([1, 2], bool)
        return layouts.split_layers(whole.init(key, tokens, mask)["params"], config.num_top_layers)

    def applied(method: str) -> Callable[..., jax.Array]:
        # Jitted for those who call it op by op: they would trace and compile the scan at each call.
        return jax.jit(lambda params, *read: module.apply({"params": params}, *read, method=method))

    trunk, top = applied("trunk"), applied("top")

    def unembedding(params: Params) -> jax.Array:
        return params["embed"]["embedding"].T if config.tie_embeddings else params["unembed"]

    def check_length(length: int) -> None:
        if length > config.max_length:
            raise ValueError(f"{length} tokens, but the model reads at most {config.max_length}")

    def trunk_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        check_length(mask.length if isinstance(mask, Forked) else tokens.shape[1])
        return trunk(params, tokens, mask)

    def factored(params: Params, hidden: jax.Array) -> FactoredLogits:
        return FactoredLogits(hidden, unembedding(params), config.logit_softcap)

    def top_fn(params: Params, hidden: jax.Array, mask: jax.Array) -> FactoredLogits:
        return factored(params, top(params, hidden, mask))

    def factored_logits_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> FactoredLogits:
        return top_fn(params, trunk_fn(params, tokens, mask), mask)

    def multiplied_out(logits: FactoredLogits) -> jax.Array:
        products = logits.hidden @ logits.unembedding.astype(config.dtype)
        return logits_of(products, 1.0, logits.softcap).astype(config.logits_dtype)

    def logits_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return multiplied_out(factored_logits_fn(params, tokens, mask))

    def init_cache(batch_size: int, length: int) -> KVCache:
        check_length(length)
        width = config.resolved_head_dim
        shape = (config.num_layers, batch_size, config.num_kv_heads, length, width)
        return caches.empty(shape, config.resolved_cache_dtype)

    def apply(params: Params, tokens: jax.Array, mask: jax.Array, cache: KVCache):
        apart = isinstance(cache.keys, tuple)
        reader = unrolled if apart else module
        hidden, (keys, values) = reader.apply({"params": params}, tokens, mask, cache)
        marked, _ = caches.marked(cache, mask)
        if not apart:
            keys = caches.insert(cache.keys, keys, cache.length, 3)
            values = caches.insert(cache.values, values, cache.length, 3)
        cache = marked.replace(keys=keys, values=values, length=cache.length + tokens.shape[1])
        return multiplied_out(factored(params, hidden[:, -1])), cache

    size = config.vocab_size, config.max_length
    decoder = Decoder(
        init_cache, apply, *size, caches.fork, caches.refill, partial(layouts.prepared, config)
    )
    return LanguageModel(init, logits_fn, factored_logits_fn, decoder, config, trunk_fn, top_fn)
