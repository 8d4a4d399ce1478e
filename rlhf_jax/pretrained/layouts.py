"""Which tensor of a published checkpoint goes where among our parameters."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rlhf_jax.models import TransformerConfig

__all__ = [
    "ARCHITECTURES",
    "WITH_PICTURES",
    "Entry",
    "entries",
    "known",
    "model_type",
    "stored_names",
]

# By model_type, what transformers calls the whole model. The first that fits is what is published.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
WITH_PICTURES = {"gemma3": "Gemma3ForConditionalGeneration"}


class Entry(NamedTuple):
    """One Hugging Face tensor, or a part of one, and where it goes.

    Attributes:
        name: as Hugging Face calls it, ``"model.layers.3.self_attn.q_proj.weight"``.
        shape: as Hugging Face stores it, the whole of it.
        path: of our parameter, ``("layers", "query", "kernel")``.
        layer: row of the stacked parameter, ``None`` if it is not stacked.
        transpose: whether it is stored ``[out, in]`` and ours is ``[in, out]``.
        columns: the first and the last but one of its last axis, if only these go there; several
            entries then have one name, and together, in their order, all of its columns. Such a
            tensor is not transposed.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    transpose: bool
    columns: tuple[int, int] | None = None


def known() -> str:
    """What can be read, for messages."""
    return ", ".join([*ARCHITECTURES, *WITH_PICTURES])


def model_type(architecture: str) -> str:
    """The ``model_type`` of either name."""
    by_name = {name: kind for kind, name in (ARCHITECTURES | WITH_PICTURES).items()}
    kind = by_name.get(architecture, architecture)
    kind = "gemma3_text" if kind in WITH_PICTURES else kind
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"architecture {architecture!r} is not supported; what is: {known()}, or "
            f"{', '.join(by_name)}"
        )
    return kind


def entries(config: TransformerConfig, architecture: str) -> list[Entry]:
    """Where every tensor of a checkpoint goes.

    Args:
        config: of ``config_from``, in either layout of layers (``num_top_layers``).
        architecture: a ``model_type`` or a name such as ``"Qwen2ForCausalLM"``.

    Returns:
        An ``Entry`` for every tensor, or part of one, in the order of Hugging Face's modules.

    Raises:
        ValueError: the architecture is not supported.

    >>> for entry in entries(TransformerConfig(96, num_layers=1), "llama")[:2]:
    ...     print(entry.name, entry.shape, entry.path)
    model.embed_tokens.weight (96, 128) ('embed', 'embedding')
    model.layers.0.self_attn.q_proj.weight (128, 128) ('layers', 'query', 'kernel')
    """
    kind = model_type(architecture)
    table = _gpt2_entries if kind == "gpt2" else _llama_like_entries
    found = list(table(config, kind))
    if not config.tie_embeddings:
        shape = (config.vocab_size, config.hidden_size)
        found.append(Entry("lm_head.weight", shape, ("unembed",), None, True))
    return found


def _row(config: TransformerConfig, layer: int) -> tuple[str, int]:
    """The stack that a layer is in, and its row there."""
    below = config.num_layers - config.num_top_layers
    return ("layers", layer) if layer < below else ("top_layers", layer - below)


def _llama_like_entries(config: TransformerConfig, kind: str) -> Iterator[Entry]:
    hidden, inner, width = config.hidden_size, config.intermediate_size, config.resolved_head_dim
    queries, keys = config.num_heads * width, config.num_kv_heads * width
    dense = [
        ("self_attn.q_proj", "query", hidden, queries, config.qkv_bias),
        ("self_attn.k_proj", "key", hidden, keys, config.qkv_bias),
        ("self_attn.v_proj", "value", hidden, keys, config.qkv_bias),
        ("self_attn.o_proj", "attention_out", queries, hidden, config.attention_out_bias),
        ("mlp.gate_proj", "gate", hidden, inner, config.mlp_bias),
        ("mlp.up_proj", "up", hidden, inner, config.mlp_bias),
        ("mlp.down_proj", "down", inner, hidden, config.mlp_bias),
    ]
    norms = [("input_layernorm", "attention_norm", hidden)]
    if config.query_key_norm:
        norms += [
            ("self_attn.q_norm", "query_norm", width),
            ("self_attn.k_norm", "key_norm", width),
        ]
    if config.post_norms:
        norms += [
            ("post_attention_layernorm", "attention_post_norm", hidden),
            ("pre_feedforward_layernorm", "mlp_norm", hidden),
            ("post_feedforward_layernorm", "mlp_post_norm", hidden),
        ]
    else:
        norms += [("post_attention_layernorm", "mlp_norm", hidden)]
    embedding = (config.vocab_size, hidden)
    yield Entry("model.embed_tokens.weight", embedding, ("embed", "embedding"), None, False)
    for layer in range(config.num_layers):
        stack, row = _row(config, layer)
        for name, ours, size, out, biased in dense:
            name = f"model.layers.{layer}.{name}"
            yield Entry(f"{name}.weight", (out, size), (stack, ours, "kernel"), row, True)
            if biased:
                yield Entry(f"{name}.bias", (out,), (stack, ours, "bias"), row, False)
        for name, ours, size in norms:
            name = f"model.layers.{layer}.{name}.weight"
            yield Entry(name, (size,), (stack, ours, "scale"), row, False)
    yield Entry("model.norm.weight", (hidden,), ("final_norm", "scale"), None, False)


