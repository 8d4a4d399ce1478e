"""How varied a policy is, and its text."""

import math
import operator

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = [
    "distinct_n",
    "effective_modes",
    "entropy",
    "expectation_adjusted_distinct",
    "self_bleu",
]


def distinct_n(tokens: jax.Array, mask: jax.Array, n: int) -> jax.Array:
    r"""The share of distinct n-grams among all n-grams of a batch.

    .. math:: \frac{|\{\text{n-grams}\}|}{\#\,\text{n-grams}}

    An n-gram is ``n`` neighbouring tokens of one row that all count; none spans two rows. Exact,
    and may be compiled. The share falls as there is more text: compare it only between batches with
    about as many tokens.

    Args:
        tokens: ``int[B, T]``.
        mask: ``bool[B, T]``, true on the tokens that count (the response's, say).
        n: how many tokens make an n-gram.

    Returns:
        ``float32[]`` from 0 to 1; 0 if there is no n-gram.

    Raises:
        ValueError: the shapes differ or are not ``[B, T]``, the mask is not boolean, or ``n`` is
            not positive.

    Reference: Li et al. 2016, https://arxiv.org/abs/1510.03055

    >>> tokens = jnp.array([[5, 6, 5, 6], [5, 6, 0, 0]])
    >>> mask = jnp.array([[True, True, True, True], [True, True, False, False]])
    >>> float(distinct_n(tokens, mask, 2))  # 5 6, 6 5, 5 6 and 5 6: two distinct among four
    0.5
    """
    distinct, count = _distinct(tokens, mask, n)
    return distinct / jnp.maximum(count, 1)


def expectation_adjusted_distinct(
    tokens: jax.Array, mask: jax.Array, n: int, *, vocab_size: int
) -> jax.Array:
    r"""Distinct n-grams against how many there would be of random text: EAD.

    .. math:: \frac{N}{V \left[1 - \left(\frac{V - 1}{V}\right)^C\right]}

    ``N`` distinct ones among ``C`` n-grams, of :math:`V = v^n` that a vocabulary of ``v`` allows.
    Unlike ``distinct_n`` it can be compared between batches of different lengths: text of tokens
    drawn at random is 1 in expectation at any length. Where ``V`` is much more than ``C`` the two
    are nearly the same.

    Args:
        tokens: ``int[B, T]``.
        mask: ``bool[B, T]``, true on the tokens that count.
        n: how many tokens make an n-gram.
        vocab_size: how many tokens there are, at least 2.

    Returns:
        ``float32[]``, not below 0 and by chance above 1; 0 if there is no n-gram.

    Raises:
        ValueError: as ``distinct_n``, and if ``vocab_size`` is below 2.

    Reference: Liu et al. 2022, https://arxiv.org/abs/2202.13587

    >>> tokens, mask = jnp.array([[5, 6, 5, 6]]), jnp.ones((1, 4), bool)
    >>> # Of 8 tokens, 4 drawn at random would be 8 * (1 - (7 / 8) ** 4) = 3.31 different ones.
    >>> expectation_adjusted_distinct(tokens, mask, 1, vocab_size=8).item()
    0.604
    """
    if operator.index(vocab_size) < 2:
        raise ValueError(f"vocab_size must be at least 2, not {vocab_size}")
    distinct, count = _distinct(tokens, mask, n)
    possible = float(vocab_size) ** n
    # (V - 1) / V to the C-th, without rounding it to 1.
    expected = -possible * jnp.expm1(count * math.log1p(-1 / possible))
    return jnp.where(count > 0, distinct / jnp.maximum(expected, 1), 0)


