"""One form of feedback from another: pure functions on arrays, which also run under ``jax.jit``."""

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.types import Preferences, Ranked, Rated, Sequences

__all__ = ["control_positions", "mismatched", "ranked", "unpaired", "with_control_tokens"]


def _check(sequences: Sequences, rank: int) -> None:
    arrays = {name: getattr(sequences, name) for name in ("tokens", "mask", "response_mask")}
    checks.alike(**arrays)
    shape = jnp.shape(sequences.tokens)
    if len(shape) != rank:
        raise ValueError(f"tokens must be of rank {rank}, not {list(shape)}")


def _check_shape(wanted: tuple[int, ...], **values: jax.Array) -> None:
    for name, value in values.items():
        if jnp.shape(value) != wanted:
            raise ValueError(f"{name} must have the shape {wanted}, not {jnp.shape(value)}")


def mismatched(sequences: Sequences) -> Sequences:
    """Each prompt with the response of the next row, the last with that of the first.

    The divergence of the policy from its reference on such text is what ``losses.kto`` compares
    with: the responses of the batch, but not as answers to what was asked. TRL has the same with
    the row before.

    The response begins behind the last real token of the prompt, whichever side the prompt is
    padded on (in column 0 if there is none), and is cut at ``T``. Rows without a response are
    padding: they stay what they are and lend nothing, the next row being the next real one. A
    single real row is its own partner, which no longer is a mismatch; so is a neighbour with the
    same prompt. Neither can be seen here: shuffle, and take batches of several prompts.

    Args:
        sequences: of ``B`` rows; what stands before a row's first response token is its prompt.

    Returns:
        ``Sequences`` of ``B`` rows of ``T`` tokens, without ``log_probs``, as nobody sampled them.

    Raises:
        ValueError: if the arrays' shapes differ or are not ``[B, T]``, or there is only one row.

    Reference: Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306

    >>> mask = jnp.ones([2, 3], bool)
    >>> tokens = jnp.array([[1, 11, 12], [2, 3, 21]])
    >>> response = jnp.array([[False, True, True], [False, False, True]])
    >>> print(mismatched(Sequences(tokens, mask, response)).tokens)
    [[ 1 21  0]
     [ 2  3 11]]
    """
    _check(sequences, rank=2)
    rows, length = jnp.shape(sequences.tokens)
    if rows < 2:
        raise ValueError(f"tokens must have at least 2 rows to mix, not {[rows, length]}")
    response = jnp.asarray(sequences.response_mask)
    real = jnp.any(response, axis=-1)
    columns, start = jnp.arange(length), jnp.argmax(response, axis=-1)
    prompt = jnp.logical_and(sequences.mask, columns < start[:, None])
    end = jnp.max(jnp.where(prompt, columns + 1, 0), axis=-1)

    # The next real row, cyclically: the least index of one behind this row, of two rounds.
    index = jnp.where(real, jnp.arange(rows), 2 * rows)
    behind = jax.lax.cummin(jnp.concatenate([index, index + rows]), reverse=True)
    partner = behind[1 : rows + 1] % rows

    source = columns - end[:, None] + start[partner][:, None]
    lent = (columns >= end[:, None]) & (source < length)

    def spliced(array: jax.Array) -> jax.Array:
        array = jnp.asarray(array)
        theirs = jnp.take_along_axis(array[partner], jnp.clip(source, 0, length - 1), axis=-1)
        own = jnp.where(columns < end[:, None], array, 0)
        return jnp.where(real[:, None], jnp.where(lent, theirs, own), array).astype(array.dtype)

    return Sequences(*map(spliced, (sequences.tokens, sequences.mask, response)))


def unpaired(preferences: Preferences, *, unrelated: bool = False) -> Rated:
    """Each side of a pair by itself: the chosen are good, the rejected bad.

    A bad answer was only worse than its partner, which may have been bad as well: much is lost.

    Args:
        preferences: of ``B`` pairs. The sides of a tied one were called neither good nor bad, so
            their rows become padding, with an empty ``response_mask``.
        unrelated: whether to add the ``mismatched`` rows from which ``losses.kto`` gets its KL.

    Returns:
        ``Rated`` of ``2 B`` rows, first the chosen ones, with ``bool[2 B]`` ratings.

    Raises:
        ValueError: if the arrays' shapes differ or are not ``[B, T]``, or ``tied`` is not
            ``bool[B]``.

    Reference: Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306

    >>> ones = jnp.ones([2, 1], bool)
    >>> good, bad = (Sequences(jnp.array(x), ones, ones) for x in ([[3], [4]], [[5], [6]]))
    >>> rated = unpaired(Preferences(good, bad, tied=jnp.array([False, True])))
    >>> print(rated.ratings, rated.sequences.response_mask[:, 0])
    [ True  True False False] [ True False  True False]
    """
    chosen, rejected, tied = preferences.chosen, preferences.rejected, preferences.tied
    for side in (chosen, rejected):
        _check(side, rank=2)
    checks.alike(chosen=chosen.tokens, rejected=rejected.tokens)
    if chosen.log_probs is None or rejected.log_probs is None:
        chosen, rejected = (side.replace(log_probs=None) for side in (chosen, rejected))
    sequences = jax.tree.map(lambda *sides: jnp.concatenate(sides), chosen, rejected)
    pairs = len(chosen.tokens)
    if tied is not None:
        checks.booleans(tied=tied)
        _check_shape((pairs,), tied=tied)
        judged = jnp.tile(~jnp.asarray(tied), 2)[:, None]
        sequences = sequences.replace(response_mask=sequences.response_mask & judged)
    ratings = jnp.arange(2 * pairs) < pairs
    return Rated(sequences, ratings, mismatched(sequences) if unrelated else None)


