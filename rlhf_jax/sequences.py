"""Token sequences: log-probabilities, masks and means. The one home of the shift by one.

A causal model's logits at column ``t`` predict token ``t + 1``. Everything here, and everything
after it, is aligned with the token it speaks of instead: ``log_probs[b, t]`` belongs to
``tokens[b, t]``, and column 0, which nothing predicts, holds 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import checks, vocabulary
from rlhf_jax.types import FactoredLogits

__all__ = [
    "Aggregation",
    "Mean",
    "align",
    "constant_length",
    "last_token",
    "log_probs_and_entropies",
    "marked_log_probs",
    "masked_mean",
    "positions",
    "segmented",
    "sequence_mean",
    "sequence_sum",
    "token_log_probs",
    "token_mean",
]


class Mean(NamedTuple):
    """A mean that is not divided yet: ``sum(total) / sum(count)`` over devices is the global mean.

    Attributes:
        total: ``float32[]``.
        count: ``float32[]``.
    """

    total: jax.Array
    count: jax.Array


# loss[B, T], mask[B, T] -> Mean
Aggregation = Callable[[jax.Array, jax.Array], Mean]


def align(predictions: jax.Array) -> jax.Array:
    """Moves predictions of the next token to the column of the token they predict.

    Args:
        predictions: ``[B, T, ...]``, entry ``t`` about token ``t + 1``.

    Returns:
        ``[B, T, ...]``, entry ``t`` about token ``t``; column 0 is 0.

    >>> align(jnp.array([[1, 2, 3]])).tolist()
    [[0, 1, 2]]
    """
    return jnp.pad(predictions[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (predictions.ndim - 2))


def segmented(mask: jax.Array) -> bool:
    """Whether a mask holds segment ids, of several sequences in a row: known from its dtype.

    Args:
        mask: ``bool[B, T]`` or ``int32[B, T]``.

    >>> segmented(jnp.array([[1, 1, 2, 0]])), segmented(jnp.array([[True, False]]))
    (True, False)
    """
    return jnp.issubdtype(mask.dtype, jnp.integer)


def positions(mask: jax.Array) -> jax.Array:
    """The position of each real token among those of its sequence; 0 on padding before them.

    Args:
        mask: ``bool[B, T]``, a sequence a row; or segment ids, ``int32[B, T]``, growing along the
            row.

    Returns:
        ``int32[B, T]``.

    >>> positions(jnp.array([[False, True, True]])).tolist()
    [[0, 0, 1]]
    >>> positions(jnp.array([[1, 1, 1, 2, 2]])).tolist()
    [[0, 1, 2, 0, 1]]
    """
    if not segmented(mask):
        return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0)
    place = jnp.cumsum((mask > 0).astype(jnp.int32), axis=-1) - 1
    # A sequence starts where an id is larger than all before it; between its tokens there may be 0.
    before = jnp.pad(jax.lax.cummax(mask, axis=1)[:, :-1], ((0, 0), (1, 0)))
    return jnp.maximum(place - jax.lax.cummax(jnp.where(mask > before, place, 0), axis=1), 0)


def last_token(mask: jax.Array) -> jax.Array:
    """Marks the last true entry of each row; a row without one stays empty.

    Args:
        mask: ``bool[B, T]``, a sequence a row.

    Returns:
        ``bool[B, T]``.

    Raises:
        ValueError: if the mask holds segment ids.

    >>> last_token(jnp.array([[True, True, False], [False, False, False]])).astype(int).tolist()
    [[0, 1, 0], [0, 0, 0]]
    """
    if segmented(mask):
        raise ValueError("mask must be boolean, a sequence a row, and it holds segment ids")
    after = jnp.cumsum(mask[:, ::-1].astype(jnp.int32), axis=-1)[:, ::-1]
    return mask & (after == 1)


def token_log_probs(
    logits: jax.Array | FactoredLogits,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    block_size: int | None = None,
    start: int = 1,
) -> jax.Array:
    r"""Log-probability of each token given those before it.

    .. math:: \log p(x_t \mid x_{<t}) = z_{t-1, x_t} - \log \sum_v \exp z_{t-1, v}

    Args:
        logits: ``float[B, T, V]`` or ``FactoredLogits``; entry ``t`` predicts token ``t + 1``.
        tokens: ``int32[B, T]``.
        temperature: what the logits are divided by, as when the tokens were sampled.
        block_size: how much of the vocabulary is held at a time if the logits are factored; by
            default 8,192, or less for very many tokens. A smaller vocabulary is not cut.
        start: the first column that is wanted, at least 1: nothing is computed for those before it,
            such as a prompt's, and they hold 0.

    Returns:
        ``float32[B, T]`` in nats, 0 before ``start``. Padding is not known: mask it afterwards.

    Raises:
        ValueError: if the shapes disagree, or ``start`` or ``block_size`` is below 1.

    >>> token_log_probs(jnp.zeros([1, 3, 4]), jnp.array([[1, 2, 3]])).tolist()
    [[0.0, -1.3863, -1.3863]]
    """
    return _token_statistics(logits, tokens, temperature, block_size, start, entropies=False)[0]


def marked_log_probs(
    logits: jax.Array | FactoredLogits,
    tokens: jax.Array,
    mask: jax.Array,
    most: int,
    *,
    temperature: float = 1.0,
    block_size: int | None = None,
) -> jax.Array:
    """``token_log_probs`` of marked tokens alone: the vocabulary's work is for no others.

    Wherever they lie in their rows; where they all begin in one column, ``token_log_probs`` with
    that ``start`` does with a slice what this does with a gather.

    Args:
        logits: as of ``token_log_probs``.
        tokens: ``int32[B, T]``.
        mask: ``bool[B, T]``, true where a log-probability is wanted.
        most: how many there are in a row at most; the work is for ``B * most`` tokens.
        temperature: as of ``token_log_probs``.
        block_size: as of ``token_log_probs``.

    Returns:
        ``float32[B, T]`` in nats, 0 where there is no mark and in the first column, which nothing
        predicts. Marks of a row beyond ``most`` have NaN: no number is wrong in silence.

    Raises:
        ValueError: if the shapes disagree, or ``most`` is below 1 or, where that can be known,
            below the marks of a row.

    >>> tokens, mask = jnp.array([[1, 2, 3]]), jnp.array([[False, False, True]])
    >>> marked_log_probs(jnp.zeros([1, 3, 4]), tokens, mask, 1).tolist()
    [[0.0, 0.0, -1.3863]]
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, not {most}")
    if mask.shape != tokens.shape:
        raise ValueError(f"mask must be {list(tokens.shape)}, as tokens, not {list(mask.shape)}")
    if most >= tokens.shape[1] - 1:
        found = token_log_probs(logits, tokens, temperature=temperature, block_size=block_size)
        return jnp.where(mask, found, 0)
    # Nothing predicts the first column, and what is read for it would be thrown away.
    mask = mask & (jnp.arange(tokens.shape[1]) > 0)
    if not isinstance(mask, jax.core.Tracer) and (found := int(mask.sum(axis=1).max())) > most:
        raise ValueError(f"most must be at least the {found} marks of a row, not {most}")
    columns = jnp.argsort(~mask, axis=1, stable=True)[:, :most]
    # What predicts each, and one more that predicts nothing, as token_log_probs expects it.
    before = jnp.pad(jnp.maximum(columns - 1, 0), ((0, 0), (0, 1)))

    def read(array: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array, before[..., None], axis=1)

    if isinstance(logits, FactoredLogits):
        logits = logits.replace(hidden=read(logits.hidden))
    else:
        logits = read(logits)
    targets = jnp.pad(jnp.take_along_axis(tokens, columns, axis=1), ((0, 0), (1, 0)))
    found = token_log_probs(logits, targets, temperature=temperature, block_size=block_size)
    place = jnp.cumsum(mask, axis=1)
    back = jnp.take_along_axis(found, jnp.minimum(place, most), axis=1)
    return jnp.where(mask, jnp.where(place <= most, back, jnp.nan), 0)


