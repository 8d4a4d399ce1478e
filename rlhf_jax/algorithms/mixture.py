"""Several crowds in one: a reward model for each group of people, and who belongs to which."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import checks
from rlhf_jax.algorithms.common import (
    Term,
    advance,
    check_stacked,
    gradients,
    new_state,
    over_devices,
    updated,
)
from rlhf_jax.algorithms.feedback import Feedback, judged, lined_up
from rlhf_jax.losses import bradley_terry
from rlhf_jax.sequences import Mean
from rlhf_jax.types import (
    Algorithm,
    Key,
    Metrics,
    Params,
    PreferenceLoss,
    RankingLoss,
    Rated,
    RatingLoss,
    ScoreFn,
    TrainState,
)

__all__ = ["Groups", "group_posterior", "mixture"]


class Groups(NamedTuple):
    """What is known of the groups and of who is in them: the state's ``extra``.

    Attributes:
        log_prior: ``float32[K]``, log of each group's share of the raters, in nats.
        evidence: ``float32[R, K]``, log-likelihood of each rater's answers in each group, in nats.
        answers: ``float32[R]``, how many answers that evidence is of.
    """

    log_prior: jax.Array
    evidence: jax.Array
    answers: jax.Array


def group_posterior(groups: Groups) -> jax.Array:
    r"""How probable it is that each rater belongs to each group.

    .. math:: q_{rk} \propto \pi_k \, e^{E_{rk}}

    Args:
        groups: ``state.extra`` of a ``mixture``.

    Returns:
        ``float32[R, K]``; the prior, for one who has not answered.

    >>> print(group_posterior(Groups(jnp.log(jnp.array([0.8, 0.2])), jnp.zeros([1, 2]), None)))
    [[0.8 0.2]]
    """
    return jax.nn.softmax(groups.log_prior + groups.evidence, axis=-1)


def mixture(
    score_fn: ScoreFn,
    optimizer: optax.GradientTransformation,
    *,
    groups: int,
    raters: int,
    loss: PreferenceLoss | RatingLoss | RankingLoss = bradley_terry,
    reward: Callable[[jax.Array], jax.Array] = lambda scores: scores,
    regulariser: Callable[[Params], jax.Array] | None = None,
    memory: float = 1.0,
    pseudo_count: float = 1.0,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Fits ``K`` scores to the answers of raters, each of whom belongs to one unknown group.

    .. math::
        L = -\frac1N \sum_r \log \sum_k \pi_k \, e^{E_{rk}}, \qquad
        E_{rk} = -\sum_{b \,:\, \text{rater}_b = r} w_b \, \ell_b(\phi_k), \qquad
        \nabla_{\phi_k} L = \frac1N \sum_b q_{r_b k} \, w_b \, \nabla \ell_b(\phi_k)

    Expectation-maximisation: a step weighs every answer in each group by the posterior ``q`` of who
    gave it, takes one optimiser step on that, and sets the groups' shares to the posteriors' mean.
    If a batch holds all answers, the likelihood cannot fall for small optimiser steps. Otherwise
    the evidence is gathered from batch to batch, and what is ``memory`` steps old has faded to 1/e.

    The loss must be a negative log-likelihood if the posteriors are to be probabilities; all of
    ``losses`` but the likes of ``hinge`` and ``squared`` are. What it cannot know:

    - Groups have no order: a run with another seed may number them otherwise.
    - It is the raters that tell groups apart. A pair whose rater is unknown (-1) is weighed by its
      own answer alone, and pairs alone need not identify even two scores: two opposite tastes in
      equal shares make every pair a coin toss, however strong they are.
    - It ends in a local optimum. Train several as ``ensemble``, and keep the likeliest.

    Args:
        score_fn: the reward model of one group.
        optimizer: any optax transformation.
        groups: ``K``.
        raters: ``R``; the batch's raters are from 0 to ``R - 1``, and any other is unknown.
        loss: as of ``reward_model``; it must treat each judgement by itself.
        reward: as of ``reward_model``.
        regulariser: ``(params of one group) -> float[]``, summed over groups.
        memory: how many steps it takes until all answers were seen once: 1 if each batch holds them
            all, else rows over batch size.
        pseudo_count: how many raters more each group counts as having, so that none dies out.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm``. ``init(params, key)``: the parameters are ``[K, ...]``, not all alike. The
        batch is ``Preferences``, ``Rated`` or ``Ranked`` with ``rater``. The state's ``extra`` are
        ``Groups``. Metrics as of ``reward_model``, each judgement counted in each group as far as
        its rater belongs there; and ``log_likelihood`` (nats an answer, of known raters),
        ``certainty`` (mean of the raters' greatest posterior), ``smallest_share``. One with a
        single group is ``reward_model``. The models are a ``rewards.ensemble``.

    Raises:
        ValueError: if a setting is impossible, the parameters are not of ``K`` groups or are the
            same in all, the batch does not say who answered, or its ratings have ``unrelated``.

    Reference: of reward models, Chakraborty et al. 2024 (MaxMin-RLHF),
    https://arxiv.org/abs/2402.08925; with fading evidence, Cappe and Moulines 2009,
    https://arxiv.org/abs/0712.4273; that pairs are not enough, Chierichetti et al. 2018, PMLR 80;
    for almost all mixtures of many items they are, Zhang et al. 2022,
    https://arxiv.org/abs/2201.13132

    >>> score_fn = lambda params, tokens, mask: params * jnp.sum(tokens * mask, axis=-1)
    >>> two = mixture(score_fn, optax.sgd(0.1), groups=2, raters=5)
    >>> state = two.init(jnp.array([-0.1, 0.1]), jax.random.key(0))
    >>> state.extra.evidence.shape
    (5, 2)
    """
    for name, number in (("groups", groups), ("raters", raters)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if memory < 1:
        raise ValueError(f"memory must be at least 1 step, not {memory}")
    checks.positive(pseudo_count=pseudo_count)

    def init(params: Params, key: Key) -> TrainState:
        check_stacked(groups, "one a group", params=params)
        leaves = jax.tree.leaves(params)
        if groups > 1 and not any(isinstance(x, jax.core.Tracer) or _differ(x) for x in leaves):
            raise ValueError(
                "params must not be the same in all groups, or nothing would ever tell them apart: "
                "start each with a key of its own, or add small random numbers"
            )
        share = jnp.full(groups, -jnp.log(groups), jnp.float32)
        nothing = Groups(share, jnp.zeros([raters, groups]), jnp.zeros(raters))
        return new_state(params, optimizer, key, extra=nothing)

    def gathered(before: Groups, likelihood: Mean, rater: jax.Array) -> tuple[Groups, jax.Array]:
        """The E-step: evidence with the batch's ``[K, B]``, and each judgement's ``q[K, B]``."""
        known = (rater >= 0) & (rater < raters)
        whose = jnp.where(known, rater, raters)  # The unknown are past the end, and cut off.

        def of_raters(x):
            return jax.ops.segment_sum(x, whose, raters + 1)[:raters]

        own = -likelihood.total.T
        new = over_devices((of_raters(own), of_raters(likelihood.count[0])), axis_name)
        kept = 1 - 1 / memory
        evidence, answers = kept * before.evidence + new[0], kept * before.answers + new[1]
        each = jnp.where(known[:, None], evidence[jnp.where(known, rater, 0)], own)
        return (
            Groups(before.log_prior, evidence, answers),
            jax.nn.softmax(before.log_prior + each, axis=-1).T,
        )

    def step(state: TrainState, batch: Feedback) -> tuple[TrainState, Metrics]:
        if batch.rater is None:
            raise ValueError("a mixture is told apart by who answered: the batch's rater is None")
        if isinstance(batch, Rated) and batch.unrelated is not None:
            raise ValueError("a mixture takes each judgement by itself: unrelated must be None")
        rows, valid = lined_up(batch)

        def by_itself(judgement, scores):
            alone = jax.tree.map(lambda x: x[None], judgement)
            return judged(alone, scores[:, None], loss, reward=reward)

        def objective(params):
            scores = jax.vmap(score_fn, (0, None, None))(params, rows.tokens, rows.mask)
            scores = scores.reshape(groups, -1, valid.size, *scores.shape[2:])
            each, further = jax.vmap(lambda x: jax.vmap(by_itself, (0, 1))(batch, x))(scores)
            after, shares = gathered(state.extra, jax.lax.stop_gradient(each), batch.rater)

            def over_groups(mean):
                return Mean(jnp.sum(shares * mean.total), jnp.sum(shares * mean.count))

            terms = {"preference": Term(1.0, over_groups(each))}
            if regulariser is not None:
                total = jnp.sum(jax.vmap(regulariser)(params))
                terms["regulariser"] = Term(1.0, Mean(total, jnp.float32(1)))
            return terms, {name: over_groups(mean) for name, mean in further.items()}, after

        gradient, metrics, found = gradients(objective, state.params, axis_name, has_aux=True)
        posterior, seen = group_posterior(found), found.answers > 0
        members = jnp.sum(jnp.where(seen[:, None], posterior, 0), axis=0) + pseudo_count
        marginal = jax.nn.logsumexp(found.log_prior + found.evidence, axis=-1)
        total = jnp.sum(jnp.where(seen, marginal, 0))
        certain = jnp.sum(jnp.where(seen, jnp.max(posterior, axis=-1), 0))
        shares = members / jnp.sum(members)
        metrics |= {
            "log_likelihood": total / jnp.maximum(jnp.sum(found.answers), 1e-9),
            "certainty": certain / jnp.maximum(jnp.sum(seen), 1),
            "smallest_share": jnp.min(shares),
        }
        params, opt_state = updated(optimizer, gradient, state.params, state.opt_state)
        extra = found._replace(log_prior=jnp.log(shares))
        return advance(state, metrics, params=params, opt_state=opt_state, extra=extra)

    return Algorithm(init, step)


def _differ(leaf: jax.Array) -> bool:
    leaf = np.asarray(leaf)
    return bool(np.any(leaf != leaf[:1]))
