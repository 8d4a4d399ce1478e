"""Rows that each hold a prompt and, behind it, several answers: the prompt is read once for all.

Samples of one prompt, the two sides of a comparison, the answers of a ranking begin alike. In
``K`` rows of ``P + R`` tokens a model reads the prompt ``K`` times, forwards and backwards; forked,
they are one row of ``P + K R``, in which an answer sees the prompt and itself. Each token has the
position, and sees the tokens, that it would have in a row of its own, so that the numbers are the
same to rounding. The mask says how a row lies: a ``types.Forked`` instead of ``bool[B, T]``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.types import FactoredLogits, Forked, Params, PyTree

__all__ = ["fork", "prompts_once", "unfork"]


def fork(rows: jax.Array, samples: int, prompt_length: int) -> jax.Array:
    """Rows of which ``K`` neighbours begin with one prompt, as one row a prompt.

    Args:
        rows: ``[N * K, P + R, ...]``.
        samples: ``K``.
        prompt_length: ``P``.

    Returns:
        ``[N, P + K * R, ...]``, with the prompt of the first of each ``K``.

    Raises:
        ValueError: if ``K`` does not divide the rows.

    >>> fork(jnp.array([[1, 5], [1, 6], [2, 7], [2, 8]]), samples=2, prompt_length=1).tolist()
    [[1, 5, 6], [2, 7, 8]]
    """
    if rows.shape[0] % samples:
        raise ValueError(
            f"samples={samples} must divide the {rows.shape[0]} rows: so many share a prompt"
        )
    prompts, answers = rows[::samples, :prompt_length], rows[:, prompt_length:]
    return _behind(prompts, answers.reshape(prompts.shape[0], -1, *rows.shape[2:]))


def unfork(values: jax.Array, samples: int, prompt_length: int) -> jax.Array:
    """The opposite of ``fork``: ``[N, P + K * R, ...]`` to ``[N * K, P + R, ...]``.

    >>> unfork(jnp.array([[1, 5, 6], [2, 7, 8]]), samples=2, prompt_length=1).tolist()
    [[1, 5], [1, 6], [2, 7], [2, 8]]
    """
    prompts, answers = values[:, :prompt_length], values[:, prompt_length:]
    rows, further = values.shape[0] * samples, values.shape[2:]
    length = answers.shape[1] // samples
    return _behind(jnp.repeat(prompts, samples, axis=0), answers.reshape(rows, length, *further))


def _behind(prompts: jax.Array, answers: jax.Array) -> jax.Array:
    return jnp.concatenate([prompts, answers], axis=1)


def prompts_once(
    read_fn: Callable[[Params, PyTree, jax.Array], PyTree], samples: int, response_length: int
) -> Callable[[Params, PyTree, jax.Array], PyTree]:
    """A function of rows of which ``K`` neighbours share a prompt, which is read once for them.

    Args:
        read_fn: ``(params, read, mask) -> arrays [B, T, ...]``: a ``LogitsFn``, with logits or
            factored ones, a ``TrunkFn``, or scores at all tokens, if it knows a ``Forked`` mask, as
            those of ``models.language_model`` and ``models.token_score_model``.
        samples: ``K``.
        response_length: ``R``; what stands before the last ``R`` columns is the prompt.

    Returns:
        A function of the same kind, of ``N * K`` rows of ``P + R`` tokens, which returns what
        ``read_fn`` does of these, to rounding. Where ``read`` are tokens and the prompts of
        neighbours differ, their numbers are NaN: none is wrong in silence.

    Raises:
        ValueError: if ``samples`` is below 1, ``response_length`` below 0; when called, if ``K``
            does not divide the rows, or there are fewer than ``R`` columns.
        TypeError: when called, if ``read_fn`` takes no forked rows.

    >>> from rlhf_jax import models
    >>> model = models.language_model(models.TransformerConfig(16, 8, num_layers=1))
    >>> params = model.init(jax.random.key(0))
    >>> tokens, mask = jnp.array([[3, 1, 4], [3, 1, 5]]), jnp.ones([2, 3], bool)
    >>> once = prompts_once(model.logits_fn, samples=2, response_length=1)
    >>> bool(jnp.allclose(once(params, tokens, mask), model.logits_fn(params, tokens, mask)))
    True
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    if response_length < 0:
        raise ValueError(f"response_length must be at least 0, not {response_length}")

    def read_once(params: Params, read: PyTree, mask: jax.Array) -> PyTree:
        if samples == 1:
            return read_fn(params, read, mask)
        start = mask.shape[1] - response_length
        if start < 0:
            raise ValueError(
                f"response_length={response_length}, but there are {mask.shape[1]} columns in all"
            )
        forked = Forked(fork(mask, samples, start), samples, start)
        rows = jax.tree.map(lambda x: fork(x, samples, start), read)
        try:
            found = read_fn(params, rows, forked)
        except (AttributeError, TypeError) as error:
            if "Forked" not in str(error):
                raise
            raise TypeError(
                "read_fn must know forked rows, as those of models.language_model and "
                f"models.token_score_model do, not fail at them: {error}"
            ) from error
        same = _same_prompts([mask, *jax.tree.leaves(read)], samples, start)

        def apart(x: jax.Array) -> jax.Array:
            x = unfork(x, samples, start)
            return jnp.where(same.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)

        if isinstance(found, FactoredLogits):
            return found.replace(hidden=apart(found.hidden))
        return jax.tree.map(apart, found)

    return read_once


def _same_prompts(arrays: list[jax.Array], samples: int, prompt_length: int) -> jax.Array:
    """Whether a row has the prompt, token for token, of the first of its neighbours: ``bool[B]``.

    What lower layers made of the tokens is not compared: rounding need not be the same.
    """
    same = jnp.ones(arrays[0].shape[0], bool)
    for x in arrays:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            first = jnp.repeat(x[::samples, :prompt_length], samples, axis=0)
            same &= jnp.all(x[:, :prompt_length] == first, axis=1)
    return same
