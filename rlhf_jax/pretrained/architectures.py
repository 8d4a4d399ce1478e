"""Published architectures in terms of ours: what ``config.json`` says, there and back.

What ``config.json`` says of training (dropout, initialisation) is not read. What it says of the
model and this library cannot do is refused by name, with what it can.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from rlhf_jax.models import RopeScaling, TransformerConfig
from rlhf_jax.pretrained.layouts import (
    ARCHITECTURES,
    WITH_PICTURES,
    Entry,
    entries,
    known,
    model_type,
    stored_names,
)

__all__ = ["ARCHITECTURES", "Entry", "config_from", "entries", "published_config", "stored_names"]

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# What a config.json may leave out, as transformers fills it in.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
    "gemma2": {
        "max_position_embeddings": 8192,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
}
_COMMON_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
}


def config_from(published: Mapping[str, Any]) -> TransformerConfig:
    """The shape of a published model.

    Args:
        published: what its ``config.json`` holds. Of a Gemma 3 that sees pictures too, the part
            that reads text is taken.

    Returns:
        Its ``TransformerConfig``; the dtypes are left as they are by default.

    Raises:
        ValueError: something is not supported, which is named with what is; or is missing.

    >>> config = config_from({
    ...     "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64,
    ...     "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
    ... })
    >>> config.num_kv_heads, config.tie_embeddings
    (4, False)
    """
    kind = published.get("model_type")
    if kind in WITH_PICTURES:
        kind = "gemma3_text"
        published = {**published.get("text_config", {}), "model_type": kind}
    if kind not in ARCHITECTURES:
        raise ValueError(f"model_type {kind!r} is not supported; what is: {known()}")
    if published.get("quantization_config"):
        method = published["quantization_config"].get("quant_method", "unknown")
        raise ValueError(
            f"quantization_config: weights quantised by {method!r} are not supported; float32, "
            "float16 and bfloat16 are"
        )
    # transformers takes null for the default, too, but where null says something.
    given = {k: v for k, v in published.items() if v is not None or k in _MEANS_NONE}
    given = {**_COMMON_DEFAULTS, **_DEFAULTS[kind], **given}
    try:
        return _gpt2(given) if kind == "gpt2" else _llama_like(kind, given)
    except KeyError as error:
        raise ValueError(f"config.json of a {kind} must have {error.args[0]!r}") from error


_MEANS_NONE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def _refuse(given: Mapping[str, Any], **supported: Any) -> None:
    """Whatever is there and not as supported."""
    for name, value in supported.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name}={given[name]!r} is not supported; what is: {value!r}")


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ValueError(f"the activation {name!r} is not supported; what is: {known}")
    return _ACTIVATIONS[name]


def _gpt2(given: Mapping[str, Any]) -> TransformerConfig:
    _refuse(given, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return TransformerConfig(
        vocab_size=given["vocab_size"],
        hidden_size=given["n_embd"],
        intermediate_size=given.get("n_inner") or 4 * given["n_embd"],
        num_layers=given["n_layer"],
        num_heads=given["n_head"],
        num_kv_heads=given["n_head"],
        max_length=given["n_positions"],
        norm_epsilon=given["layer_norm_epsilon"],
        tie_embeddings=given["tie_word_embeddings"],
        activation=_activation(given["activation_function"]),
        query_scale=None if given.get("scale_attn_weights", True) else 1.0,
        learned_positions=True,
        norm="layer",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        gated_mlp=False,
    )


def _llama_like(kind: str, given: Mapping[str, Any]) -> TransformerConfig:
    gemma = kind in ("gemma2", "gemma3_text")
    # No softcap is applied by transformers' Gemma 3, whatever config.json says: none says so.
    refused = {"attn_logit_softcapping": None} if kind == "gemma3_text" else {}
    refused |= {"use_bidirectional_attention": False} if gemma else {}
    _refuse(given, partial_rotary_factor=1.0, **refused)
    all_biases = kind not in ("mistral", "qwen2") and bool(given.get("attention_bias"))
    settings: dict[str, Any] = {
        "vocab_size": given["vocab_size"],
        "hidden_size": given["hidden_size"],
        "intermediate_size": given["intermediate_size"],
        "num_layers": given["num_hidden_layers"],
        "num_heads": given["num_attention_heads"],
        "num_kv_heads": given["num_key_value_heads"] or given["num_attention_heads"],
        "head_dim": given.get("head_dim"),
        "max_length": given["max_position_embeddings"],
        "norm_epsilon": given["rms_norm_eps"],
        "tie_embeddings": given["tie_word_embeddings"],
        "activation": _activation(given["hidden_activation" if gemma else "hidden_act"]),
        "qkv_bias": all_biases or kind == "qwen2",
        "attention_out_bias": all_biases,
        "mlp_bias": kind == "llama" and bool(given.get("mlp_bias")),
        "query_key_norm": kind in ("qwen3", "gemma3_text"),
    }
    if gemma:
        settings |= {
            "norm": "rms_from_one",
            "post_norms": True,
            "embedding_scale": given["hidden_size"] ** 0.5,
            "query_scale": given["query_pre_attn_scalar"] ** -0.5,
            "attention_softcap": given.get("attn_logit_softcapping"),
            "logit_softcap": given.get("final_logit_softcapping"),
        }
    settings |= _windows(kind, given)
    return TransformerConfig(**settings, **_rope(kind, given, settings))


def _windows(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers see no further than a window."""
    count, window = given["num_hidden_layers"], given.get("sliding_window")
    if kind == "llama" or (kind in ("qwen2", "qwen3") and not given.get("use_sliding_window")):
        return {}
    if kind == "mistral":
        return {} if window is None else {"sliding_window": window}
    types = given.get("layer_types")
    if types is not None:
        if unknown := set(types) - {"sliding_attention", "full_attention"}:
            raise ValueError(
                f"layer_types: {', '.join(sorted(unknown))} is not supported; what is: "
                "full_attention, sliding_attention"
            )
        slides = tuple(each == "sliding_attention" for each in types)
    elif kind in ("qwen2", "qwen3"):
        slides = tuple(i >= given["max_window_layers"] for i in range(count))
    else:
        every = 2 if kind == "gemma2" else given["sliding_window_pattern"]
        slides = tuple((i + 1) % every != 0 for i in range(count))
    if window is None or not any(slides):
        return {}
    return {"sliding_window": window, "sliding_layers": None if all(slides) else slides}


