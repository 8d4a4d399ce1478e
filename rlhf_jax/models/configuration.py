"""What a transformer is like, in plain words."""

import dataclasses

import jax.numpy as jnp

from rlhf_jax.models.attention import IMPLEMENTATIONS, RopeScaling

__all__ = ["ACTIVATIONS", "NORMS", "REMAT_POLICIES", "TransformerConfig"]

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
NORMS = ("rms", "rms_from_one", "layer")
# Of jax.checkpoint_policies: what the backward pass need not compute again.
REMAT_POLICIES = (
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
        norm_epsilon: of the norms.
        tie_embeddings: whether the unembedding is the transposed embedding.
        remat: whether the backward pass recomputes each block instead of keeping its activations;
            or what of them it keeps, the name of a policy of ``jax.checkpoint_policies``:
            ``"dots_with_no_batch_dims_saveable"``, for one, keeps the dense layers' products.
        param_dtype: of the parameters.
        dtype: of the computation; attention weights and normalisation are float32 regardless.
        logits_dtype: of the logits.
        rope_scaling: how the rotary frequencies are lowered for longer texts.
        learned_positions: whether positions are a learned embedding, added to that of the tokens,
            instead of rotary.
        norm: ``"rms"``; ``"rms_from_one"``, which multiplies by one plus the parameter; or
            ``"layer"``, which subtracts the mean too and adds a bias.
        post_norms: whether attention and feed-forward are normalised after, too.
        query_key_norm: whether the queries and keys of each head are.
        qkv_bias: whether queries, keys and values have biases.
        attention_out_bias: whether the projection after attention has one.
        mlp_bias: whether the feed-forward layers have.
        gated_mlp: whether the feed-forward layer's activation multiplies a second projection.
        activation: ``"silu"``, ``"gelu"``, ``"gelu_tanh"`` (its approximation) or ``"relu"``.
        embedding_scale: what the tokens' embeddings are multiplied by when they are read.
        query_scale: what the scores of attention are multiplied by; by default
            ``head_dim ** -0.5``.
        attention_softcap: ``c`` in ``c * tanh(score / c)`` of the scores of attention.
        logit_softcap: the same of the logits.
        sliding_window: how many tokens, itself included, a token sees in a layer that slides.
        sliding_layers: for each layer, whether it does; by default all do if there is a window.
        local_rope_theta: ``rope_theta`` of the layers that slide, which are not scaled then.
        num_top_layers: how many of the last layers have their parameters apart, under
            ``"top_layers"``, to be trained without the others.
        attention: how it is computed (``models.attention.attend``): ``"einsum"``, ``"xla"``,
            ``"cudnn"``, or ``"auto"``, which is cuDNN's on a GPU where it can.
        cache_dtype: of the keys and values that generation keeps; by default ``dtype``.
        unrolled_decoding: whether generation takes the layers apart, once a call, instead of
            looping over them. On a CPU long responses of few rows are faster so; it costs a second
            copy of the layers and a compilation that takes longer the deeper the model is.
        unroll: how many layers stand side by side in the body of the loop over them, as of
            ``jax.lax.scan``. All of a few layers are a little faster on a CPU.
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
    rope_scaling: RopeScaling | None = None
    learned_positions: bool = False
    norm: str = "rms"
    post_norms: bool = False
    query_key_norm: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    gated_mlp: bool = True
    activation: str = "silu"
    embedding_scale: float = 1.0
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    local_rope_theta: float | None = None
    num_top_layers: int = 0
    attention: str = "auto"
    cache_dtype: jnp.dtype | None = None
    unrolled_decoding: bool = False
    unroll: int = 1

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
        if self.resolved_head_dim % 2 and not self.learned_positions:
            raise ValueError(f"head_dim must be even for rotary positions: {self.head_dim}")
        for name, known in (
            ("norm", NORMS),
            ("activation", ACTIVATIONS),
            ("attention", IMPLEMENTATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}"
                )
        if self.unroll < 1:
            raise ValueError(f"unroll must be at least 1, not {self.unroll}")
        for name in ("attention_softcap", "logit_softcap", "sliding_window", "local_rope_theta"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, or None, not {value}")
        if self.sliding_window is None and (self.sliding_layers or self.local_rope_theta):
            raise ValueError("sliding_layers and local_rope_theta need a sliding_window")
        if self.sliding_layers is not None and len(self.sliding_layers) != self.num_layers:
            raise ValueError(
                f"sliding_layers must say so of each of the {self.num_layers} layers, not of "
                f"{len(self.sliding_layers)}"
            )
        if self.local_rope_theta and self.rope_scaling and self.rope_scaling.kind == "yarn":
            raise ValueError("rope_scaling by yarn in some layers only (local_rope_theta)")
        if not isinstance(self.remat, bool) and self.remat not in REMAT_POLICIES:
            known = ", ".join(REMAT_POLICIES)
            raise ValueError(f"remat must be True, False or one of {known}, not {self.remat!r}")
        if not 0 <= self.num_top_layers <= self.num_layers:
            raise ValueError(
                f"num_top_layers must be from 0 to num_layers ({self.num_layers}), not "
                f"{self.num_top_layers}"
            )

    @property
    def resolved_head_dim(self) -> int:
        """The width of a head, given or derived."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def resolved_cache_dtype(self) -> jnp.dtype:
        """Of the keys and values that generation keeps, given or derived."""
        return self.dtype if self.cache_dtype is None else self.cache_dtype

    @property
    def resolved_query_scale(self) -> float:
        """What the scores of attention are multiplied by, given or derived."""
        return self.resolved_head_dim**-0.5 if self.query_scale is None else self.query_scale

    @property
    def resolved_sliding_layers(self) -> tuple[bool, ...]:
        """For each layer whether it sees no further than the window."""
        if self.sliding_layers is not None:
            return self.sliding_layers
        return (self.sliding_window is not None,) * self.num_layers
