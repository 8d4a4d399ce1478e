"""Supervised learning on text: pretraining and fine-tuning."""

from collections.abc import Callable

import jax
import optax

from rlhf_jax.algorithms.common import Term, advance, gradients, new_state, updated
from rlhf_jax.losses import cross_entropy
from rlhf_jax.sequences import Aggregation, token_log_probs, token_mean
from rlhf_jax.types import Algorithm, Key, LogitsFn, Metrics, Params, Sequences, TrainState

__all__ = ["supervised"]


def supervised(
    logits_fn: LogitsFn,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    aggregation: Aggregation = token_mean,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Maximum likelihood of the responses (of all tokens, where all are marked as response).

    .. math:: L(\theta) = -\frac{1}{\sum m} \sum_{b,t} m_{b,t} \log \pi_\theta(x_{b,t} | x_{b,<t})

    Args:
        logits_fn: the model.
        optimizer: any optax transformation.
        loss: ``(log_probs[B, T], mask[B, T]) -> loss[B, T]``.
        aggregation: how token losses become one number.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm`` whose batch is ``Sequences``; metrics ``loss`` (nats a token) and
        ``grad_norm``.
    """

    def init(params: Params, key: Key) -> TrainState:
        return new_state(params, optimizer, key)

    def step(state: TrainState, batch: Sequences) -> tuple[TrainState, Metrics]:
        def objective(params):
            logits = logits_fn(params, batch.tokens, batch.mask)
            losses = loss(token_log_probs(logits, batch.tokens), batch.response_mask)
            return {"loss": Term(1.0, aggregation(losses, batch.response_mask))}, {}

        gradient, metrics = gradients(objective, state.params, axis_name)
        params, opt_state = updated(optimizer, gradient, state.params, state.opt_state)
        return advance(state, metrics, params=params, opt_state=opt_state)

    return Algorithm(init, step)
