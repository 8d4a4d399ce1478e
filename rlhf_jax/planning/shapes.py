"""The shapes of well-known models, as their ``config.json`` publishes them."""

import dataclasses
import difflib

import jax

from rlhf_jax.models import TransformerConfig, language_model

__all__ = ["SHAPES", "parameter_count", "shape"]

_LLAMA_3 = TransformerConfig(
    vocab_size=128_256,
    max_length=8_192,
    rope_theta=500_000.0,
    num_kv_heads=8,
    num_heads=32,
    tie_embeddings=False,
)
_QWEN_2_5 = TransformerConfig(
    vocab_size=151_936, rope_theta=1_000_000.0, norm_epsilon=1e-6, qkv_bias=True
)

SHAPES: dict[str, TransformerConfig] = {
    "smollm2-135m": TransformerConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        max_length=8_192,
        rope_theta=100_000.0,
    ),
    "qwen2.5-0.5b": dataclasses.replace(
        _QWEN_2_5,
        hidden_size=896,
        intermediate_size=4_864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        max_length=32_768,
    ),
    "qwen2.5-7b": dataclasses.replace(
        _QWEN_2_5,
        vocab_size=152_064,
        hidden_size=3_584,
        intermediate_size=18_944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        max_length=131_072,
        tie_embeddings=False,
    ),
    "llama-3-8b": dataclasses.replace(
        _LLAMA_3, hidden_size=4_096, intermediate_size=14_336, num_layers=32
    ),
    "llama-3-70b": dataclasses.replace(
        _LLAMA_3, hidden_size=8_192, intermediate_size=28_672, num_layers=80, num_heads=64
    ),
}


def shape(model: str | TransformerConfig) -> TransformerConfig:
    """The shape of a model.

    Args:
        model: its name, or a shape of your own.

    Returns:
        Its ``TransformerConfig``, in float32 as they all begin.

    Raises:
        ValueError: if the name is none of ``SHAPES``.

    >>> shape("llama-3-8b").num_kv_heads
    8
    >>> shape("llama-3-8")
    Traceback (most recent call last):
    ValueError: model 'llama-3-8' is not known; did you mean 'llama-3-8b'? There are smollm2-135m, \
qwen2.5-0.5b, qwen2.5-7b, llama-3-8b, llama-3-70b; or give a TransformerConfig
    """
    if isinstance(model, TransformerConfig):
        return model
    if model in SHAPES:
        return SHAPES[model]
    close = difflib.get_close_matches(str(model), SHAPES, 1)
    hint = f"; did you mean {close[0]!r}? There" if close else ". There"
    raise ValueError(
        f"model {model!r} is not known{hint} are {', '.join(SHAPES)}; or give a TransformerConfig"
    )


def parameter_count(config: TransformerConfig) -> int:
    """How many numbers a model has; nothing is allocated.

    >>> parameter_count(SHAPES["smollm2-135m"])
    134515008
    """
    shapes = jax.eval_shape(language_model(config).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))