def log_probs_and_entropies(
    logits: jax.Array | FactoredLogits,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    block_size: int | None = None,
    start: int = 1,
) -> tuple[jax.Array, jax.Array]:
    r"""``token_log_probs`` and, from the same pass, the entropy of what each was drawn from.

    .. math:: H_t = -\sum_v p(v \mid x_{<t}) \log p(v \mid x_{<t})

    Args:
        logits: ``float[B, T, V]`` or ``FactoredLogits``; entry ``t`` predicts token ``t + 1``.
        tokens: ``int32[B, T]``.
        temperature: what the logits are divided by.
        block_size: how much of the vocabulary is held at a time if the logits are factored; by
            default 8,192, or less for very many tokens. A smaller vocabulary is not cut.
        start: the first column that is wanted, at least 1: nothing is computed for those before it,
            such as a prompt's, and they hold 0.

    Returns:
        Two ``float32[B, T]`` in nats, 0 before ``start``.

    Raises:
        ValueError: if the shapes disagree, or ``start`` or ``block_size`` is below 1.

    >>> _, entropies = log_probs_and_entropies(jnp.zeros([1, 2, 4]), jnp.array([[1, 2]]))
    >>> entropies.tolist()
    [[0.0, 1.3863]]
    """
    return _token_statistics(logits, tokens, temperature, block_size, start, entropies=True)


