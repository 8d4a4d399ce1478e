"""Rewards of the parts of an answer: its steps, its sentences, its spans.

A token-level score says something of the text up to and including each token; an ``ends_fn`` says
at which tokens a part ends. Together they make a reward for each part, earned at its last token,
for ``algorithms.policy_gradient``, or one of the whole answer.

An advantage of tokens profits from knowing where a reward was earned if its baseline knows how much
is still to come, as a critic does. Against one mean of all tokens (``reinforce_plus_plus``) the
beginnings of answers look good and their ends bad, and a sum at the end may teach more. Advantages
of whole answers only see the sum.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.sequences import last_token
from rlhf_jax.types import Params, RewardFn, ScoreFn, Sequences

__all__ = [
    "EndsFn",
    "Running",
    "at_ends",
    "ends_after",
    "fine_grained",
    "from_steps",
    "running_last",
    "running_minimum",
    "running_product",
    "whole_answer",
]

# sequences -> bool[B, T], true on the last token of every part of the response
EndsFn = Callable[[Sequences], jax.Array]
# log_probs[B, T], ends[B, T] -> [B, T]: what the steps that ended by token t come to, in nats
Running = Callable[[jax.Array, jax.Array], jax.Array]


def whole_answer(sequences: Sequences) -> jax.Array:
    """The ends of one part: the answer's last token.

    Args:
        sequences: of ``B`` rows.

    Returns:
        ``bool[B, T]``, as an ``EndsFn``.

    >>> response = jnp.array([[False, True, True, False]])
    >>> whole_answer(Sequences(None, None, response)).astype(int).tolist()
    [[0, 0, 1, 0]]
    """
    return last_token(sequences.response_mask)


def ends_after(*token_ids: int, eos_id: int | None = None) -> EndsFn:
    """Parts that end with certain tokens, a line's or a sentence's end; the last ends the answer.

    Text after the last such token is a part too, or a policy could hide its mistakes there. A token
    that merges a line's end with something else ends nothing unless it is given as well.

    Args:
        *token_ids: the tokens that a part ends with.
        eos_id: end-of-text, which belongs to no part; ``None`` if the answers have none.

    Returns:
        An ``EndsFn``; a row without a response has no parts.

    Raises:
        ValueError: if no token is given.

    >>> tokens, response = jnp.array([[9, 3, 9, 3, 4, 1]]), jnp.arange(6)[None] > 0
    >>> ends_after(9, eos_id=1)(Sequences(tokens, None, response)).astype(int).tolist()
    [[0, 0, 1, 0, 1, 0]]
    """
    if not token_ids:
        raise ValueError("ends_after needs at least one token that a part ends with")

    def ends_fn(sequences: Sequences) -> jax.Array:
        response, tokens = sequences.response_mask, sequences.tokens
        if eos_id is not None:
            response = response & (tokens != eos_id)
        return (response & jnp.isin(tokens, jnp.array(token_ids))) | last_token(response)

    return ends_fn


def running_product(log_probs: jax.Array, ends: jax.Array) -> jax.Array:
    r"""That no step is wrong, if their errors are independent; it falls with every step.

    .. math:: c_t = \sum_{s \le t} \log p_s

    Args:
        log_probs: ``float[B, T]`` in nats, of each step being right, read at its end.
        ends: ``bool[B, T]``.

    Returns:
        ``float[B, T]`` in nats; 0 before the first end.

    Reference: Lightman et al. 2023, https://arxiv.org/abs/2305.20050

    >>> ends = jnp.array([[False, True, False, True]])
    >>> running_product(jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.5]])), ends).tolist()
    [[0.0, -0.693147, -0.693147, -1.386294]]
    """
    return jnp.cumsum(jnp.where(ends, log_probs, 0), axis=-1)


def running_minimum(log_probs: jax.Array, ends: jax.Array) -> jax.Array:
    r"""The weakest step so far, however many there are.

    .. math:: c_t = \min_{s \le t} \log p_s

    Args:
        log_probs: as of ``running_product``.
        ends: ``bool[B, T]``.

    Returns:
        ``float[B, T]`` in nats; 0 before the first end.

    Reference: Lightman et al. 2023, https://arxiv.org/abs/2305.20050

    >>> ends = jnp.array([[False, True, False, True]])
    >>> running_minimum(jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.8]])), ends).tolist()
    [[0.0, -0.693147, -0.693147, -0.693147]]
    """
    return jax.lax.cummin(jnp.where(ends, log_probs, 0), axis=1)


def running_last(log_probs: jax.Array, ends: jax.Array) -> jax.Array:
    r"""The newest step: for a score that judges all that came before with it.

    .. math:: c_t = \log p_{\max \{s \le t\}}

    Args:
        log_probs: as of ``running_product``.
        ends: ``bool[B, T]``.

    Returns:
        ``float[B, T]`` in nats; 0 before the first end.

    >>> ends = jnp.array([[False, True, False, True]])
    >>> running_last(jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.8]])), ends).tolist()
    [[0.0, -0.693147, -0.693147, -0.223144]]
    """
    newest = jax.lax.cummax(jnp.where(ends, jnp.arange(ends.shape[1]), -1), axis=1)
    found = jnp.take_along_axis(log_probs, jnp.maximum(newest, 0), axis=-1)
    return jnp.where(newest >= 0, found, 0)


_RUNNING: dict[str, Running] = {
    "product": running_product,
    "minimum": running_minimum,
    "last": running_last,
}


def from_steps(
    token_score_fn: ScoreFn,
    ends_fn: EndsFn,
    *,
    combine: Literal["product", "minimum", "last"] | Running = "product",
    log: bool = False,
    dense: bool = False,
) -> RewardFn:
    r"""What a process reward model makes of a solution, from how probable its steps are right.

    .. math:: r = \exp c_T, \qquad p_s = \sigma(z_s), \qquad
              r_t = \exp c_t - \exp c_{t-1} \text{ if dense, of which the first is } \exp c_t

    Sums are of log-probabilities, so a long solution does not underflow on the way. ``dense``
    spreads the same number over the steps, each given what it adds to or takes from it: it tells a
    policy where, and neither the number of steps nor their lengths can be played for more. (A sum
    of the steps' probabilities could: more steps, more reward.)

    Args:
        token_score_fn: ``(params, tokens, mask) -> scores[B, T]``, log-odds in nats that the step
            which ends with token ``t`` is right, such as of ``models.token_score_model``.
        ends_fn: where steps end, such as ``ends_after(newline)``.
        combine: of steps to one: ``"product"``, that all are right; ``"minimum"``, the weakest;
            ``"last"``; or a ``Running`` function.
        log: whether the reward is the logarithm, in nats: the product of steps is then their sum.
        dense: whether it is spread over the steps' last tokens.

    Returns:
        A ``RewardFn`` of the scores' parameters: ``[B]``, or ``[B, T]`` if ``dense``, whose sum is
        the same. An answer in which no step ends gets 0. With ``log`` that is the most there is:
        let ``ends_fn`` end a step with the answer, as ``ends_after`` does.

    Raises:
        ValueError: if ``combine`` is unknown, or what ``token_score_fn`` or ``ends_fn`` returns is
            not ``[B, T]``.

    Reference: Lightman et al. 2023, https://arxiv.org/abs/2305.20050; differences as rewards that
    leave the best policy as it is, Ng et al. 1999, ICML

    >>> odds = lambda params, tokens, mask: jnp.where(tokens == 5, 0.0, params)
    >>> tokens, mask = jnp.array([[9, 5, 9, 7, 9]]), jnp.ones([1, 5], bool)
    >>> text = Sequences(tokens, mask, mask & (jnp.arange(5) > 0))
    >>> ends_fn = lambda sequences: sequences.response_mask & (sequences.tokens != 9)
    >>> from_steps(odds, ends_fn)(jnp.log(3.0), text).tolist()  # 1/2 times 3/4
    [0.375]
    >>> from_steps(odds, ends_fn, dense=True)(jnp.log(3.0), text).tolist()
    [[0.0, 0.5, 0.0, -0.125, 0.0]]
    """
    if combine in _RUNNING:
        combine = _RUNNING[combine]
    elif not callable(combine):
        names = ", ".join(_RUNNING)
        raise ValueError(f"combine must be {names} or a function, not {combine!r}")

    def reward_fn(params: Params, sequences: Sequences) -> jax.Array:
        scores, ends = _scored(token_score_fn, ends_fn, params, sequences)
        so_far = combine(jax.nn.log_sigmoid(scores), ends)
        so_far = so_far if log else jnp.exp(so_far)
        begun = jnp.cumsum(ends, axis=-1) > 0
        so_far = jnp.where(begun, so_far, 0)
        if not dense:
            return so_far[:, -1]
        return jnp.where(ends, jnp.diff(so_far, axis=-1, prepend=0), 0)

    return reward_fn


def at_ends(
    token_score_fn: ScoreFn,
    ends_fn: EndsFn,
    *,
    transform: Callable[[jax.Array], jax.Array] = lambda scores: scores,
) -> RewardFn:
    """A reward for each part of an answer, earned at its last token.

    What the parts earn adds up, so a policy is paid for having many good parts, or few bad ones.

    Args:
        token_score_fn: ``(params, tokens, mask) -> scores[B, T]``, of the part that ends with each
            token.
        ends_fn: where the parts end.
        transform: of scores to rewards, such as ``jnp.sign``, which gives 1 and -1 for what is more
            probably right and wrong.

    Returns:
        A ``RewardFn`` of the scores' parameters, ``[B, T]``.

    Raises:
        ValueError: if what the functions return is not ``[B, T]``.

    >>> scores = lambda params, tokens, mask: tokens - 5.5
    >>> tokens, mask = jnp.array([[9, 5, 9, 7]]), jnp.ones([1, 4], bool)
    >>> reward_fn = at_ends(scores, ends_after(5), transform=jnp.sign)
    >>> reward_fn((), Sequences(tokens, mask, mask)).tolist()
    [[0.0, -1.0, 0.0, 1.0]]
    """

    def reward_fn(params: Params, sequences: Sequences) -> jax.Array:
        scores, ends = _scored(token_score_fn, ends_fn, params, sequences)
        return jnp.where(ends, transform(scores), 0)

    return reward_fn


def fine_grained(*reward_fns: RewardFn, weights: Sequence[float] | jax.Array) -> RewardFn:
    r"""Several rewards at several densities in one: what of the answer is bad, and where.

    .. math:: r_t = \sum_k w_k \sum_j [t = \text{end of the } j\text{-th part for } k] \; r_k(j)

    Args:
        *reward_fns: ``K`` functions, each of parts (``at_ends``, ``from_steps``), ``[B, T]``, or of
            whole answers, ``[B]``, which is earned at the last token.
        weights: ``float[K]``, how much each counts. Rewards of parts come as often as there are
            parts: a dense one weighs more than a sparse one of the same weight.

    Returns:
        A ``RewardFn`` whose parameters are a sequence of those of each, in their order: ``[B, T]``.

    Raises:
        ValueError: if there are not as many weights as functions, or one returns another shape.

    Reference: Wu et al. 2023, https://arxiv.org/abs/2306.01693

    >>> scores = lambda params, tokens, mask: params * tokens
    >>> length = lambda params, sequences: jnp.sum(sequences.response_mask, axis=-1)
    >>> reward_fn = fine_grained(at_ends(scores, ends_after(5)), length, weights=[1.0, -0.5])
    >>> tokens, mask = jnp.array([[9, 5, 9, 7]]), jnp.ones([1, 4], bool)
    >>> reward_fn((10.0, ()), Sequences(tokens, mask, mask)).tolist()
    [[0.0, 50.0, 0.0, 68.0]]
    """
    if np.shape(weights) != (len(reward_fns),):
        found = list(np.shape(weights))
        raise ValueError(f"weights must be one for each of {len(reward_fns)} rewards, not {found}")

    def reward_fn(params: Sequence[Params], sequences: Sequences) -> jax.Array:
        response = sequences.response_mask
        total = jnp.zeros(response.shape, jnp.float32)
        for k, (fn, own) in enumerate(zip(reward_fns, params, strict=True)):
            rewards = fn(own, sequences)
            if rewards.shape == response.shape[:1]:
                rewards = jnp.where(last_token(response), rewards[:, None], 0)
            elif rewards.shape != response.shape:
                wanted = f"[B] or [B, T], with B, T = {list(response.shape)}"
                raise ValueError(f"reward {k} must be {wanted}, not {list(rewards.shape)}")
            total += weights[k] * jnp.where(response, rewards, 0)
        return total

    return reward_fn


def _scored(
    token_score_fn: ScoreFn, ends_fn: EndsFn, params: Params, sequences: Sequences
) -> tuple[jax.Array, jax.Array]:
    """``float[B, T]`` scores, and ``bool[B, T]`` ends, within the response alone."""
    scores = token_score_fn(params, sequences.tokens, sequences.mask)
    ends = ends_fn(sequences)
    for name, array in (("token_score_fn", scores), ("ends_fn", ends)):
        if array.shape != sequences.tokens.shape:
            wanted = f"[B, T] = {list(sequences.tokens.shape)}"
            raise ValueError(f"{name} must return {wanted}, not {list(array.shape)}")
    return scores, ends & sequences.response_mask
