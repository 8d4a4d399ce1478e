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
from rlhf_jax.types import Packed, Preferences, Ranked, Rated, Sequences

__all__ = ["Feedback", "check_separable", "imitated", "judged", "lined_up", "sides", "together"]

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


def together(every: list[Sequences]) -> Sequences:
    """All sequences of some sides, side after side."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *every)


def lined_up(batch: Feedback) -> tuple[Sequences, jax.Array]:
    """All sequences of a batch, side after side, and which judgements are no padding.

    Returns:
        ``Sequences`` of ``S * B`` rows, and ``bool[B]``.
    """
    every = sides(batch)
    return together(every), jnp.any(every[0].response_mask, axis=-1)


def check_separable(batch: Feedback | Packed, accumulate: int) -> None:
    """A batch that is to be cut into parts is judged row by row; else a ``ValueError``."""
    batch = batch.said if isinstance(batch, Packed) else batch
    if accumulate > 1 and isinstance(batch, Rated) and batch.unrelated is not None:
        raise ValueError(
            f"accumulate must be 1 with ratings that have unrelated answers, not {accumulate}: the "
            "divergence that they measure is one of the whole batch"
        )


def judged(
    batch: Feedback,
    rewards: jax.Array,
    loss: Callable[..., jax.Array],
    *,
    reward: Callable[[jax.Array], jax.Array] = lambda rewards: rewards,
    axis_name: str | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """The loss of what was said, given what the answers are worth.

    Args:
        batch: of ``B`` judgements.
        rewards: ``float[S, B]``, of its sides; ``[S, B, ...]`` if the loss takes several numbers an
            answer, such as a distribution's.
        loss: for ``Preferences`` ``(chosen, rejected) -> [B]``, or ``[B, A]`` in several respects,
            with ``tied`` third and ``margin=`` if the batch has them; for ``Rated`` ``(rewards,
            ratings) -> [...]``, of the ratings' shape, and the KL third if the batch has
            ``unrelated``; for ``Ranked`` ``(rewards[B, N], rankings[B, N]) -> [B]``.
        reward: what of several numbers is the reward that the metrics speak of.
        axis_name: the pmapped axis, if any.

    Returns:
        The loss's mean over the judgements, each as much as its weight, and further means to
        report.

    Raises:
        ValueError: if the loss does not take what the batch has.
    """
    valid = jnp.any(sides(batch)[0].response_mask, axis=-1)
    if isinstance(batch, Preferences):
        return _compared(batch, rewards, loss, reward, valid)
    if isinstance(batch, Rated):
        return _rated(batch, rewards, loss, reward, valid, axis_name)
    return _ranked(batch, rewards, loss, reward, valid)


def _compared(batch, rewards, loss, reward, valid):
    said = () if batch.tied is None else (batch.tied,)
    keywords = {} if batch.margin is None else {"margin": batch.margin}
    names = ("chosen", "rejected", "tied")[: 2 + len(said)]
    checks.takes(loss, "loss", *names, keywords=tuple(keywords))
    chosen, rejected = rewards
    values = loss(chosen, rejected, *said, **keywords)
    lead = reward(chosen) - reward(rejected)
    _like_losses(lead, values)
    mask, weight, probability, tied = _of_shape(
        values, valid=valid, weight=batch.weight, probability=batch.probability, tied=batch.tied
    )
    if probability is not None:
        if keywords:
            raise ValueError("a batch has probability or margin, not both")
        values = probability * values + (1 - probability) * loss(rejected, chosen, *said)

    decided = mask if tied is None else mask & ~tied
    if weight is not None:
        decided &= weight > 0
    right = (lead > 0) + 0.5 * (lead == 0)
    if probability is not None:
        decided &= probability != 0.5
        right = jnp.where(probability > 0.5, right, 1 - right)
    return rows_mean(values, mask, weight), {
        "accuracy": rows_mean(right, decided),
        "margin": rows_mean(lead, decided),
        "chosen_reward": rows_mean(reward(chosen), decided),
        "rejected_reward": rows_mean(reward(rejected), decided),
    }


def _of_shape(losses, **said):
    """What was said of each row, ``[B]``, or of each in several respects, like the losses."""
    shaped = []
    for name, each in said.items():
        if each is not None and jnp.shape(each) != losses.shape:
            if jnp.shape(each) != losses.shape[:1]:
                found = f"{list(losses.shape)}, not {list(jnp.shape(each))}"
                raise ValueError(f"{name} must be [B], or of the losses' shape {found}")
            each = jnp.reshape(each, [-1] + [1] * (losses.ndim - 1))
            each = jnp.broadcast_to(each, losses.shape)
        shaped.append(each)
    return shaped


def _like_losses(rewards, values):
    if rewards.shape != values.shape:
        found = f"{list(values.shape)}, but reward makes {list(rewards.shape)} of the scores"
        raise ValueError(f"loss must return one number for each reward: it returns {found}")


def _rated(batch, rewards, loss, reward, valid, axis_name):
    ratings = batch.ratings
    mask, weight = _of_shape(ratings, valid=valid, weight=batch.weight)
    if batch.rating_mask is not None:
        checks.alike(ratings=ratings, rating_mask=batch.rating_mask)
        mask &= batch.rating_mask
    # What is missing may be a NaN, whose gradient no mask behind the loss would stop.
    ratings = jnp.where(mask, ratings, jnp.zeros_like(ratings))
    scores = reward(rewards[0])
    if scores.shape != ratings.shape:
        found = f"{list(scores.shape)} and {list(ratings.shape)}"
        raise ValueError(f"rewards and ratings must have one shape, not {found}")
    further = {"reward": rows_mean(scores, mask)}
    if ratings.dtype == bool:
        further["desirable_reward"] = rows_mean(scores, mask & ratings)
        further["undesirable_reward"] = rows_mean(scores, mask & ~ratings)
    said = ()
    if batch.unrelated is not None:
        elsewhere = rows_mean(reward(rewards[1]), jnp.any(batch.unrelated.response_mask, axis=-1))
        further["unrelated_reward"] = elsewhere
        kl = divided({"kl": jax.lax.stop_gradient(elsewhere)}, axis_name)["kl"]
        said = (kl,)
    checks.takes(loss, "loss", "rewards", "ratings", *(["kl"] if said else []))
    values = loss(rewards[0], ratings, *said)
    _like_losses(scores, values)
    return rows_mean(values, mask, weight), further


def _ranked(batch, rewards, loss, reward, valid):
    checks.takes(loss, "loss", "scores", "rankings")
    scores = jnp.moveaxis(rewards, 0, 1)
    ranked = jnp.take_along_axis(reward(scores), batch.rankings, axis=-1)
    lead = ranked[:, :, None] - ranked[:, None, :]
    above = jnp.triu(jnp.ones(lead.shape[1:], bool), 1)
    right = jnp.sum(jnp.where(above, (lead > 0) + 0.5 * (lead == 0), 0), axis=(1, 2))
    values = loss(scores, batch.rankings)
    checks.alike(losses=values, rankings=valid)
    return rows_mean(values, valid, batch.weight), {
        "accuracy": rows_mean(right / jnp.sum(above), valid),
        "best_reward": rows_mean(ranked[:, 0], valid),
        "worst_reward": rows_mean(ranked[:, -1], valid),
    }


def imitated(batch: Feedback) -> jax.Array:
    """Which sequences were called good, so that one may learn to write them: ``bool[S, B]``.

    The chosen (no ties), or the rejected where that is the more probable to be better; the
    desirable, the best of a ranking.

    Raises:
        ValueError: if the ratings are not boolean.
    """
    if isinstance(batch, Preferences):
        rows = batch.chosen.mask.shape[0]
        better = jnp.ones(rows) if batch.probability is None else batch.probability
        decided = jnp.ones(rows, bool) if batch.tied is None else ~batch.tied
        return jnp.stack([decided & (better > 0.5), decided & (better < 0.5)])
    if isinstance(batch, Rated):
        checks.booleans(ratings=batch.ratings)
        nobody = jnp.zeros_like(batch.ratings)
        return jnp.stack([batch.ratings, nobody][: len(sides(batch))])
    answers = batch.rankings.shape[-1]
    return jnp.arange(answers)[:, None] == batch.rankings[:, 0]
