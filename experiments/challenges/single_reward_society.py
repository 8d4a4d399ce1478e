"""3.2.1, one reward for a society (fundamental): averaging people is not serving them.

First Siththaranjan et al. 2023: answers a in [0, 1] of worth a, but from .8 on worth 0 or 2 a, as
luck has it that the reward model does not see. It learns the Borda count, not the mean, and so
prefers the .8 that never fails. Then two groups: the more the one outnumbers the other, the worse
one reward does for the other (MaxMin-RLHF reports an accuracy of 70.4% falling to 42% at 10:1).
"""

import jax
import jax.numpy as jnp
import numpy as np
from protocol import Challenge, at_least, at_most, interval, main, near, nothing, slope

import rlhf_jax as rj
from rlhf_jax.pipeline import Learners, Pipeline

PLACES, THRESHOLD, LABELS, BETA = 50, 0.8, 2**16, 0.05
WORTH = (np.arange(PLACES) + 0.5) / PLACES
BORDA = np.where(WORTH < THRESHOLD, WORTH + 0.1, 0.275 + 0.25 * WORTH)
RATIOS = np.array([1.0, 2.0, 3.0, 5.0, 10.0])
ANSWERS, FEATURES, GROUP_LABELS = 256, 8, 4096


def learnt(world: rj.worlds.Bandit, key: jax.Array, human, size: int, labels: int) -> Learners:
    """The states of a reward model and of a policy after a round of RLHF."""
    pipeline = Pipeline(world.pairs(labels), human, world.newton(1e-5), world.exact(BETA))
    start = Learners(world.reference, jnp.zeros(size))
    settings = {"reward_steps": 12, "policy_steps": 1, "prompts": world.prompts(1)}
    return rj.pipeline.run(pipeline, key, start, rounds=1, **settings)[0].params


def luck(key: jax.Array, lucky: bool) -> dict[str, jax.Array]:
    """What is learnt of answers that come twice, with bad luck and with good."""
    risky = (WORTH >= THRESHOLD) & lucky
    utilities = jnp.concatenate([np.where(risky, 0, WORTH), np.where(risky, 2 * WORTH, WORTH)])
    features = jnp.tile(jnp.eye(PLACES), (2, 1))  # which does not tell the two apart
    world = rj.worlds.bandit(utilities, features=features)
    states = learnt(world, key, rj.humans.oracle(world.utility), PLACES, LABELS)
    reward = states.reward.params
    ranks = [jnp.argsort(jnp.argsort(x)).astype(jnp.float32) for x in (reward, BORDA)]
    return {
        "reward": reward,
        "spearman": jnp.corrcoef(*ranks)[0, 1],
        "argmax": jnp.asarray(WORTH)[jnp.argmax(reward)],
        "mean_argmax": jnp.asarray(WORTH)[jnp.argmax(features.T @ utilities)],
        "gold": jax.nn.softmax(states.policy.params) @ utilities,
    }


def groups(key: jax.Array, ratio: jax.Array, same: bool) -> jax.Array:
    """How often the minority's pairs are in its order, and what each group has of the policy."""
    keys = jax.random.split(key, 3)
    features = jax.random.normal(keys[0], (ANSWERS, FEATURES))
    wanted = jax.random.normal(keys[1], (2, FEATURES))
    wanted = jnp.stack([wanted[0], wanted[0] if same else wanted[1]])
    utilities = wanted @ features.T
    utilities /= jnp.std(utilities, axis=1, keepdims=True)
    world = rj.worlds.bandit(utilities[0], features=features)
    humans = [rj.humans.boltzmann(lambda x, u=u: u[x.tokens[:, 1]]) for u in utilities]
    human = rj.humans.population(humans, weights=jnp.stack([ratio, 1.0]))
    states = learnt(world, keys[2], human, FEATURES, GROUP_LABELS)
    right = rj.measures.ranking_accuracy(world.rewards(states.reward.params), utilities[1])
    return jnp.append(right, utilities @ jax.nn.softmax(states.policy.params))


def measure(keys: jax.Array, fast: bool) -> dict:
    """With the defect and without: of luck by name, of groups ``[seeds, ratios, 3]``."""

    def seed(key: jax.Array) -> dict:
        over = [jax.vmap(lambda r, s=s: groups(key, r, s))(RATIOS) for s in (False, True)]
        return {
            "luck": luck(key, True),
            "sure": luck(key, False),
            "groups": over[0],
            "alike": over[1],
        }

    return jax.jit(lambda keys: jax.lax.map(seed, keys))(keys)


def judge(found: dict) -> list:
    """What must come out."""
    luck, sure = found["luck"], found["sure"]
    by_ratio = [slope(np.log(RATIOS), found[name][..., 0]) for name in ("groups", "alike")]
    return [
        at_least(
            "the reward is in Borda's order: Spearman >= .99", interval(luck["spearman"]), 0.99
        ),
        at_most("its best answer is below .8", interval(luck["argmax"]), THRESHOLD, null=1.0),
        near("whose mean is best at 1", interval(luck["mean_argmax"]), 1, 1 / PLACES),
        nothing(
            "no luck: its best answer is the best", interval(sure["argmax"] - sure["mean_argmax"])
        ),
        at_least(
            "a minority's accuracy falls with the ratio (minus its slope in the log)",
            interval(-by_ratio[0]),
            0.0,
        ),
        at_least(
            "and so does what it has of the policy",
            interval(-slope(np.log(RATIOS), found["groups"][..., 2])),
            0.0,
        ),
        nothing(
            "groups that want the same: flat (+- .005)", interval(by_ratio[1]), tolerance=0.005
        ),
    ]


def plot(axes, found: dict) -> None:
    """What the reward says of each answer; and the minority's share."""
    left, right = axes
    blue, orange, green = rj.report.COLOURS[:3]
    reward = found["luck"]["reward"].mean(0)
    scaled = np.interp(reward, (reward.min(), reward.max()), (0, 1))
    left.plot(WORTH, WORTH, ":", color="#666666", label="mean worth")
    left.plot(WORTH, BORDA, color=green, label="Borda count")
    left.plot(WORTH, scaled, "o", ms=3, color=blue, label="reward learnt (scaled)")
    left.set(xlabel="answer a", ylabel="worth; share of pairs won")
    for colour, name, label in (
        (blue, "groups", "of its own wishes"),
        (orange, "alike", "of the same wishes"),
    ):
        rows = found[name][..., 0]
        right.plot(RATIOS, rows.mean(0), "o-", color=colour, label=f"a minority {label}")
        low, high = np.quantile(rows, [0.1, 0.9], axis=0)
        right.fill_between(RATIOS, low, high, color=colour, alpha=0.15, lw=0)
    right.axhline(0.5, color="#666666", ls=":")
    right.set(xlabel="majority : minority", ylabel="minority's pairs in its order")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)


CHALLENGE = Challenge(
    slug="single-reward-society",
    section="3.2.1",
    fundamental=True,
    claim="A single reward function cannot represent a diverse society of humans.",
    measure=measure,
    judge=judge,
    plot=plot,
)

if __name__ == "__main__":
    main(CHALLENGE)
