"""Parameters to a folder that transformers, and whatever else reads its layout, can load."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from rlhf_jax import checks
from rlhf_jax.models import TransformerConfig
from rlhf_jax.pretrained import architectures
from rlhf_jax.pretrained.architectures import Entry
from rlhf_jax.pretrained.cards import Card
from rlhf_jax.pretrained.folders import INDEX, WEIGHTS
from rlhf_jax.pretrained.sources import Source, StoredTensor, listed, own_shape
from rlhf_jax.pretrained.tensors import write_tensors
from rlhf_jax.pretrained.tokenizers import Vocabulary, as_vocabulary, check_vocabulary
from rlhf_jax.types import Params

__all__ = ["save", "write_folder"]


def save(
    folder: str | os.PathLike[str],
    params: Params,
    config: TransformerConfig,
    tokenizer: Vocabulary | Tokenizer | None = None,
    *,
    card: Card | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model so that transformers, or ``load``, can load it.

    The folder appears under its name complete or not at all: what a killed save leaves begins with
    a dot and may be deleted. Tensors are written one after another, in the dtype that they have;
    ``load`` with that dtype gives the same bits.

    Args:
        folder: which is not there yet, or is empty.
        params: of ``language_model(config)``, on this process's devices.
        config: its shape.
        tokenizer: what was loaded, ``loaded.vocabulary``; or a ``Vocabulary`` of one's own; or a
            bare tokenizer, and then nothing says which token ends a text.
        card: what ``README.md`` says.
        shard_bytes: the most bytes of tensors in one file.

    Raises:
        FileExistsError: there is something in the folder.
        ValueError: the parameters are not of this shape, or not in a dtype that can be saved; the
            tokenizer does not belong to them; or an argument is wrong.
    """
    checks.positive(shard_bytes=shard_bytes)
    vocabulary = None if tokenizer is None else as_vocabulary(tokenizer)
    published = architectures.published_config(config)
    if vocabulary is not None:
        check_vocabulary(vocabulary, config.vocab_size, "tokenizer")
        for name in ("bos", "eos", "pad"):
            if f"{name}_token" in vocabulary.special:
                token = vocabulary.special[f"{name}_token"]
                published[f"{name}_token_id"] = vocabulary.tokenizer.token_to_id(token)
    table = architectures.entries(config, published["model_type"])
    leaves = _leaves(params, table)
    parts: dict[str, list[Entry]] = {}
    for entry in table:
        parts.setdefault(entry.name, []).append(entry)
    tensors = {
        name: StoredTensor(
            tuple(those[0].shape),
            np.dtype(leaves[those[0].path].dtype),
            partial(_stored, leaves, those),
        )
        for name, those in parts.items()
    }
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    published["torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    write_folder(
        Path(folder),
        Source(str(folder), published, tensors, lambda: vocabulary),
        card=card or Card(),
        shard_bytes=shard_bytes,
    )


def _leaves(params: Params, table: list[Entry]) -> dict[tuple[str, ...], jax.Array]:
    """The parameters by path, if they are those of the table."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    found = {tuple(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in flat}
    rows: dict[tuple[str, ...], int] = {}
    for entry in table:
        rows[entry.path] = rows.get(entry.path, 0) + 1
    problems = []
    for entry in table:
        own = own_shape(entry)
        shape = own if entry.layer is None else (rows[entry.path], *own)
        if entry.layer:
            continue  # the first of a stack speaks for all
        name = "/".join(entry.path)
        if entry.path not in found:
            problems.append(f"{name} {list(shape)} is missing")
        elif found[entry.path].shape != shape:
            problems.append(
                f"{name} is {list(found[entry.path].shape)}, but config makes it {list(shape)}"
            )
    problems += [f"{'/'.join(path)} is unexpected" for path in found if path not in rows]
    if problems:
        raise ValueError(f"params are not of config:\n{listed(problems)}")
    return found


def _stored(leaves: Mapping[tuple[str, ...], jax.Array], parts: Sequence[Entry]) -> np.ndarray:
    """One tensor as Hugging Face stores it: some are several of our parameters side by side."""
    found = []
    for entry in parts:
        leaf = leaves[entry.path]
        values = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
        found.append(values.T if entry.transpose else values)
    return found[0] if len(found) == 1 else np.concatenate(found, axis=-1)


def write_folder(
    folder: Path, source: Source, *, card: Card, shard_bytes: int = 5_000_000_000
) -> None:
    """A ``Source`` as a folder, complete or not at all.

    Raises:
        FileExistsError: there is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: choose another folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_json(scratch / "config.json", source.config)
        tokens = {name: source.config[name] for name in source.config if name.endswith("_token_id")}
        if tokens:
            _write_json(scratch / "generation_config.json", tokens)
        vocabulary = source.vocabulary()
        if vocabulary is not None:
            _write_vocabulary(scratch, vocabulary, source.config)
        (scratch / "README.md").write_text(card.text(), encoding="utf-8")
        _write_shards(scratch, source.tensors, shard_bytes)
        # mkdtemp lets nobody else in; a folder that mkdir() makes goes by the umask.
        mask = os.umask(0)
        os.umask(mask)
        scratch.chmod(0o777 & ~mask)
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _write_vocabulary(folder: Path, vocabulary: Vocabulary, config: Mapping[str, Any]) -> None:
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    values: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    values |= vocabulary.special
    values["clean_up_tokenization_spaces"] = False
    if "max_position_embeddings" in config:
        values["model_max_length"] = config["max_position_embeddings"]
    if vocabulary.chat_template is not None:
        values["chat_template"] = vocabulary.chat_template
    _write_json(folder / "tokenizer_config.json", values)


def _write_shards(folder: Path, tensors: Mapping[str, StoredTensor], shard_bytes: int) -> None:
    """One file, or as many as it takes and their index."""
    shards: list[dict[str, StoredTensor]] = [{}]
    total = filled = 0
    for name, tensor in tensors.items():
        size = tensor.dtype.itemsize * int(np.prod(tensor.shape))
        if filled + size > shard_bytes and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled, total = filled + size, total + size
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, shards[0])
        return
    where = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