def _token_statistics(logits, tokens, temperature, block_size, start, *, entropies):
    """``(log_probs[B, T], entropies[B, T] or None)`` by whichever path the logits allow."""
    factored = isinstance(logits, FactoredLogits)
    array = logits.hidden if factored else logits
    if tokens.ndim != 2 or array.shape[:2] != tokens.shape:
        raise ValueError(
            f"logits must be [B, T, ...] for tokens [B, T]: {array.shape[:2]} and {tokens.shape}"
        )
    if start < 1:
        raise ValueError(f"start must be at least 1, not {start}: nothing predicts column 0")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    shape = (tokens.shape[0], tokens.shape[1] - start)
    if shape[1] < 1:
        zeros = jnp.zeros(tokens.shape, jnp.float32)
        return zeros, zeros
    # As rows and not [B, T, ...]: XLA's CPU backend multiplies matrices twice as fast so.
    rows = array[:, start - 1 : -1].reshape(-1, array.shape[-1])
    targets = tokens[:, start:].reshape(-1)

    def aligned(values):
        return jnp.pad(values.reshape(shape), ((0, 0), (start, 0)))

    def whole(dense, picked):
        log_normaliser, entropy = vocabulary.statistics(dense, entropies)
        return picked - log_normaliser, entropy

    block_size = block_size or vocabulary.default_block(len(rows))
    if not factored:
        dense = vocabulary.logits_of(rows.astype(jnp.float32), temperature)
        found = whole(dense, jnp.take_along_axis(dense, targets[:, None], axis=-1)[:, 0])
    elif logits.unembedding.shape[1] > block_size:
        settings = {"temperature": temperature, "softcap": logits.softcap}
        settings |= {"block_size": block_size, "entropies": entropies}
        found = vocabulary.blockwise(rows, logits.unembedding, targets, **settings)
    else:
        kernel = logits.unembedding.astype(rows.dtype)
        # The targets' logits from their own columns: picking them out of [N, V] costs more.
        picked = jnp.sum(rows.astype(jnp.float32) * kernel.T[targets], axis=-1)
        dense = jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)
        dense, picked = (
            vocabulary.logits_of(x, temperature, logits.softcap) for x in (dense, picked)
        )
        found = whole(dense, picked)
    log_probs, entropy = found
    return aligned(log_probs), None if entropy is None else aligned(entropy)


