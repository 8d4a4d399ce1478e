"""Learning from a judge of pairs, on the policy's own answers: online DPO and Nash-MD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import trees
from rlhf_jax.algorithms.common import (
    Term,
    descended,
    divided,
    new_state,
    row_keys,
    rows_mean,
)
from rlhf_jax.algorithms.direct import direct
from rlhf_jax.algorithms.partial import frozen_reference, split_trainable, whole_reference
from rlhf_jax.losses import bradley_terry, reinforce
from rlhf_jax.sequences import marked_log_probs, sequence_sum, token_mean
from rlhf_jax.types import (
    Algorithm,
    JudgeFn,
    Key,
    LogitsFn,
    Metrics,
    Params,
    PreferenceLoss,
    Preferences,
    Prompts,
    SampleFn,
    Sequences,
    TrainState,
)

__all__ = ["Judged", "nash_md", "online_dpo"]


class Judged(NamedTuple):
    """What a policy is compared with, and by whom.

    Attributes:
        reference: parameters of the reference policy.
        judge: parameters of the judge.
    """

    reference: Params
    judge: Params


def _init(optimizer, trainable):
    def init(
        params: Params, key: Key, judge: Params = (), reference: Params | None = None
    ) -> TrainState:
        reference = frozen_reference(reference, params, split_trainable(params, trainable)[0])
        frozen = Judged(reference, judge)
        return new_state(params, optimizer, key, frozen=frozen, trainable=trainable)

    return init


def _answers(sample_fn, params, prompts, key, axis_name, samples=1) -> Sequences:
    """So many answers to each prompt; those to a padding prompt are padding."""
    keys = row_keys(key, prompts.tokens.shape[0] * samples, axis_name)
    answers = sample_fn(params, prompts, keys)
    real = jnp.repeat(jnp.any(prompts.mask, axis=-1), samples)
    return answers.replace(response_mask=answers.response_mask & real[:, None])


def online_dpo(
    logits_fn: LogitsFn,
    sample_fn: SampleFn,
    judge_fn: JudgeFn,
    optimizer: optax.GradientTransformation,
    *,
    beta: float = 0.1,
    loss: PreferenceLoss = bradley_terry,
    trainable: trees.Patterns | None = None,
    share_prompts: bool = False,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Direct preference optimisation on pairs that the policy writes and a judge compares.

    .. math:: L(\theta) = E_{x, x' \sim \pi_\theta}\left[p\, \ell(\beta \hat r(x), \beta \hat r(x'))
              + (1 - p)\, \ell(\beta \hat r(x'), \beta \hat r(x))\right], \qquad
              \hat r = \log \frac{\pi_\theta}{\pi_{ref}}

    One step samples two answers to each prompt, asks the judge for the probability ``p`` that the
    first is preferred, and updates. The loss is the expected one over the judge's answers; a judge
    that decides returns 0 or 1. No gradient goes through the sampling.

    Args:
        logits_fn: the policy.
        sample_fn: the same policy generating, at temperature 1.
        judge_fn: ``(frozen.judge, first, second) -> probability[B]``, as from ``rewards.judge``.
        optimizer: any optax transformation.
        beta: multiplies the log-ratio; reward per nat.
        loss: any preference loss; with ``partial(squared, tau=...)`` and ``beta=1`` online IPO.
        trainable: what of the parameters trains, as of ``direct``; by default all.
        share_prompts: whether policy and reference read a prompt once for both answers, as with
            ``direct``'s ``prompt_length``.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm``. ``init(params, key, judge=(), reference=None)``: the reference is by
        default the initial ``params``. The batch is ``Prompts`` (rows without any token are
        padding). Metrics as of ``direct`` (the chosen is the one more likely to be preferred),
        ``kl`` (nats a sequence), ``length`` (tokens), ``entropy`` (nats a token), ``confidence``
        (of the judge in its answer, from 0.5 to 1).

    Reference: Guo et al. 2024, https://arxiv.org/abs/2402.04792; online IPO, Calandriello et al.
    2024, https://arxiv.org/abs/2403.08635
    """

    def step(state: TrainState, prompts: Prompts) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        answers = _answers(sample_fn, state.params, prompts, key, axis_name, samples=2)
        first, second = (jax.tree.map(lambda x, n=n: x[n::2], answers) for n in (0, 1))
        probability = judge_fn(state.frozen.judge, first, second)
        swap = probability < 0.5
        confidence = jnp.where(swap, 1 - probability, probability)

        def expected(chosen, rejected):
            return confidence * loss(chosen, rejected) + (1 - confidence) * loss(rejected, chosen)

        def picked(ours, theirs):
            return jnp.where(swap.reshape(-1, *[1] * (ours.ndim - 1)), theirs, ours)

        pairs = Preferences(
            jax.tree.map(picked, first, second), jax.tree.map(picked, second, first)
        )
        start = prompts.tokens.shape[1]
        update = direct(
            logits_fn,
            optimizer,
            beta=beta,
            loss=expected,
            trainable=trainable,
            prompt_length=start if share_prompts else None,
            response_length=answers.tokens.shape[1] - start,
            axis_name=axis_name,
        )
        after, metrics = update.step(state.replace(frozen=state.frozen.reference), pairs)
        metrics["kl"] = (metrics["chosen_reward"] + metrics["rejected_reward"]) / (2 * beta)
        valid = jnp.any(first.response_mask, axis=-1)
        more = _described(answers) | {"confidence": rows_mean(confidence, valid)}
        return after.replace(frozen=state.frozen), metrics | divided(more, axis_name)

    return Algorithm(_init(optimizer, trainable), step)


