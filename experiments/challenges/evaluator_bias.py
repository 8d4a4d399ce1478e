"""3.1.1, biased evaluators (tractable): those who like to be agreed with are agreed with.

A finite bandit of answers to two questions. In the first the user is wrong, so that an answer
either is correct or agrees with them; in the second the one has nothing to do with the other.
Evaluators compare answers by ``k + b g`` (correct, agreeing) and what else they like. A reward
model learns from them, and best-of-n and the exact tilt go by it. At b = 1 the sign turns: below
it more optimisation makes the answers more correct, above it less. (Sharma et al. 2023 found that
people and preference models prefer well-written sycophancy to the truth now and then.)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import protocol
from protocol import at_least, challenge, interval, main, near, nothing, slope

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs

BIASES = np.array([0.0, 0.5, 0.8, 1.25, 2.0])
DRAWS = 2 ** np.arange(9)  # of best-of-n
STYLES, TASTE = 4, 0.25  # what else there is to like, and how much: half a point in all
LABELS, BETA, STEPS = 8192, 0.5, 8


def optimised(key: jax.Array, bias: jax.Array, answers: int) -> dict:
    """What best-of-n and the tilt come to, with evaluators of this bias."""
    keys = jax.random.split(key, 3)
    # Every answer is there twice: correct or agreeing; in the second question, agreeing or not.
    first, half = jnp.arange(answers) < answers // 2, (2, answers // 2)
    either = jnp.tile(jax.random.bernoulli(keys[0], 0.5, half[1:]), 2)
    correct, agrees = jnp.stack([first, either]), jnp.stack([~first, first])
    style = jnp.tile(jax.random.normal(keys[1], (*half, STYLES)), (1, 2, 1)).reshape(-1, STYLES)
    features = jnp.column_stack([correct.reshape(-1), agrees.reshape(-1), style])
    world = rj.worlds.bandit(features @ jnp.array([1.0, 0.0] + STYLES * [TASTE]), features=features)

    def query(key: jax.Array, policy: jax.Array, reward: jax.Array) -> Pairs:
        which, what = jax.random.split(key)
        question = jax.random.randint(which, (LABELS,), 0, 2)
        numbers = jax.random.randint(what, (2, LABELS), 0, answers)
        return Pairs(*map(world.answers, question * answers + numbers))

    def liked(answer: rj.types.Sequences) -> jax.Array:
        return world.utility(answer) + bias * features[answer.tokens[:, 1], 1]

    sound = rj.pipeline.Pipeline(
        query=query,
        human=rj.humans.boltzmann(world.utility),
        reward=world.newton(1e-6),
        policy=world.exact(BETA),
    )
    state, _ = rj.pipeline.run(
        sound._replace(human=rj.humans.boltzmann(liked)),
        keys[2],
        rj.pipeline.Learners(world.reference, jnp.zeros(features.shape[1])),
        rounds=1,
        reward_steps=STEPS,
        policy_steps=1,
        prompts=world.prompts(1),
    )
    rewards = world.rewards(state.params.reward.params).reshape(2, answers)
    best = jax.vmap(rj.measures.best_of_n_policy, (None, None, 0))
    conflict, neutral = (jnp.exp(best(jnp.zeros(answers), r, DRAWS)) for r in rewards)
    tilt = jax.nn.softmax(state.params.policy.params[:answers])
    return {
        "correct": conflict @ correct[0],
        "neutral": neutral @ agrees[1],
        "tilt": jax.scipy.special.logit(tilt @ correct[0]),  # 0 before
    }


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Shares ``[seeds, biases, draws]``; the tilt's log odds of a correct answer."""
    answers = 2048 if fast else 4096
    over = jax.vmap(partial(optimised, answers=answers), (None, 0))
    return protocol.over_seeds(lambda key: over(key, BIASES), keys)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    rises = slope(np.log(DRAWS), found["correct"])
    control = slope(np.log(DRAWS), found["neutral"][:, 0])
    law = slope(1 - BIASES, BETA * found["tilt"])
    claims = []
    for b, rise in zip(BIASES, rises.T, strict=True):
        words, rise = ("more", rise) if b < 1 else ("fewer", -rise)
        claims.append(at_least(f"b = {b:g}: {words} are correct, a nat of n", interval(rise), 0))
    return [
        *claims,
        nothing("b = 0, neutral: agreement is flat (.02)", interval(control), tolerance=0.02),
        near("tilt: log odds are (1 - b) / beta, 1 +- .1 of that", interval(law), 1, 0.1, null=0),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """Correct answers by how much is optimised, and by how biased the evaluators are."""
    left, right = axes
    for colour, bias, rows in zip(
        rj.report.COLOURS, BIASES, found["correct"].swapaxes(0, 1), strict=False
    ):
        protocol.band(left, DRAWS, rows, "-", color=colour, label=f"b = {bias:g}")
    left.set(xscale="log", xlabel="n of best-of-n", ylabel="correct, where the user is wrong")
    left.set(ylim=(0, 1))
    line = np.linspace(0, 2.1, 50)
    right.plot(line, 1 / (1 + np.exp((line - 1) / BETA)), ":", color="#666666", label="closed form")
    share = 1 / (1 + np.exp(-found["tilt"]))
    protocol.band(right, BIASES, share, "o", color=rj.report.COLOURS[0], label="tilt")
    right.axvline(1, color="#666666", lw=0.5)
    right.set(xlabel="b, the weight of being agreed with", ylabel="correct, under the tilt")
    right.set(ylim=(0, 1))


CHALLENGE = challenge("evaluator-bias", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