def masked_mean(values: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Mean of the entries that count; 0 where none does.

    Args:
        values: ``float[...]``.
        mask: ``bool[...]`` of the same shape.
        axis: the axis to reduce, or ``None`` for all.

    Returns:
        ``float[...]`` without that axis.

    Raises:
        ValueError: if the shapes differ.

    >>> float(masked_mean(jnp.array([1.0, 2.0, 99.0]), jnp.array([True, True, False])))
    1.5
    """
    checks.alike(values=values, mask=mask)
    total = jnp.sum(jnp.where(mask, values, 0), axis=axis)
    return total / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def token_mean(loss: jax.Array, mask: jax.Array) -> Mean:
    r"""Every token counts the same: ``sum(loss * mask) / sum(mask)`` (DAPO; PPO).

    Args:
        loss: ``float[B, T]``.
        mask: ``bool[B, T]``.

    Returns:
        The undivided ``Mean``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Yu et al. 2025, eq. 8, https://arxiv.org/abs/2503.14476

    >>> loss = jnp.array([[1.0, 1.0], [4.0, 0.0]])
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> total, count = token_mean(loss, mask)
    >>> float(total), float(count)
    (6.0, 3.0)
    """
    checks.token_arrays(mask, loss=loss)
    return Mean(jnp.sum(jnp.where(mask, loss, 0)), jnp.sum(mask.astype(jnp.float32)))


def sequence_mean(loss: jax.Array, mask: jax.Array) -> Mean:
    r"""Every sequence counts the same: the mean of each sequence's token mean (GRPO).

    Args:
        loss: ``float[B, T]``.
        mask: ``bool[B, T]``. A row without a true entry does not count.

    Returns:
        The undivided ``Mean``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Shao et al. 2024, eq. 3, https://arxiv.org/abs/2402.03300

    >>> loss = jnp.array([[1.0, 1.0], [4.0, 0.0]])
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> total, count = sequence_mean(loss, mask)
    >>> float(total), float(count)
    (5.0, 2.0)
    """
    checks.token_arrays(mask, loss=loss)
    total = jnp.sum(masked_mean(loss, mask, axis=-1))
    return Mean(total, jnp.sum(jnp.any(mask, axis=-1).astype(jnp.float32)))


def sequence_sum(loss: jax.Array, mask: jax.Array) -> Mean:
    r"""The mean over sequences of each one's sum over tokens (RLOO; Dr. GRPO as published).

    With a policy gradient this is the gradient of the expected reward of whole answers: the
    log-probability of an answer is a sum.

    Args:
        loss: ``float[B, T]``.
        mask: ``bool[B, T]``. A row without a true entry does not count.

    Returns:
        The undivided ``Mean``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Ahmadian et al. 2024, eq. 7, https://arxiv.org/abs/2402.14740

    >>> loss = jnp.array([[1.0, 1.0], [4.0, 0.0]])
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> total, count = sequence_sum(loss, mask)
    >>> float(total), float(count)
    (6.0, 2.0)
    """
    return constant_length(loss, mask, length=1)


def constant_length(loss: jax.Array, mask: jax.Array, *, length: int) -> Mean:
    r"""``sequence_sum`` divided by one constant length, which favours neither long nor short.

    Args:
        loss: ``float[B, T]``.
        mask: ``bool[B, T]``. A row without a true entry does not count.
        length: the constant, in tokens; the longest response allowed.

    Returns:
        The undivided ``Mean``.

    Raises:
        ValueError: if the shapes differ or are not of rank 2.

    Reference: Liu et al. 2025 (Dr. GRPO), https://arxiv.org/abs/2503.20783

    >>> loss = jnp.array([[1.0, 1.0], [4.0, 0.0]])
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> total, count = constant_length(loss, mask, length=4)
    >>> float(total), float(count)
    (6.0, 8.0)
    """
    checks.token_arrays(mask, loss=loss)
    rows = jnp.sum(jnp.any(mask, axis=-1).astype(jnp.float32))
    return Mean(jnp.sum(jnp.where(mask, loss, 0)), rows * length)