def nash_md(
    logits_fn: LogitsFn,
    sample_fn: SampleFn,
    opponent_fn: SampleFn,
    judge_fn: JudgeFn,
    optimizer: optax.GradientTransformation,
    *,
    kl_coefficient: float = 0.1,
    trainable: trees.Patterns | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Nash learning from human feedback: a policy that no other is preferred to.

    .. math:: \nabla J = E\left[\left(P(x \succ x') - \tfrac12
              - \tau \log \frac{\pi_\theta(x)}{\pi_{ref}(x)}\right)
              \nabla \log \pi_\theta(x)\right], \quad x \sim \pi_\theta,\;
              x' \sim \pi_\theta^{1 - \alpha} \pi_{ref}^{\alpha}

    A judge of pairs need not have a reward behind it: preferences may go round in a circle. The
    policy learns to win against a mixture of itself and the reference. The gradient is
    Nash-MD-PG's: one sample of each for a prompt.

    Args:
        logits_fn: the policy.
        sample_fn: the same policy generating, at temperature 1.
        opponent_fn: the mixture generating, of the parameters ``(policy, reference)``, as from
            ``sampling.sampler(sampling.geometric_mixture(decoder, reference_weight=alpha))``.
        judge_fn: ``(frozen.judge, first, second) -> probability[B]`` that the first is preferred.
        optimizer: any optax transformation.
        kl_coefficient: ``tau``, in win rate per nat.
        trainable: what of the parameters trains, as of ``direct``; by default all.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm``. ``init(params, key, judge=(), reference=None)``: the reference is by
        default the initial ``params``. The batch is ``Prompts`` (rows without any token are
        padding). Metrics ``loss``, ``win_rate`` (against the mixture), ``kl`` (nats a sequence),
        ``length`` (tokens), ``entropy`` (nats a token), ``grad_norm``.

    Reference: Munos et al. 2023, https://arxiv.org/abs/2312.00886
    """

    def step(state: TrainState, prompts: Prompts) -> tuple[TrainState, Metrics]:
        key, rival_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        answers = _answers(sample_fn, state.params, prompts, key, axis_name)
        reference = whole_reference(state.frozen.reference, state.params)
        both = (state.params, reference)
        rivals = _answers(opponent_fn, both, prompts, rival_key, axis_name)
        tokens, mask = answers.tokens, answers.response_mask
        valid = jnp.any(mask, axis=-1)

        def log_probs_of(params):
            logits = logits_fn(params, tokens, answers.mask)
            width = tokens.shape[1] - prompts.tokens.shape[1]
            return marked_log_probs(logits, tokens, mask, width)

        sampled = jnp.where(mask, answers.log_probs, 0)
        ratio = jnp.sum(sampled - log_probs_of(reference), axis=-1)
        wins = judge_fn(state.frozen.judge, answers, rivals)
        advantages = (wins - 0.5 - kl_coefficient * ratio)[:, None] * jnp.ones_like(sampled)

        def objective(params):
            losses = reinforce(log_probs_of(params), sampled, advantages, mask)
            return {"loss": Term(1.0, sequence_sum(losses, mask))}, {
                "win_rate": rows_mean(wins, valid),
                "kl": rows_mean(ratio, valid),
                **_described(answers),
            }

        return descended(objective, optimizer, state, axis_name=axis_name, trainable=trainable)

    return Algorithm(_init(optimizer, trainable), step)


def _described(answers: Sequences) -> dict:
    mask = answers.response_mask
    length = jnp.sum(mask, axis=-1).astype(jnp.float32)
    return {
        "length": rows_mean(length, jnp.any(mask, axis=-1)),
        "entropy": token_mean(-answers.log_probs, mask),
    }
