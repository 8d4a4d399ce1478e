"""Tokenizers that are written in GGUF files, as those of ``tokenizers``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from rlhf_jax.pretrained.tokenizers import Vocabulary

if TYPE_CHECKING:
    import gguf

__all__ = ["PRE_TOKENIZERS", "vocabulary_of"]

_CONTROL, _USER_DEFINED = 3, 4  # types of tokens

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    whole = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence(
        [whole, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


# How text is cut before bytes are paired, by llama.cpp's name for it.
PRE_TOKENIZERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
}


def vocabulary_of(path: Path, metadata: Mapping[str, "gguf.ReaderField"]) -> Vocabulary | None:
    """The tokenizer of a GGUF file; ``None`` if there is none.

    Args:
        path: the file, for messages.
        metadata: its fields.

    Returns:
        A byte-level byte-pair tokenizer with its special tokens and chat template.

    Raises:
        ValueError: it is of another kind.
    """

    def value(name: str, default: Any = None) -> Any:
        field = metadata.get(f"tokenizer.{name}")
        return default if field is None else field.contents()

    model, cut = value("ggml.model"), value("ggml.pre", "gpt-2")
    if model is None:
        return None
    if model != "gpt2" or cut not in PRE_TOKENIZERS:
        raise ValueError(
            f"{path} has a tokenizer of the kind {model!r} (tokenizer.ggml.pre {cut!r}), which is "
            f"not supported; what is: 'gpt2' with {', '.join(PRE_TOKENIZERS)}. Give tokenizer=, "
            "the path of the original's tokenizer.json"
        )
    tokens = value("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[cut]
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, value("ggml.token_type", []), strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    special = {}
    for name, key in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")]:
        number = value(f"ggml.{key}_token_id")
        if number is not None:
            special[f"{name}_token"] = tokens[number]
    if value("ggml.add_bos_token", False) and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos}:0 $A:0",
                    pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                    special_tokens=[(bos, tokenizer.token_to_id(bos))],
                ),
            ]
        )
    return Vocabulary(tokenizer, special, value("chat_template"))
