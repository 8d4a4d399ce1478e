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
    Challenge,
    at_least,
    at_most,
    intervals,
    learnt_reward,
    main,
    near,
    nothing,
    r_squared,
    slope,
)

import rlhf_jax as rj

ANSWERS, FEATURES, MODELS, LABELS, DECAY = 512, 8, 60, 1024, 1e-4
FAINT, WIDE, DRAWS = 0.1, 3.0, 16  # SD of what counts, of a nuisance nobody tied, best-of-n
CURVATURE, WIDTH, ROUNDS, ASKED, FITTING, RATE = 0.7, 24, 16, 64, 6, 0.5
ARMS = np.array([True, False]), np.array([2, ROUNDS])  # labels of its own answers; rounds kept
BIASES = np.array([0.0, 0.25, 0.5, 1.0, 2.0])
SHARED, COMPARED = 3, 2048  # which of these the labels have; comparisons by the judge
NOISES, WITHIN = np.array([0.5, 1.0, 2.0]), np.array([0.05, 0.1, 0.2])
REPLICATES, MOST = 128, 16384


def best(rewards: jax.Array) -> jax.Array:
    """The policy that says the best of several answers drawn alike, exactly."""
    reference = jnp.full(len(rewards), -np.log(len(rewards)))
    return rj.measures.best_of_n_policy(reference, rewards, DRAWS)


def ranked(key: jax.Array) -> jax.Array:
    """Of all models, accuracy on held-out and on their policy's answers, and its gold."""
    keys = jax.random.split(key, 7)
    features = jax.random.normal(keys[0], (2 * ANSWERS, FEATURES))
    wanted = jax.random.normal(keys[1], (FEATURES,))
    gold = features @ wanted / jnp.linalg.norm(wanted)
    seen = jnp.arange(2 * ANSWERS) < ANSWERS  # as people see answers; the others are for policies
    spread = jax.random.uniform(keys[2], (4, MODELS))
    skipped = 1 - 2.0 ** (-5 * spread[0])  # of LABELS, all of them or down to a 32nd
    widths = jnp.floor(3 + (FEATURES - 2) * spread[1])
    mistakes, correlations = 0.4 * spread[2], 0.99 * spread[3]

    def model(key, skipped, width, mistakes, correlation):
        keys = jax.random.split(key, 3)
        noise = jax.random.normal(keys[0], gold.shape)
        along = correlation * gold + jnp.sqrt(1 - correlation**2) * noise
        visible = FAINT * features * (jnp.arange(FEATURES) < width)
        nuisance = jnp.where(seen, along, WIDE * noise)
        world = rj.worlds.bandit(
            gold,
            features=jnp.concatenate([visible, nuisance[:, None]], axis=1),
        )
        human = rj.humans.with_mistakes(rj.humans.oracle(world.utility), rate=mistakes)
        human = rj.humans.with_skips(human, rate=skipped)
        numbers = jax.random.randint(keys[1], (2, LABELS), 0, ANSWERS)
        pairs = rj.feedback.Pairs(*map(world.answers, numbers))
        batch = rj.feedback.to_batch(pairs, human(keys[2], pairs))
        fit = world.newton(DECAY)
        state = fit.init(jnp.zeros(FEATURES + 1), key)
        state, _ = jax.lax.scan(lambda s, _: fit.step(s, batch), state, length=8)
        held_out, rewards = jnp.split(world.rewards(state.params), 2)
        policy = jnp.exp(best(rewards))
        pairs = policy[:, None] * policy * (1 - jnp.eye(ANSWERS))
        true = gold[ANSWERS:]
        agree = jnp.sign(rewards[:, None] - rewards) * jnp.sign(true[:, None] - true)
        return jnp.stack(
            [
                rj.measures.ranking_accuracy(held_out, gold[:ANSWERS]),
                0.5 + 0.5 * jnp.sum(pairs * agree) / jnp.sum(pairs),
                policy @ true,
            ]
        )

    settings = jax.random.split(keys[3], MODELS), skipped, widths, mistakes, correlations
    return jax.lax.map(lambda one: model(*one), settings).T


