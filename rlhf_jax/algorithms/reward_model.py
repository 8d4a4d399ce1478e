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
from rlhf_jax.losses import bradley_terry
from rlhf_jax.types import (
    Algorithm,
    Key,
    Metrics,
    Params,
    PreferenceLoss,
    Preferences,
    ScoreFn,
    TrainState,
)

__all__ = ["reward_model"]


def reward_model(
    score_fn: ScoreFn,
    optimizer: optax.GradientTransformation,
    *,
    loss: PreferenceLoss = bradley_terry,
    token_dropout: float = 0.0,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Fits a score to human comparisons.

    .. math:: L(\phi) = \frac1B \sum_b \ell\left(r_\phi(x^w_b), r_\phi(x^l_b)\right)

    Args:
        score_fn: the reward model.
        optimizer: any optax transformation; weight decay there is the regulariser.
        loss: any preference loss.
        token_dropout: the probability with which each token is hidden from the model while
            training, through the mask.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm`` whose batch is ``Preferences`` (rows without any response token are
        padding); metrics ``loss``, ``accuracy`` (ties half), ``margin`` (mean lead of the chosen),
        ``grad_norm``.

    Raises:
        ValueError: if ``token_dropout`` is not in [0, 1).

    Reference: Ouyang et al. 2022, eq. 1, https://arxiv.org/abs/2203.02155; token dropout, Iyyer et
    al. 2015 (deep averaging networks), ACL
    """
    if not 0 <= token_dropout < 1:
        raise ValueError(f"token_dropout must be at least 0 and below 1, not {token_dropout}")

    def init(params: Params, key: Key) -> TrainState:
        return new_state(params, optimizer, key)

    def step(state: TrainState, batch: Preferences) -> tuple[TrainState, Metrics]:
        sequences = jax.tree.map(
            lambda *sides: jnp.concatenate(sides), batch.chosen, batch.rejected
        )
        valid = jnp.any(batch.chosen.response_mask, axis=-1)
        mask = sequences.mask
        if token_dropout:
            key = jax.random.fold_in(state.key, state.step)
            keys = jax.vmap(jax.random.split)(row_keys(key, valid.shape[0], axis_name))
            keys = jnp.concatenate([keys[:, 0], keys[:, 1]])
            keep = jax.vmap(lambda k, row: jax.random.bernoulli(k, 1 - token_dropout, row.shape))
            mask &= keep(keys, mask)

        def objective(params):
            chosen, rejected = jnp.split(score_fn(params, sequences.tokens, mask), 2)
            lead = chosen - rejected
            right = (lead > 0) + 0.5 * (lead == 0)
            further = {"accuracy": rows_mean(right, valid), "margin": rows_mean(lead, valid)}
            return {"loss": Term(1.0, rows_mean(loss(chosen, rejected), valid))}, further

        gradient, metrics = gradients(objective, state.params, axis_name)
        params, opt_state = updated(optimizer, gradient, state.params, state.opt_state)
        return advance(state, metrics, params=params, opt_state=opt_state)

    return Algorithm(init, step)
