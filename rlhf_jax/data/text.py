"""Text as padded token arrays with masks, and back to text that reads well.

Padding, truncation and masks are dealt with here and nowhere else. A mask comes from the length of
the text and never from comparing tokens with the padding token.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "SPECIAL_TOKENS",
    "UNK",
    "decode",
    "encode",
    "stream",
    "train_tokenizer",
]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)

# Tried from left to right. Contractions come apart ("do" + "n't", "film" + "'s") so that a small
# vocabulary knows both halves; abbreviations, numbers, links and emoticons stay whole.
_WORD = "|".join(
    [
        r"https?://\S+",
        r"[:;=]['-]?[()|/\\dpDP](?!\w)",  # emoticons
        r"[@#]\w+",
        r"(?:\p{L}\.){2,}",
        r"\d+(?:[.,:]\d+)+",
        r"\w+&\w+",
        r"\w+(?=(?i:n't)\b)",
        r"(?i:n't)\b",
        r"(?<=\w)'(?i:s|re|ve|m|ll|d)\b",
        r"\w+(?='(?i:s|re|ve|m|ll|d)\b)",
        r"\w+(?:'\w+)*",  # o'clock
        r"\.\.\.",
        r"[^\w\s]",
    ]
)


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool = True,
    kind: Literal["word", "bpe"] = "word",
) -> Tokenizer:
    """A tokenizer fitted to some texts.

    Token 0 is ``<pad>``, 1 ``<bos>``, 2 ``<eos>`` and 3 ``<unk>``. Special tokens that a text
    spells out are treated as ordinary text.

    Args:
        texts: what to fit it to.
        vocab_size: how many tokens there are at most, the four special ones included.
        lowercase: whether to write everything in lower case.
        kind: ``"word"`` for the commonest words, so that whatever is generated is made of words;
            ``"bpe"`` for byte pairs, which lose nothing and never need ``<unk>``.

    Returns:
        A tokenizer of Hugging Face's ``tokenizers``, whose own ``decode`` reads well too; it can be
        kept with ``save`` or ``to_str``.

    Raises:
        ValueError: ``vocab_size`` is too small (5, or 260 for byte pairs), ``kind`` is neither, or
            ``texts`` is one string.

    >>> tokenizer = train_tokenizer(["It isn't bad, is it?", "Not bad!"], vocab_size=32)
    >>> tokenizer.encode("Isn't it bad?").tokens
    ['is', "n't", 'it', 'bad', '?']
    >>> decode(tokenizer, tokenizer.encode("Isn't it bad?").ids)
    "isn't it bad?"
    """
    if isinstance(texts, str):
        raise ValueError("texts must be several strings, not one")
    if kind not in ("word", "bpe"):
        raise ValueError(f"kind must be 'word' or 'bpe', got {kind!r}")
    least = len(SPECIAL_TOKENS) + (1 if kind == "word" else 256)
    if operator.index(vocab_size) < least:
        raise ValueError(f"vocab_size must be at least {least} for kind={kind!r}: {vocab_size}")
    if kind == "word":
        tokenizer, trainer = _word_level(vocab_size, lowercase)
    else:
        tokenizer, trainer = _byte_pairs(vocab_size, lowercase)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    length: int,
    pad_side: Literal["left", "right"] = "right",
    bos: bool = True,
    eos: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as one padded array of tokens and its mask.

    A text that is too long loses its end, and with it its ``<eos>``: a model should not learn that
    a sentence may stop anywhere.

    Args:
        tokenizer: one with the special tokens of ``train_tokenizer``.
        texts: ``N`` texts.
        length: ``T``, tokens in a row, ``<bos>`` and ``<eos>`` included.
        pad_side: where the padding goes: ``"right"`` for training, ``"left"`` for prompts.
        bos: whether to begin each text with ``<bos>``.
        eos: whether to end each text with ``<eos>``.

    Returns:
        tokens ``int32[N, T]`` and mask ``bool[N, T]``, true on all but padding.

    Raises:
        ValueError: ``length`` is not positive, ``pad_side`` is neither, ``texts`` is one string, or
            the tokenizer lacks a special token that is asked for.

    >>> tokenizer = train_tokenizer(["good film"], vocab_size=8)
    >>> tokens, mask = encode(tokenizer, ["good film", "film", "bad"], length=4)
    >>> tokens.tolist()
    [[1, 5, 4, 2], [1, 4, 2, 0], [1, 3, 2, 0]]
    >>> mask.sum(axis=1).tolist()
    [4, 3, 3]
    """
    if isinstance(texts, str):
        raise ValueError("texts must be several strings, not one")
    if operator.index(length) < 1:
        raise ValueError(f"length must be at least 1: {length}")
    if pad_side not in ("left", "right"):
        raise ValueError(f"pad_side must be 'left' or 'right', got {pad_side!r}")
    before = [_special(tokenizer, "<bos>")] if bos else []
    after = [_special(tokenizer, "<eos>")] if eos else []
    # Not kept by tokenizers when saved, so set again: a text cannot forge an end of text.
    tokenizer.encode_special_tokens = True
    tokens = np.full((len(texts), length), _special(tokenizer, "<pad>"), np.int32)
    mask = np.zeros((len(texts), length), bool)
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    for row, encoding in enumerate(encodings):
        ids = (before + encoding.ids + after)[:length]
        columns = slice(length - len(ids), None) if pad_side == "left" else slice(len(ids))
        tokens[row, columns], mask[row, columns] = ids, True
    return tokens, mask


