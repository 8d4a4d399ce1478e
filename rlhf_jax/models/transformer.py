"""The Llama architecture in flax linen, and its use as pure functions.

Pre-normalised with RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied or untied
embedding. Layers are scanned: their parameters are stacked along a first axis, and compilation
takes as long for 30 layers as for one.

Reference: Touvron et al. 2023, https://arxiv.org/abs/2302.13971; rotary positions, Su et al. 2021,
https://arxiv.org/abs/2104.09864; grouped queries, Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245; SwiGLU, Shazeer 2020, https://arxiv.org/abs/2002.05202
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax.sequences import positions
from rlhf_jax.types import Decoder, FactoredLogits, Key, LogitsFn, Params

__all__ = ["KVCache", "LanguageModel", "Transformer", "TransformerConfig", "language_model"]

_REMAT_POLICIES = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer; names follow Hugging Face's ``LlamaConfig`` where it has one.

    Attributes:
        vocab_size: ``V``.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward layer.
        num_layers: how many blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads, which must divide ``num_heads``.
        head_dim: width of a head; by default ``hidden_size // num_heads``.
        max_length: the most tokens that it may read.
        rope_theta: base of the rotary frequencies.
        norm_epsilon: of the RMSNorms.
        tie_embeddings: whether the unembedding is the transposed embedding.
        remat: whether the backward pass recomputes each block instead of keeping its activations;
            or what of them it keeps, the name of a policy of ``jax.checkpoint_policies``:
            ``"dots_with_no_batch_dims_saveable"``, for one, keeps the dense layers' products.
        param_dtype: of the parameters.
        dtype: of the computation; attention weights and normalisation are float32 regardless.
        logits_dtype: of the logits.
    """

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int | None = None
    max_length: int = 2048
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    remat: bool | str = False
    param_dtype: jnp.dtype = jnp.float32
    dtype: jnp.dtype = jnp.float32
    logits_dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})"
            )
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must divide hidden_size ({self.hidden_size}), "
                "or head_dim be given"
            )
        if self.resolved_head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions: {self.head_dim}")

        if not isinstance(self.remat, bool) and self.remat not in _REMAT_POLICIES:
            known = ", ".join(_REMAT_POLICIES)
            raise ValueError(f"remat must be True, False or one of {known}, not {self.remat!r}")

    @property
    def resolved_head_dim(self) -> int:
        """The width of a head, given or derived."""
        return self.head_dim or self.hidden_size // self.num_heads


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
        keys: ``dtype[L, B, C, num_kv_heads, head_dim]``, rotated.
        values: ``dtype[L, B, C, num_kv_heads, head_dim]``.
        mask: ``bool[B, C]``, true where a real token was read.
        length: ``int32[]``, how many of the ``C`` columns are filled.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array
    length: jax.Array


