"""How varied a policy's text is."""

import operator

import chex
import jax
import jax.numpy as jnp

__all__ = ["distinct_n"]


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
    chex.assert_rank([tokens, mask], 2, exception_type=ValueError)
    chex.assert_equal_shape([tokens, mask], exception_type=ValueError)
    chex.assert_type([tokens, mask], [int, bool], exception_type=ValueError)
    if operator.index(n) < 1:
        raise ValueError(f"n must be at least 1: {n}")
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    windows = tokens.shape[1] - n + 1
    if windows < 1 or tokens.shape[0] == 0:
        return jnp.zeros((), jnp.float32)
    columns = [tokens[:, i : i + windows].ravel() for i in range(n)]
    counts = jnp.stack([mask[:, i : i + windows].ravel() for i in range(n)]).all(axis=0)
    # Sorted with those that count in front, equal n-grams are neighbours.
    order = jnp.lexsort((*columns, ~counts))
    grams, counts = jnp.stack(columns)[:, order], counts[order]
    new = jnp.concatenate([jnp.ones(1, bool), (grams[:, 1:] != grams[:, :-1]).any(axis=0)])
    return (jnp.sum(new & counts) / jnp.maximum(jnp.sum(counts), 1)).astype(jnp.float32)
