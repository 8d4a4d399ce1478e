"""Reward fitting: step 2 of RLHF."""

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.algorithms.common import (
    Term,
    advance,
    gradients,
    new_state,
    row_keys,
    rows_mean,
    updated,
)
from rlhf_jax.algorithms.feedback import Feedback, judged, lined_up
from rlhf_jax.losses import bradley_terry
from rlhf_jax.types import (
    Algorithm,
    Key,
    Metrics,
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
    centering: float = 0.0,
    token_dropout: float = 0.0,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Fits a score to human feedback.

    .. math:: L(\phi) = \frac1B \sum_b \ell\left(r_\phi(x^w_b), r_\phi(x^l_b)\right)
              + c \left(r_\phi(x^w_b) + r_\phi(x^l_b)\right)^2

    Args:
        score_fn: the reward model.
        optimizer: any optax transformation; weight decay there is the regulariser.
        loss: any loss that fits the batch: of preferences, of ratings or of rankings.
        centering: ``c``, holds the scores around 0, which comparisons leave open.
        token_dropout: the probability with which each token is hidden from the model while
            training, through the mask.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm`` whose batch is ``Preferences``, ``Rated`` or ``Ranked`` (rows without any
        response token are padding); metrics as of ``direct``.

    Raises:
        ValueError: if ``token_dropout`` is not in [0, 1).

    Reference: Ouyang et al. 2022, eq. 1, https://arxiv.org/abs/2203.02155; centering, Eisenstein et
    al. 2023, https://arxiv.org/abs/2312.09244; token dropout, Iyyer et al. 2015 (deep averaging
    networks), ACL
    """
    if not 0 <= token_dropout < 1:
        raise ValueError(f"token_dropout must be at least 0 and below 1, not {token_dropout}")

    def init(params: Params, key: Key) -> TrainState:
        return new_state(params, optimizer, key)

    def step(state: TrainState, batch: Feedback) -> tuple[TrainState, Metrics]:
        rows, valid = lined_up(batch)
        mask, judgements = rows.mask, valid.size
        if token_dropout:
            key = jax.random.fold_in(state.key, state.step)
            sides = mask.shape[0] // judgements
            keys = row_keys(key, judgements, axis_name)
            keys = jax.vmap(lambda k: jax.random.split(k, sides), out_axes=1)(keys).reshape(-1)
            keep = jax.vmap(lambda k, row: jax.random.bernoulli(k, 1 - token_dropout, row.shape))
            mask &= keep(keys, mask)

        def objective(params):
            scores = score_fn(params, rows.tokens, mask).reshape(-1, judgements)
            mean, further = judged(batch, scores, loss, axis_name=axis_name)
            terms = {"preference": Term(1.0, mean)}
            if centering:
                drift = jnp.square(jnp.sum(scores, axis=0))
                terms["centering"] = Term(centering, rows_mean(drift, valid))
            return terms, further

        gradient, metrics = gradients(objective, state.params, axis_name)
        params, opt_state = updated(optimizer, gradient, state.params, state.opt_state)
        return advance(state, metrics, params=params, opt_state=opt_state)

    return Algorithm(init, step)
