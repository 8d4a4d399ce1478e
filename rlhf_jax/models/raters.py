"""One reward for all, and how each rater turns it into what they say."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import checks
from rlhf_jax.distributions import normal
from rlhf_jax.types import Params, ScoreFn

__all__ = ["RaterScale", "rater_scale"]


class RaterScale(NamedTuple):
    """A reward model with raters, as pure functions of ``{"score": ..., "raters": ...}``.

    Attributes:
        init: ``(params of the score) -> params``.
        score_fn: a ``ScoreFn``, what all raters have in common.
        personal: ``(params, scores[S, B], rater[B]) -> [S, B]``, or ``[S, B, 2]`` with ``noise``:
            what those raters make of the scores. One outside ``0 ... R - 1`` (-1, say) is taken for
            an average one.
        regulariser: ``(params) -> float[]``, minus the log-prior of the raters, in nats an answer.
        effects: ``(params) -> {"bias": [R], "slope": [R], "noise": [R]}``, in the ratings' units,
            as ``humans.rater_effects`` takes them; the noise is a standard deviation.
    """

    init: Callable[[Params], Params]
    score_fn: ScoreFn
    personal: Callable[[Params, jax.Array, jax.Array], jax.Array]
    regulariser: Callable[[Params], jax.Array]
    effects: Callable[[Params], dict[str, jax.Array]]


def rater_scale(
    score_fn: ScoreFn,
    raters: int,
    *,
    answers: int,
    noise: bool = True,
    bias_spread: float = 1.0,
    slope_spread: float = 0.5,
    noise_spread: float = 0.5,
) -> RaterScale:
    r"""Raters who begin elsewhere on the scale, go further on it, and are more or less careful.

    .. math::
        y = b_k + s_k \, r(x) + \sigma_k \varepsilon, \qquad
        b_k \sim N(0, \tau_b^2), \quad s_k \sim N(1, \tau_s^2), \quad
        \operatorname{softplus}^{-1} \sigma_k \sim N(\nu, \tau_n^2)

    The priors hold the raters around one who takes the reward as it is; with them one who answered
    little is taken for an average one, and they are what fixes the reward's zero and unit. The
    typical noise ``nu`` is learnt. Of ratings train it with ``likelihood`` of ``normal()``; of
    comparisons with any loss and ``noise=False``: the bias cancels, and the slope is how sure the
    rater is, below 0 for one who prefers the worse. ::

        scale = models.rater_scale(model.score_fn, raters=R, answers=N)
        algorithms.reward_model(
            scale.score_fn, optimizer, personal=scale.personal, regulariser=scale.regulariser,
            loss=partial(losses.likelihood, distribution=distributions.normal()),
            reward=lambda scores: scores[..., 0])

    Args:
        score_fn: the reward model, ``[B]``.
        raters: ``R``.
        answers: how many answers there are in all the data: the loss is of one of them, and the
            prior counts once for all.
        noise: whether the raters differ in noise too; the scores are then parameters of
            ``distributions.normal()``.
        bias_spread: tau_b, in the reward's unit.
        slope_spread: tau_s.
        noise_spread: tau_n, for small noises roughly in units of their logarithm.

    Returns:
        A ``RaterScale``; at first all raters are alike, with a noise of 1.

    Raises:
        ValueError: if ``raters`` or ``answers`` is below 1, or a spread is not positive; from
            ``personal``, if the scores are not ``[S, B]`` and the raters ``[B]``.

    Reference: of annotators with a bias and a precision, Raykar et al. 2010, JMLR 11

    >>> scale = rater_scale(lambda params, tokens, mask: params * tokens[:, 0], 2, answers=10)
    >>> params = scale.init(jnp.float32(0.5))
    >>> params["raters"]["bias"] = jnp.array([0.0, 3.0])
    >>> print(scale.personal(params, jnp.array([[1.0, 1.0, 1.0]]), jnp.array([0, 1, -1]))[..., 0])
    [[1. 4. 1.]]
    """
    for name, number in (("raters", raters), ("answers", answers)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    spreads = {"bias": bias_spread, "slope": slope_spread} | (
        {"noise": noise_spread} if noise else {}
    )
    checks.positive(**{f"{name}_spread": spread for name, spread in spreads.items()})

    def init(score: Params) -> Params:
        nobody_differs = {name: jnp.zeros(raters) for name in spreads}
        # Deviations from the typical rater, so that a rater without answers stays one. What this
        # says of the noise is softplus's inverse of 1.
        typical = {"typical_noise": jnp.log(jnp.expm1(jnp.float32(1)))} if noise else {}
        return {"score": score, "raters": nobody_differs | typical}

    def common(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return score_fn(params["score"], tokens, mask)

    def personal(params: Params, scores: jax.Array, rater: jax.Array) -> jax.Array:
        checks.vectors(rater=rater)
        if scores.ndim != 2 or scores.shape[1:] != rater.shape:
            wanted = f"[S, {len(rater)}], one number for each of the raters"
            raise ValueError(f"scores must be {wanted}, not {list(scores.shape)}")
        known = (rater >= 0) & (rater < raters)
        theirs = {
            name: jnp.where(known, params["raters"][name][jnp.where(known, rater, 0)], 0)
            for name in spreads
        }
        said = theirs["bias"] + (1 + theirs["slope"]) * scores
        if not noise:
            return said
        spread = params["raters"]["typical_noise"] + theirs["noise"]
        return jnp.stack(jnp.broadcast_arrays(said, spread), axis=-1)

    def regulariser(params: Params) -> jax.Array:
        squares = [
            jnp.sum(jnp.square(params["raters"][name] / spread)) for name, spread in spreads.items()
        ]
        return 0.5 * sum(squares) / answers

    def effects(params: Params) -> dict[str, jax.Array]:
        found = params["raters"]
        settings = {"bias": found["bias"], "slope": 1 + found["slope"]}
        if noise:
            spread = found["typical_noise"] + found["noise"]
            settings["noise"] = jnp.sqrt(normal().variance(jnp.stack([spread, spread], axis=-1)))
        return settings

    return RaterScale(init, common, personal, regulariser, effects)
