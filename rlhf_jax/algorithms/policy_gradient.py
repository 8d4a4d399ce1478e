"""Policy optimisation by policy gradient: step 3 of RLHF as one compiled function."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import advantages as adv
from rlhf_jax import checks, trees
from rlhf_jax.aggregates import Adaptive, Aggregate, fixed
from rlhf_jax.algorithms.common import (
    Term,
    advance,
    divided,
    gradients,
    new_state,
    row_keys,
    rows_mean,
    updated,
    updated_if_finite,
)
from rlhf_jax.algorithms.experience import (
    Adapted,
    Experience,
    Frozen,
    SharedFn,
    minibatches_of,
    scorer,
)
from rlhf_jax.algorithms.partial import (
    frozen_reference,
    read_trunk,
    split_trainable,
    whole_reference,
)
from rlhf_jax.divergences import Coefficient, fixed_coefficient, kl_k1
from rlhf_jax.forks import prompts_once
from rlhf_jax.losses import clipped_value, reinforce
from rlhf_jax.sequences import (
    Aggregation,
    last_token,
    log_probs_and_entropies,
    token_log_probs,
    token_mean,
)
from rlhf_jax.types import (
    ActorCritic,
    Algorithm,
    GroupAdvantage,
    Key,
    LogitsFn,
    Metrics,
    Params,
    PolicyLoss,
    Prompts,
    PyTree,
    RewardFn,
    SampleFn,
    Sequences,
    TokenAdvantage,
    TrainState,
    TrunkFn,
    ValueFn,
    ValueLoss,
)

__all__ = ["policy_gradient"]

# (log_probs, ref_log_probs) -> divergence, all [B, T], such as divergences.kl_k1
Penalty = Callable[[jax.Array, jax.Array], jax.Array]


# Sets the keys of the minibatches apart from those of the sequences, which count up from 0.
_SHUFFLE = 2**31 - 1
# Likewise those of the answers that are only compared with.
_BASELINE = 2**31 - 2


def _response_start(prompts: Prompts, answers: Sequences | Experience) -> int:
    """The column in which every response starts: the vocabulary's work is for no other."""
    start, width = prompts.tokens.shape[1], answers.tokens.shape[1]
    if width <= start:
        raise ValueError(
            f"sample_fn must return the prompts' {start} columns and the responses behind them, "
            f"not {width} columns in all"
        )
    return start


