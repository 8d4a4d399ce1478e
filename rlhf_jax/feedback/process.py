"""Labels of the parts of an answer, to train a token-level score with: of steps, and of segments.

The batch is ``Rated`` with a rating for some of the tokens: ``algorithms.reward_model`` with
``losses.binary_cross_entropy`` learns how probable it is that the part which ends there is right.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.feedback.batches import token_rewards
from rlhf_jax.feedback.forms import Spans, Steps
from rlhf_jax.types import Rated, Sequences

__all__ = ["segment_labels", "step_labels"]


def step_labels(sequences: Sequences, steps: Steps) -> Rated:
    """The mark of each step, at its last token, and nothing elsewhere.

    Lost is what a step's mark says of the steps after it: each is judged by itself.

    Args:
        sequences: the solutions, ``B`` rows of ``T`` tokens.
        steps: their marks, from 0 to 1.

    Returns:
        ``Rated`` with ``ratings: float32[B, T]`` and a ``rating_mask`` that is true where a step
        ends that was marked. Rows that were not answered have no rating.

    Raises:
        ValueError: if the shapes do not fit, a mark is not from 0 to 1, a step ends outside its
            response, or two end at the same token.

    >>> tokens, mask = jnp.array([[4, 9, 5, 9]]), jnp.ones([1, 4], bool)
    >>> steps = Steps(marks=jnp.array([[1.0, 0.0]]), ends=jnp.array([[1, 3]]),
    ...               mask=jnp.ones([1, 2], bool))
    >>> batch = step_labels(Sequences(tokens, mask, mask), steps)
    >>> print(batch.ratings, batch.rating_mask)
    [[0. 1. 0. 0.]] [[False  True False  True]]
    """
    shape = jnp.shape(sequences.tokens)
    if steps.answered is not None:
        mask = jnp.asarray(steps.mask) & jnp.asarray(steps.answered)[:, None]
        steps = steps.replace(mask=mask)
    ratings = token_rewards(steps, length=shape[1])
    if ratings.shape != shape:
        found = f"{shape[0]} and {len(ratings)}"
        raise ValueError(f"sequences and steps must have as many rows, not {found}")
    marks, mask = jnp.asarray(steps.marks), jnp.asarray(steps.mask)
    ones = steps.replace(marks=mask.astype(jnp.float32))
    counts = token_rewards(ones, length=shape[1])
    _refuse(mask & ~((marks >= 0) & (marks <= 1)), "a mark that is not from 0 to 1, in step")
    _refuse(counts > 1, "two steps that end at column")
    rated = counts > 0
    _refuse(rated & ~jnp.asarray(sequences.response_mask), "a step that ends outside it, at column")
    return Rated(sequences, ratings, rating_mask=rated, rater=steps.rater)


def segment_labels(sequences: Sequences, spans: Spans, ends: jax.Array) -> Rated:
    """Which segments of an answer are free of what was marked as bad.

    Segments run from one end to the next, at whatever density is judged: clauses, sentences, the
    whole answer. Lost are marks of praise, and how much of a segment is bad.

    Args:
        sequences: the answers, ``B`` rows of ``T`` tokens.
        spans: marks on their tokens, negative on what is bad.
        ends: ``bool[B, T]``, true on each segment's last token, such as from ``rewards.ends_after``
            or ``rewards.whole_answer``.

    Returns:
        ``Rated`` with ``ratings: bool[B, T]``, true for a segment without fault, and a
        ``rating_mask`` that is true where a segment ends. Rows that were not answered have none.

    Raises:
        ValueError: if the shapes do not fit, or a token is marked bad outside the response or after
            the last segment's end.

    Reference: Wu et al. 2023, https://arxiv.org/abs/2306.01693

    >>> tokens, mask = jnp.array([[4, 9, 5, 9]]), jnp.ones([1, 4], bool)
    >>> spans = Spans(marks=jnp.array([[0.0, 0.0, -1.0, 0.0]]))
    >>> batch = segment_labels(Sequences(tokens, mask, mask), spans, tokens == 9)
    >>> print(batch.ratings[batch.rating_mask])
    [ True False]
    """
    marks, ends = token_rewards(spans), jnp.asarray(ends)
    checks.booleans(ends=ends)
    checks.alike(tokens=sequences.tokens, marks=marks, ends=ends)
    response = jnp.asarray(sequences.response_mask)
    ends &= response
    if spans.answered is not None:
        ends &= jnp.asarray(spans.answered)[:, None]
    _refuse((marks < 0) & ~response, "a bad token outside its response, at column")
    bad = jnp.cumsum(response & (marks < 0), axis=1)
    # The count never falls, so the largest at an end so far is that at the newest one.
    by_newest = jax.lax.cummax(jnp.where(ends, bad, 0), axis=1)
    before = jnp.pad(by_newest[:, :-1], ((0, 0), (1, 0)))
    _refuse(bad > by_newest[:, -1:], "a bad token after its last segment's end, at column")
    return Rated(sequences, ends & (bad == before), rating_mask=ends, rater=spans.rater)


def _refuse(wrong: jax.Array, what: str) -> None:
    """Unless traced, an error that names the first place that is wrong."""
    if isinstance(wrong, jax.core.Tracer) or not np.any(wrong):
        return
    row, column = map(int, np.argwhere(wrong)[0])
    raise ValueError(f"row {row} has {what} {column}")
