"""Reward fitting: step 2 of RLHF."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import trees
from rlhf_jax.algorithms.common import (
    Term,
    descended,
    new_state,
    rows_mean,
)
from rlhf_jax.algorithms.feedback import Feedback, check_separable, judged, sides
from rlhf_jax.algorithms.laid import judgement_keys, laid_out
from rlhf_jax.losses import bradley_terry
from rlhf_jax.sequences import Mean
from rlhf_jax.types import (
    Algorithm,
    Key,
    Metrics,
    Packed,
    Params,
    PreferenceLoss,
    RankingLoss,
    RatingLoss,
    ScoreFn,
    TrainState,
)

__all__ = ["reward_model"]


def reward_model(
    score_fn: ScoreFn,
    optimizer: optax.GradientTransformation,
    *,
    loss: PreferenceLoss | RatingLoss | RankingLoss = bradley_terry,
    reward: Callable[[jax.Array], jax.Array] = lambda scores: scores,
    personal: Callable[[Params, jax.Array, jax.Array], jax.Array] | None = None,
    regulariser: Callable[[Params], jax.Array] | None = None,
    centering: float = 0.0,
    token_dropout: float = 0.0,
    trainable: trees.Patterns | None = None,
    prompt_length: int | None = None,
    response_length: int | None = None,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Fits a score to human feedback.

    .. math::
        L(\phi) = \frac{\sum_b w_b \, \ell\left(r_\phi(x^w_b), r_\phi(x^l_b)\right)}{\sum_b w_b}
        + \frac cB \sum_b \left(r_\phi(x^w_b) + r_\phi(x^l_b)\right)^2 + \lambda_r(\phi)

    Args:
        score_fn: the reward model; it may return several numbers a sequence, ``[B, ...]``, if the
            loss takes them.
        optimizer: any optax transformation.
        loss: any loss that fits the batch: of preferences, of ratings or of rankings. Soft labels,
            margins and weights are the batch's.
        reward: ``(scores[..., *]) -> rewards[...]``, what of several numbers is the reward: only
            the metrics and ``centering`` ask.
        personal: ``(params, scores[S, B, ...], rater[B]) -> scores``, what the batch's rater makes
            of the scores, such as ``models.rater_scale``'s. By default all raters are one.
        regulariser: ``(params) -> float[]``, lambda_r, as ``partial(optax.tree.norm,
            squared=True)`` times a weight. (Decay in ``optimizer`` does as well.)
        centering: ``c``, holds the rewards around 0, which comparisons leave open. For one reward a
            sequence; ratings, of tokens or of texts, have a zero of their own.
        token_dropout: the probability with which each token is hidden from the model while
            training, through the mask.
        trainable: what of the parameters trains: patterns of their paths, such as
            ``"head/*"``, or a predicate of the path (``trees``). The rest has neither
            gradient nor optimiser state. By default all.
        prompt_length: the most tokens that stand before a response. If it is given, the prompt is
            read once for the sides of a judgement (``forks``), by a ``score_fn`` that knows forked
            rows, as ``models.score_model``'s; ``data.shared_lengths`` knows both lengths. Where the
            sides have different prompts, or a row is longer, the update is skipped.
        response_length: the most tokens from the first response token on, for ``prompt_length``.
        accumulate: into how many parts the batch is cut for the gradient, one after the other: less
            memory, and to rounding the same step. Not with
            ``Rated.unrelated``.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm`` whose batch is ``Preferences``, ``Rated`` or ``Ranked`` (rows without any
        response token are padding), or what ``data.pack`` makes of one, for a ``score_fn`` that
        knows packed rows, as ``models.score_model``'s; metrics as of ``direct``.

    Raises:
        ValueError: if ``token_dropout`` is not in [0, 1), or there is ``prompt_length`` with it;
            when called, if there is ``centering`` of more than one reward a sequence.

    Reference: Ouyang et al. 2022, eq. 1, https://arxiv.org/abs/2203.02155; centering, Eisenstein et
    al. 2023, https://arxiv.org/abs/2312.09244; token dropout, Iyyer et al. 2015 (deep averaging
    networks), ACL
    """
    if not 0 <= token_dropout < 1:
        raise ValueError(f"token_dropout must be at least 0 and below 1, not {token_dropout}")
    if token_dropout and prompt_length is not None:
        raise ValueError(
            f"token_dropout={token_dropout} hides other tokens of a prompt from each answer: "
            "prompt_length, with which these share it, must be None"
        )

    def init(params: Params, key: Key) -> TrainState:
        return new_state(params, optimizer, key, trainable=trainable)

    def step(state: TrainState, batch: Feedback | Packed) -> tuple[TrainState, Metrics]:
        check_separable(batch, accumulate)
        keys = ()
        if token_dropout:
            key = jax.random.fold_in(state.key, state.step)
            keys = judgement_keys(batch, key, axis_name)

        def objective(params, given):
            batch, keys = given
            laid = laid_out(batch, prompt_length=prompt_length, response_length=response_length)
            batch, mask = laid.batch, laid.text.mask
            every = sides(batch)
            valid = jnp.any(every[0].response_mask, axis=-1)
            if token_dropout:
                split = jax.vmap(lambda k: jax.random.split(k, len(every)), out_axes=1)
                keys = split(keys.reshape(-1)).reshape(-1)
                keep = jax.vmap(
                    lambda k, row: jax.random.bernoulli(k, 1 - token_dropout, row.shape)
                )
                mask = mask & keep(keys, mask)
            scores = laid.scores(score_fn(params, laid.rows.tokens, laid.seen(mask)), mask)
            scores = scores.reshape(len(every), -1, *scores.shape[1:])
            if personal is not None:
                if batch.rater is None:
                    raise ValueError(
                        "with personal, the batch must say who answered: rater is None"
                    )
                scores = personal(params, scores, batch.rater)
            mean, further = judged(batch, scores, loss, reward=reward, axis_name=axis_name)
            terms = {"preference": Term(1.0, mean)}
            if centering:
                drift = jnp.square(jnp.sum(reward(scores), axis=0))
                if drift.shape != valid.shape:
                    found = f"[S, B, ...] = {list(scores.shape)}"
                    raise ValueError(
                        f"centering is of one reward a sequence, but there are {found}"
                    )
                terms["centering"] = Term(centering, rows_mean(drift, valid))
            if regulariser is not None:
                terms["regulariser"] = Term(1.0, Mean(regulariser(params), jnp.float32(1)))
            return terms, further

        return descended(
            objective,
            optimizer,
            state,
            axis_name=axis_name,
            trainable=trainable,
            batch=(batch, keys),
            accumulate=accumulate,
        )

    return Algorithm(init, step)
