"""A loss on human feedback, in whichever of its forms it came: pairs, ratings, rankings.

A batch of ``B`` judgements holds one or several *sides* of ``B`` sequences each: the chosen and the
rejected, one rated text, the ``N`` ranked answers. An algorithm lines them up as ``S * B`` rows,
gives every row a reward, and hands ``rewards[S, B]`` back, to be judged here. Which form it is, is
known from the batch's type, so a compiled step contains only that one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.algorithms.common import divided, rows_mean
from rlhf_jax.sequences import Mean
from rlhf_jax.types import Preferences, Ranked, Rated, Sequences

__all__ = ["Feedback", "imitated", "judged", "lined_up", "sides"]

Feedback = Preferences | Rated | Ranked


def sides(batch: Feedback) -> list[Sequences]:
    """The ``S`` sides of a batch, each ``Sequences`` of ``B`` rows.

    Raises:
        TypeError: if the batch is of no form of feedback.
    """
    if isinstance(batch, Preferences):
        return [batch.chosen, batch.rejected]
    if isinstance(batch, Rated):
        return [batch.sequences] + ([] if batch.unrelated is None else [batch.unrelated])
    if isinstance(batch, Ranked):
        answers = batch.rankings.shape[-1]
        return [jax.tree.map(lambda x, n=n: x[:, n], batch.sequences) for n in range(answers)]
    raise TypeError(f"the batch must be Preferences, Rated or Ranked, not {type(batch).__name__}")


def lined_up(batch: Feedback) -> tuple[Sequences, jax.Array]:
    """All sequences of a batch, side after side, and which judgements are no padding.

    Returns:
        ``Sequences`` of ``S * B`` rows, and ``bool[B]``.
    """
    every = sides(batch)
    rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), *every)
    return rows, jnp.any(every[0].response_mask, axis=-1)


def judged(
    batch: Feedback,
    rewards: jax.Array,
    loss: Callable[..., jax.Array],
    *,
    axis_name: str | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """The loss of what was said, given what the answers are worth.

    Args:
        batch: of ``B`` judgements.
        rewards: ``float[S, B]``, of its sides.
        loss: for ``Preferences`` ``(chosen, rejected) -> [B]``, and ``tied`` third if the batch
            has it; for ``Rated`` ``(rewards, ratings) -> [B]``, and the KL third if the batch has
            ``unrelated``; for ``Ranked`` ``(rewards[B, N], rankings[B, N]) -> [B]``.
        axis_name: the pmapped axis, if any.

    Returns:
        The loss's mean over the judgements, and further means to report.

    Raises:
        ValueError: if the loss does not take what the batch has.
    """
    every = sides(batch)
    valid = jnp.any(every[0].response_mask, axis=-1)
    if isinstance(batch, Preferences):
        chosen, rejected = rewards
        said = () if batch.tied is None else (batch.tied,)
        checks.takes(loss, "loss", "chosen", "rejected", *(["tied"] if said else []))
        decided = valid if batch.tied is None else valid & ~batch.tied
        lead = chosen - rejected
        further = {
            "accuracy": rows_mean((lead > 0) + 0.5 * (lead == 0), decided),
            "margin": rows_mean(lead, decided),
            "chosen_reward": rows_mean(chosen, decided),
            "rejected_reward": rows_mean(rejected, decided),
        }
        return rows_mean(loss(chosen, rejected, *said), valid), further
    if isinstance(batch, Rated):
        further = {"reward": rows_mean(rewards[0], valid)}
        if batch.ratings.dtype == bool:
            good, bad = valid & batch.ratings, valid & ~batch.ratings
            further["desirable_reward"] = rows_mean(rewards[0], good)
            further["undesirable_reward"] = rows_mean(rewards[0], bad)
        said = ()
        if batch.unrelated is not None:
            elsewhere = rows_mean(rewards[1], jnp.any(batch.unrelated.response_mask, axis=-1))
            further["unrelated_reward"] = elsewhere
            kl = divided({"kl": jax.lax.stop_gradient(elsewhere)}, axis_name)["kl"]
            said = (kl,)
        checks.takes(loss, "loss", "rewards", "ratings", *(["kl"] if said else []))
        return rows_mean(loss(rewards[0], batch.ratings, *said), valid), further
    checks.takes(loss, "loss", "scores", "rankings")
    scores = rewards.T
    ranked = jnp.take_along_axis(scores, batch.rankings, axis=-1)
    lead = ranked[:, :, None] - ranked[:, None, :]
    above = jnp.triu(jnp.ones(lead.shape[1:], bool), 1)
    right = jnp.sum(jnp.where(above, (lead > 0) + 0.5 * (lead == 0), 0), axis=(1, 2))
    further = {
        "accuracy": rows_mean(right / jnp.sum(above), valid),
        "best_reward": rows_mean(ranked[:, 0], valid),
        "worst_reward": rows_mean(ranked[:, -1], valid),
    }
    return rows_mean(loss(scores, batch.rankings), valid), further


def imitated(batch: Feedback) -> jax.Array:
    """Which sequences were called good, so that one may learn to write them: ``bool[S, B]``.

    The chosen (no ties), the desirable, the best of a ranking.

    Raises:
        ValueError: if the ratings are not boolean.
    """
    if isinstance(batch, Preferences):
        rows = batch.chosen.mask.shape[0]
        chosen = jnp.ones(rows, bool) if batch.tied is None else ~batch.tied
        return jnp.stack([chosen, jnp.zeros(rows, bool)])
    if isinstance(batch, Rated):
        checks.booleans(ratings=batch.ratings)
        nobody = jnp.zeros_like(batch.ratings)
        return jnp.stack([batch.ratings, nobody][: len(sides(batch))])
    answers = batch.rankings.shape[-1]
    return jnp.arange(answers)[:, None] == batch.rankings[:, 0]
