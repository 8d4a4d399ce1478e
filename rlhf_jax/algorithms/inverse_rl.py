"""Rewards learnt from demonstrations, while a policy learns to earn them: a game of two.

The model of the demonstrators is that of maximum entropy, over whole answers and relative to the
reference policy: ``p(x) = pi_ref(x) exp(r(x) / beta) / Z``. It is also where a policy ends that is
trained on ``r`` with a KL penalty of ``beta``. So the reward is right when the trained policy says
what the demonstrators say, and its samples show in what it does not.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import checks, losses
from rlhf_jax.algorithms.common import (
    Term,
    advance,
    gradients,
    over_devices,
    row_keys,
    rows_mean,
    updated,
)
from rlhf_jax.algorithms.feedback import judged, lined_up
from rlhf_jax.algorithms.partial import whole_reference
from rlhf_jax.algorithms.presets import rloo
from rlhf_jax.sequences import Mean, token_log_probs
from rlhf_jax.types import (
    ActorCritic,
    Algorithm,
    Key,
    LogitsFn,
    Metrics,
    Params,
    PreferenceLoss,
    Preferences,
    Prompts,
    PyTree,
    RewardFn,
    SampleFn,
    Sequences,
    TrainState,
)

__all__ = [
    "Demonstrated",
    "PolicyAndReward",
    "airl",
    "gail",
    "guided_cost_learning",
    "inverse_rl",
    "maxent_irl",
]

# rewards[B] and log_ratios[B] in nats, demonstrated: bool[B] -> loss[B]
DemonstrationLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# Sets the keys of the samples that the reward sees apart from those of the policy's own.
_OPPONENTS = 2**30


class PolicyAndReward(NamedTuple):
    """The two that learn: parameters, and likewise their optimisers' states."""

    policy: Params
    reward: Params


class Demonstrated(NamedTuple):
    """A batch to learn a reward from.

    Attributes:
        demonstrations: ``Sequences``, what people did; rows without a response are padding.
        prompts: ``Prompts`` that the policy answers, of the same kind as the demonstrations'.
        preferences: ``Preferences``, what people said of other answers; ``None`` for nothing.
    """

    demonstrations: Sequences
    prompts: Prompts
    preferences: Preferences | None = None


