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
import mode_collapse_language_model as language_model
import numpy as np
import optax
from mode_collapse_measures import DELTA, QUESTIONS, calibration, claims, of_modes, of_text
from protocol import band, challenge, main

import rlhf_jax as rj

MODES, ANSWERS = 8, 32
TIMES = np.array([0.0, 0.5, 1.0, 2.0, 4.0])  # beta in units of delta
TICKS = np.arange(len(TIMES))
GOOD, LIKED = np.arange(ANSWERS) < MODES, np.arange(ANSWERS) < MODES // 2
SAMPLES, RATE = 64, 0.1
WORDS, LENGTH, CHANGED, TEXTS = 64, 8, 0.3, 32
WORLD = rj.worlds.bandit(jnp.where(LIKED, 1.0, jnp.where(GOOD, 1 - DELTA, 0.0)))


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
    # What is said of an answer is the same each time but for some words.
    phrases = jax.random.randint(keys[2], (ANSWERS, LENGTH), 0, WORDS)[given[:TEXTS]]
    other = jax.random.bernoulli(keys[3], CHANGED, phrases.shape)
    texts = jnp.where(other, jax.random.randint(keys[4], phrases.shape, 0, WORDS), phrases)
    found = of_modes(policy[GOOD], LIKED[GOOD])
    found["modes"] /= MODES
    found["ECE"] = calibration(keys[1], policy, given, jnp.arange(MODES))
    return found | of_text(texts, jnp.ones(texts.shape, bool), WORDS)


def measure(keys: jax.Array, fast: bool) -> dict:
    """Of each testbed ``[seeds, 1 + betas]``, of the initial policy first."""
    steps = 500 if fast else 1500

    def seed(key: jax.Array) -> dict[str, jax.Array]:
        run = jax.random.split(key)
        policies = jax.vmap(lambda beta: trained(run[0], beta, steps))(DELTA * TIMES)
        policies = jnp.concatenate([jax.nn.log_softmax(WORLD.reference)[None], policies])
        return jax.lax.map(lambda policy: judged(run[1], policy), policies)

    found = {"bandit": jax.jit(lambda keys: jax.vmap(seed)(keys))(keys)}
    found["language model"], found["left out"] = language_model.attempt(keys, fast)
    return found


def judge(found: dict[str, dict[str, np.ndarray]]) -> list:
    """What must come out of the bandit, and of the language model if it was run."""
    names = ("first", *(f"{times:g}" for times in TIMES))
    arms = {
        name: {what: rows[:, i] for what, rows in found["bandit"].items()}
        for i, name in enumerate(names)
    }
    asked = claims(arms, of="all", ece=arms["first"]["ECE"])
    model = found["language model"]
    return asked + (language_model.judge(model) if model else [])


def plot(axes, found: dict[str, dict[str, np.ndarray]]) -> None:
    """What is left of the modes, and what that does to text and calibration, by the penalty."""
    left, right = axes
    blue, orange, green, pink, *_, grey = rj.report.COLOURS
    bandit, model = found["bandit"], found["language model"]

    def draw(axis, name: str, label: str, colour: str) -> None:
        band(axis, TICKS, bandit[name][:, 1:], label=label, color=colour)
        if model:
            rows = model[name] / (model[name][:, :1] if name == "modes" else 1)
            where = np.interp(language_model.TIMES, TIMES, TICKS)
            band(axis, where, rows[:, 1:], "s--", color=colour, mfc="w")

    betas = DELTA * np.maximum(TIMES, 0.01)[:, None]
    exact = rj.worlds.tilt(*np.broadcast_arrays(0.0, WORLD.utilities, betas)[:2], beta=betas)
    exact = rj.measures.effective_modes(exact[:, GOOD]) / MODES
    draw(left, "modes", "effective modes, share of all", blue)
    left.plot(TICKS, exact, "x:", color=grey, label="of the exact tilt")
    for name, colour in zip(("ECE", "EAD", "self-BLEU"), (orange, green, pink), strict=True):
        draw(right, name, {"ECE": "calibration error"}.get(name, name), colour)
    if model:
        left.plot([], [], "s--", color=blue, mfc="w", label="SmolLM2-135M, share of its initial")
        right.plot([], [], "s--", color=grey, mfc="w", label="SmolLM2-135M")
    for axis in axes:
        axis.set_xticks(TICKS, [f"{times:g}" for times in TIMES])
        axis.set(xlabel="KL penalty beta, in units of delta", ylim=(0, 1.05))
    left.set(title=f"{MODES} nearly tied answers")
    right.set(title="calibration and diversity of text")


CHALLENGE = challenge(
    "mode-collapse",
    measure,
    judge,
    plot,
    left_out=lambda found: str(found["left out"]),
    fast_seeds=4,
)

if __name__ == "__main__":
    main(CHALLENGE)
