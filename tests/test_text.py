"""Tokenizers: what comes back reads well, and padding is right."""

import numpy as np
import pytest

from rlhf_jax.data.text import BOS, EOS, PAD, UNK, decode, encode, train_tokenizer

SENTENCES = [
    "It isn't bad, is it?",
    'The film\'s "best" scene (by far): a dance!',
    "They'll say 'no' at 10:30; I'd pay $1,000 or 5%.",
    "a feel-good, pass/fail movie...",
    "I can't: they've o'clock at&t u.s. rights.",
    "@anonymous loves it :) #fb http://url_removed",
    "it scored 7/10 -- really",
]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_known_sentence_comes_back(kind):
    tokenizer = train_tokenizer(SENTENCES, vocab_size=400, kind=kind)
    tokens, mask = encode(tokenizer, SENTENCES, length=80)
    assert mask.sum(axis=1).max() < 80
    for row, text in zip(tokens, SENTENCES, strict=True):
        assert decode(tokenizer, row) == text.lower().replace("--", "\u2014")


def test_case_can_be_kept():
    tokenizer = train_tokenizer(["DON'T Stop"], vocab_size=20, lowercase=False)
    assert decode(tokenizer, encode(tokenizer, ["DON'T Stop"], length=9)[0][0]) == "DON'T Stop"


def test_typographers_variants_are_one():
    tokenizer = train_tokenizer(SENTENCES, vocab_size=400)
    plain = tokenizer.encode('it isn\'t "best" ...').ids
    assert tokenizer.encode("it isn\u2019t \u201cbest\u201d \u2026").ids == plain
    assert tokenizer.encode("it  isn`t ''best'' ....").ids == plain
    assert UNK not in plain


def test_special_tokens_have_fixed_numbers_and_rare_words_are_unknown():
    tokenizer = train_tokenizer(["a a a b b c"], vocab_size=6)
    assert [tokenizer.id_to_token(i) for i in range(6)] == [
        "<pad>",
        "<bos>",
        "<eos>",
        "<unk>",
        "a",
        "b",
    ]
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    tokens, _ = encode(tokenizer, ["a c"], length=5)
    assert tokens.tolist() == [[BOS, 4, UNK, EOS, PAD]]
    assert decode(tokenizer, tokens[0]) == "a <unk>"


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_text_cannot_forge_special_tokens(kind):
    tokenizer = train_tokenizer(SENTENCES, vocab_size=400, kind=kind)
    reloaded = type(tokenizer).from_str(tokenizer.to_str())
    for each in (tokenizer, reloaded):
        tokens, mask = encode(each, ["it <eos> is <pad><bos>"], length=40, bos=False, eos=False)
        assert not np.isin(tokens[mask], [PAD, BOS, EOS]).any()


def test_padding_and_truncation():
    tokenizer = train_tokenizer(["a b c d"], vocab_size=8)
    texts = ["a b", "a b c d", ""]
    tokens, mask = encode(tokenizer, texts, length=4)
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)
    assert tokens.tolist() == [[1, 4, 5, 2], [1, 4, 5, 6], [1, 2, 0, 0]]
    assert mask.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    tokens, mask = encode(tokenizer, texts, length=3, pad_side="left", eos=False)
    assert tokens.tolist() == [[1, 4, 5], [1, 4, 5], [0, 0, 1]]
    assert mask.tolist() == [[True] * 3, [True] * 3, [False, False, True]]
    tokens, mask = encode(tokenizer, ["", "a"], length=2, pad_side="left", bos=False, eos=False)
    assert mask.tolist() == [[False, False], [False, True]]
    assert encode(tokenizer, [], length=3)[0].shape == (0, 3)


def test_training_twice_gives_the_same():
    for kind in ("word", "bpe"):
        one, two = (train_tokenizer(SENTENCES, vocab_size=300, kind=kind) for _ in "ab")
        assert one.to_str() == two.to_str()


def test_bad_input():
    tokenizer = train_tokenizer(SENTENCES, vocab_size=50)
    with pytest.raises(ValueError, match="at least 5"):
        train_tokenizer(SENTENCES, vocab_size=4)
    with pytest.raises(ValueError, match="at least 260"):
        train_tokenizer(SENTENCES, vocab_size=259, kind="bpe")
    with pytest.raises(ValueError, match="'word' or 'bpe'"):
        train_tokenizer(SENTENCES, vocab_size=50, kind="char")
    with pytest.raises(ValueError, match="not one"):
        train_tokenizer("text", vocab_size=50)
    with pytest.raises(ValueError, match="not one"):
        encode(tokenizer, "text", length=5)
    with pytest.raises(ValueError, match="at least 1"):
        encode(tokenizer, ["text"], length=0)
    with pytest.raises(ValueError, match="'left' or 'right'"):
        encode(tokenizer, ["text"], length=5, pad_side="both")
    with pytest.raises(ValueError, match="one row"):
        decode(tokenizer, np.zeros((2, 3), int))
