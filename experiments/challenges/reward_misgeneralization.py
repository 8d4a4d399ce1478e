"""3.2.2, reward misgeneralisation (tractable): right labels, and a reward for the wrong reason.

What counts is written small, in many faint features; a loud nuisance goes along with it where
people look. Their labels are right. A reward model with little weight to spend learns the nuisance:
right about held-out answers of the same kind, wrong where a policy then goes, among answers in
which the two go apart (low test error and a poor policy, as Tien et al. 2023 report).
"""

import jax
import jax.numpy as jnp
import numpy as np
import protocol
from protocol import at_least, challenge, interval, main, nothing

import rlhf_jax as rj

CORRELATIONS = np.array([0.0, 0.5, 0.9, 0.99])
ANSWERS, FEATURES, LABELS = 2048, 8, 4096  # Answers of each kind: as seen, and wide.
FAINT, WIDE = 0.1, 3.0  # SD of what counts, and of the nuisance among wide answers (1 as seen)
DECAY, BETA = 1e-4, 0.1
NAMES = ("accuracy", "loss", "share", "lead", "gold")


def run(key: jax.Array, correlation: jax.Array) -> jax.Array:
    """What comes of one pipeline, in the order of ``NAMES``."""
    keys = jax.random.split(key, 4)
    features = jax.random.normal(keys[0], (2 * ANSWERS, FEATURES))
    wanted = jax.random.normal(keys[1], (FEATURES,))
    gold = features @ wanted / jnp.linalg.norm(wanted)
    noise = jax.random.normal(keys[2], gold.shape)
    seen = jnp.arange(2 * ANSWERS) < ANSWERS
    along = correlation * gold + jnp.sqrt(1 - correlation**2) * noise
    nuisance = jnp.where(seen, along, WIDE * noise)
    observed = jnp.concatenate([FAINT * features, nuisance[:, None]], axis=1)
    wide = jnp.where(seen, -jnp.inf, 0.0)
    world = rj.worlds.bandit(gold, features=observed, ref_log_probs=wide)
    as_seen = jnp.where(seen, 0.0, -jnp.inf)
    pipeline = rj.pipeline.Pipeline(
        query=lambda key, policy, reward: world.pairs(LABELS)(key, as_seen, reward),
        human=rj.humans.oracle(world.utility),
        reward=world.newton(DECAY),
        policy=world.exact(BETA),
    )
    start = rj.pipeline.Learners(world.reference, jnp.zeros(FEATURES + 1))
    settings = {"reward_steps": 12, "policy_steps": 1, "prompts": world.prompts(1)}
    state, _ = rj.pipeline.run(pipeline, keys[3], start, rounds=1, **settings)
    reward = world.rewards(state.params.reward.params)[ANSWERS:]
    policy = jax.nn.softmax(state.params.policy.params[ANSWERS:])
    gold, held_out = gold[ANSWERS:], gold[:ANSWERS]
    best = jax.nn.one_hot(jnp.argmax(gold), ANSWERS)
    found = {
        "accuracy": rj.measures.ranking_accuracy(
            world.rewards(state.params.reward.params)[:ANSWERS], held_out
        ),
        "loss": (best - policy) @ gold / (gold.max() - gold.min()),
        "share": rj.measures.nuisance_share(reward, features[ANSWERS:], nuisance[ANSWERS:, None]),
        "lead": (policy - best) @ reward / jnp.std(reward),
        "gold": policy @ gold,
    }
    return jnp.stack([found[name] for name in NAMES])


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Each of ``NAMES``, ``[seeds, correlations]``."""
    over = jax.vmap(run, (None, 0))
    found = protocol.over_seeds(lambda key: over(key, CORRELATIONS), keys)
    return {name: found[..., i] for i, name in enumerate(NAMES)}


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    at = {name: [interval(column) for column in rows.T] for name, rows in found.items()}
    return [
        at_least("correlated .99: right about >= .95 as seen", at["accuracy"][-1], 0.95, null=0.5),
        at_least("and the policy loses >= .3 of gold's range", at["loss"][-1], 0.3),
        at_least("and its reward exceeds the best policy's (in SD)", at["lead"][-1], 0.0),
        at_least("and the reward is mostly nuisance", at["share"][-1], 0.5),
        nothing("correlated 0: nothing lost (+- .02)", at["loss"][0], tolerance=0.02),
        nothing("correlated 0: no share (+- .02)", at["share"][0], tolerance=0.02),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """What a test says, and what a policy makes of it."""
    left, right = axes
    ticks = np.arange(len(CORRELATIONS))
    for axis, names in ((left, ("accuracy", "share")), (right, ("loss", "gold"))):
        for colour, name in zip(rj.report.COLOURS, names, strict=False):
            rows = found[name]
            spread = np.abs(np.quantile(rows, [0.1, 0.9], axis=0) - rows.mean(0))
            label = {
                "accuracy": "accuracy on answers as seen",
                "share": "nuisance's share of the reward",
                "loss": "gold lost, share of its range",
                "gold": "gold of the policy, SD",
            }[name]
            axis.errorbar(ticks, rows.mean(0), spread, color=colour, marker="o", label=label)
        axis.set_xticks(ticks, [f"{c:g}" for c in CORRELATIONS])
        axis.set(xlabel="correlation of the nuisance where people look")
    left.set(ylabel="share", title="what a test sees")
    right.set(ylabel="of the optimised policy", title="what the policy does")


CHALLENGE = challenge("reward-misgeneralization", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
