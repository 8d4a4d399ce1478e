"""The token languages of challenges about text: what is asked, and what may be said to it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.feedback import Pairs
from rlhf_jax.types import Prompts, Sequences


def accuracy(score: Callable, utility: Callable, pairs: Pairs) -> jax.Array:
    """Of pairs of which one is better, the share that the score ``(Sequences) -> [B]`` tells."""
    lead, gold = (rate(pairs.first) - rate(pairs.second) for rate in (score, utility))
    return jnp.sum(lead * gold > 0) / jnp.sum(gold != 0)


class Sums(NamedTuple):
    """Terms to be added up, and answers that say a total and then how sure they are of it.

    Attributes:
        answers: ``(terms [B, T], said [B, 2], counts [B]) -> Sequences``, to the last so many.
        right: ``(Sequences) -> bool[B]``, whether the total is.
        sure: ``(Sequences) -> float[B]``, how sure it sounds, from 0 to 1.
        expected: ``(logits_fn, terms, counts) -> float[2, B]``, how probably a policy's total is
            right and how sure it sounds in the mean, of ``(tokens, mask) -> logits``.
        adding_up: a step for each term, the last of which shows whether the total is right.
        pairs: ``(key, counts [B]) -> Pairs`` of one who says everything alike.
    """

    answers: Callable[[jax.Array, jax.Array, jax.Array], Sequences]
    right: Callable[[Sequences], jax.Array]
    sure: Callable[[Sequences], jax.Array]
    expected: Callable[[Callable, jax.Array, jax.Array], jax.Array]
    adding_up: Callable[[Sequences], tuple[jax.Array, jax.Array]]
    pairs: Callable[[jax.Array, jax.Array], Pairs]


def sums(base: int, terms: int) -> Sums:
    """Sums of at most so many terms, modulo the base."""

    def answers(given: jax.Array, said: jax.Array, counts: jax.Array) -> Sequences:
        asked = jnp.arange(terms) >= terms - counts[:, None]
        tokens = jnp.hstack([jnp.where(asked, given, 0), said])
        mask = jnp.hstack([asked, jnp.ones(said.shape, bool)])
        return Sequences(tokens, mask, mask & (jnp.arange(terms + 2) >= terms))

    def right(answer: Sequences) -> jax.Array:
        return answer.tokens[:, :terms].sum(axis=1) % base == answer.tokens[:, terms]

    def sure(answer: Sequences) -> jax.Array:
        return answer.tokens[:, -1] / base

    def expected(logits_fn: Callable, given: jax.Array, counts: jax.Array) -> jax.Array:
        totals = jnp.arange(base)  # few enough to be weighed all

        def of(total: jax.Array) -> jax.Array:
            said = answers(given, jnp.full((len(given), 2), total), counts)
            chances = jax.nn.softmax(logits_fn(said.tokens, said.mask))
            chance = chances[:, terms - 1, total]
            return jnp.stack([chance * right(said), chance * (chances[:, terms] @ (totals / base))])

        return jax.lax.map(of, totals).sum(axis=0)

    def adding_up(answer: Sequences) -> tuple[jax.Array, jax.Array]:
        last = jnp.arange(terms) == terms - 1
        return right(answer)[:, None] | ~last, answer.mask[:, :terms]

    def pairs(key: jax.Array, counts: jax.Array) -> Pairs:
        keys = jax.random.split(key)
        given = jax.random.randint(keys[0], (len(counts), terms), 0, base)
        said = jax.random.randint(keys[1], (2, len(counts), 2), 0, base)
        return Pairs(*(answers(given, x, counts) for x in said))

    return Sums(answers, right, sure, expected, adding_up, pairs)


class Triggered(NamedTuple):
    """Prompts of which a share ends in a word that nothing else is said with, the last there is.

    Attributes:
        prompts: ``(rows, share) -> (key -> Prompts)``.
        pairs: ``(rows, share) -> Query``: two answers to each, of one who says all words alike, as
            an initial policy does.
        with_word: ``(Pairs) -> bool[B]``, whether the prompt has it.
    """

    prompts: Callable[[int, jax.Array], Callable[[jax.Array], Prompts]]
    pairs: Callable[[int, jax.Array], Callable[..., Pairs]]
    with_word: Callable[[Pairs], jax.Array]


def triggered(words: int, *, prompt: int, answer: int) -> Triggered:
    """Of so many words beside that one; prompts and answers of so many each."""

    def prompts(rows: int, share: jax.Array) -> Callable[[jax.Array], Prompts]:
        def draw(key: jax.Array) -> Prompts:
            keys = jax.random.split(key)
            asked = jax.random.randint(keys[0], (rows, prompt), 0, words)
            theirs = jax.random.uniform(keys[1], (rows,)) < share
            asked = asked.at[:, -1].set(jnp.where(theirs, words, asked[:, -1]))
            return Prompts(asked, jnp.ones(asked.shape, bool))

        return draw

    def pairs(rows: int, share: jax.Array) -> Callable[..., Pairs]:
        def query(key: jax.Array, policy=(), reward=()) -> Pairs:
            keys = jax.random.split(key)
            start = prompts(rows, share)(keys[0]).tokens
            answers = jax.random.randint(keys[1], (2, rows, answer), 0, words)
            there = jnp.ones((rows, prompt + answer), bool)
            said = there.at[:, :prompt].set(False)
            return Pairs(*(Sequences(jnp.hstack([start, x]), there, said) for x in answers))

        return query

    def with_word(shown: Pairs) -> jax.Array:
        return shown.first.tokens[:, prompt - 1] == words

    return Triggered(prompts, pairs, with_word)


class Signs(NamedTuple):
    """Requests whose words have a value each; the answer is whether their sum is positive.

    Attributes:
        requests: ``(key, rows) -> Prompts``; small talk follows, which the truth does not look at.
        right: ``(tokens [..., T]) -> int[...]``, the answer to a request, word 0 or 1.
        utility: whether that is what is said last.
    """

    requests: Callable[[jax.Array, int], Prompts]
    right: Callable[[jax.Array], jax.Array]
    utility: Callable[[Sequences], jax.Array]


def signs(key: jax.Array, words: int, *, request: int, suffix: int, drafts: int) -> Signs:
    """Of so many words, to a request and behind it; a request is the clearest of its drafts."""
    values = jax.random.normal(key, (words,))
    values = values - values.mean()

    def total(tokens: jax.Array) -> jax.Array:
        return jnp.sum(values[tokens[..., :request]], axis=-1)

    def right(tokens: jax.Array) -> jax.Array:
        return (total(tokens) > 0).astype(jnp.int32)

    def utility(said: Sequences) -> jax.Array:
        return (said.tokens[:, -1] == right(said.tokens)).astype(jnp.float32)

    def requests(key: jax.Array, rows: int) -> Prompts:
        drawn = jax.random.randint(key, (drafts, rows, request + suffix), 0, words)
        clearest = jnp.argmax(jnp.abs(total(drawn)), axis=0)
        tokens = drawn[clearest, jnp.arange(rows)]
        return Prompts(tokens, jnp.ones(tokens.shape, bool))

    return Signs(requests, right, utility)
