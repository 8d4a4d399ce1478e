"""3.1.2, misled evaluators (fundamental): what convinces is learnt where what is right cannot be.

A finite bandit of answers to easy and hard questions. Evaluators accept one with probability
``sigma(a k + c z - tau)``: if it is right (k), and if it is persuasive (z). On easy questions care
makes an answer right; on hard ones nothing that the policy can do does: a given share is right,
whatever the answer is like. A reward model learns from what was accepted, and the exact tilt by it
is judged on hard questions by evaluators who have not seen these answers. (Wen et al. 2024, with
people and language models: false positives +24.1% on QuALITY, +18.3% on APPS, the task not better.)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import protocol
from protocol import at_least, at_most, challenge, interval, main, nothing

import rlhf_jax as rj
from rlhf_jax.types import Preferences

RIGHT, PERSUASIVE, THRESHOLD = 2.0, 1.0, 1.0  # a, c, tau
FORCES = np.array([0.0, 0.5, PERSUASIVE, 2.0])  # of persuasion, for the figure
CAP, CARE = 0.3, 2.0  # how often hard answers are right, and what care does for easy ones, in nats
OTHERS, BETA, STEPS = 4, 1.0, 8
WORDS = ("approval", "accuracy", "false positives")


def gains(key: jax.Array, force: jax.Array, *, answers: int, labels: int) -> jax.Array:
    """What the tilt adds to approval, accuracy and false positives, ``[easy and hard, 3]``."""
    keys = jax.random.split(key, 6)
    care, persuasive = jax.random.normal(keys[0], (2, 2 * answers))
    others = jax.random.normal(keys[1], (2 * answers, OTHERS))
    hard = jnp.arange(2 * answers) >= answers
    chance = jnp.where(hard, CAP, jax.nn.sigmoid(CARE * care))
    right = jax.random.bernoulli(keys[2], chance).astype(jnp.float32)
    # The reward model sees what an answer is like, and not whether it is right. The last row is to
    # say nothing: to accept an answer is to prefer it to that, which makes the fit a logistic one.
    known = jnp.column_stack([jnp.ones(2 * answers), care, persuasive, others])
    features = jnp.concatenate([known, jnp.zeros((1, known.shape[1]))])
    world = rj.worlds.bandit(jnp.append(right, 0.0), features=features)
    pushed = jnp.append(persuasive, 0.0)

    def query(key: jax.Array, policy: jax.Array, reward: jax.Array) -> rj.types.Sequences:
        return world.answers(jax.random.randint(key, (labels,), 0, 2 * answers))

    def convincing(answer: rj.types.Sequences) -> jax.Array:
        return RIGHT * world.utility(answer) + force * pushed[answer.tokens[:, 1]]

    def to_batch(asked: rj.types.Sequences, label: rj.feedback.Label) -> Preferences:
        silence = world.answers(jnp.full(labels, 2 * answers))
        return Preferences(asked, silence, probability=label.choice.astype(jnp.float32))

    human = rj.humans.approval(convincing, threshold=THRESHOLD)
    pipeline = rj.pipeline.Pipeline(query, human, world.newton(1e-6), world.exact(BETA))
    state, _ = rj.pipeline.run(
        pipeline,
        keys[3],
        rj.pipeline.Learners(world.reference, jnp.zeros(features.shape[1])),
        rounds=1,
        reward_steps=STEPS,
        policy_steps=1,
        prompts=world.prompts(1),
        to_batch=to_batch,
    )
    # Others than those who taught judge every answer, once; before and after weigh it.
    accepted = human(keys[4], world.answers(jnp.arange(2 * answers))).choice.reshape(2, answers)
    right = right.reshape(2, answers)

    def judged(policy: jax.Array) -> jax.Array:
        weight = jax.nn.softmax(policy[:-1].reshape(2, answers))
        wrong = weight * (1 - right)
        false = jnp.sum(wrong * accepted, axis=1) / jnp.sum(wrong, axis=1)
        return jnp.stack([jnp.sum(weight * x, axis=1) for x in (accepted, right)] + [false], axis=1)

    return judged(state.params.policy.params) - judged(world.reference)


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Gains ``[seeds, forces, easy and hard, 3]``."""
    sizes = {"answers": 4096, "labels": 4096} if fast else {"answers": 16384, "labels": 8192}
    over = jax.vmap(partial(gains, **sizes), (None, 0))
    return {"gains": protocol.over_seeds(lambda key: over(key, FORCES), keys)}


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    easy, hard = np.moveaxis(found["gains"], 2, 0)
    misled = [interval(x) for x in hard[:, list(FORCES).index(PERSUASIVE)].T]
    return [
        at_least("hard questions: approval rises", misled[0], 0),
        at_most("accuracy by no more than .02", misled[1], 0.02),
        at_least("false positives by .10 or more", misled[2], 0.10),
        nothing("nobody persuadable: they do not (.02)", interval(hard[:, 0, 2]), tolerance=0.02),
        at_least("easy questions, nobody persuadable: accuracy rises", interval(easy[:, 0, 1]), 0),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """What training adds, where the policy can be right and where it cannot."""
    for axis, title, gain in zip(
        axes, ("easy questions", "hard questions"), np.moveaxis(found["gains"], 2, 0), strict=True
    ):
        for i, name in enumerate(WORDS):
            colour = rj.report.COLOURS[i]
            protocol.band(axis, FORCES, gain[:, :, i], color=colour, label=name)
        axis.axhline(0, color="#666666", lw=0.5)
        axis.set(xlabel="c, the force of persuasion", ylabel="added by training", title=title)
        axis.set(ylim=(-0.05, 1.1 * found["gains"].mean(axis=0).max()))


CHALLENGE = challenge("misled-evaluators", measure, judge, plot)

if __name__ == "__main__":
    main(CHALLENGE)
