"""Published checkpoints as our transformer: which tensor goes where (Llama, until merged)."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rlhf_jax.models import TransformerConfig

__all__ = ["Entry", "config_from", "entries", "published_config", "stored_names"]


class Entry(NamedTuple):
    """One Hugging Face tensor and where it goes.

    Attributes:
        name: as Hugging Face calls it.
        shape: as Hugging Face stores it.
        path: of our parameters.
        layer: row of the stacked parameter, ``None`` if it is not stacked.
        transpose: whether it is stored ``[out, in]`` and ours is ``[in, out]``.
        columns: which of its last axis go there, if not all.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    transpose: bool
    columns: tuple[int, int] | None = None


def config_from(published: Mapping[str, Any]) -> TransformerConfig:
    """Our configuration of a ``config.json``."""
    if published.get("model_type") != "llama":
        raise ValueError(
            f"model_type {published.get('model_type')!r} is not supported; what is: llama"
        )
    if published.get("quantization_config"):
        raise ValueError("quantised checkpoints are not supported")
    heads = published["num_attention_heads"]
    rope = published.get("rope_parameters") or {}
    return TransformerConfig(
        vocab_size=published["vocab_size"],
        hidden_size=published["hidden_size"],
        intermediate_size=published["intermediate_size"],
        num_layers=published["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=published.get("num_key_value_heads") or heads,
        head_dim=published.get("head_dim"),
        max_length=published.get("max_position_embeddings", 2048),
        rope_theta=published.get("rope_theta") or rope.get("rope_theta", 10_000.0),
        norm_epsilon=published.get("rms_norm_eps", 1e-6),
        tie_embeddings=published.get("tie_word_embeddings", False),
    )


def published_config(config: TransformerConfig) -> dict[str, Any]:
    """The ``config.json`` of a configuration."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.resolved_head_dim,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def entries(config: TransformerConfig, architecture: str) -> list[Entry]:
    """Where every tensor of a checkpoint goes."""
    width, hidden = config.resolved_head_dim, config.hidden_size
    queries, keys = config.num_heads * width, config.num_kv_heads * width
    inner = config.intermediate_size
    table = [
        Entry(
            "model.embed_tokens.weight",
            (config.vocab_size, hidden),
            ("embed", "embedding"),
            None,
            False,
        )
    ]
    for layer in range(config.num_layers):
        for name, shape, path in [
            ("input_layernorm", (hidden,), ("attention_norm", "scale")),
            ("self_attn.q_proj", (queries, hidden), ("query", "kernel")),
            ("self_attn.k_proj", (keys, hidden), ("key", "kernel")),
            ("self_attn.v_proj", (keys, hidden), ("value", "kernel")),
            ("self_attn.o_proj", (hidden, queries), ("attention_out", "kernel")),
            ("post_attention_layernorm", (hidden,), ("mlp_norm", "scale")),
            ("mlp.gate_proj", (inner, hidden), ("gate", "kernel")),
            ("mlp.up_proj", (inner, hidden), ("up", "kernel")),
            ("mlp.down_proj", (hidden, inner), ("down", "kernel")),
        ]:
            full = f"model.layers.{layer}.{name}.weight"
            table.append(Entry(full, shape, ("layers", *path), layer, len(shape) == 2))
    table.append(Entry("model.norm.weight", (hidden,), ("final_norm", "scale"), None, False))
    if not config.tie_embeddings:
        table.append(Entry("lm_head.weight", (config.vocab_size, hidden), ("unembed",), None, True))
    return table


def stored_names(names: Iterable[str], table: Iterable[Entry]) -> dict[str, str]:
    """By which name each tensor of a table is found in a checkpoint."""
    wanted = {entry.name for entry in table}
    needless = (".rotary_emb.inv_freq", "lm_head.weight")
    return {name: name for name in names if name in wanted or not name.endswith(needless)}
