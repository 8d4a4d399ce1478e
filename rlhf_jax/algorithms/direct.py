"""Direct preference optimisation and its relatives: steps 2 and 3 of RLHF in one."""

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import trees
from rlhf_jax.algorithms.common import Term, descended, new_state
from rlhf_jax.algorithms.feedback import Feedback, check_separable, imitated, judged, sides
from rlhf_jax.algorithms.laid import laid_out
from rlhf_jax.algorithms.partial import (
    frozen_reference,
    read_trunk,
    split_trainable,
    whole_reference,
)
from rlhf_jax.implicit_rewards import log_ratio
from rlhf_jax.losses import bradley_terry, cross_entropy
from rlhf_jax.sequences import token_mean
from rlhf_jax.types import (
    Algorithm,
    ImplicitReward,
    Key,
    LogitsFn,
    Metrics,
    Packed,
    Params,
    PreferenceLoss,
    RankingLoss,
    RatingLoss,
    TrainState,
    TrunkFn,
)

__all__ = ["direct"]


def direct(
    logits_fn: LogitsFn,
    optimizer: optax.GradientTransformation,
    *,
    beta: float = 0.1,
    loss: PreferenceLoss | RatingLoss | RankingLoss = bradley_terry,
    implicit_reward: ImplicitReward = log_ratio,
    loss_weight: float = 1.0,
    supervised_weight: float = 0.0,
    reference_free: bool = False,
    trainable: trees.Patterns | None = None,
    trunk_fn: TrunkFn | None = None,
    prompt_length: int | None = None,
    response_length: int | None = None,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Algorithm:
    r"""A loss of human feedback on the policy's implicit rewards.

    .. math:: L(\theta) = \frac{u}{B} \sum_b \ell\left(\beta \hat r_\theta(x^w_b),
              \beta \hat r_\theta(x^l_b)\right) + w \, L_{SFT}(x^w)

    ``log_ratio`` with ``bradley_terry`` is DPO. The methods that have a name are in
    ``algorithms.presets``, each a ``partial`` of this.

    Args:
        logits_fn: the policy.
        optimizer: any optax transformation.
        beta: multiplies the implicit reward, here and nowhere else; reward per nat.
        loss: any loss that fits the batch: of preferences, of ratings or of rankings.
        implicit_reward: what the log-probabilities say an answer is worth.
        loss_weight: ``u``, weight of that loss.
        supervised_weight: ``w``, weight of the good answers' mean negative log-likelihood (the
            chosen, the desirable, the best of a ranking).
        reference_free: whether to do without a reference policy, for implicit rewards that ignore
            it (their ``ref_log_probs`` are then zeros).
        trainable: what of the parameters trains: patterns of their paths, such as
            ``"layers/*/lora_*"``, or a predicate of the path (``trees``). The rest has neither
            gradient nor optimiser state. By default all.
        trunk_fn: the lower layers, ``(params, tokens, mask) -> hidden``, of which nothing may
            train. They are run once a batch, for policy and reference; ``logits_fn``
            is then of the others, ``(params, hidden, mask) -> logits``.
        prompt_length: the most tokens that stand before a response. If it is given, beside
            ``response_length``, policy and reference read a prompt once for the sides of a
            judgement (``forks``), for a ``logits_fn`` that knows forked rows, as
            ``models.language_model``'s; ``data.shared_lengths`` knows both. Behind a shared prompt
            ``response_length`` counts all tokens from the first response token on. Where the sides
            have different prompts, or a row is longer than that, the update is skipped.
        response_length: the most response tokens that a row of the batch holds (a packed row, if it
            is packed): the vocabulary's work is then for so many of its tokens. By default
            it is for all, prompts' and padding's too. If a row has more the loss is NaN, and the
            update skipped.
        accumulate: into how many parts the batch is cut for the gradient, one after the other: less
            memory, and to rounding the same step. Not with
            ``Rated.unrelated``.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm``. ``init(params, key, reference=None)``: the reference is by default the
        initial ``params``. Of what does not train no copy is kept, unless it is given one of its
        own. The batch is ``Preferences``, ``Rated`` or ``Ranked`` (rows without any
        response token are padding), or what ``data.pack`` makes of one. Metrics ``loss`` and
        ``grad_norm``, and with ``Preferences`` ``accuracy`` (ties half), ``margin``,
        ``chosen_reward``, ``rejected_reward``; with ``Rated`` ``reward``, ``desirable_reward``,
        ``undesirable_reward``, ``unrelated_reward``; with ``Ranked`` ``accuracy`` (of all pairs),
        ``best_reward``, ``worst_reward``.

    Reference: Rafailov et al. 2023, https://arxiv.org/abs/2305.18290
    """

    def init(params: Params, key: Key, reference: Params | None = None) -> TrainState:
        trained, _ = split_trainable(params, trainable)
        frozen = frozen_reference(reference, params, trained, trunk=trunk_fn is not None)
        frozen = () if reference_free else frozen
        return new_state(params, optimizer, key, frozen=frozen, trainable=trainable)

    def step(state: TrainState, batch: Feedback | Packed) -> tuple[TrainState, Metrics]:
        check_separable(batch, accumulate)

        def objective(params, batch):
            laid = laid_out(batch, prompt_length=prompt_length, response_length=response_length)
            batch, rows, mask = laid.batch, laid.rows, laid.text.response_mask
            read = rows.tokens
            if trunk_fn is not None:
                parts = split_trainable(params, trainable)
                read = read_trunk(trunk_fn, *parts, rows.tokens, rows.mask)

            def log_probs_of(params):
                return laid.log_probs(logits_fn(params, read, rows.mask))

            if reference_free:
                ref_log_probs = jnp.zeros(mask.shape, jnp.float32)
            else:
                reference = whole_reference(state.frozen, state.params)
                ref_log_probs = jax.lax.stop_gradient(log_probs_of(reference))
            log_probs = log_probs_of(params)
            rewards = beta * implicit_reward(log_probs, ref_log_probs, mask)
            rewards = rewards.reshape(len(sides(batch)), -1)
            mean, further = judged(batch, rewards, loss, axis_name=axis_name)
            terms = {"preference": Term(loss_weight, mean)}
            if supervised_weight:
                text = mask & imitated(batch).reshape(-1, 1)
                losses = cross_entropy(log_probs, text)
                terms["supervised"] = Term(supervised_weight, token_mean(losses, text))
            return terms, further

        return descended(
            objective,
            optimizer,
            state,
            axis_name=axis_name,
            trainable=trainable,
            batch=batch,
            accumulate=accumulate,
        )

    return Algorithm(init, step)