def self_bleu(
    tokens: jax.Array, mask: jax.Array, *, max_n: int = 4, smoothing: float = 0.0
) -> jax.Array:
    r"""How like one another the rows of a batch are: the mean BLEU of each against all others.

    .. math::
        \frac1B \sum_b \min\left(1, e^{1 - r_b / c_b}\right)
        \exp\left(\frac1n \sum_{k=1}^n \log p_{bk}\right)

    where ``p`` are the clipped precisions of the row's k-grams, ``c`` its length, and ``r`` that of
    the row nearest in length (of two the shorter). It rises with the number of rows: compare only
    batches of equally many. Takes time and memory for ``B * T * T`` comparisons, ``B`` times.

    Args:
        tokens: ``int[B, T]``, at least two rows. Rows without a token are left out.
        mask: ``bool[B, T]``, true on the tokens that count. Tokens of a row are taken in order, as
            if what does not count were not there.
        max_n: the longest n-grams.
        smoothing: stands for the matches of an order of n-grams that has none (0.1 is NLTK's first
            method). Without it a row that shares no 4-gram, or has none, counts as 0.

    Returns:
        ``float32[]`` from 0 (nothing in common) to 1 (all the same); NaN of fewer than two rows
        that have a token.

    Raises:
        ValueError: the shapes differ or are not ``[B, T]``, the mask is not boolean, ``max_n`` is
            not positive or ``smoothing`` negative.

    Reference: Zhu et al. 2018, https://arxiv.org/abs/1802.01886; BLEU, Papineni et al. 2002, ACL

    >>> tokens, mask = jnp.array([[1, 2, 3], [1, 2, 4]]), jnp.ones((2, 3), bool)
    >>> self_bleu(tokens, mask, max_n=2).item()  # sqrt(2/3 * 1/2)
    0.577
    """
    _check_text(tokens, mask)
    if operator.index(max_n) < 1:
        raise ValueError(f"max_n must be at least 1: {max_n}")
    if smoothing < 0:
        raise ValueError(f"smoothing must not be negative: {smoothing}")
    # What counts goes to the front; and room for n-grams longer than the rows.
    order = jnp.argsort(~jnp.asarray(mask), axis=1, stable=True)
    tokens = jnp.take_along_axis(jnp.asarray(tokens), order, axis=1)
    tokens = jnp.pad(tokens, ((0, 0), (0, max_n)))
    length = jnp.sum(mask, axis=1)
    rows, width = tokens.shape
    present, each = length > 0, jnp.arange(rows)

    def bleu(row: jax.Array) -> jax.Array:
        others = present & (each != row)
        same = tokens[row][:, None, None] == tokens  # [T, B, T]
        logs = []
        for n in range(1, max_n + 1):
            there = jnp.arange(width) + n <= length[:, None]  # where an n-gram begins
            if n > 1:  # An n-gram is the same if the (n - 1)-grams and the last tokens are.
                nth = tokens[row][n - 1 :][:, None, None] == tokens[:, n - 1 :]
                edge = ((0, n - 1), (0, 0), (0, n - 1))
                same &= jnp.pad(nth, edge)
            times = jnp.sum(same & there, axis=2)  # [T, B], of the gram at T in each row
            own = times[:, row]
            most = jnp.max(jnp.where(others, times, 0), axis=1)
            # A gram that is there three times weighs a third at each of its places.
            shared = jnp.where(there[row], jnp.minimum(own, most) / jnp.maximum(own, 1), 0).sum()
            shared = jnp.where(shared > 0, shared, smoothing)
            logs.append(jnp.log(shared) - jnp.log(jnp.maximum(there[row].sum(), 1)))
        away = jnp.where(others, jnp.abs(length - length[row]), 2 * width)
        nearest = jnp.min(jnp.where(away == away.min(), length, width))
        brevity = jnp.minimum(0, 1 - nearest / jnp.maximum(length[row], 1))
        return jnp.exp(brevity + sum(logs) / max_n)

    found = jnp.where(present, jax.lax.map(bleu, each), 0)
    enough = jnp.sum(present)
    return jnp.where(enough > 1, jnp.sum(found) / jnp.maximum(enough, 1), jnp.nan)


def entropy(log_probs: jax.Array) -> jax.Array:
    r"""How undecided a policy is.

    .. math:: H = -\sum_x \pi(x) \log \pi(x)

    Args:
        log_probs: ``float[..., N]`` in nats, of all answers (or next tokens); logits will do, and
            answers that are impossible are fine.

    Returns:
        ``float32[...]`` in nats, from 0 to ``log N``.

    Raises:
        ValueError: if ``log_probs`` is not floating.

    >>> entropy(jnp.zeros(4)).item()  # log 4
    1.386294
    """
    checks.floating(log_probs=log_probs)
    log_probs = jax.nn.log_softmax(log_probs.astype(jnp.float32))
    probabilities = jnp.exp(log_probs)
    return -jnp.sum(probabilities * jnp.where(probabilities > 0, log_probs, 0), axis=-1)


def effective_modes(log_probs: jax.Array) -> jax.Array:
    r"""As many equally likely answers would be as varied: the exponential of the entropy.

    .. math:: e^H

    Args:
        log_probs: ``float[..., N]`` in nats, of all answers, or of the modes that they belong to;
            logits will do.

    Returns:
        ``float32[...]`` from 1 to ``N``.

    Raises:
        ValueError: if ``log_probs`` is not floating.

    Reference: Hill 1973 (numbers of order 1), Ecology 54

    >>> effective_modes(jnp.log(jnp.array([0.5, 0.5, 0.0]))).item()
    2.0
    """
    return jnp.exp(entropy(log_probs))


def _check_text(tokens: jax.Array, mask: jax.Array) -> None:
    chex.assert_rank([tokens, mask], 2, exception_type=ValueError)
    chex.assert_equal_shape([tokens, mask], exception_type=ValueError)
    chex.assert_type([tokens, mask], [int, bool], exception_type=ValueError)


def _distinct(tokens: jax.Array, mask: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """How many n-grams are distinct, and how many there are."""
    _check_text(tokens, mask)
    if operator.index(n) < 1:
        raise ValueError(f"n must be at least 1: {n}")
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    windows = tokens.shape[1] - n + 1
    if windows < 1 or tokens.shape[0] == 0:
        return jnp.float32(0), jnp.float32(0)
    columns = [tokens[:, i : i + windows].ravel() for i in range(n)]
    counts = jnp.stack([mask[:, i : i + windows].ravel() for i in range(n)]).all(axis=0)
    # Sorted with those that count in front, equal n-grams are neighbours.
    order = jnp.lexsort((*columns, ~counts))
    grams, counts = jnp.stack(columns)[:, order], counts[order]
    new = jnp.concatenate([jnp.ones(1, bool), (grams[:, 1:] != grams[:, :-1]).any(axis=0)])
    return jnp.sum(new & counts).astype(jnp.float32), jnp.sum(counts).astype(jnp.float32)