def stream(tokenizer: Tokenizer, texts: Sequence[str], *, length: int) -> np.ndarray:
    """Texts one after another, cut into rows without padding: for pretraining.

    Where a row begins within a text, the model does not see that text's beginning; and it sees the
    texts before in the same row. Shuffle the texts beforehand.

    Args:
        tokenizer: one with the special tokens of ``train_tokenizer``.
        texts: at least ``length`` tokens of text.
        length: ``T``, tokens in a row.

    Returns:
        tokens ``int32[N, T]``, each text between ``<bos>`` and ``<eos>``; an incomplete last row is
        dropped.

    Raises:
        ValueError: the texts do not fill one row.

    >>> tokenizer = train_tokenizer(["good film"], vocab_size=8)
    >>> stream(tokenizer, ["good film", "film"], length=3).tolist()
    [[1, 5, 4], [2, 1, 4]]
    """
    longest = max((len(text) for text in texts), default=0) + 2
    tokens, mask = encode(tokenizer, texts, length=longest)
    flat = tokens[mask]
    rows = len(flat) // length
    if rows == 0:
        raise ValueError(f"{len(flat)} tokens of text do not fill one row of {length}")
    return flat[: rows * length].reshape(rows, length)


def decode(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """The text of one row of tokens: no padding, ``<bos>`` or ``<eos>``, no space before a comma.

    Args:
        tokenizer: one with the special tokens of ``train_tokenizer``.
        ids: ``int[T]``.

    Returns:
        The text; words that the tokenizer does not know read ``<unk>``.

    Raises:
        ValueError: ``ids`` is not one row.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(f"decode takes one row of tokens, got the shape {ids.shape}")
    unseen = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS[:3]}
    kept = [token for token in ids.astype(int).tolist() if token not in unseen]
    return tokenizer.decode(kept, skip_special_tokens=False).strip()


def _special(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ValueError(f"this tokenizer has no {token} token")
    return index


def _normalisers(lowercase: bool) -> list[normalizers.Normalizer]:
    """Typographers' variants as one character each."""
    steps = [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"[\u2018\u2019`]"), "'"),
        normalizers.Replace(Regex(r"''|[\u201c\u201d]"), '"'),
        normalizers.Replace("\u2026", "..."),
        normalizers.Replace(Regex(r"\s*-{2,}\s*|\s+[-\u2013]\s+|\s*\u2014\s*"), " \u2014 "),
        normalizers.Replace("\u2013", "-"),
        normalizers.Replace(Regex(r"\s+"), " "),
    ]
    return [*steps, normalizers.Lowercase()] if lowercase else steps


def _word_level(vocab_size: int, lowercase: bool) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    # Opening and closing quotation marks become two tokens, so that what is generated can be put
    # together again by looking at neighbours alone; the decoder makes them one character again.
    quotes = [
        normalizers.Replace(Regex(r'(?<![^\s(\[])"(?=\S)'), "\u201c"),
        normalizers.Replace('"', "\u201d"),
        normalizers.Replace(Regex(r"(?<![^\s(\[\u201c])'(?=\S)"), "\u2018"),
        normalizers.Replace(Regex(r"\.{2,}"), "..."),
    ]
    tokenizer.normalizer = normalizers.Sequence([*_normalisers(lowercase), *quotes])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    closing = r"[.,!?)\]%\u201d]|;(?= |$)|(?i:n't)(?= |$)|'(?i:s|re|ve|m|ll|d)?(?= |$)"
    tokenizer.decoder = decoders.Sequence(
        [
            # No word starts with that prefix, so this puts a space before every token.
            decoders.WordPiece(prefix="\0", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(rf" (?={closing})"), ""),
            decoders.Replace(Regex(r" :(?= |$)"), ":"),
            decoders.Replace(Regex(r"(?<=[(\[$\u2018\u201c]) "), ""),
            decoders.Replace(Regex(r"(?<=[\w>]) - (?=[\w<])"), "-"),
            decoders.Replace(Regex(r"(?<=[\w>]) / (?=[\w<])"), "/"),
            decoders.Replace("\u2018", "'"),
            decoders.Replace(Regex(r"[\u201c\u201d]"), '"'),
        ]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    return tokenizer, trainer


def _byte_pairs(vocab_size: int, lowercase: bool) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(_normalisers(lowercase))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer
