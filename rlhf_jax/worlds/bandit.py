"""The finite bandit as a language: every answer is one token, and its true utility is known.

So every human, reward model and policy method works on it as on text, and the best policy is known:
``tilt``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import checks, divergences
from rlhf_jax.algorithms.common import advance, new_state
from rlhf_jax.algorithms.experience import Frozen
from rlhf_jax.feedback import Pairs
from rlhf_jax.sampling.requests import answered
from rlhf_jax.types import (
    Algorithm,
    Key,
    LogitsFn,
    Metrics,
    Params,
    Preferences,
    Prompts,
    SampleFn,
    ScoreFn,
    Sequences,
    TrainState,
)
from rlhf_jax.worlds.finite import tilt

__all__ = ["Bandit", "bandit"]

# What the exact policy needs of an optimiser.
_NOTHING = optax.identity()


class Bandit(NamedTuple):
    """A world of ``N`` answers to one and the same prompt.

    A policy's parameters are its logits ``float[N]``, a reward model's ``float[D]``, which multiply
    the answers' features (``float[N]``, an answer's own reward, without features).

    Attributes:
        utility: of ``Sequences``, ``float[B]``: what people want, the truth.
        utilities: of all answers, ``float[N]``.
        reference: the parameters of the reference policy.
        logits_fn: the policy.
        sample_fn: the policy, generating.
        score_fn: the reward model.
        answers: ``int[B] -> Sequences``, by number.
        prompts: ``(B) -> (key -> Prompts)``.
        pairs: ``(B) -> Query``: pairs of the policy's own answers.
        rewards: ``(params) -> float[N]``, what a reward model says of all answers.
        exact: ``(beta) -> Algorithm``, whose step goes to the ``tilt`` of the reference by the
            reward.
        newton: ``(l2) -> Algorithm``, of the reward model: Bradley-Terry with ``l2 * |params|^2``,
            whose step is one of Newton's method on the batch. Some five steps are exact.
    """

    utility: Callable[[Sequences], jax.Array]
    utilities: jax.Array
    reference: Params
    logits_fn: LogitsFn
    sample_fn: SampleFn
    score_fn: ScoreFn
    answers: Callable[[jax.Array], Sequences]
    prompts: Callable[[int], Callable[[Key], Prompts]]
    pairs: Callable[[int], Callable[[Key, Params, Params], Pairs]]
    rewards: Callable[[Params], jax.Array]
    exact: Callable[[float | jax.Array], Algorithm]
    newton: Callable[[float | jax.Array], Algorithm]


def bandit(
    utilities: jax.Array,
    *,
    features: jax.Array | None = None,
    ref_log_probs: jax.Array | None = None,
) -> Bandit:
    """A finite bandit, all of whose parts are functions of sequences ``[prompt, answer]``.

    Args:
        utilities: ``float[N]``, what people want of each answer; may be traced.
        features: ``float[N, D]`` that a reward is linear in; by default one for each answer.
        ref_log_probs: ``float[N]``, of the reference policy; logits will do. By default uniform.

    Returns:
        A ``Bandit``.

    Raises:
        ValueError: if the shapes do not fit.

    >>> world = bandit(jnp.array([0.0, 1.0, 2.0]))
    >>> answers = world.sample_fn(world.reference, world.prompts(4)(None), jax.random.split(
    ...     jax.random.key(0), 4))
    >>> answers.tokens.shape, bool((world.utility(answers) == answers.tokens[:, 1]).all())
    ((4, 2), True)
    """
    checks.vectors(utilities=utilities)
    count = len(utilities)
    if features is not None and (jnp.ndim(features) != 2 or len(features) != count):
        found = list(jnp.shape(features))
        raise ValueError(f"features must be [{count}, D], a row for each answer, not {found}")
    reference = jnp.zeros(count) if ref_log_probs is None else jnp.asarray(ref_log_probs)
    if reference.shape != (count,):
        raise ValueError(f"ref_log_probs must be [{count}], not {list(reference.shape)}")

    def answers(number: jax.Array) -> Sequences:
        tokens = jnp.stack([jnp.zeros_like(number), number], axis=-1)
        there = jnp.ones(tokens.shape, bool)
        return Sequences(tokens, there, there.at[..., 0].set(False))

    def utility(sequences: Sequences) -> jax.Array:
        return utilities[sequences.tokens[..., 1]]

    def logits_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.broadcast_to(params, (*tokens.shape, count))

    def score_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        scores = params if features is None else features @ params
        return scores[tokens[..., 1]]

    def rewards(params: Params) -> jax.Array:
        return params if features is None else features @ params

    def prompts(rows: int) -> Callable[[Key], Prompts]:
        batch = Prompts(jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows, 1), bool))
        return lambda key: batch

    def sample_fn(params: Params, prompts: Prompts, keys: Key) -> Sequences:
        rows = len(prompts.tokens)
        if keys.ndim != 1 or not rows or keys.size % rows:
            raise ValueError(
                f"one key a sequence, as many for each prompt: {rows} prompts, keys of shape "
                f"{keys.shape}"
            )
        number = _drawn(params, jax.vmap(jax.random.uniform)(keys))
        log_probs = jax.nn.log_softmax(params)[number]
        there = jnp.ones((keys.size, 1), bool)
        return answered(prompts, number[:, None], there, log_probs[:, None])

    def pairs(rows: int) -> Callable[[Key, Params, Params], Pairs]:
        def query(key: Key, policy: Params, reward: Params) -> Pairs:
            drawn = _drawn(policy, jax.random.uniform(key, (2, rows)))
            return Pairs(*map(answers, drawn))

        return query

    def exact(beta: float | jax.Array) -> Algorithm:
        def init(params: Params, key: Key, reward: Params = ()) -> TrainState:
            return new_state(params, _NOTHING, key, frozen=Frozen(params, reward, ()))

        def step(state: TrainState, prompts: Prompts) -> tuple[TrainState, Metrics]:
            found = rewards(state.frozen.reward)
            policy = tilt(state.frozen.reference, found, beta=beta)
            metrics = {
                "reward": jnp.exp(policy) @ found,
                "kl": divergences.exact_kl(policy, state.frozen.reference),
            }
            return advance(state, metrics, params=policy, opt_state=state.opt_state)

        return Algorithm(init, step)

    def newton(l2: float | jax.Array) -> Algorithm:
        table = jnp.eye(count) if features is None else features

        def init(params: Params, key: Key) -> TrainState:
            return new_state(params, _NOTHING, key)

        def step(state: TrainState, batch: Preferences) -> tuple[TrainState, Metrics]:
            chosen, rejected = (table[x.tokens[:, 1]] for x in (batch.chosen, batch.rejected))
            lead, params = chosen - rejected, state.params
            valid = jnp.any(batch.chosen.response_mask, axis=-1)
            weight = valid if batch.weight is None else valid * batch.weight
            weight = weight / jnp.maximum(jnp.sum(weight), 1e-9)
            known = 1.0 if batch.probability is None else batch.probability
            predicted = jax.nn.sigmoid(lead @ params)
            gradient = lead.T @ (weight * (predicted - known)) + 2 * l2 * params
            curvature = weight * predicted * (1 - predicted)
            hessian = (lead.T * curvature) @ lead + 2 * l2 * jnp.eye(len(params))
            change = jnp.linalg.solve(hessian, gradient)
            # No lead moves by more than 2 nats, beyond which the quadratic is a poor picture of it.
            change *= jnp.minimum(1, 2 / jnp.maximum(jnp.max(jnp.abs(lead @ change)), 1e-9))
            right = jnp.where(lead @ params == 0, 0.5, lead @ params > 0)
            metrics = {
                "loss": -jnp.sum(
                    weight
                    * (
                        known * jax.nn.log_sigmoid(lead @ params)
                        + (1 - known) * jax.nn.log_sigmoid(-lead @ params)
                    )
                ),
                "accuracy": jnp.sum(weight * right),
                "change": jnp.linalg.norm(change),
            }
            return advance(state, metrics, params=params - change, opt_state=state.opt_state)

        return Algorithm(init, step)

    return Bandit(
        utility,
        utilities,
        reference,
        logits_fn,
        sample_fn,
        score_fn,
        answers,
        prompts,
        pairs,
        rewards,
        exact,
        newton,
    )


def _drawn(policy: jax.Array, uniform: jax.Array) -> jax.Array:
    """The answers, ``int32[...]``, that uniform numbers ``float[...]`` draw from a policy's logits.

    One number a draw and one sum for all, where ``jax.random.categorical`` draws one for each
    answer that there is.
    """
    # A reference is often a constant, of which the compiler would add up as many as there are runs.
    probabilities = jax.nn.softmax(jax.lax.optimization_barrier(policy))
    if len(policy) <= 256:  # Then a product is faster than to add up, and to look at all of them.
        cumulative = probabilities @ jnp.triu(jnp.ones((len(policy), len(policy))))
        below = jnp.expand_dims(cumulative, range(1, 1 + uniform.ndim))
        number = jnp.sum(below <= uniform * cumulative[-1], axis=0)
    else:
        cumulative = jnp.cumsum(probabilities)
        number = jnp.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    # Where rounding puts it behind the end: the last answer that can be given.
    return jnp.minimum(number, jnp.sum(cumulative < cumulative[-1])).astype(jnp.int32)
