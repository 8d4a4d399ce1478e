"""3.4, auto-induced shift (tractable): what is deployed decides what is learnt from next.

A reward model that begins with random opinions is corrected on the policy's own answers alone.
What the policy tries comes right; what it wrongly dislikes it never tries, and the error stays,
unless somebody else picks what is asked about. And people's opinions shift towards what is
deployed, by epsilon of it: retraining on them goes by epsilon a round to mu / (1 - epsilon), not
mu, and nowhere if epsilon > 1 (performative prediction, Perdomo et al. 2020,
https://arxiv.org/abs/2002.06673).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
import testbeds
from protocol import at_least, at_most, challenge, intervals, main, near, nothing, slope

import rlhf_jax as rj

ANSWERS, FEATURES = 64, 512  # wide enough that an answer says little of the others
BETA, ASKED, ROUNDS, STEPS, NOISE = 0.1, 32, 30, 20, 0.1
SHIFTS = np.array([0.0, 0.2, 0.5, 0.8, 1.1])
MOVED, STABLE = SHIFTS[1:], SHIFTS[1:-1]
WISH = 1.0
PEOPLE = {"wish": WISH, "people": 16384, "times": 30}


def loop(key: jax.Array, own: jax.Array) -> dict[str, jax.Array]:
    """Errors and policies by round, and whether an answer was ever asked about."""
    keys = jax.random.split(key, 4)
    features = jax.random.normal(keys[0], (ANSWERS, FEATURES)) / jnp.sqrt(FEATURES)
    world = rj.worlds.bandit(jax.random.normal(keys[1], (ANSWERS,)), features=features)
    opinions = jax.random.normal(keys[2], (FEATURES,))

    def query(key: jax.Array, policy: jax.Array, reward: jax.Array) -> rj.types.Sequences:
        acting = rj.worlds.tilt(world.reference, world.rewards(reward), beta=BETA)
        asked = jnp.where(own > 0, acting, world.reference)
        return world.answers(jax.random.categorical(key, asked, shape=(ASKED,)))

    def look(key: jax.Array, policy: jax.Array, reward: jax.Array) -> dict[str, jax.Array]:
        return {"error": world.rewards(reward) - world.utilities, "policy": jax.nn.softmax(policy)}

    loss = rj.losses.squared_error
    pipeline = rj.pipeline.Pipeline(
        query=query,
        human=rj.humans.linear_scale(world.utility, noise=NOISE),
        reward=rj.algorithms.reward_model(world.score_fn, optax.sgd(0.5), loss=loss),
        policy=world.exact(BETA),
    )
    settings = {"rounds": ROUNDS, "memory": ROUNDS, "reward_steps": STEPS, "measure": look}
    state, history = testbeds.rounds(pipeline, keys[3], world, opinions, **settings)
    acting = rj.worlds.tilt(world.reference, world.rewards(opinions), beta=BETA)
    begin = look(key, acting, opinions)
    found = {name: jnp.concatenate([begin[name][None], history[name]]) for name in begin}
    asked = jnp.zeros(ANSWERS).at[state.extra.sequences.tokens[..., 1].ravel()].set(1)
    return found | {"asked": asked}


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Both, ``[seeds, arms, ...]``: on the policy's own answers or on any; and by shift."""

    def one_seed(key: jax.Array) -> dict[str, jax.Array]:
        found = jax.vmap(loop, (None, 0))(key, jnp.array([1.0, 0.0]))
        error, policy, never = found["error"], found["policy"], 1 - found["asked"][0]
        first, size = error[0, 0], jnp.sum(never * error[0, 0] ** 2)
        entropy = -jnp.sum(jax.scipy.special.xlogy(policy, policy), axis=-1)
        return {
            # Of the error of what the first arm never asks about: how much is left, by round.
            "off": jnp.sum(never * first * error, axis=-1) / size,
            "on": jnp.sum(policy * jnp.abs(error), axis=-1),
            "modes": jnp.exp(entropy),
            "deployed": jax.vmap(lambda shift: testbeds.performative(key, shift, **PEOPLE))(SHIFTS),
        }

    return protocol.over_seeds(one_seed, keys)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    (off, any_off), on, theta = found["off"][..., -1].T, found["on"][:, 0], found["deployed"]
    rates = slope(theta[..., :-1], theta[..., 1:])
    limits = theta[:, 1:-1, -1] * (1 - STABLE) / WISH
    changes = np.abs(np.diff(theta[:, -1], axis=1))
    rows = [off, on[:, -1] / on[:, 0].mean(), any_off, changes[:, -1] / changes[:, 0]]
    found = intervals(jnp.stack([*rows, *rates.T, *limits.T], axis=1))
    (off, on, any_off, growth, unmoved), rest = found[:5], iter(found[5:])
    return [
        at_least("own answers only: of the error of what is never asked >= 90% persists", off, 0.9),
        at_most("while that of what is done goes to 0: <= 5% of what it was", on, 0.05),
        at_most("control, any answers: of the same error <= 10% persists", any_off, 0.1),
        *(near(f"epsilon {e}: rate {e} +- .02", next(rest), e, 0.02, null=0) for e in MOVED),
        *(near(f"limit mu / (1 - {e}) +- 2%", next(rest), 1, 0.02, null=1 - e) for e in STABLE),
        at_least("diverges beyond 1: the last change exceeds the first", growth, 1, null=1),
        nothing("control, opinions that do not shift: rate 0", unmoved, tolerance=0.02),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Errors that stay, and opinions that run away."""
    left, right = axes
    blue, orange, *_ = rj.report.COLOURS
    rounds = np.arange(ROUNDS + 1)
    off, on, modes = (found[name].mean(axis=0) for name in ("off", "on", "modes"))
    for arm, (colour, name) in enumerate(((blue, "its own answers"), (orange, "any answers"))):
        left.plot(rounds, off[arm], color=colour, label=f"asked about {name}: never tried")
        left.plot(rounds, on[arm] / on[arm, 0], "--", color=colour, label="what the policy does")
    left.set(xlabel="round", ylabel="share of the reward model's error left", ylim=(-0.1, 1.2))
    left.set_title("effective answers at the end: {:.1f}, {:.1f}".format(*modes[:, -1]), fontsize=9)
    means = found["deployed"].mean(axis=0)
    for colour, shift, row in zip(rj.report.COLOURS, SHIFTS, means, strict=False):
        right.plot(row, color=colour, label=f"epsilon = {shift}")
        if shift < 1:
            right.axhline(WISH / (1 - shift), color=colour, ls=":", lw=0.8)
    right.set(xlabel="deployment", ylabel="what is deployed (wished at first: 1)", ylim=(0, 12))


CHALLENGE = challenge("auto-induced-shift", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
