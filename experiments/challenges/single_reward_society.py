"""3.2.1, one reward for a society (fundamental): averaging people is not serving them.

First Siththaranjan et al. 2023: answers a in [0, 1] of worth a, but from .8 on worth 0 or 2 a, as
luck has it that the reward model does not see. It learns the Borda count, not the mean, and so
prefers the .8 that never fails. Then two groups: the more the one outnumbers the other, the worse
one reward does for the other (MaxMin-RLHF reports an accuracy of 70.4% falling to 42% at 10:1).
"""

import jax
import jax.numpy as jnp
import numpy as np
import protocol
from protocol import at_least, at_most, challenge, interval, main, near, nothing, slope

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


def luck(key: jax.Array, lucky: jax.Array) -> dict[str, jax.Array]:
    """What is learnt of answers that come twice, with bad luck and with good."""
    risky = (WORTH >= THRESHOLD) & lucky
    utilities = jnp.concatenate([jnp.where(risky, times * WORTH, WORTH) for times in (0, 2)])
    features = jnp.tile(jnp.eye(PLACES), (2, 1))  # which does not tell the two apart
    world = rj.worlds.bandit(utilities, features=features)
    states = learnt(world, key, rj.humans.oracle(world.utility), PLACES, LABELS)
    reward = states.reward.params
    return {
        "reward": reward,
        "spearman": protocol.spearman(reward, BORDA),
        "argmax": jnp.asarray(WORTH)[jnp.argmax(reward)],
        "mean_argmax": jnp.asarray(WORTH)[jnp.argmax(features.T @ utilities)],
    }


def groups(key: jax.Array, ratio: jax.Array, same: jax.Array) -> jax.Array:
    """How often the minority's pairs are in its order, and what each group has of the policy."""
    keys = jax.random.split(key, 3)
    features = jax.random.normal(keys[0], (ANSWERS, FEATURES))
    wanted = jax.random.normal(keys[1], (2, FEATURES))
    wanted = wanted.at[1].set(jnp.where(same, wanted[0], wanted[1]))
    utilities = wanted @ features.T
    utilities /= jnp.std(utilities, axis=1, keepdims=True)
    world = rj.worlds.bandit(utilities[0], features=features)
    humans = [rj.humans.boltzmann(lambda x, u=u: u[x.tokens[:, 1]]) for u in utilities]
    human = rj.humans.population(humans, weights=jnp.stack([ratio, 1.0]))
    states = learnt(world, keys[2], human, FEATURES, GROUP_LABELS)
    right = rj.measures.ranking_accuracy(world.rewards(states.reward.params), utilities[1])
    return jnp.append(right, utilities @ jax.nn.softmax(states.policy.params))


def one_seed(key: jax.Array) -> dict:
    """With the defect and without: of luck by name ``[2]``, of groups ``[2, ratios, 3]``."""
    over = jax.vmap(jax.vmap(groups, (None, 0, None)), (None, None, 0))
    there, away = np.array([True, False]), np.array([False, True])
    return {"luck": jax.vmap(luck, (None, 0))(key, there), "groups": over(key, RATIOS, away)}


def measure(keys: jax.Array, fast: bool) -> dict:
    """What ``one_seed`` finds, of all seeds."""
    return protocol.over_seeds(one_seed, keys)


def judge(found: dict) -> list:
    """What must come out."""
    (best, sure), (mean_best, sure_best) = (found["luck"][x].T for x in ("argmax", "mean_argmax"))
    order, fall = found["luck"]["spearman"][:, 0], -slope(np.log(RATIOS), found["groups"][..., 0])
    utility = -slope(np.log(RATIOS), found["groups"][:, 0, :, 2])
    words = "a minority's accuracy falls with the ratio (minus its slope in the log)"
    return [
        at_least("the reward is in Borda's order: Spearman >= .99", interval(order), 0.99),
        at_most("its best answer is below .8", interval(best), THRESHOLD, null=1.0),
        near("whose mean is best at 1", interval(mean_best), 1, 1 / PLACES),
        nothing("no luck: its best answer is the best", interval(sure - sure_best)),
        at_least(words, interval(fall[:, 0]), 0.0),
        at_least("and so does what it has of the policy", interval(utility), 0.0),
        nothing("groups that want the same: flat (+- .005)", interval(fall[:, 1]), tolerance=0.005),
    ]


def plot(axes, found: dict) -> None:
    """What the reward says of each answer; and the minority's share."""
    left, right = axes
    blue, orange, green = rj.report.COLOURS[:3]
    reward = found["luck"]["reward"][:, 0].mean(0)
    scaled = np.interp(reward, (reward.min(), reward.max()), (0, 1))
    left.plot(WORTH, WORTH, ":", color="#666666", label="mean worth")
    left.plot(WORTH, BORDA, color=green, label="Borda count")
    left.plot(WORTH, scaled, "o", ms=3, color=blue, label="reward learnt (scaled)")
    left.set(xlabel="answer a", ylabel="worth; share of pairs won")
    own, same = np.moveaxis(found["groups"][..., 0], 1, 0)
    protocol.band(right, RATIOS, own, color=blue, label="a minority of its own wishes")
    protocol.band(right, RATIOS, same, color=orange, label="a minority of the same wishes")
    right.axhline(0.5, color="#666666", ls=":")
    right.set(xlabel="majority : minority", ylabel="minority's pairs in its order")


CHALLENGE = challenge("single-reward-society", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
