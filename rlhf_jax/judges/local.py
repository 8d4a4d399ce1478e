"""A language model of this process as a judge: any ``LogitsFn``, and plain functions for text."""

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks, vocabulary
from rlhf_jax.judges.common import Ask, Generate, Unanswered, aligned_texts, spellings
from rlhf_jax.types import FactoredLogits, Key, LogitsFn, Params, Prompts, SampleFn

__all__ = [
    "choice_log_odds",
    "choice_tokens",
    "ids_of",
    "joined",
    "local_ask",
    "local_generate",
]

_SHORTEST = 16


def ids_of(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """The text's tokens, checked to be a list of integers."""
    ids = encode(text)
    if not isinstance(ids, list | tuple | np.ndarray):
        raise ValueError(
            f"encode must return a list of integers, not {type(ids).__name__} (of the tokenizers "
            "library: lambda text: tokenizer.encode(text, add_special_tokens=False).ids)"
        )
    return [int(token) for token in ids]


def choice_tokens(
    encode: Callable[[str], list[int]], choices: tuple[str, str]
) -> tuple[list[int], list[int]]:
    """The tokens that mean each of two choices: its ``spellings`` that are a single token.

    Args:
        encode: ``str -> list[int]``, without special tokens.
        choices: two words.

    Returns:
        The tokens of the first and those of the second.

    Raises:
        ValueError: one choice is never a single token, or the two have one in common.

    >>> vocabulary = {"A": 3, " A": 7, "B": 4}
    >>> choice_tokens(lambda text: [vocabulary[text]] if text in vocabulary else [0, 0], ("A", "B"))
    ([3, 7], [4])
    >>> choice_tokens(lambda text: [0], ("A", "B"))
    Traceback (most recent call last):
    ValueError: choices 'A' and 'B' have the token 0 in common, so that an answer means nothing
    """
    found = []
    for choice in choices:
        encoded = [ids_of(encode, spelling) for spelling in spellings(choice)]
        single = list(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
        if not single:
            raise ValueError(
                f"choice {choice!r} is not a token of this vocabulary: it encodes to {encoded[0]} "
                "(encode must add no special tokens)"
            )
        found.append(single)
    if common := set(found[0]) & set(found[1]):
        raise ValueError(
            f"choices {choices[0]!r} and {choices[1]!r} have the token {min(common)} in common, "
            "so that an answer means nothing"
        )
    return found[0], found[1]


def choice_log_odds(
    logits: jax.Array | FactoredLogits, mask: jax.Array, first: Sequence[int], second: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    r"""How much more likely one answer is than another as the token after a text.

    .. math:: \log \sum_{a \in F} p(a \mid x) - \log \sum_{b \in S} p(b \mid x)

    Args:
        logits: ``float[B, T, V]`` or ``FactoredLogits``; of the latter only one column is
            multiplied out.
        mask: ``bool[B, T]``, true on the text, at least one in each row.
        first: ``int[F]``, not to be traced, the tokens that mean the first answer.
        second: ``int[S]``, those that mean the second.

    Returns:
        The log-odds ``float32[B]`` in nats, and the probability ``float32[B]`` that the next token
        is either: where that is small the model did not take the question as one.

    Raises:
        ValueError: the model's vocabulary does not have one of the tokens.

    >>> logits = jnp.log(jnp.array([[[0.6, 0.3, 0.1]]]))
    >>> odds, mass = choice_log_odds(logits, jnp.array([[True]]), [0], [1])
    >>> odds.tolist(), mass.tolist()
    ([0.693147], [0.9])
    """
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    rows = jnp.arange(mask.shape[0])
    if isinstance(logits, FactoredLogits):
        kernel = logits.unembedding.astype(logits.hidden.dtype)
        # Not rounded to bfloat16, where logits of 20 are an eighth of a nat apart.
        final = jnp.matmul(logits.hidden[rows, last], kernel, preferred_element_type=jnp.float32)
        final = vocabulary.logits_of(final, 1.0, logits.softcap)
    else:
        final = logits[rows, last]
    if (highest := max(*first, *second)) >= final.shape[1]:  # a gather would clip it in silence
        raise ValueError(
            f"the choices' token {highest} is beyond the model's vocabulary of {final.shape[1]}: "
            "encode belongs to another model"
        )
    log_probs = jax.nn.log_softmax(final.astype(jnp.float32))
    sides = [jax.nn.logsumexp(log_probs[:, np.array(ids)], axis=1) for ids in (first, second)]
    return sides[0] - sides[1], jnp.exp(jnp.logaddexp(*sides))


def joined(
    template: Sequence[tuple[str, str | None]],
    encode: Callable[[str], list[int]],
    parts: dict[str, tuple[jax.Array, jax.Array]],
    *,
    bos_id: int | None,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """A template filled with tokens instead of text; pure, for use in a compiled step.

    Literal texts are encoded piece by piece, and real tokens moved to the left, so that the model
    reads what it would read as text. (A tokenizer that merges across the pieces' borders would
    have made other tokens of the whole.)

    Args:
        template: from ``common.fields``.
        encode: ``str -> list[int]``, without special tokens.
        parts: for each field ``tokens: int32[B, t]`` and ``mask: bool[B, t]``.
        bos_id: the token to begin with, if any.
        length: the most tokens that the fields' masks leave in a row together.

    Returns:
        ``int32[B, L]`` and its mask, where ``L`` is ``length`` plus the literal texts' tokens.
    """
    batch = next(iter(parts.values()))[0].shape[0]
    tokens, masks, literal = [], [], 0

    def add(ids: list[int]) -> None:
        nonlocal literal
        literal += len(ids)
        tokens.append(jnp.broadcast_to(jnp.array(ids, jnp.int32), (batch, len(ids))))
        masks.append(jnp.ones([batch, len(ids)], bool))

    add([] if bos_id is None else [bos_id])
    for before, field in template:
        add(ids_of(encode, before) if before else [])
        if field is not None:
            tokens.append(jnp.asarray(parts[field][0], jnp.int32))
            masks.append(jnp.asarray(parts[field][1], bool))
    tokens, mask = jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)
    order = jnp.argsort(~mask, axis=1, stable=True)[:, : length + literal]
    tokens, mask = (jnp.take_along_axis(x, order, axis=1) for x in (tokens, mask))
    return jnp.where(mask, tokens, 0), mask


def _bucket(length: int, longest: int) -> int:
    """The padded length: a power of two, so that few programs are compiled."""
    return min(max(_SHORTEST, 1 << (length - 1).bit_length()), longest)


def _encoded(
    encode: Callable[[str], list[int]],
    texts: Sequence[str],
    *,
    bos_id: int | None,
    max_length: int,
    batch_size: int,
) -> tuple[list[tuple[list[tuple[int, list[int]]], int]], dict[int, Unanswered]]:
    """Rows of tokens in batches of one padded length, and which rows are too long or empty.

    Returns:
        ``(batches, refused)``: each batch is its ``(row, ids)`` and the length they are padded to.
    """
    aligned_texts(questions=texts)
    groups, refused = defaultdict(list), {}
    for row, text in enumerate(texts):
        ids = ([] if bos_id is None else [bos_id]) + ids_of(encode, text)
        if len(ids) > max_length:
            refused[row] = Unanswered(
                f"{len(ids)} tokens, but the model is given at most {max_length}"
            )
        elif not ids:
            refused[row] = Unanswered("the text has no tokens")
        else:
            groups[_bucket(len(ids), max_length)].append((row, ids))
    batches = [
        (group[start : start + batch_size], length)
        for length, group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]
    return batches, refused


def _padded(
    batch: list[tuple[int, list[int]]], length: int, batch_size: int, side: str
) -> tuple[np.ndarray, np.ndarray]:
    """``tokens[batch_size, length]`` and mask; missing rows repeat the last one."""
    tokens = np.zeros([batch_size, length], np.int32)
    mask = np.zeros([batch_size, length], bool)
    for place in range(batch_size):
        ids = batch[min(place, len(batch) - 1)][1]
        columns = slice(length - len(ids), length) if side == "left" else slice(len(ids))
        tokens[place, columns], mask[place, columns] = ids, True
    return tokens, mask


def local_ask(
    logits_fn: LogitsFn,
    params: Params,
    *,
    encode: Callable[[str], list[int]],
    max_length: int,
    bos_id: int | None = None,
    batch_size: int = 8,
    least_mass: float = 0.0,
) -> Ask:
    """A model's choice between two words, read off its probabilities of the next token.

    Questions are padded on the right to powers of two and to full batches: one program is compiled
    for each length and each two choices.

    Args:
        logits_fn: of the model; one that returns ``FactoredLogits`` saves multiplying out logits
            that nobody reads.
        params: the model's, an argument of the compiled program and not part of it.
        encode: ``str -> list[int]``, without special tokens.
        max_length: the most tokens in a question. A longer one is not cut but not answered.
        bos_id: the token that questions begin with, if any.
        batch_size: how many questions are read at once.
        least_mass: a question is not answered if the probability that the next token is either of
            the choices is below this.

    Returns:
        An ``Ask``. It raises what ``choice_tokens`` and ``choice_log_odds`` raise.

    Raises:
        ValueError: a setting is impossible.

    >>> logits = jnp.zeros(128).at[ord("A")].set(2.0)
    >>> ask = local_ask(
    ...     lambda params, tokens, mask: jnp.broadcast_to(params, (*tokens.shape, 128)),
    ...     logits,
    ...     encode=lambda text: list(text.encode()),
    ...     max_length=32,
    ... )
    >>> ask(["A or B? "], ("A", "B"))
    [2.0]
    """
    checks.positive(max_length=max_length, batch_size=batch_size)
    if not 0 <= least_mass <= 1:
        raise ValueError(f"least_mass must be from 0 to 1, not {least_mass}")

    @partial(jax.jit, static_argnums=(3, 4))
    def run(params, tokens, mask, first, second):
        return choice_log_odds(logits_fn(params, tokens, mask), mask, first, second)

    def ask(questions: Sequence[str], choices: tuple[str, str]) -> list[float | Unanswered]:
        first, second = map(tuple, choice_tokens(encode, choices))
        batches, answers = _encoded(
            encode, questions, bos_id=bos_id, max_length=max_length, batch_size=batch_size
        )
        for batch, length in batches:
            tokens, mask = _padded(batch, length, batch_size, "right")
            log_odds, mass = map(np.asarray, run(params, tokens, mask, first, second))
            for place, (row, _) in enumerate(batch):
                if np.isnan(log_odds[place]):
                    answers[row] = Unanswered("the model's log-odds are nan")
                elif mass[place] < least_mass:
                    answers[row] = Unanswered(
                        f"{choices[0]!r} and {choices[1]!r} have probability {mass[place]:.2g} "
                        f"together, below {least_mass}"
                    )
                else:
                    answers[row] = float(log_odds[place])
        return [answers[row] for row in range(len(questions))]

    return ask


def local_generate(
    sample_fn: SampleFn,
    params: Params,
    *,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    max_length: int,
    key: Key,
    bos_id: int | None = None,
    eos_id: int | None = None,
    batch_size: int = 8,
) -> Generate:
    """A model's sampled answers to questions.

    What is drawn depends on the key and on the question's text and on nothing else, so the same
    question twice has the same answer twice: for several answers use several keys.

    Args:
        sample_fn: from ``sampling.sampler``.
        params: the model's.
        encode: ``str -> list[int]``, without special tokens.
        decode: ``list[int] -> str``, which should leave special tokens out.
        max_length: the most tokens in a question. A longer one is not cut but not answered.
        key: a key.
        bos_id: the token that questions begin with, if any.
        eos_id: the token that ends an answer: one that reached the sampler's length without it was
            cut off and is not an answer. ``None``: none is taken to have been cut off.
        batch_size: how many questions are answered at once.

    Returns:
        A ``Generate``.

    Raises:
        ValueError: a setting is impossible.
    """
    checks.positive(max_length=max_length, batch_size=batch_size)
    run = jax.jit(sample_fn)

    def generate(questions: Sequence[str]) -> list[str | Unanswered]:
        batches, answers = _encoded(
            encode, questions, bos_id=bos_id, max_length=max_length, batch_size=batch_size
        )
        for batch, length in batches:
            rows = [row for row, _ in batch] + [batch[-1][0]] * (batch_size - len(batch))
            folds = np.array([zlib.crc32(questions[row].encode()) for row in rows], np.uint32)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, folds)
            prompts = Prompts(*_padded(batch, length, batch_size, "left"))
            sampled = run(params, prompts, keys)
            tokens, mask = np.asarray(sampled.tokens), np.asarray(sampled.response_mask)
            for place, (row, _) in enumerate(batch):
                ids = tokens[place][mask[place]].tolist()
                cut = mask[place, -1] and eos_id is not None and ids[-1] != eos_id
                reason = f"cut off after {len(ids)} tokens"
                answers[row] = Unanswered(reason) if cut else decode(ids)
        return [answers[row] for row in range(len(questions))]

    return generate