def _gpt2_entries(config: TransformerConfig, kind: str) -> Iterator[Entry]:
    hidden, inner = config.hidden_size, config.intermediate_size
    thirds = [(i * hidden, (i + 1) * hidden) for i in range(3)]
    dense = [
        *(("attn.c_attn", ours, hidden, 3 * hidden, columns)
          for ours, columns in zip(("query", "key", "value"), thirds, strict=True)),
        ("attn.c_proj", "attention_out", hidden, hidden, None),
        ("mlp.c_fc", "up", hidden, inner, None),
        ("mlp.c_proj", "down", inner, hidden, None),
    ]  # fmt: skip
    for name, ours, rows in (
        ("wte", "embed", config.vocab_size),
        ("wpe", "position_embed", config.max_length),
    ):
        path = (ours, "embedding")
        yield Entry(f"transformer.{name}.weight", (rows, hidden), path, None, False)
    for layer in range(config.num_layers):
        stack, row = _row(config, layer)
        for name, ours in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
            for part, own in (("weight", "scale"), ("bias", "bias")):
                name_of_part = f"transformer.h.{layer}.{name}.{part}"
                yield Entry(name_of_part, (hidden,), (stack, ours, own), row, False)
        for name, ours, size, out, columns in dense:
            name = f"transformer.h.{layer}.{name}"
            path = (stack, ours)
            yield Entry(f"{name}.weight", (size, out), (*path, "kernel"), row, False, columns)
            yield Entry(f"{name}.bias", (out,), (*path, "bias"), row, False, columns)
    for part, own in (("weight", "scale"), ("bias", "bias")):
        yield Entry(f"transformer.ln_f.{part}", (hidden,), ("final_norm", own), None, False)


def stored_names(names: Iterable[str], table: Iterable[Entry]) -> dict[str, str]:
    """By which name each tensor of a table is found in a checkpoint.

    Older checkpoints, and those of a model without its head, leave out the first part of the names
    or have more of it. What is not in the table and known to be needless (masks, rotary
    frequencies, an unembedding that is tied, a Gemma's eyes) is left out; whatever else is not
    keeps its name, to be complained of.

    Args:
        names: of the checkpoint's tensors.
        table: of ``entries``.

    Returns:
        The table's name, or the tensor's own, to the name in the checkpoint.

    Raises:
        ValueError: two tensors would be one.

    >>> table = entries(TransformerConfig(96, num_layers=1), "llama")
    >>> stored_names(["norm.weight", "layers.0.self_attn.rotary_emb.inv_freq"], table)
    {'model.norm.weight': 'norm.weight'}
    """
    wanted = {entry.name for entry in table}
    first = "transformer." if "transformer.wte.weight" in wanted else "model."
    found: dict[str, str] = {}
    for name in names:
        whole = first + name.removeprefix("model.language_model.")
        candidates = (name, whole, name.removeprefix("language_model."))
        ours = next((each for each in candidates if each in wanted), name)
        if ours not in wanted and _needless(name):
            continue
        if ours in found:
            raise ValueError(f"{found[ours]} and {name} are both {ours}")
        found[ours] = name
    return found


def _needless(name: str) -> bool:
    ends = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
    eyes = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.")
    eyes += ("model.multi_modal_projector.",)
    head = name in ("lm_head.weight", "language_model.lm_head.weight")
    return head or name.endswith(ends) or name.startswith(eyes)
