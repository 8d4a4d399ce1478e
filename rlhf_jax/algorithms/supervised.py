"""Supervised learning on text: pretraining and fine-tuning."""

from collections.abc import Callable

import jax
import optax

from rlhf_jax import checks, trees
from rlhf_jax.algorithms.common import Term, descended, new_state
from rlhf_jax.algorithms.laid import laid_out
from rlhf_jax.losses import cross_entropy
from rlhf_jax.sequences import Aggregation, token_mean
from rlhf_jax.types import (
    Algorithm,
    Key,
    LogitsFn,
    Metrics,
    Packed,
    Params,
    Rated,
    Sequences,
    TrainState,
)

__all__ = ["supervised"]


def supervised(
    logits_fn: LogitsFn,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = cross_entropy,
    aggregation: Aggregation = token_mean,
    trainable: trees.Patterns | None = None,
    response_length: int | None = None,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Algorithm:
    r"""Maximum likelihood of the responses (of all tokens, where all are marked as response).

    .. math:: L(\theta) = -\frac{1}{\sum m} \sum_{b,t} m_{b,t} \log \pi_\theta(x_{b,t} | x_{b,<t})

    Args:
        logits_fn: the model.
        optimizer: any optax transformation.
        loss: ``(log_probs[B, T], mask[B, T]) -> loss[B, T]``; for rated text with a third argument,
            the ratings: ``losses.filtered``, ``losses.unlikelihood``, ``losses.reward_weighted``.
        aggregation: how token losses become one number.
        trainable: what of the parameters trains: patterns of their paths, such as
            ``"layers/*/lora_*"``, or a predicate of the path (``trees``). The rest has neither
            gradient nor optimiser state. By default all.
        response_length: the most tokens marked as response that a row of the batch holds (a packed
            row, if it is packed): the vocabulary's work is then for so many of its tokens. By
            default it is for all, prompts' and padding's too. If a row has more the loss is NaN,
            and the update skipped.
        accumulate: into how many parts the batch is cut for the gradient, one after the other: less
            memory, and to rounding the same step. The loss must be of each row by itself.
        axis_name: the pmapped axis, for ``parallel.pmap_step``.

    Returns:
        An ``Algorithm`` whose batch is ``Sequences``, or ``Rated`` for a loss that takes ratings,
        or what ``data.pack`` makes of one; metrics ``loss`` (nats a token) and ``grad_norm``.
        ``step`` raises a ``ValueError`` if the loss cannot take the batch.
    """

    def init(params: Params, key: Key) -> TrainState:
        return new_state(params, optimizer, key, trainable=trainable)

    def written(batch: Sequences | Rated) -> list[Sequences]:
        return [batch.sequences if isinstance(batch, Rated) else batch]

    def step(state: TrainState, batch: Sequences | Rated | Packed) -> tuple[TrainState, Metrics]:
        def objective(params, batch):
            laid = laid_out(batch, written, response_length=response_length)
            rows, text = laid.rows, laid.text
            ratings = [laid.batch.ratings] if isinstance(laid.batch, Rated) else []
            checks.takes(loss, "loss", "log_probs", "mask", *(["ratings"] if ratings else []))
            logits = logits_fn(params, rows.tokens, rows.mask)
            log_probs = laid.log_probs(logits)
            losses = loss(log_probs, text.response_mask, *ratings)
            return {"loss": Term(1.0, aggregation(losses, text.response_mask))}, {}

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