def policy_gradient(
    logits_fn: LogitsFn,
    sample_fn: SampleFn,
    reward_fn: RewardFn | None,
    optimizer: optax.GradientTransformation,
    *,
    shared_fn: SharedFn | None = None,
    aggregate: Aggregate | Adaptive | None = None,
    samples_per_prompt: int = 4,
    advantage: GroupAdvantage | TokenAdvantage | None = None,
    per_token: bool | None = None,
    baseline_fn: SampleFn | None = None,
    policy_loss: PolicyLoss = reinforce,
    kl_coefficient: float | Coefficient = 0.05,
    reward_penalty: Penalty | None = kl_k1,
    loss_penalty: Penalty | None = None,
    value_fn: ValueFn | None = None,
    value_loss: ValueLoss = clipped_value,
    value_weight: float = 0.5,
    whiten: bool = False,
    entropy_weight: float = 0.0,
    aggregation: Aggregation = token_mean,
    epochs: int = 1,
    minibatches: int = 1,
    accumulate: int = 1,
    temperature: float = 1.0,
    watch: Callable[[Params, Sequences], dict[str, jax.Array]] | None = None,
    trainable: trees.Patterns | None = None,
    trunk_fn: TrunkFn | None = None,
    share_prompts: bool = False,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Improves a policy against a reward: sample, score, estimate advantages, update.

    .. math:: R(\theta) = E_{x \sim \pi_\theta}\left[\hat r_\phi(x)
              - \beta \log \frac{\pi_\theta(x)}{\pi_{ref}(x)}\right]

    One step is one pure function: ``K`` answers to each prompt are generated, scored and compared
    with the reference, advantages are estimated, and ``epochs * minibatches`` updates made. The
    methods that have a name are in ``algorithms.presets``, each a ``partial`` of this.

    Args:
        logits_fn: the policy, ``params -> logits``; of ``ActorCritic.policy`` if there is a critic.
        sample_fn: the same policy generating, as from ``sampling.sampler``: the prompts' columns
            and, only behind them, the responses; otherwise ``length`` is nan and nothing is learnt.
        reward_fn: ``(frozen.reward, sequences) -> rewards[B]``, or ``[B, T]``, each earned at its
            token. With ``aggregate`` several of these: ``[M, B]`` or ``[M, B, T]``.
        optimizer: any optax transformation.
        shared_fn: in place of ``reward_fn``, which is then ``None``: ``(frozen.reference,
            frozen.reward, sequences) -> Shared``, the reference's logits and the rewards of one
            forward pass, as ``models.shared_trunk`` makes it.
        aggregate: from the rewards of ``M`` models to one: a function of ``aggregates``, or an
            ``Adaptive`` one, whose state (a multiplier, say) goes on from step to step.
        samples_per_prompt: ``K``.
        advantage: of answers ``(rewards[N, K]) -> [N, K]``, by default ``leave_one_out``; or, if
            ``per_token``, ``(rewards, values, mask) -> [B, T]``, by default ``gae``.
        per_token: whether the advantage is of tokens; by default if there is a critic. Without one
            its ``values`` are zeros.
        baseline_fn: samples one more answer to each prompt, whose reward is what the others are
            compared with: ``advantage`` is then ``(rewards[N, K], baseline[N]) -> [N, K]``. A
            greedy ``sampling.sampler`` makes it ReMax's.
        policy_loss: ``(log_probs, old_log_probs, advantages, mask) -> [B, T]``.
        kl_coefficient: beta, a number or a ``Coefficient``, in reward per nat.
        reward_penalty: the divergence that beta times is taken off the reward, or ``None``.
        loss_penalty: the divergence that beta times is added to the loss, or ``None``.
        value_fn: the critic, of ``ActorCritic.critic``: a ``ValueFn``; with ``shared_fn``
            ``(params, features, mask) -> [B, T]``, a head on the frozen reference's features.
        value_loss: ``(values, old_values, returns) -> [B, T]``.
        value_weight: weight of the critic's loss.
        whiten: whether advantages are shifted and scaled to mean 0 and deviation 1 over all tokens.
        entropy_weight: weight of an entropy bonus.
        aggregation: how token losses become one number.
        epochs: how often each sample is learnt from.
        minibatches: into how many updates an epoch is cut. The sequences are assigned to them at
            random within blocks of that many neighbours, the same on any number of devices.
        accumulate: into how many parts each minibatch is cut for the gradient, one after the
            other: less memory, and to rounding the same step.
        temperature: the one that ``sample_fn`` samples with.
        watch: ``(frozen.watched, sequences) -> {name: values[B]}``, further metrics of the samples,
            such as the score of a judge that the policy is not trained on. A scalar, such as a
            batch's diversity, stands for all rows.
        trainable: what of the parameters trains: patterns of their paths, such as
            ``"layers/*/lora_*"`` (with a critic ``"policy/layers/*"`` and ``"critic/*"``), or a
            predicate of the path (``trees``). The rest has neither gradient nor optimiser state.
            By default all.
        trunk_fn: the policy's lower layers, ``(params, tokens, mask) -> hidden``, of which nothing
            may train. They are run once a round of samples, for policy and reference and all
            updates; ``logits_fn`` is then of the others, ``(params, hidden, mask) -> logits``, and
            ``shared_fn`` has ``hidden`` as its fourth argument.
        share_prompts: whether policy and reference read a prompt once for its ``K`` samples
            (``forks.prompts_once``), to rounding the same step, for a ``logits_fn`` (and a
            ``trunk_fn``) that knows forked rows, as ``models.language_model``'s. A minibatch, and a
            part of ``accumulate``, then has all samples of a prompt or none. Rewards and critic
            read the samples as they are, and so does ``shared_fn`` unless it is made of
            ``prompts_once`` itself.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm``. ``init(params, key, reward=(), reference=None, watched=())``: the
        reference is by default the initial policy. Of what does not train no copy is kept, unless
        it is given one of its own. The batch is ``Prompts`` (rows without any token are padding).
        Metrics: ``reward`` (of a whole answer; with ``aggregate`` also each model's, ``reward_0``
        and so on), ``kl`` (nats a sequence), ``kl_coefficient``, ``entropy`` (nats a token,
        estimated from the samples), ``length`` (tokens), ``loss``,
        ``update_kl`` (how far the updates moved the policy, nats a token), ``grad_norm``.

    Raises:
        ValueError: if a setting is impossible, or the batch cannot be cut as asked.

    Reference: Ahmadian et al. 2024 (RLOO), https://arxiv.org/abs/2402.14740; Shao et al. 2024
    (GRPO), https://arxiv.org/abs/2402.03300; Schulman et al. 2017 (PPO),
    https://arxiv.org/abs/1707.06347; the penalty in the reward, Ziegler et al. 2019,
    https://arxiv.org/abs/1909.08593
    """
    for name, number in (
        ("samples_per_prompt", samples_per_prompt),
        ("epochs", epochs),
        ("minibatches", minibatches),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if temperature <= 0:
        raise ValueError(
            f"temperature must be positive, not {temperature}: a greedy policy has no gradient"
        )
    if aggregate is not None and not isinstance(aggregate, Adaptive):
        checks.takes(aggregate, "aggregate", "rewards")
        aggregate = fixed(aggregate)
    scored = scorer(reward_fn, shared_fn, aggregate, axis_name)
    per_token = value_fn is not None if per_token is None else per_token
    if value_fn is not None and not per_token:
        raise ValueError("a critic (value_fn) needs an advantage of tokens: per_token must be True")
    if per_token and baseline_fn is not None:
        raise ValueError("baseline_fn is for an advantage of answers: per_token must be False")
    if advantage is None:
        advantage = adv.gae if per_token else adv.leave_one_out
    if per_token:
        checks.takes(advantage, "advantage", "rewards", "values", "mask")
    else:
        checks.takes(advantage, "advantage", "rewards", *(["baseline"] if baseline_fn else []))
    if trunk_fn is not None and shared_fn is not None:
        checks.takes(shared_fn, "shared_fn", "reference", "reward", "sequences", "hidden")
    if not isinstance(kl_coefficient, Coefficient):
        kl_coefficient = fixed_coefficient(kl_coefficient)

    def policy_of(params: Params) -> Params:
        return params if value_fn is None else params.policy

    def init(
        params: Params,
        key: Key,
        reward: Params = (),
        reference: Params | None = None,
        watched: Params = (),
    ) -> TrainState:
        if value_fn is not None and not isinstance(params, ActorCritic):
            raise ValueError("with a critic, params must be ActorCritic(policy, critic)")
        trained = policy_of(split_trainable(params, trainable)[0])
        reference = frozen_reference(
            reference, policy_of(params), trained, trunk=trunk_fn is not None
        )
        frozen = Frozen(reference, reward, watched)
        extra = Adapted(kl_coefficient.init(), () if aggregate is None else aggregate.init())
        return new_state(params, optimizer, key, frozen=frozen, extra=extra, trainable=trainable)

    def once(read_fn: LogitsFn | TrunkFn, start: int, width: int) -> LogitsFn | TrunkFn:
        """What reads the prompts, of ``start`` of ``width`` columns, once if that is wanted."""
        return (
            prompts_once(read_fn, samples_per_prompt, width - start) if share_prompts else read_fn
        )

    def read_of(params: Params, sequences: Sequences, trunk_fn: TrunkFn | None) -> PyTree:
        """What the policy's logits are of."""
        if trunk_fn is None:
            return sequences.tokens
        parts = map(policy_of, split_trainable(params, trainable))
        return read_trunk(trunk_fn, *parts, sequences.tokens, sequences.mask)

    def values_of(critic: Params, experience: Sequences | Experience, features) -> jax.Array:
        """The critic's, which reads the tokens, or the reference's features."""
        read = experience.tokens if shared_fn is None else features
        return value_fn(critic, read, experience.mask)

    def baseline(state: TrainState, prompts: Prompts, key: Key) -> jax.Array:
        """The rewards of the answers that are compared with."""
        keys = row_keys(jax.random.fold_in(key, _BASELINE), prompts.tokens.shape[0], axis_name)
        answers = baseline_fn(policy_of(state.params), prompts, keys)
        read = read_of(state.params, answers, trunk_fn)
        rewards = scored(logits_fn, state, answers, read, answers.response_mask)[0].rewards
        return rewards if rewards.ndim == 1 else jnp.sum(rewards, axis=-1)

    def explore(
        state: TrainState, prompts: Prompts
    ) -> tuple[Experience, Adapted, Metrics, Metrics]:
        """Samples, scores and estimates advantages; metrics, and those that are only watched."""
        key = jax.random.fold_in(state.key, state.step)
        policy = policy_of(state.params)
        reference = whole_reference(state.frozen.reference, policy)
        state = state.replace(frozen=state.frozen._replace(reference=reference))
        keys = row_keys(key, prompts.tokens.shape[0] * samples_per_prompt, axis_name)
        sequences: Sequences = sample_fn(policy, prompts, keys)
        valid = jnp.repeat(jnp.any(prompts.mask, axis=-1), samples_per_prompt)
        mask = sequences.response_mask & valid[:, None]
        sequences = sequences.replace(response_mask=mask)
        old_log_probs = jnp.where(mask, sequences.log_probs, 0)
        tokens = sequences.tokens

        start = _response_start(prompts, sequences)
        once_of = partial(once, start=start, width=tokens.shape[1])
        read = read_of(state.params, sequences, trunk_fn and once_of(trunk_fn))
        found, each_model = scored(once_of(logits_fn), state, sequences, read, mask)
        ref_log_probs = token_log_probs(found.logits, tokens, temperature=temperature, start=start)
        ref_log_probs = jnp.where(mask, ref_log_probs, 0)
        penalty = jnp.zeros_like(old_log_probs)
        if reward_penalty is not None:
            coefficient = state.extra.kl_coefficient
            penalty = jnp.where(mask, reward_penalty(old_log_probs, ref_log_probs), 0) * coefficient

        if found.rewards.ndim == 1:
            rewards, dense = found.rewards, jnp.where(last_token(mask), found.rewards[:, None], 0)
        else:
            rewards, dense = jnp.sum(found.rewards, axis=-1), found.rewards
        values = jnp.zeros_like(old_log_probs)
        if value_fn is not None:
            values = values_of(state.params.critic, sequences, found.features)
        if per_token:
            estimates = advantage(dense - penalty, values, mask)
        else:
            totals = (rewards - jnp.sum(penalty, axis=-1)).reshape(-1, samples_per_prompt)
            compared = () if baseline_fn is None else (baseline(state, prompts, key),)
            estimates = advantage(totals, *compared).reshape(-1, 1) * jnp.ones_like(old_log_probs)
        returns = estimates + values
        if whiten:
            estimates = adv.whiten(estimates, mask, axis_name=axis_name)

        kl = jnp.sum(kl_k1(old_log_probs, ref_log_probs), axis=-1)
        length = jnp.sum(mask, axis=-1).astype(jnp.float32)
        # A response among the prompts' columns has no log-probs here: the step is to be skipped.
        length = jnp.where(jnp.any(mask[:, :start], axis=-1), jnp.nan, length)
        means = {
            "reward": rows_mean(rewards, valid),
            "kl": rows_mean(kl, valid),
            "length": rows_mean(length, valid),
            "entropy": token_mean(-old_log_probs, mask),
        }
        metrics = divided(means, axis_name) | {"kl_coefficient": state.extra.kl_coefficient}
        metrics |= {f"reward_{m}": mean for m, mean in enumerate(each_model)}
        adapted = Adapted(
            kl_coefficient.update(state.extra.kl_coefficient, metrics["kl"]),
            aggregate.update(state.extra.aggregate, jnp.stack(each_model)) if aggregate else (),
        )
        seen = {} if watch is None else watch(state.frozen.watched, sequences)
        seen = {n: rows_mean(jnp.broadcast_to(x, valid.shape), valid) for n, x in seen.items()}
        experience = Experience(
            tokens=tokens,
            mask=sequences.mask,
            response_mask=mask,
            old_log_probs=old_log_probs,
            ref_log_probs=ref_log_probs,
            advantages=jnp.where(mask, estimates, 0),
            old_values=values,
            returns=returns,
            features=() if value_fn is None else found.features,
            read=read,
        )
        return experience, adapted, metrics, divided(seen, axis_name)

    def gradient_of(
        trained: Params, batch: Experience, rest: Params, coefficient: jax.Array, start: int
    ) -> tuple[PyTree, Metrics]:
        """Of one minibatch ``[n, k, ...]``, and what it measures."""

        def objective(trained, batch):
            params = trees.join(trained, rest)
            batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
            reader = once(logits_fn, start, batch.tokens.shape[1])
            logits = reader(policy_of(params), batch.read, batch.mask)
            if entropy_weight:
                log_probs, entropies = log_probs_and_entropies(
                    logits, batch.tokens, temperature=temperature, start=start
                )
            else:
                log_probs = token_log_probs(
                    logits, batch.tokens, temperature=temperature, start=start
                )
            mask = batch.response_mask
            log_probs = jnp.where(mask, log_probs, 0)
            losses = policy_loss(log_probs, batch.old_log_probs, batch.advantages, mask)
            terms = {"policy": Term(1.0, aggregation(losses, mask))}
            if loss_penalty is not None:
                divergence = loss_penalty(log_probs, batch.ref_log_probs)
                terms["penalty"] = Term(coefficient, aggregation(divergence, mask))
            if entropy_weight:
                terms["entropy"] = Term(-entropy_weight, aggregation(entropies, mask))
            if value_fn is not None:
                values = values_of(params.critic, batch, batch.features)
                losses = value_loss(values, batch.old_values, batch.returns)
                terms["value"] = Term(value_weight, token_mean(losses, mask))
            moved = jax.lax.stop_gradient(log_probs - batch.old_log_probs)
            return terms, {"update_kl": token_mean(jnp.expm1(moved) - moved, mask)}

        return gradients(objective, trained, axis_name, batch=batch, accumulate=accumulate)

    def step(state: TrainState, batch: Prompts) -> tuple[TrainState, Metrics]:
        # What is not to be cut apart: all samples of a prompt, if they share it.
        whole = samples_per_prompt if share_prompts else 1
        rows = batch.tokens.shape[0] * samples_per_prompt
        if rows // whole % minibatches:
            raise ValueError(
                f"{rows} sequences ({batch.tokens.shape[0]} prompts a device, {samples_per_prompt} "
                f"samples each{', which share_prompts keeps together' if share_prompts else ''}) "
                f"cannot be cut into {minibatches} minibatches"
            )
        trained, rest = split_trainable(state.params, trainable)
        experience, adapted, metrics, watched = explore(state, batch)
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _SHUFFLE)
        others = (rest, state.extra.kl_coefficient, _response_start(batch, experience))
        experience = jax.tree.map(lambda x: x.reshape(-1, whole, *x.shape[1:]), experience)

        def update(carry, minibatch):
            gradient, metrics = gradient_of(carry[0], minibatch, *others)
            return updated(optimizer, gradient, *carry), metrics

        def epoch(carry, index):
            cut = minibatches_of(experience, jax.random.fold_in(key, index), minibatches, axis_name)
            return jax.lax.scan(update, carry, cut)

        carry, once = (trained, state.opt_state), epochs * minibatches == 1
        if once:
            gradient, history = gradient_of(trained, experience, *others)
            metrics |= history
            trained, opt_state = updated_if_finite(optimizer, gradient, *carry, metrics)
        else:
            (trained, opt_state), history = jax.lax.scan(epoch, carry, jnp.arange(epochs))
            metrics |= jax.tree.map(jnp.mean, history)
        after = {"params": trees.join(trained, rest), "opt_state": opt_state, "extra": adapted}
        return advance(state, metrics, **after, watched=watched, checked=once)

    return Algorithm(init, step)
