"""Checkpoints to parameters on devices, a tensor at a time."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from rlhf_jax.data.templates import Template
from rlhf_jax.models import LanguageModel, TransformerConfig, language_model
from rlhf_jax.pretrained import architectures
from rlhf_jax.pretrained.architectures import Entry
from rlhf_jax.pretrained.folders import PICKLES, read_folder, refuse_pickle
from rlhf_jax.pretrained.gguf import read_gguf
from rlhf_jax.pretrained.hub import download, is_hub_name
from rlhf_jax.pretrained.shelf import SHELF, shelf_folder
from rlhf_jax.pretrained.sources import Source, StoredTensor, listed
from rlhf_jax.pretrained.tokenizers import (
    Vocabulary,
    check_vocabulary,
    first_token,
    template_of,
    token_id,
)
from rlhf_jax.types import LogitsFn, Params

__all__ = ["Placement", "Pretrained", "load"]

_log = logging.getLogger(__name__)

# A sharding for all parameters, or one by a parameter's path and shape.
Placement = jax.sharding.Sharding | Callable[[tuple[str, ...], tuple[int, ...]], Any]


class Pretrained(NamedTuple):
    """A checkpoint as pure functions and what goes with them.

    Attributes:
        logits_fn: a ``LogitsFn``; ``model.factored_logits_fn`` is the one to train with.
        params: its parameters.
        config: its shape.
        tokenizer: of ``tokenizers``, for ``data``; ``None`` if the checkpoint has none.
        model: the ``LanguageModel`` that they are for, with ``model.decoder`` for the sampler.
        template: conversations to text, for ``template=``; ``None`` if the checkpoint has none.
        chat_template: the same as it is written, in jinja.
        bos_id: what the tokenizer puts before a text, for ``bos_id=``; ``None`` if it does not.
            A chat template may write it itself.
        eos_id: the token that ends a text or a turn.
        pad_id: for padding. It may well be ``eos_id``, so that no mask can be told from it.
    """

    logits_fn: LogitsFn
    params: Params
    config: TransformerConfig
    tokenizer: Tokenizer | None
    model: LanguageModel
    template: Template | None
    chat_template: str | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int


def load(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    sharding: Placement | None = None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Pretrained:
    """A published language model, as pure functions, its parameters and its tokenizer."""
    source = _source(name_or_path, revision)
    config = architectures.config_from(source.config)
    config = dataclasses.replace(config, param_dtype=dtype, **overrides)
    vocabulary = source.vocabulary
    if tokenizer is not None:
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_file(os.fspath(tokenizer))
        vocabulary = Vocabulary(tokenizer, {}, None)
    if vocabulary is not None:
        check_vocabulary(vocabulary, config.vocab_size, source.place)
    table = architectures.entries(config, source.config["architectures"][0])
    _check(table, source)
    params = _assemble(table, source.tensors, jnp.dtype(dtype), sharding)
    model = language_model(config)
    eos_id = token_id(vocabulary, source.config, "eos")
    pad_id = token_id(vocabulary, source.config, "pad")
    return Pretrained(
        logits_fn=model.logits_fn,
        params=params,
        config=config,
        tokenizer=None if vocabulary is None else vocabulary.tokenizer,
        model=model,
        template=template_of(vocabulary),
        chat_template=None if vocabulary is None else vocabulary.chat_template,
        bos_id=first_token(vocabulary),
        eos_id=eos_id,
        pad_id=next((each for each in (pad_id, eos_id) if each is not None), 0),
    )


def _source(name_or_path: str | os.PathLike[str], revision: str | None) -> Source:
    """Whatever the name means, read."""
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    if name in SHELF and not path.exists():
        return read_folder(shelf_folder(name))
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".gguf" and path.is_file():
        return read_gguf(path)
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.is_file():
        raise ValueError(f"{path} is a file; give the folder that it is in, or a .gguf file")
    if path.suffix != ".gguf" and is_hub_name(name):
        return read_folder(download(name, revision))
    raise FileNotFoundError(
        f"{name} is neither a folder, nor a .gguf file, nor a name of the hub (organisation/model), "
        f"nor on the shelf: {', '.join(SHELF)}"
    )


def _check(table: Sequence[Entry], source: Source) -> None:
    """Raises unless the tensors are those of the table, by name and by shape."""
    wanted = {entry.name: tuple(entry.shape) for entry in table}
    found = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    problems = [f"{name} {list(wanted[name])} is missing" for name in wanted if name not in found]
    problems += [
        f"{name} is {list(found[name])}, but config.json makes it {list(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    problems += [
        f"{name} {list(found[name])} is unexpected" for name in found if name not in wanted
    ]
    if problems:
        raise ValueError(
            f"{source.place} does not have the tensors of {source.config['architectures'][0]}:\n"
            f"{listed(problems)}"
        )


def _assemble(
    table: Sequence[Entry],
    tensors: dict[str, StoredTensor],
    dtype: np.dtype,
    sharding: Placement | None,
) -> Params:
    """The parameters, each made and placed before the next is begun."""
    together: dict[tuple[str, ...], list[Entry]] = {}
    for entry in table:
        together.setdefault(entry.path, []).append(entry)
    params: dict[str, Any] = {}
    for path, parts in together.items():
        *parents, own = path
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[own] = _parameter(path, parts, tensors, dtype, sharding)
    return params


def _parameter(path, parts, tensors, dtype, sharding) -> jax.Array:
    one = parts[0].shape[::-1] if parts[0].transpose else parts[0].shape
    stacked = parts[0].layer is not None
    shape = (len(parts), *one) if stacked else tuple(one)

    def read(entry: Entry, index: tuple[slice, ...]) -> np.ndarray:
        values = tensors[entry.name].read()
        return (values.T if entry.transpose else values)[index]

    def block(index: tuple[slice, ...]) -> np.ndarray:
        """A part of the parameter: what one device holds."""
        size = [len(range(*cut.indices(n))) for cut, n in zip(index, shape, strict=True)]
        values = np.empty(size, dtype)
        if stacked:
            for row, entry in zip(values, parts[index[0]], strict=True):
                row[...] = read(entry, index[1:])
        else:
            values[...] = read(parts[0], index)
        return values

    if sharding is None:
        # Not committed to a device; copied, so that it is jax's own and may be donated.
        return jnp.array(block((slice(None),) * len(shape)), copy=True)
    if not isinstance(sharding, jax.sharding.Sharding):
        sharding = sharding(path, shape)
    return jax.make_array_from_callback(shape, sharding, block, dtype=dtype)
