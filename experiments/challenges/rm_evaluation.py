"""3.2.3, evaluating reward models (tractable): what says whether one is good is hard to come by.

Four ways of being misled, on finite bandits. Sixty reward models (of many or few labels, features
and mistakes, and of a nuisance that goes along with what counts where people look) are ranked by
their accuracy on held-out answers and by that on their own policy's: which tells whose policy will
be good? A reward model that a policy was trained jointly with is right where that policy went: a
new policy, by the same model, is worse (McKinney et al. 2023, https://arxiv.org/abs/2301.03652). A
judge with the bias of those who gave the labels does not see what the bias cost. And to know a
policy's worth to within delta takes labels in proportion to (sigma / delta)^2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from protocol import (
    at_least,
    at_most,
    band,
    challenge,
    intervals,
    main,
    near,
    nothing,
    over_seeds,
    r_squared,
    slope,
)
from rm_experiments import ARMS, BIASES, NOISES, SHARED, judged, needed, ranked, relearnt

import rlhf_jax as rj


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """``[seeds, ...]`` each: of 60 models, of samplers and relearners, of judges, of raters."""

    def one_seed(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, 4)
        return {
            "models": ranked(keys[0]),
            "relearnt": jax.lax.map(lambda arm: relearnt(keys[1], *arm), ARMS),
            "judged": judged(keys[2]),
            "labels": jax.lax.map(lambda noise: needed(keys[3], noise), NOISES),
        }

    return over_seeds(one_seed, keys)


def tau(scores: np.ndarray, gold: np.ndarray) -> jax.Array:
    """Kendall's, of ``[seeds, models]``."""
    return 2 * jax.vmap(rj.measures.ranking_accuracy)(jnp.array(scores), jnp.array(gold)) - 1


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    held_out, own, gold = np.moveaxis(found["models"], 1, 0)
    lag = tau(held_out, gold) - tau(own, gold)
    gaps = found["relearnt"][..., 0] - found["relearnt"][..., 1]
    wins = found["judged"] - 0.5
    labels, law = np.moveaxis(np.log(found["labels"]), 2, 0).reshape(2, len(lag), -1)

    def statistic(rows: jax.Array) -> jax.Array:
        simple, wins, logs = rows[:, :5].mean(0), rows[:, 5:7].mean(0), rows[:, 7:]
        measured, known = logs.reshape(len(rows), 2, -1).mean(axis=0)
        rise = slope(known, measured)
        fit = r_squared(measured, measured.mean() + rise * (known - known.mean()))
        return jnp.concatenate([simple, 1 - wins[1:] / wins[:1], jnp.stack([rise, fit])])

    rows = [lag, *gaps.T, wins[:, 0], labels[:, 0] - law[:, 0], wins[:, 0], wins[:, SHARED]]
    rows = np.concatenate([np.stack(rows, axis=1), labels, law], axis=1)
    lag, worse, any_gap, gap, off, hidden, rise, fit = intervals(jnp.array(rows), statistic)
    return [
        at_most(
            "60 models: tau(held out, gold) - tau(on-policy, gold) <= -.15", lag, -0.15, null=0
        ),
        at_least("a new policy by the reward model is worse (SD)", worse, 0),
        at_most("control, labels of any answers, all kept: worse by <= .1 SD", any_gap, 0.1),
        at_least("a judge as biased as the labels hides >= 80% of the gap", hidden, 0.8),
        at_least("which an unbiased judge sees (win rate beyond .5)", gap, 0.0),
        near("labels rise as (sigma / delta)^2: slope of logs 1 +- .1", rise, 1, 0.1, null=0),
        at_least("and that explains R2 >= .95", fit, 0.95),
        nothing(
            "labels for +- .05 are 1.96^2 (sigma / .05)^2 (log ratio +- .1)", off, tolerance=0.1
        ),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Rankings of models in one world, and the judge's gap by bias."""
    left, right = axes
    blue, orange, *_, grey = rj.report.COLOURS
    held_out, own, gold = np.moveaxis(found["models"], 1, 0)
    for colour, scores, name in ((grey, held_out, "held-out"), (blue, own, "its own policy's")):
        label = f"{name} answers: tau {float(tau(scores, gold).mean()):.2f}"
        left.scatter(scores[0], gold[0], s=14, color=colour, label=label)
    left.set(xlabel="accuracy of the reward model", ylabel="gold of its policy (one world of all)")
    wins = found["judged"]
    band(right, BIASES, wins, color=orange)
    right.axhline(0.5, color=grey, ls=":")
    right.axvline(
        BIASES[SHARED], color=grey, ls="--", lw=0.8, label="bias of those who gave labels"
    )
    right.set(xlabel="bias of the judge (nats)", ylabel="sound policy beats biased one")


CHALLENGE = challenge("rm-evaluation", measure, judge, plot, fast_seeds=4)

if __name__ == "__main__":
    main(CHALLENGE)
