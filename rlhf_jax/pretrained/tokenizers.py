"""A checkpoint's tokenizer, with the tokens and the chat template that belong to it."""

import functools
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from rlhf_jax.data.formats import Messages
from rlhf_jax.data.templates import Template, chat_template

__all__ = [
    "Vocabulary",
    "as_vocabulary",
    "check_vocabulary",
    "first_token",
    "read_tokenizer",
    "template_of",
    "token_id",
]


class Vocabulary(NamedTuple):
    """A tokenizer and what Hugging Face keeps beside it in ``tokenizer_config.json``.

    Attributes:
        tokenizer: it neither pads nor truncates: ``data`` does.
        special: special tokens as text, by name: ``{"eos_token": "</s>"}``.
        chat_template: in jinja, if there is one.
    """

    tokenizer: Tokenizer
    special: Mapping[str, str] = MappingProxyType({})
    chat_template: str | None = None


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, set to neither pad nor truncate."""
    try:
        tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # of no narrower kind
        raise ValueError(f"{path} is not a tokenizer of tokenizers: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def as_vocabulary(tokenizer: Any) -> Vocabulary:
    """What was given as a tokenizer: itself, with what belongs to it, or its file."""
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = read_tokenizer(tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(
            "tokenizer must be a Vocabulary, a Tokenizer of tokenizers or the path of a "
            f"tokenizer.json, not {type(tokenizer).__name__}"
        )
    return Vocabulary(tokenizer, {}, None)


def token_id(vocabulary: Vocabulary | None, config: Mapping[str, Any], name: str) -> int | None:
    """The id of ``"eos"`` or ``"pad"``: the tokenizer's, or else the model configuration's."""
    token = None if vocabulary is None else vocabulary.special.get(f"{name}_token")
    if token is not None:
        return vocabulary.tokenizer.token_to_id(token)
    found = config.get(f"{name}_token_id")
    return (found or [None])[0] if isinstance(found, list) else found


def first_token(vocabulary: Vocabulary | None) -> int | None:
    """What the tokenizer puts before a text, if it does."""
    if vocabulary is None:
        return None
    encoding = vocabulary.tokenizer.encode("a", add_special_tokens=True)
    return encoding.ids[0] if encoding.special_tokens_mask[0] else None


def check_vocabulary(vocabulary: Vocabulary, vocab_size: int, place: str) -> None:
    """Raises a ``ValueError`` if a token has no row of the embedding, or a special one no token.

    That the embedding has rows to spare is common: they make its size a round number.
    """
    tokenizer = vocabulary.tokenizer
    token, largest = max(tokenizer.get_vocab(True).items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise ValueError(
            f"{place}: the tokenizer does not belong to this model: its token {token!r} is number "
            f"{largest}, but the embedding has {vocab_size} rows (vocab_size), 0 to "
            f"{vocab_size - 1}"
        )
    for name, token in vocabulary.special.items():
        if tokenizer.token_to_id(token) is None:
            raise ValueError(f"{place}: {name} is {token!r}, which the tokenizer does not know")


def template_of(vocabulary: Vocabulary | None) -> Template | None:
    """The chat template as a function for ``template=``.

    It is compiled when first used: what does not chat needs no jinja2.
    """
    if vocabulary is None or vocabulary.chat_template is None:
        return None

    @functools.cache
    def compiled() -> Template:
        return chat_template(vocabulary.chat_template, **vocabulary.special)

    def template(messages: Messages, begin_answer: bool) -> str:
        return compiled()(messages, begin_answer)

    return template
