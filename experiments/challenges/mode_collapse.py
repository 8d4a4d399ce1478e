"""3.3.3, mode collapse (tractable): of many good answers, RL keeps few; a KL penalty keeps them.

A finite bandit. Half of the answers worth giving are liked a little less (delta) than the others;
the rest are bad. Which is right depends on what the question does not say: each of those worth
giving is as often, and the initial policy gives them alike. REINFORCE with a leave-one-out baseline
on the true reward, with and without a penalty, is compared with the exact tilt: liked and less
liked answers as exp(delta / beta) to 1. Without a penalty that keeps half of them; chance in the
samples decides between those that are exactly tied, and fewer are left. Each answer is a text, for
the measures of diversity. (RLHF makes language models less diverse: Kirk et al. 2023,
https://arxiv.org/abs/2310.06452.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from protocol import Challenge, at_least, at_most, interval, main, near, nothing

import rlhf_jax as rj

MODES, ANSWERS, DELTA = 8, 32, 0.05
TIMES = np.array([0.0, 0.5, 1.0, 2.0, 4.0])  # beta in units of delta
GOOD, LIKED = np.arange(ANSWERS) < MODES, np.arange(ANSWERS) < MODES // 2
SAMPLES, RATE = 64, 0.1
WORDS, LENGTH, CHANGED, TEXTS, QUESTIONS = 64, 8, 0.3, 32, 4096
WORLD = rj.worlds.bandit(jnp.where(LIKED, 1.0, jnp.where(GOOD, 1 - DELTA, 0.0)))
TEXT = ("distinct-2", "EAD", "self-BLEU")


def trained(key: jax.Array, beta: jax.Array, steps: int) -> jax.Array:
    """The log-probabilities of all answers, ``[N]``."""
    policy = rj.algorithms.rloo(
        WORLD.logits_fn,
        WORLD.sample_fn,
        lambda _, answers: WORLD.utility(answers),
        optax.adam(optax.cosine_decay_schedule(RATE, steps)),
        samples_per_prompt=SAMPLES,
        kl_coefficient=beta,
    )
    state, prompts = policy.init(WORLD.reference, key), WORLD.prompts(1)(key)
    state, _ = jax.lax.scan(lambda s, _: policy.step(s, prompts), state, length=steps)
    return jax.nn.log_softmax(state.params)


def judged(key: jax.Array, policy: jax.Array) -> dict[str, jax.Array]:
    """How varied a policy is, and how sure against how right."""
    keys = jax.random.split(key, 5)
    given = jax.random.categorical(keys[0], policy, shape=(QUESTIONS,))
    right = given == jax.random.randint(keys[1], given.shape, 0, MODES)
    # What is said of an answer is the same each time but for some words.
    phrases = jax.random.randint(keys[2], (ANSWERS, LENGTH), 0, WORDS)[given[:TEXTS]]
    other = jax.random.bernoulli(keys[3], CHANGED, phrases.shape)
    texts = jnp.where(other, jax.random.randint(keys[4], phrases.shape, 0, WORDS), phrases)
    everywhere = jnp.ones(texts.shape, bool)
    good, liked = policy[GOOD], LIKED[GOOD]
    return {
        "modes": rj.measures.effective_modes(good) / MODES,
        "good": jnp.exp(good).sum(),
        "log ratio": jax.nn.logsumexp(good, where=liked) - jax.nn.logsumexp(good, where=~liked),
        "ECE": rj.measures.expected_calibration_error(jnp.exp(policy[given]), 1.0 * right),
        "distinct-2": rj.measures.distinct_n(texts, everywhere, 2),
        "EAD": rj.measures.expectation_adjusted_distinct(texts, everywhere, 2, vocab_size=WORDS),
        "self-BLEU": rj.measures.self_bleu(texts, everywhere),
    }


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Each ``[seeds, 1 + betas]``, of the initial policy first."""
    steps = 500 if fast else 1500

    def seed(key: jax.Array) -> dict[str, jax.Array]:
        run = jax.random.split(key)
        policies = jax.vmap(lambda beta: trained(run[0], beta, steps))(DELTA * TIMES)
        policies = jnp.concatenate([jax.nn.log_softmax(WORLD.reference)[None], policies])
        return jax.lax.map(lambda policy: judged(run[1], policy), policies)

    return jax.jit(lambda keys: jax.vmap(seed)(keys))(keys)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    first, none, *_, twice, four = (
        {name: rows[:, i] for name, rows in found.items()} for i in range(1 + len(TIMES))
    )
    least = np.minimum(twice["modes"], four["modes"])
    claims = [
        at_most("beta 0: effective modes <= .5 of all", interval(none["modes"]), 0.5, null=1),
        at_least("beta >= 2 delta: >= .9 (the least)", interval(least), 0.9, null=0.5),
    ]
    for times, arm in ((2, twice), (4, four)):
        text = f"beta {times} delta: log ratio of liked to others is delta / beta (x 1 +- .05)"
        claims.append(near(text, interval(times * arm["log ratio"]), 1, 0.05, null=0))
    claims += [
        at_least("beta 0: calibration error rises", interval(none["ECE"] - first["ECE"]), 0),
        nothing(
            "beta 2 delta: it does not (+- .05)",
            interval(twice["ECE"] - first["ECE"]),
            tolerance=0.05,
        ),
    ]
    for name, sign in zip(TEXT, (1, 1, -1), strict=True):
        text = f"{name} is {'lower' if sign > 0 else 'higher'} at beta 0 than at 2 delta, by"
        claims.append(at_least(text, interval(sign * (twice[name] - none[name])), 0))
    return claims


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """What is left of the modes, and what that does to text and calibration, by the penalty."""
    left, right = axes
    blue, orange, green, pink, *_, grey = rj.report.COLOURS
    ticks = np.arange(len(TIMES))

    def draw(axis, name: str, label: str, colour: str) -> None:
        rows = found[name][:, 1:]
        low, high = np.quantile(rows, [0.1, 0.9], axis=0)
        axis.plot(ticks, rows.mean(axis=0), "o-", color=colour, label=label)
        axis.fill_between(ticks, low, high, color=colour, alpha=0.15, lw=0)

    betas = DELTA * np.maximum(TIMES, 0.01)[:, None]
    exact = rj.worlds.tilt(*np.broadcast_arrays(0.0, WORLD.utilities, betas)[:2], beta=betas)
    exact = rj.measures.effective_modes(exact[:, GOOD]) / MODES
    draw(left, "modes", "effective modes, share of all", blue)
    left.plot(ticks, exact, "x:", color=grey, label="of the exact tilt")
    for name, colour in zip(("ECE", "EAD", "self-BLEU"), (orange, green, pink), strict=True):
        draw(right, name, {"ECE": "calibration error"}.get(name, name), colour)
    for axis in axes:
        axis.set_xticks(ticks, [f"{times:g}" for times in TIMES])
        axis.set(xlabel="KL penalty beta, in units of delta", ylim=(0, 1.05))
        axis.legend(frameon=False, fontsize=8)
    left.set(title=f"{MODES} nearly tied answers")
    right.set(title="calibration and diversity of text")


CHALLENGE = Challenge(
    slug="mode-collapse",
    section="3.3.3",
    fundamental=False,
    claim="RL collapses onto few answers, though others are nearly as good.",
    measure=measure,
    judge=judge,
    plot=plot,
    fast_seeds=4,
)

if __name__ == "__main__":
    main(CHALLENGE)