def ranked(sequences: Sequences, ratings: jax.Array) -> Ranked:
    """Several rated answers to each prompt, in the order of their ratings.

    Args:
        sequences: ``Sequences`` whose arrays are ``[B, N, T]``.
        ratings: ``float[B, N]`` or ``int[B, N]``, larger is better. Of equal ones the first counts
            as the better: a ranking knows no ties, so leave out prompts with many.

    Returns:
        ``Ranked``, the sequences as they are.

    Raises:
        ValueError: if the arrays' shapes differ or are not ``[B, N, T]`` and ``[B, N]``.

    >>> mask = jnp.ones([1, 3, 1], bool)
    >>> sequences = Sequences(jnp.zeros([1, 3, 1], int), mask, mask)
    >>> ranked(sequences, jnp.array([[0.1, 0.7, 0.7]])).rankings.tolist()
    [[1, 2, 0]]
    """
    _check(sequences, rank=3)
    _check_shape(jnp.shape(sequences.tokens)[:2], ratings=ratings)
    return Ranked(sequences, jnp.argsort(ratings, axis=-1, stable=True, descending=True))


def control_positions(sequences: Sequences) -> jax.Array:
    """Where ``with_control_tokens`` put its tokens, for ``losses.conditional``.

    Args:
        sequences: of ``B`` rows.

    Returns:
        ``bool[B, T]``, true on the first real token of each row.

    Raises:
        ValueError: if the arrays' shapes differ or are not ``[B, T]``.

    >>> mask = jnp.array([[False, True, True]])
    >>> control_positions(Sequences(jnp.array([[0, 7, 4]]), mask, mask)).tolist()
    [[False, True, False]]
    """
    _check(sequences, rank=2)
    mask = jnp.asarray(sequences.mask)
    return mask & (jnp.cumsum(mask, axis=-1) == 1)


def with_control_tokens(
    rated: Rated, *, good_id: int, bad_id: int, threshold: float | jax.Array = 0.0
) -> Sequences:
    """Each sequence behind a token that says how good it is (conditional training).

    The control token stands directly before the first real token, whichever side the row is padded
    on: in ``mask``, as it is to be read, but not in ``response_mask``, as it is never to be
    predicted. ``algorithms.supervised`` with its ``cross_entropy`` on the result is conditional
    training; prompts for the trained model begin with ``good_id``.

    Args:
        rated: sequences of ``B`` rows, with ``ratings`` of ``[B]``: ``bool``, ``int`` or ``float``.
        good_id: the token before what is rated ``threshold`` or better.
        bad_id: the token before the rest. That the two stand for nothing else it cannot check.
        threshold: the least rating that is good; not used where they are boolean.

    Returns:
        ``Sequences`` of ``B`` rows of ``T + 1`` tokens; rows without any real token stay so.

    Raises:
        ValueError: if the shapes do not fit, or ``good_id`` is ``bad_id``.

    Reference: Korbak et al. 2023, https://arxiv.org/abs/2302.08582

    >>> mask = jnp.array([[False, True], [True, True]])
    >>> text = Sequences(jnp.array([[0, 4], [5, 6]]), mask, mask)
    >>> rated = Rated(text, jnp.array([0.3, -0.3]))
    >>> print(with_control_tokens(rated, good_id=8, bad_id=9).tokens)
    [[0 8 4]
     [9 5 6]]
    """
    sequences, ratings = rated.sequences, jnp.asarray(rated.ratings)
    _check(sequences, rank=2)
    _check_shape(jnp.shape(sequences.tokens)[:1], ratings=ratings)
    if good_id == bad_id:
        raise ValueError(f"good_id and bad_id must differ, not both be {good_id}")
    good = ratings if ratings.dtype == bool else ratings >= threshold
    # With a column more on the left, the place before each first real token is a padded one.
    moved = jax.tree.map(lambda array: jnp.pad(array, ((0, 0), (1, 0))), sequences)
    control = jnp.pad(control_positions(sequences), ((0, 0), (0, 1)))
    token = jnp.where(good, good_id, bad_id).astype(moved.tokens.dtype)
    return moved.replace(
        tokens=jnp.where(control, token[:, None], moved.tokens), mask=moved.mask | control
    )