def inverse_rl(
    logits_fn: LogitsFn,
    sample_fn: SampleFn,
    reward_fn: RewardFn,
    optimizer: optax.GradientTransformation,
    reward_optimizer: optax.GradientTransformation,
    *,
    loss: DemonstrationLoss = losses.airl,
    beta: float = 1.0,
    policy: Callable[..., Algorithm] = rloo,
    samples_per_prompt: int = 1,
    reward_updates: int = 1,
    importance_weighted: bool = False,
    regulariser: Callable[[Params], jax.Array] | None = None,
    preference_loss: PreferenceLoss = losses.bradley_terry,
    preference_weight: float = 1.0,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Learns a reward from demonstrations, and the policy that it asks for, against each other.

    .. math::
        \min_\phi \; E_{demo}[\ell(\hat r, \log \tfrac{\pi}{\pi_{ref}}, 1)]
        + E_{\pi_\theta}[\ell(\hat r, \log \tfrac{\pi}{\pi_{ref}}, 0)]
        + c \, L_{pref}(r_\phi) + \lambda_r(\phi), \quad \hat r = r_\phi / \beta
        \qquad
        \max_\theta \; E_{\pi_\theta}[r_\phi] - \beta \, KL(\pi_\theta \| \pi_{ref})

    A step draws answers from the policy, updates the reward on them and the demonstrations, and
    takes a step of ``policy`` on the reward as it then is. Each of the two draws its own samples.
    The methods that have a name are ``partial``s of this: ``maxent_irl``, ``guided_cost_learning``,
    ``airl`` and ``gail``.

    Args:
        logits_fn: the policy; of ``ActorCritic.policy`` if there is a critic.
        sample_fn: the same policy generating, at temperature 1.
        reward_fn: ``(params, sequences) -> rewards[B]``.
        optimizer: the policy's, any optax transformation.
        reward_optimizer: the reward's. Its speed relative to the policy's is what such games are
            sensitive to; smaller steps towards the end make them settle.
        loss: of the reward: ``(rewards[B], log_ratios[B], demonstrated[B]) -> loss[B]``, such as
            ``losses.maximum_entropy``, ``losses.airl`` and ``losses.gail``. The means over
            demonstrations and over samples count the same, whatever their numbers.
        beta: of the KL penalty, reward per nat. Demonstrations only show ``reward / beta``, so it
            sets the reward's unit; with preferences too it says how rational demonstrators are.
        policy: builds the policy's algorithm: ``(logits_fn, sample_fn, reward_fn, optimizer,
            kl_coefficient=, axis_name=) -> Algorithm``, such as ``policy_gradient`` or any preset
            on prompts. For the reward to be the demonstrators' its penalty must be in the reward
            (``rloo``, ``reinforce``, ``ppo`` with a fixed coefficient). A ``partial`` with
            ``trainable=`` trains a part of the policy.
        samples_per_prompt: how many answers to each prompt the reward is shown.
        reward_updates: how many updates of the reward a step makes, on the same samples.
        importance_weighted: whether samples are weighted, among themselves, by ``pi_ref exp(r /
            beta) / pi``: with ``losses.maximum_entropy`` its gradient is then right even while the
            policy is not yet what the reward asks for, as far as the samples cover it.
        regulariser: ``(reward parameters) -> float[]``, added to the reward's loss.
        preference_loss: any preference loss, of the batch's preferences, if it has some.
        preference_weight: ``c``.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm``. ``init(params, key, reference=None, watched=())``: the parameters are
        ``PolicyAndReward``, the reference by default the initial policy. The batch is a
        ``Demonstrated`` or a plain ``(demonstrations, prompts)``. Metrics are the policy's
        (``reward``, ``kl``, ``loss``, ...) and, of the reward's fit, ``reward_loss``,
        ``reward_grad_norm``, ``demonstration_reward`` and ``sample_reward`` (whose difference ends
        near 0), with importance weights ``effective_samples`` (what share of the samples they
        leave) and, with preferences, ``preference_loss`` and the metrics of ``reward_model``. If
        anything of either is not finite, neither is updated.

    Raises:
        ValueError: if a setting is impossible, or ``init`` is not given both parameters.

    Reference: Fu et al. 2017 (AIRL), https://arxiv.org/abs/1710.11248; Finn et al. 2016 (guided
    cost learning), https://arxiv.org/abs/1603.00448; Ho and Ermon 2016 (GAIL),
    https://arxiv.org/abs/1606.03476; with preferences, Ibarz et al. 2018,
    https://arxiv.org/abs/1811.06521
    """
    checks.positive(beta=beta)
    for name, number in (
        ("samples_per_prompt", samples_per_prompt),
        ("reward_updates", reward_updates),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    checks.takes(loss, "loss", "rewards", "log_ratios", "demonstrated")
    improve = policy(
        logits_fn, sample_fn, reward_fn, optimizer, kl_coefficient=beta, axis_name=axis_name
    )

    def init(
        params: PolicyAndReward, key: Key, reference: Params | None = None, watched: Params = ()
    ) -> TrainState:
        if not isinstance(params, PolicyAndReward):
            raise ValueError(
                f"params must be PolicyAndReward(policy, reward), not {type(params).__name__}"
            )
        player = improve.init(params.policy, key, params.reward, reference, watched)
        return player.replace(
            params=params,
            opt_state=PolicyAndReward(player.opt_state, reward_optimizer.init(params.reward)),
            frozen=player.frozen._replace(reward=()),
        )

    def explore(
        state: TrainState, batch: Demonstrated
    ) -> tuple[Sequences, tuple[jax.Array, jax.Array]]:
        """Fresh samples, and the log-ratios of demonstrations and samples."""
        actor = state.params.policy
        actor = actor.policy if isinstance(actor, ActorCritic) else actor
        reference = whole_reference(state.frozen.reference, actor)
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _OPPONENTS)
        asked = batch.prompts
        keys = row_keys(key, asked.tokens.shape[0] * samples_per_prompt, axis_name)
        samples = sample_fn(actor, asked, keys)
        real = jnp.repeat(jnp.any(asked.mask, axis=-1), samples_per_prompt)
        samples = samples.replace(response_mask=samples.response_mask & real[:, None])

        def log_ratios(rows: Sequences) -> jax.Array:
            ours, theirs = (
                token_log_probs(logits_fn(params, rows.tokens, rows.mask), rows.tokens)
                for params in (actor, reference)
            )
            return jnp.sum(jnp.where(rows.response_mask, ours - theirs, 0), axis=-1)

        return samples, (log_ratios(batch.demonstrations), log_ratios(samples))

    def fit(
        carry: tuple[Params, PyTree],
        batch: Demonstrated,
        samples: Sequences,
        log_ratios: tuple[jax.Array, jax.Array],
    ) -> tuple[tuple[Params, PyTree], Metrics]:
        """One update of the reward."""
        params, opt_state = carry

        def objective(params):
            terms, further = {}, {}
            sides = {"demonstration": batch.demonstrations, "sample": samples}
            for (name, rows), ratios in zip(sides.items(), log_ratios, strict=True):
                seen = name == "demonstration"
                valid = jnp.any(rows.response_mask, axis=-1)
                # What padding is worth must be gone before any exponential.
                rewards = jnp.where(valid, _rewards(reward_fn, params, rows), 0)
                values = loss(rewards / beta, ratios, jnp.full(valid.shape, seen))
                weights = valid.astype(jnp.float32)
                if importance_weighted and not seen:
                    weights = _importance(rewards / beta - ratios, valid, axis_name)
                    further["effective_samples"] = _effective(weights, valid, axis_name)
                terms[name] = Term(1.0, Mean(jnp.sum(weights * values), jnp.sum(weights)))
                further[f"{name}_reward"] = rows_mean(rewards, valid)
            if batch.preferences is not None:
                rows, valid = lined_up(batch.preferences)
                rewards = _rewards(reward_fn, params, rows).reshape(-1, valid.size)
                mean, more = judged(
                    batch.preferences, rewards, preference_loss, axis_name=axis_name
                )
                terms["preference"] = Term(preference_weight, mean)
                further |= more
            if regulariser is not None:
                terms["regulariser"] = Term(1.0, Mean(regulariser(params), jnp.float32(1)))
            return terms, further

        gradient, metrics = gradients(objective, params, axis_name)
        return updated(reward_optimizer, gradient, params, opt_state), metrics

    def step(state: TrainState, batch: Demonstrated) -> tuple[TrainState, Metrics]:
        batch = Demonstrated(*batch)
        samples, log_ratios = explore(state, batch)
        carry = (state.params.reward, state.opt_state.reward)
        (reward, reward_opt_state), history = jax.lax.scan(
            lambda carry, _: fit(carry, batch, samples, log_ratios),
            carry,
            None,
            length=reward_updates,
        )
        fitted = jax.tree.map(jnp.mean, history)
        for name in ("loss", "grad_norm"):
            fitted[f"reward_{name}"] = fitted.pop(name)

        player = state.replace(
            params=state.params.policy,
            opt_state=state.opt_state.policy,
            frozen=state.frozen._replace(reward=reward),
        )
        played, metrics = improve.step(player, batch.prompts)
        metrics.pop("skipped")
        # What the policy's step found not finite, it says only by having been skipped.
        metrics["grad_norm"] = jnp.where(played.skipped > 0, jnp.nan, metrics["grad_norm"])
        checked = fitted | {"grad_norm": metrics.pop("grad_norm")}
        return advance(
            state,
            checked,
            params=PolicyAndReward(played.params, reward),
            opt_state=PolicyAndReward(played.opt_state, reward_opt_state),
            extra=played.extra,
            watched=metrics,
        )

    return Algorithm(init, step)


def _rewards(reward_fn: RewardFn, params: Params, rows: Sequences) -> jax.Array:
    rewards = reward_fn(params, rows).astype(jnp.float32)
    if rewards.shape != rows.tokens.shape[:1]:
        raise ValueError(
            f"reward_fn must return one reward a sequence, {rows.tokens.shape[:1]}, not "
            f"{rewards.shape}"
        )
    return rewards


def _importance(exponents: jax.Array, valid: jax.Array, axis_name: str | None) -> jax.Array:
    """Constant weights proportional to ``exp(exponents)``, the largest of all devices' 1."""
    exponents = jax.lax.stop_gradient(jnp.where(valid, exponents, -jnp.inf))
    largest = jnp.max(exponents)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    return jnp.where(valid, jnp.exp(exponents - largest), 0)


def _effective(weights: jax.Array, valid: jax.Array, axis_name: str | None) -> Mean:
    """Kish's effective share of the samples: 1 if they weigh the same."""
    sums = (jnp.sum(weights), jnp.sum(jnp.square(weights)), jnp.sum(valid.astype(jnp.float32)))
    total, squares, count = over_devices(sums, axis_name)
    share = jnp.square(total) / jnp.maximum(squares * count, 1e-9)
    return Mean(share, jnp.float32(1))


maxent_irl = partial(inverse_rl, loss=losses.maximum_entropy)
guided_cost_learning = partial(maxent_irl, importance_weighted=True)
airl = partial(inverse_rl, loss=losses.airl)
gail = partial(inverse_rl, loss=losses.gail, policy=partial(rloo, reward_penalty=None))
