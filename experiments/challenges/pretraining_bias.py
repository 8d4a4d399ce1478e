"""3.3.3, pretraining bias (tractable): what the base model prefers, RLHF keeps.

Contents that differ in quality, each in two forms: without an attribute, and with it. Pretraining
favours the attribute by b nats. People judge quality alone; or they mind the attribute too, by
delta. KL-regularised RL is Bayesian inference with the base model as the prior: whatever beta is,
the log-odds of the attribute stay b, or become b - delta / beta, so that what people mind prevails
only if beta < delta / b. The reward is learnt from comparisons of the base model's own answers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import testbeds
from protocol import at_least, challenge, intervals, main, near, nothing, slope

import rlhf_jax as rj

CONTENTS, FEATURES = 16, 6
BIASES = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
BETAS = np.array([0.25, 0.5, 0.8, 1.25, 2.0, 4.0])
MINDED, BIAS = 1.0, 1.0  # delta, and the bias then: the sign flips at beta = 1


def log_odds(key: jax.Array, bias: jax.Array, delta: jax.Array, labels: int) -> jax.Array:
    """Of the attribute, and the mean quality: of the reference and of all betas' policies."""
    keys = jax.random.split(key, 4)
    content = jax.random.normal(keys[0], (CONTENTS, FEATURES)) / jnp.sqrt(FEATURES)
    has = jnp.repeat(jnp.array([0.0, 1.0]), CONTENTS)
    features = jnp.column_stack([jnp.tile(content, (2, 1)), has])
    quality = jnp.tile(content @ jax.random.normal(keys[1], (FEATURES,)), 2)
    prior = jnp.tile(0.5 * jax.random.normal(keys[2], (CONTENTS,)), 2)
    world = rj.worlds.bandit(
        quality - delta * has, features=features, ref_log_probs=prior + bias * has
    )
    human, start = rj.humans.boltzmann(world.utility), jnp.zeros(FEATURES + 1)
    learnt = world.rewards(testbeds.learnt_reward(keys[3], world, human, start, labels=labels))
    policies = jax.vmap(lambda beta: rj.worlds.tilt(world.reference, learnt, beta=beta))(BETAS)

    def of(logits: jax.Array) -> jax.Array:
        without, attribute = jax.nn.logsumexp(logits.reshape(2, CONTENTS), axis=1)
        return jnp.stack([attribute - without, jax.nn.softmax(logits) @ quality])

    return jax.vmap(of)(jnp.concatenate([world.reference[None], policies]))


def measure(keys: jax.Array, fast: bool) -> jax.Array:
    """``[seeds, arms, 1 + betas, 2]``: an arm for each bias, and one in which people mind."""
    labels = 2**14 if fast else 2**15
    biases, deltas = np.append(BIASES, BIAS), np.append(0 * BIASES, MINDED)

    def one_seed(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(biases))
        return jax.lax.map(lambda given: log_odds(*given, labels), (keys, biases, deltas))

    return jax.jit(partial(jax.lax.map, one_seed))(keys)


def judge(found: np.ndarray) -> list:
    """What must come out."""
    expected = BIAS - MINDED / BETAS

    def statistic(rows: jax.Array) -> jax.Array:
        odds, quality = jnp.moveaxis(rows.mean(axis=0), -1, 0)  # [arms, 1 + betas]
        kept = slope(odds[:-1, 0], odds[:-1, 1:].T)
        gained = jnp.min(quality[:-1, 1:] - quality[:-1, :1])
        residual, right = slope(expected, odds[-1, 1:]), jnp.min(odds[-1, 1:] * np.sign(expected))
        unbiased = jnp.mean(odds[len(BIASES) // 2, 1:])
        return jnp.stack([*kept, gained, residual, right, unbiased])

    *kept, gained, residual, right, unbiased = intervals(found, statistic)
    text = "slope of new log-odds by the base model's 1 +- .05"
    return [
        *(near(f"beta {b}: {text}", x, 1, 0.05, null=0) for b, x in zip(BETAS, kept, strict=True)),
        at_least("while quality rises, at any bias and beta", gained, 0),
        near("minded: rise by 1 +- .05 a unit of b - delta / beta", residual, 1, 0.05, null=0),
        at_least("and their sign flips iff beta < delta / b: right at all beta", right, 0),
        nothing("control: an unbiased base model leaves none", unbiased, tolerance=0.05),
    ]


def plot(axes, found: np.ndarray) -> None:
    """Bias kept, and bias against what people mind."""
    left, right = axes
    odds = found[..., 0].mean(axis=0)
    blue, orange, *_, grey = rj.report.COLOURS
    left.axline((0, 0), slope=1, color=grey, ls=":", label="as in the base model")
    for colour, place in zip(rj.report.COLOURS, range(0, len(BETAS), 2), strict=False):
        mark = {"ms": 9 - 2 * place, "mfc": "none", "color": colour}
        left.plot(odds[:-1, 0], odds[:-1, 1 + place], "o", label=f"beta = {BETAS[place]}", **mark)
    left.set(xlabel="log-odds of the attribute, base model", ylabel="log-odds after RLHF")
    line = np.geomspace(BETAS[0], BETAS[-1])
    low, high = np.quantile(found[:, -1, 1:, 0], [0.1, 0.9], axis=0)
    right.fill_between(BETAS, low, high, color=blue, alpha=0.15, lw=0)
    right.plot(BETAS, odds[-1, 1:], "o", color=blue, label="people mind the attribute")
    right.plot(line, BIAS - MINDED / line, ":", color=grey, label="b - delta / beta")
    right.axhline(odds[-1, 0], color=orange, label="base model")
    right.axhline(0, color=grey, lw=0.8)
    right.set(xscale="log", xlabel="beta (reward per nat)", ylabel="log-odds of the attribute")
    right.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS], minor=False)
    right.minorticks_off()


CHALLENGE = challenge("pretraining-bias", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