def _rotate(x: jax.Array, token_positions: jax.Array, theta: float) -> jax.Array:
    """Rotates pairs (i, i + D/2) of ``x[B, S, H, D]`` by angles position * theta^(-2i/D)."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = token_positions[..., None].astype(jnp.float32) * frequencies
    cosine, sine = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _attend(queries, keys, values, mask, past):
    """Causal attention over ``S`` new tokens and, if there are any, ``C`` cached ones.

    The two kinds of score are computed apart and normalised together, so the cache is read where
    it lies and neither copied nor concatenated.
    """
    batch, new, heads, width = queries.shape
    kv_heads = keys.shape[2]
    grouped = queries.reshape(batch, new, kv_heads, heads // kv_heads, width)

    def scores(over, allowed):
        raw = jnp.einsum("bskgd,btkd->bkgst", grouped, over, preferred_element_type=jnp.float32)
        return jnp.where(allowed, raw * width**-0.5, jnp.finfo(jnp.float32).min)

    causal = jnp.tril(jnp.ones([new, new], bool))
    weights = scores(keys, causal & mask[:, None, None, None, :])
    if past is not None:
        past_keys, past_values, past_mask = past
        past_weights = scores(past_keys, past_mask[:, None, None, None, :])
        weights = jnp.concatenate([past_weights, weights], axis=-1)
    weights = jax.nn.softmax(weights, axis=-1).astype(values.dtype)
    mixed = jnp.einsum("bkgst,btkd->bskgd", weights[..., -new:], values)
    if past is not None:
        mixed += jnp.einsum("bkgst,btkd->bskgd", weights[..., :-new], past_values)
    return mixed.reshape(batch, new, heads * width)


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, past, token_positions, mask, past_mask):
        config = self.config
        width = config.resolved_head_dim
        dense = partial(
            nn.Dense, use_bias=False, dtype=config.dtype, param_dtype=config.param_dtype
        )
        norm = partial(
            nn.RMSNorm,
            epsilon=config.norm_epsilon,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
        )

        def heads(count, name):
            return dense(count * width, name=name)(h).reshape(*h.shape[:2], count, width)

        h = norm(name="attention_norm")(x)
        queries = _rotate(heads(config.num_heads, "query"), token_positions, config.rope_theta)
        keys = _rotate(heads(config.num_kv_heads, "key"), token_positions, config.rope_theta)
        values = heads(config.num_kv_heads, "value")
        past = None if past is None else (*past, past_mask)
        attended = _attend(queries, keys, values, mask, past)
        x = x + dense(config.hidden_size, name="attention_out")(attended)

        h = norm(name="mlp_norm")(x)
        gate = nn.silu(dense(config.intermediate_size, name="gate")(h))
        up = dense(config.intermediate_size, name="up")(h)
        return x + dense(config.hidden_size, name="down")(gate * up), (keys, values)


class Transformer(nn.Module):
    """Tokens to the last hidden state. ``(tokens, mask, cache) -> (hidden, keys and values)``."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array, cache: KVCache | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Reads ``tokens[B, S]`` behind those in the cache.

        Args:
            tokens: ``int32[B, S]``.
            mask: ``bool[B, S]``, false on padding, on either side.
            cache: of the tokens before, or ``None``.

        Returns:
            The hidden state ``dtype[B, S, hidden_size]`` and the new tokens' keys and values, each
            ``dtype[L, B, S, num_kv_heads, head_dim]``.
        """
        config = self.config
        token_positions = positions(mask)
        if cache is not None:
            token_positions += jnp.sum(cache.mask, axis=-1, keepdims=True)
        embed = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embed",
        )
        if not config.tie_embeddings:
            self.param(
                "unembed",
                nn.initializers.normal(0.02),
                (config.hidden_size, config.vocab_size),
                config.param_dtype,
            )
        policy = getattr(jax.checkpoint_policies, str(config.remat), None)  # None keeps nothing
        block = nn.remat(Block, prevent_cse=False, policy=policy) if config.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_layers,
        )(config, name="layers")
        past = None if cache is None else (cache.keys, cache.values)
        past_mask = None if cache is None else cache.mask
        hidden, keys_and_values = layers(embed(tokens), past, token_positions, mask, past_mask)
        norm = nn.RMSNorm(
            epsilon=config.norm_epsilon,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            name="final_norm",
        )
        return norm(hidden), keys_and_values


class LanguageModel(NamedTuple):
    """A language model as pure functions of its parameters.

    Attributes:
        init: ``key -> params``.
        logits_fn: a ``LogitsFn`` that returns an array ``logits_dtype[B, T, V]``.
        factored_logits_fn: a ``LogitsFn`` that returns ``FactoredLogits``, for training.
        decoder: for ``sampling.sampler``.
        config: its shape.
    """

    init: Callable[[Key], Params]
    logits_fn: LogitsFn
    factored_logits_fn: LogitsFn
    decoder: Decoder
    config: TransformerConfig


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

    @jax.jit  # Op by op, the initialisation of a deep model takes many times as long.
    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros([1, 2], jnp.int32), jnp.ones([1, 2], bool))["params"]

    def unembedding(params: Params) -> jax.Array:
        return params["embed"]["embedding"].T if config.tie_embeddings else params["unembed"]

    def check_length(length: int) -> None:
        if length > config.max_length:
            raise ValueError(f"{length} tokens, but the model reads at most {config.max_length}")

    def factored_logits_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> FactoredLogits:
        check_length(tokens.shape[1])
        hidden, _ = module.apply({"params": params}, tokens, mask)
        return FactoredLogits(hidden, unembedding(params))

    def project(params: Params, hidden: jax.Array) -> jax.Array:
        return (hidden @ unembedding(params).astype(config.dtype)).astype(config.logits_dtype)

    def logits_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return project(params, factored_logits_fn(params, tokens, mask).hidden)

    def init_cache(batch_size: int, length: int) -> KVCache:
        check_length(length)
        width = (config.num_kv_heads, config.resolved_head_dim)
        empty = jnp.zeros((config.num_layers, batch_size, length, *width), config.dtype)
        return KVCache(empty, empty, jnp.zeros([batch_size, length], bool), jnp.int32(0))

    def apply(params: Params, tokens: jax.Array, mask: jax.Array, cache: KVCache):
        hidden, (keys, values) = module.apply({"params": params}, tokens, mask, cache)
        start = cache.length
        cache = KVCache(
            jax.lax.dynamic_update_slice_in_dim(cache.keys, keys, start, axis=2),
            jax.lax.dynamic_update_slice_in_dim(cache.values, values, start, axis=2),
            jax.lax.dynamic_update_slice_in_dim(cache.mask, mask, start, axis=1),
            start + tokens.shape[1],
        )
        return project(params, hidden[:, -1]), cache

    decoder = Decoder(init_cache, apply, config.vocab_size, config.max_length)
    return LanguageModel(init, logits_fn, factored_logits_fn, decoder, config)
