"""Checkpoints in Hugging Face's layout: configuration, safetensors in one file or many, tokenizer.

Nothing in a folder is run or unpickled. What would have to be is refused with a way out.
"""

from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.pretrained.sources import Source, StoredTensor, listed, read_json
from rlhf_jax.pretrained.tensors import read_tensors
from rlhf_jax.pretrained.tokenizers import Vocabulary, read_tokenizer

__all__ = ["INDEX", "PICKLES", "WEIGHTS", "read_folder", "refuse_pickle"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# A tokenizer in these alone is of sentencepiece or of Python.
_OTHER_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def read_folder(folder: Path) -> Source:
    """A folder as a ``Source``; of the tensors, only the headers are read yet.

    Args:
        folder: with ``config.json``; ``model.safetensors``, or shards and their index; and, if it
            has a tokenizer, ``tokenizer.json`` and what goes with it.

    Returns:
        The ``Source``.

    Raises:
        FileNotFoundError: ``config.json``, the tensors or a shard are missing.
        ValueError: a file is damaged or not supported.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is not a Hugging Face checkpoint")
    config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.is_file():
        # It knows better how texts end: an instruction-tuned model's turn, say.
        also = {name: value for name, value in read_json(generation).items() if value is not None}
        config |= {name: also[name] for name in also if name.endswith("_token_id")}
    _refuse_code(folder / "config.json", config)
    return Source(str(folder), config, _tensors(folder), partial(_vocabulary, folder))


def refuse_pickle(path: Path) -> None:
    """Raises a ``ValueError`` that says how a pickle is made into what can be loaded."""
    folder = path.parent
    raise ValueError(
        f"{path} is a pickle: to read one is to run whatever program is in it, so it is not "
        "loaded. If you trust it, convert it once, where transformers is installed:\n"
        "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"  AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained('converted')\n"
        f"  AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained('converted')\n"
        "and load the folder 'converted'"
    )


def _refuse_code(path: Path, values: dict[str, Any]) -> None:
    if values.get("auto_map"):
        raise ValueError(
            f"{path} asks for a program of the checkpoint's own to be run (auto_map: "
            f"{values['auto_map']}): that is never done. If the model is of a supported "
            "architecture, a copy of the folder without auto_map can be loaded"
        )


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    """Of one file, or of all shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return read_tensors(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        for path in sorted(folder.iterdir()):
            if path.suffix in PICKLES:
                refuse_pickle(path)
        raise FileNotFoundError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}: only safetensors are loaded"
        )
    where = read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map of tensors to files")
    shards = sorted(set(where.values()))
    # A name like ../x would lead out of the folder.
    if strange := [name for name in shards if Path(name).name != name]:
        raise ValueError(f"{folder / INDEX} names {strange[0]!r}, which is not a file's name")
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards:\n{listed(missing)}"
        )
    tensors, problems = {}, []
    for shard in shards:
        found = read_tensors(folder / shard)
        named = {name for name in where if where[name] == shard}
        problems += [f"{name} is not in {shard}" for name in sorted(named - set(found))]
        problems += [f"{name} is in {shard}" for name in sorted(set(found) - named)]
        tensors |= found
    if problems:
        raise ValueError(f"{folder / INDEX} disagrees with the shards:\n{listed(problems)}")
    return tensors


def _vocabulary(folder: Path) -> Vocabulary | None:
    """The tokenizer with its special tokens and chat template."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        for name in _OTHER_TOKENIZERS:
            if (folder / name).is_file():
                raise ValueError(
                    f"{folder} has a tokenizer in {name} but no tokenizer.json, which alone can be "
                    "read; make one, where transformers is installed, with AutoTokenizer."
                    f"from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r}), or give "
                    "tokenizer="
                )
        return None
    tokenizer = read_tokenizer(path)
    special: dict[str, str] = {}
    template = None
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            _refuse_code(folder / name, values)
            special |= _special(values)
            template = values.get("chat_template", template)
    if isinstance(template, list):  # several by name
        template = {each["name"]: each["template"] for each in template}.get("default")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return Vocabulary(tokenizer, special, template)


def _special(values: dict[str, Any]) -> dict[str, str]:
    """The special tokens as text; some files write each with its settings."""
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = values.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return tokens