def relearnt(key: jax.Array, own: jax.Array, recent: jax.Array) -> jax.Array:
    """Gold (SD) of the policy that a reward model was trained with, and of a new one by it.

    The labels are of its own answers or of any, and those of so many rounds are kept.
    """
    keys = jax.random.split(key, 5)
    answers = jax.random.normal(keys[0], (4 * ANSWERS, FEATURES))
    towards = jax.random.normal(keys[1], (FEATURES,))
    good = answers @ towards / jnp.linalg.norm(towards)
    gold = good - CURVATURE / 2 * jnp.sum(jnp.square(answers), axis=1)
    gold = (gold - gold.mean()) / gold.std()
    directions = jax.random.normal(keys[2], (FEATURES, WIDTH))
    directions /= jnp.linalg.norm(directions, axis=0)
    visible = jax.nn.relu(answers @ directions + jax.random.normal(keys[3], (WIDTH,)))
    world = rj.worlds.bandit(gold, features=visible * np.sqrt(2 / WIDTH))
    pairs, fit = world.pairs(ASKED), world.newton(1e-3)

    def newton(state, batch):
        age = state.step // FITTING - jnp.arange(ROUNDS * ASKED) // ASKED
        return fit.step(state, batch.replace(weight=1.0 * (age < recent)))

    pipeline = rj.pipeline.Pipeline(
        query=lambda key, policy, reward: pairs(key, jnp.where(own, policy, 0.0), reward),
        human=rj.humans.boltzmann(world.utility, rationality=2.0),
        reward=rj.types.Algorithm(fit.init, newton),
        policy=rj.worlds.mirror_ascent(world.rewards, rate=RATE),
    )
    start = rj.pipeline.Learners(world.reference, jnp.zeros(WIDTH))
    settings = {"reward_steps": FITTING, "policy_steps": 1, "prompts": world.prompts(1)}
    state, _ = rj.pipeline.run(pipeline, keys[4], start, rounds=ROUNDS, memory=ROUNDS, **settings)
    anew = rj.worlds.mirror_ascent(world.rewards, rate=RATE * ROUNDS)  # as many steps, at once
    relearner = anew.init(world.reference, key, reward=state.params.reward.params)
    policies = state.params.policy.params, anew.step(relearner)[0].params
    return jax.nn.softmax(jnp.stack(policies)) @ gold


def judged(key: jax.Array) -> jax.Array:
    """How often a sound policy beats one that learnt from biased people, by the judge's bias."""
    keys = jax.random.split(key, 7)
    features = jax.random.normal(keys[0], (ANSWERS, FEATURES + 1))  # the last is style
    wanted = jax.random.normal(keys[1], (FEATURES,))
    world = rj.worlds.bandit(features[:, :-1] @ wanted / jnp.linalg.norm(wanted), features=features)

    def person(bias: jax.Array) -> rj.humans.Human:
        felt = world.utilities + bias * features[:, -1]
        return rj.humans.boltzmann(lambda said: felt[said.tokens[..., 1]])

    def policy(bias: jax.Array) -> jax.Array:
        start = jnp.zeros(FEATURES + 1)
        params = learnt_reward(keys[2], world, person(bias), start, labels=LABELS, l2=DECAY)
        return best(world.rewards(params))

    policies = jax.lax.map(policy, BIASES[np.array([0, SHARED])])
    said = jax.random.categorical(keys[3], policies[:, None], shape=(2, COMPARED))
    pairs = rj.feedback.Pairs(*map(world.answers, said))
    return jax.lax.map(lambda bias: person(bias)(keys[4], pairs).preference.mean(), BIASES)


def needed(key: jax.Array, noise: jax.Array) -> jax.Array:
    """Ratings after which 95% of estimates of a policy's worth are within so much of it, ``[D]``.

    The first row is measured, the second 1.96^2 (sigma / delta)^2.
    """
    keys = jax.random.split(key, 3)
    utilities = jax.random.normal(keys[0], (ANSWERS,))
    policy = jax.nn.softmax(utilities)
    drawn = jax.random.choice(keys[1], utilities, (REPLICATES * MOST,), p=policy)
    ratings = rj.humans.linear_scale(lambda worth: worth, noise=noise)(keys[2], drawn).value
    counts = jnp.arange(1, MOST + 1)
    means = jnp.cumsum(ratings.reshape(REPLICATES, MOST), axis=1) / counts
    worth = policy @ utilities
    variance = policy @ jnp.square(utilities - worth) + noise**2
    looked = np.unique(np.geomspace(8, MOST, 80).astype(int))
    errors = jnp.quantile(jnp.abs(means[:, looked - 1] - worth), 0.95, axis=0)
    # By a line through all of the curve: where a noisy one first falls below is too early.
    shrink, at_one = jnp.polyfit(jnp.log(looked), jnp.log(errors), 1)
    reached = jnp.exp((jnp.log(WITHIN) - at_one) / shrink)
    return jnp.stack([reached, 1.96**2 * variance / WITHIN**2])


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

    return jax.jit(lambda keys: jax.lax.map(one_seed, keys))(keys)


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
    low, high = np.quantile(wins, [0.1, 0.9], axis=0)
    right.plot(BIASES, wins.mean(axis=0), "o-", color=orange)
    right.fill_between(BIASES, low, high, color=orange, alpha=0.15, lw=0)
    right.axhline(0.5, color=grey, ls=":")
    right.axvline(
        BIASES[SHARED], color=grey, ls="--", lw=0.8, label="bias of those who gave labels"
    )
    right.set(xlabel="bias of the judge (nats)", ylabel="sound policy beats biased one")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)


CHALLENGE = Challenge(
    slug="rm-evaluation",
    section="3.2.3",
    fundamental=False,
    claim="Evaluating reward models is difficult and expensive.",
    measure=measure,
    judge=judge,
    plot=plot,
    fast_seeds=4,
)

if __name__ == "__main__":
    main(CHALLENGE)