def _rope(kind: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bases and scaling, in transformers' present layout (``rope_parameters``) or in the older."""
    rope = dict(given.get("rope_parameters") or {})
    local = given.get("rope_local_base_freq")
    if kind == "gemma3_text" and set(rope) & {"full_attention", "sliding_attention"}:
        sliding = dict(rope.get("sliding_attention") or {})
        _refuse(sliding, rope_type="default", partial_rotary_factor=1.0)
        local = sliding.get("rope_theta", local)
        rope = dict(rope.get("full_attention") or {})
    rope = {**rope, **(given.get("rope_scaling") or {})}
    theta = float(rope.get("rope_theta", given["rope_theta"]))
    found = {"rope_theta": theta, "rope_scaling": _scaling(rope, settings["max_length"])}
    if kind == "gemma3_text" and settings.get("sliding_window"):
        found["local_rope_theta"] = float(local)
    return found


def _scaling(rope: Mapping[str, Any], max_length: int) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise ValueError(f"rope_type {kind!r} is not supported; what is: {', '.join(_ROPE_TYPES)}")
    _refuse(rope, partial_rotary_factor=1.0, mscale=None, mscale_all_dim=None)
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    length = rope.get("original_max_position_embeddings") or max_length
    if kind == "llama3":
        slow, fast = rope["low_freq_factor"], rope["high_freq_factor"]
        return RopeScaling("llama3", float(rope["factor"]), length, float(slow), float(fast))
    return RopeScaling(
        "yarn",
        float(rope["factor"]),
        length,
        slow=float(rope.get("beta_slow") or 1),
        fast=float(rope.get("beta_fast") or 32),
        attention_factor=rope.get("attention_factor"),
        truncate=rope.get("truncate", True),
    )


def published_config(config: TransformerConfig, architecture: str | None = None) -> dict[str, Any]:
    """What ``config.json`` says of a model; ``config_from`` turns it back.

    Args:
        config: its shape.
        architecture: a ``model_type`` or a name such as ``"Qwen2ForCausalLM"``; by default the
            first of ``ARCHITECTURES`` that can express the shape.

    Returns:
        Plain values, to which special tokens and whatever else may be added. They are in the layout
        of transformers 4, which transformers 5 reads as well.

    Raises:
        ValueError: no architecture, or not this one, can express the shape.

    >>> published_config(TransformerConfig(vocab_size=96))["architectures"]
    ['LlamaForCausalLM']
    """
    kinds = list(ARCHITECTURES) if architecture is None else [model_type(architecture)]
    problems = []
    for kind in kinds:
        published = _gpt2_config(config) if kind == "gpt2" else _llama_like_config(kind, config)
        differing = _differences(config, published)
        if not differing:
            dtype = {"torch_dtype": jnp.dtype(config.param_dtype).name}
            return {"architectures": [ARCHITECTURES[kind]], **published, **dtype}
        problems.append(f"  {kind}: {', '.join(differing)}")
    raise ValueError(
        "config cannot be expressed as published architectures are; what differs:\n"
        + "\n".join(problems)
    )


def _differences(config: TransformerConfig, published: Mapping[str, Any]) -> list[str]:
    """The fields that would come back as others: what the architecture cannot express."""

    def essence(config: TransformerConfig) -> dict[str, Any]:
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        for name in ("head_dim", "query_scale", "sliding_layers"):
            fields[name] = getattr(config, f"resolved_{name}")
        for name in ("remat", "param_dtype", "dtype", "logits_dtype", "num_top_layers"):
            del fields[name]  # How it is computed, not what.
        if not any(config.resolved_sliding_layers):
            fields |= {"sliding_window": None, "local_rope_theta": None}
        if config.learned_positions:
            del fields["rope_theta"], fields["rope_scaling"], fields["local_rope_theta"]
        return fields

    try:
        back = essence(config_from(published))
    except ValueError as error:
        return [str(error)]
    own = essence(config)
    return [
        f"{name}={own.get(name)} (it would be {back.get(name)})"
        for name in sorted(own.keys() | back.keys())
        if own.get(name) != back.get(name)
    ]


def _published_activation(config: TransformerConfig, kind: str) -> str:
    if config.activation != "gelu_tanh":
        return config.activation
    return "gelu_new" if kind == "gpt2" else "gelu_pytorch_tanh"


def _gpt2_config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": _published_activation(config, "gpt2"),
        "scale_attn_weights": config.resolved_query_scale != 1,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _llama_like_config(kind: str, config: TransformerConfig) -> dict[str, Any]:
    gemma, window = kind in ("gemma2", "gemma3_text"), config.sliding_window
    published: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.resolved_head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": _published_scaling(config.rope_scaling),
    }
    published["hidden_activation" if gemma else "hidden_act"] = _published_activation(config, kind)
    if kind not in ("mistral", "qwen2"):
        published["attention_bias"] = config.attention_out_bias
    if kind == "llama":
        published["mlp_bias"] = config.mlp_bias
    slides = config.resolved_sliding_layers
    if kind == "mistral":
        published["sliding_window"] = window
    elif kind != "llama":
        names = ("full_attention", "sliding_attention")
        published["layer_types"] = [names[each] for each in slides]
        published["sliding_window"] = window or _DEFAULTS[kind]["sliding_window"]
    if kind in ("qwen2", "qwen3"):
        first = slides.index(True) if any(slides) else len(slides)
        published |= {"use_sliding_window": any(slides), "max_window_layers": first}
    if gemma:
        published |= {
            # Gemma's checkpoints say so in whole numbers, and transformers wants no others.
            "query_pre_attn_scalar": max(1, round(config.resolved_query_scale**-2)),
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
    if kind == "gemma3_text":
        published["rope_local_base_freq"] = config.local_rope_theta or 10_000.0
    return published


def _published_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    published: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return published
    published["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        return published | {"low_freq_factor": scaling.slow, "high_freq_factor": scaling.fast}
    published |= {"beta_slow": scaling.slow, "beta_fast": scaling.fast}
    if scaling.attention_factor is not None:
        published["attention_factor"] = scaling.attention_factor
    return published | {"truncate": scaling.truncate}
