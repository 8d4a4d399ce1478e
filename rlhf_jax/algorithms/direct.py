"""Direct preference optimisation and its relatives: steps 2 and 3 of RLHF in one."""

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.algorithms.common import Term, advance, gradients, new_state, rows_mean, updated
from rlhf_jax.implicit_rewards import log_ratio
from rlhf_jax.losses import bradley_terry, cross_entropy
from rlhf_jax.sequences import token_log_probs, token_mean
from rlhf_jax.types import (
    Algorithm,
    ImplicitReward,
    Key,
    LogitsFn,
    Metrics,
    Params,
    PreferenceLoss,
    Preferences,
    TrainState,
)

__all__ = ["direct"]


def direct(
    logits_fn: LogitsFn,
    optimizer: optax.GradientTransformation,
    *,
    beta: float = 0.1,
    loss: PreferenceLoss = bradley_terry,
    implicit_reward: ImplicitReward = log_ratio,
    supervised_weight: float = 0.0,
    reference_free: bool = False,
    axis_name: str | None = None,
) -> Algorithm:
    r"""A preference loss on the policy's implicit rewards.

    .. math:: L(\theta) = \frac1B \sum_b \ell\left(\beta \hat r_\theta(x^w_b),
              \beta \hat r_\theta(x^l_b)\right) + w \, L_{SFT}(x^w)

    ``log_ratio`` with ``bradley_terry`` is DPO; with ``partial(squared, tau=...)`` and ``beta=1``
    IPO; ``mean_log_prob`` with ``partial(bradley_terry, margin=...)`` SimPO; ``log_odds`` with
    ``bradley_terry`` and ``supervised_weight`` ORPO; ``log_prob`` with ``partial(hinge,
    margin=...)`` and ``supervised_weight`` SLiC-HF.

    Args:
        logits_fn: the policy.
        optimizer: any optax transformation.
        beta: multiplies the implicit reward, here and nowhere else; reward per nat.
        loss: any preference loss.
        implicit_reward: what the log-probabilities say an answer is worth.
        supervised_weight: ``w``, weight of the chosen answers' mean negative log-likelihood.
        reference_free: whether to do without a reference policy, for implicit rewards that ignore
            it (their ``ref_log_probs`` are then zeros).
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm``. ``init(params, key, reference=None)``: the reference is by default a copy
        of ``params``. The batch is ``Preferences`` (rows without any response token are padding);
        metrics ``loss``, ``accuracy`` (ties half), ``margin``, ``chosen_reward``,
        ``rejected_reward``, ``grad_norm``.

    Reference: Rafailov et al. 2023, https://arxiv.org/abs/2305.18290
    """

    def init(params: Params, key: Key, reference: Params | None = None) -> TrainState:
        reference = params if reference is None else reference
        return new_state(params, optimizer, key, frozen=() if reference_free else reference)

    def step(state: TrainState, batch: Preferences) -> tuple[TrainState, Metrics]:
        both = jax.tree.map(lambda *sides: jnp.concatenate(sides), batch.chosen, batch.rejected)
        valid = jnp.any(batch.chosen.response_mask, axis=-1)
        mask, chosen_mask = both.response_mask, batch.chosen.response_mask

        def log_probs_of(params):
            return token_log_probs(logits_fn(params, both.tokens, both.mask), both.tokens)

        if reference_free:
            ref_log_probs = jnp.zeros(mask.shape, jnp.float32)
        else:
            ref_log_probs = jax.lax.stop_gradient(log_probs_of(state.frozen))

        def objective(params):
            log_probs = log_probs_of(params)
            rewards = beta * implicit_reward(log_probs, ref_log_probs, mask)
            chosen, rejected = jnp.split(rewards, 2)
            lead = chosen - rejected
            right = (lead > 0) + 0.5 * (lead == 0)
            further = {
                "accuracy": rows_mean(right, valid),
                "margin": rows_mean(lead, valid),
                "chosen_reward": rows_mean(chosen, valid),
                "rejected_reward": rows_mean(rejected, valid),
            }
            terms = {"preference": Term(1.0, rows_mean(loss(chosen, rejected), valid))}
            if supervised_weight:
                text = cross_entropy(jnp.split(log_probs, 2)[0], chosen_mask)
                terms["supervised"] = Term(supervised_weight, token_mean(text, chosen_mask))
            return terms, further

        gradient, metrics = gradients(objective, state.params, axis_name)
        params, opt_state = updated(optimizer, gradient, state.params, state.opt_state)
        return advance(state, metrics, params=params, opt_state=opt_state)

    return Algorithm(init, step)
