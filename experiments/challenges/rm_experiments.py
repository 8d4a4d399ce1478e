"""Four ways in which what one knows of a reward model misleads: for ``rm_evaluation.py``.

Each is a function of a key, in a finite bandit of its own: models ranked by their accuracy, a
policy learnt anew by a model that served another, a biased judge, and what it takes to be sure.
"""

import jax
import jax.numpy as jnp
import numpy as np
import testbeds

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
        shown = jnp.concatenate([visible, nuisance[:, None]], axis=1)
        world = rj.worlds.bandit(gold, features=shown)
        human = rj.humans.with_mistakes(rj.humans.oracle(world.utility), rate=mistakes)
        human = rj.humans.with_skips(human, rate=skipped)
        numbers = jax.random.randint(keys[1], (2, LABELS), 0, ANSWERS)
        pairs = rj.feedback.Pairs(*map(world.answers, numbers))
        batch = rj.feedback.to_batch(pairs, human(keys[2], pairs))
        params = testbeds.fitted(world, batch, jnp.zeros(FEATURES + 1), l2=DECAY)
        held_out, rewards = jnp.split(world.rewards(params), 2)
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
    answers, gold = testbeds.near_an_ideal(
        keys[:2], answers=4 * ANSWERS, dimensions=FEATURES, curvature=CURVATURE
    )
    gold = (gold - gold.mean()) / gold.std()
    visible = testbeds.random_features(keys[2:4], answers, WIDTH)
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
    settings = {"rounds": ROUNDS, "memory": ROUNDS, "reward_steps": FITTING}
    state, _ = testbeds.rounds(pipeline, keys[4], world, jnp.zeros(WIDTH), **settings)
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
        params = testbeds.learnt_reward(
            keys[2], world, person(bias), start, labels=LABELS, l2=DECAY
        )
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
    # The k-th of R lies at k / (R + 1) on average, so k is .95 (R + 1): jnp's .95 would be .943.
    place = (0.95 * (REPLICATES + 1) - 1) / (REPLICATES - 1)
    errors = jnp.quantile(jnp.abs(means[:, looked - 1] - worth), place, axis=0)
    # By a line through all of the curve: where a noisy one first falls below is too early.
    shrink, at_one = jnp.polyfit(jnp.log(looked), jnp.log(errors), 1)
    reached = jnp.exp((jnp.log(WITHIN) - at_one) / shrink)
    return jnp.stack([reached, 1.96**2 * variance / WITHIN**2])
