"""GGUF files, llama.cpp's format, as what Hugging Face would have published.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_jax.pretrained import architectures
from rlhf_jax.pretrained.gguf_tokenizers import vocabulary_of
from rlhf_jax.pretrained.sources import Source, StoredTensor

if TYPE_CHECKING:
    import gguf

__all__ = ["ARCHITECTURES", "QUANTISATIONS", "read_gguf"]

# llama.cpp's names, which for these are Hugging Face's too; Mistral is a "llama".
ARCHITECTURES = ("llama", "qwen2", "qwen3")
QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")

# GGUF's keys, behind the architecture's name, and Hugging Face's.
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_OPTIONAL = {"attention.key_length", "attention.head_count_kv", "rope.freq_base"}


def read_gguf(path: Path) -> Source:
    """A GGUF file as a ``Source``: Hugging Face's names, shapes and order of rows.

    Args:
        path: of a file of one part.

    Returns:
        The ``Source``. Each tensor is dequantised, to float32, when it is read.

    Raises:
        ImportError: the package ``gguf`` is not installed.
        ValueError: the file is damaged or cut short, or of an architecture, quantisation or
            tokenizer that is not supported.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "GGUF files need the package gguf: pip install 'rlhf_jax[pretrained]'"
        ) from error
    try:
        reader = gguf.GGUFReader(path)
    # Whatever a damaged file leads the reader into.
    except (ValueError, LookupError, OverflowError, MemoryError, TypeError) as error:
        raise ValueError(
            f"{path} is not a GGUF file, or is damaged or cut short: {error}"
        ) from error
    found = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in reader.tensors:
        if tensor.tensor_type.name not in QUANTISATIONS:
            raise ValueError(
                f"{path}: {tensor.name} is quantised as {tensor.tensor_type.name}, which is not "
                f"supported; what is: {', '.join(QUANTISATIONS)}"
            )
    config = _config(path, reader.fields, found)
    shape = architectures.config_from(config)
    kind = config["model_type"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config["num_hidden_layers"])
    tensors = {}
    for entry in architectures.entries(shape, kind):
        stored = names.get_name(entry.name, try_suffixes=(".weight", ".bias"))
        if stored in found:
            tensors[entry.name] = _tensor(found.pop(stored), config)
    # What the table does not know keeps its name, and will be reported by it.
    tensors |= {name: _tensor(tensor, config) for name, tensor in found.items()}
    return Source(str(path), config, tensors, partial(vocabulary_of, path, reader.fields))


def _config(
    path: Path, metadata: Mapping[str, "gguf.ReaderField"], found: dict[str, Any]
) -> dict[str, Any]:
    """What ``config.json`` would say."""

    def value(name: str) -> Any:
        if name not in metadata:
            raise ValueError(f"{path} lacks {name}")
        return metadata[name].contents()

    kind = value("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"{path} is of the architecture {kind!r}, which is not supported as GGUF; what is: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if "token_embd.weight" not in found:
        raise ValueError(f"{path} lacks token_embd.weight: it is no whole language model")
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config = {
        "model_type": kind,
        "architectures": [f"{names[kind]}ForCausalLM"],
        "vocab_size": int(found["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in found,
    }
    for name, published in _KEYS.items():
        if f"{kind}.{name}" in metadata or name not in _OPTIONAL:
            config[published] = value(f"{kind}.{name}")
    if f"{kind}.expert_count" in metadata and value(f"{kind}.expert_count"):
        raise ValueError(f"{path} is a mixture of experts, which is not supported")
    scaling = _rope_scaling(path, kind, metadata, config, found.pop("rope_freqs.weight", None))
    if scaling is not None:
        config["rope_scaling"] = scaling
    if kind == "llama" and "llama.rope.dimension_count" in metadata:
        config.setdefault("head_dim", value("llama.rope.dimension_count"))
    for token in ("bos", "eos", "pad"):
        name = f"tokenizer.ggml.{'padding' if token == 'pad' else token}_token_id"
        if name in metadata:
            config[f"{token}_token_id"] = value(name)
    # It is stored in float32: 1e-5 is written as 9.99999974e-06.
    config["rms_norm_eps"] = float(np.format_float_positional(np.float32(config["rms_norm_eps"])))
    return config


def _rope_scaling(
    path: Path,
    kind: str,
    metadata: Mapping[str, "gguf.ReaderField"],
    config: Mapping[str, Any],
    divisors: "gguf.ReaderTensor | None",
) -> dict[str, Any] | None:
    """Hugging Face's ``rope_scaling``. Of Llama 3's, GGUF has what it makes of each frequency."""
    name = f"{kind}.rope.scaling.type"
    stretched = metadata[name].contents() if name in metadata else "none"
    if stretched == "linear":
        factor = metadata[f"{kind}.rope.scaling.factor"].contents()
        return {"rope_type": "linear", "factor": factor}
    if stretched != "none":
        raise ValueError(
            f"{path} scales its positions by {stretched!r}, which is not supported; what is: "
            "linear, and Llama 3's"
        )
    if divisors is None:
        return None
    found = np.asarray(divisors.data, np.float32)
    # All that Llama 3.1 to 3.3 differ in is the factor.
    scaling = {
        "rope_type": "llama3",
        "factor": float(found.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    waves = 2 * np.pi * config["rope_theta"] ** (np.arange(len(found)) / len(found))
    smooth = np.clip((8192 / waves - 1.0) / (4.0 - 1.0), 0, 1)
    expected = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    if not np.allclose(found, expected, rtol=1e-3):
        raise ValueError(f"{path} scales its positions by rope_freqs.weight otherwise than Llama 3")
    return scaling


def _tensor(tensor: "gguf.ReaderTensor", config: Mapping[str, Any]) -> StoredTensor:
    """A tensor as Hugging Face has it. GGUF lists shapes in the opposite order."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    heads = None
    if config["model_type"] == "llama":
        if ".attn_q." in tensor.name:
            heads = config["num_attention_heads"]
        elif ".attn_k." in tensor.name:
            heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return StoredTensor(shape, np.dtype(np.float32), partial(_read, tensor, heads))


def _read(tensor: "gguf.ReaderTensor", heads: int | None) -> np.ndarray:
    import gguf

    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    if heads is None:
        return values
    # llama.cpp rotates neighbours (2i, 2i + 1), Hugging Face (i, i + D/2). Its converter reorders
    # the rows of queries and keys for that; this undoes it.
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
