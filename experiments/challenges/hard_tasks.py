"""3.1.2, hard tasks (fundamental): what nobody can check, nobody's vote can.

A token language of sums: up to three terms modulo V, answered by a total and by how confident that
sounds. Raters add up two terms. Where those are all, they see whether the total is right; where
there are more, they believe the answer that sounds surer. Now and then each errs by themselves. The
vote of nine takes out what they do not share, and nothing of what they do. A transformer learns
from their comparisons directly (DPO); its answers are few enough to be weighed all.
"""

from functools import partial

import jax
import jax.numpy as jnp
import languages
import numpy as np
import optax
from protocol import at_least, at_most, band, challenge, intervals, main, nothing, over_seeds

import rlhf_jax as rj
from rlhf_jax.feedback import preferences
from rlhf_jax.pipeline import Learners, Pipeline

BASE, TERMS, CHECKED = 5, 3, 2  # V, the most terms, M
SUMS = languages.sums(BASE, TERMS)
SLIPS, RATERS = 0.25, 9
PAIRS, STEPS, RATE, BETA, SHOWN = 256, 300, 5e-3, 0.5, 16384
SIZE = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "max_length": TERMS + 2}
MODEL = rj.models.language_model(rj.models.TransformerConfig(BASE, 32, 64, **SIZE))


def panel(raters: int, limit: jax.Array) -> rj.humans.Human:
    """What most of them say; each checks so many terms, and errs by themselves."""
    checks = rj.humans.limited_checker(SUMS.adding_up, cue=SUMS.sure, limit=limit)
    return rj.humans.panel(rj.humans.with_mistakes(checks, rate=SLIPS), size=raters)


def accuracy(key: jax.Array, human: rj.humans.Human, count: jax.Array) -> jax.Array:
    """How often they prefer the right total to a wrong one; half where they see no difference."""
    keys = jax.random.split(key)
    pairs = SUMS.pairs(keys[0], jnp.full(SHOWN, count))
    lead = 1.0 * SUMS.right(pairs.first) - SUMS.right(pairs.second)
    said = human(keys[1], pairs).preference - 0.5
    return 0.5 + jnp.sum(lead * said) / jnp.sum(jnp.abs(lead))


def one_seed(key: jax.Array, limit: jax.Array, steps: int) -> dict[str, jax.Array]:
    """Accuracy of one and of nine, and what the policy becomes; by the number of terms."""
    keys, counts = jax.random.split(key, 4), 1 + jnp.arange(TERMS)
    rate = optax.cosine_decay_schedule(RATE, steps)
    pipeline = Pipeline(
        query=lambda key, policy, reward: SUMS.pairs(key, 1 + jnp.arange(PAIRS) % TERMS),
        human=panel(RATERS, limit),
        reward=None,
        policy=rj.algorithms.dpo(MODEL.logits_fn, optax.adam(rate), beta=BETA),
    )
    start, decided = Learners(MODEL.init(keys[1])), partial(preferences, keep_ties=False)
    settings = {"rounds": steps, "policy_steps": 1, "to_batch": decided}
    state, _ = rj.pipeline.run(pipeline, keys[0], start, **settings)
    said = partial(MODEL.logits_fn, state.params.policy.params)
    asked = jax.random.randint(keys[3], (512, TERMS), 0, BASE)

    def by_terms(count: jax.Array) -> dict[str, jax.Array]:
        one, nine = (accuracy(keys[2], panel(n, limit), count) for n in (1, RATERS))
        right, sure = SUMS.expected(said, asked, jnp.full(len(asked), count)).mean(axis=1)
        return {"one": one, "nine": nine, "gold": right, "sure": sure}

    return jax.lax.map(by_terms, counts)


def measure(keys: jax.Array, fast: bool) -> dict[str, jax.Array]:
    """Each ``[seeds, who check some and all, terms]``."""
    steps = 200 if fast else STEPS

    def seed(key: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.map(lambda limit: one_seed(key, limit, steps), jnp.array([CHECKED, TERMS]))

    return over_seeds(seed, keys)


def judge(found: dict[str, np.ndarray]) -> list:
    """What must come out."""
    lift, chance = found["nine"] - found["one"], 1 / BASE
    hard = (rows[..., CHECKED:].mean(axis=2).T for rows in (lift, found["gold"], found["sure"]))
    (some, every), (gold, told), (sure, unsure) = hard
    few, easy = lift[:, 0, :CHECKED].min(axis=1), found["gold"][:, 0, :CHECKED].mean(axis=1)
    rows = few, some, every, gold - chance, sure - unsure, easy - chance, told - gold
    few, some, every, guessed, surer, easy, seen = intervals(np.stack(rows, axis=1))
    return [
        at_least("simple mistakes, k <= M: nine votes add >= .15 (least)", few, 0.15),
        at_most("k > M: they add <= .02", some, 0.02, null=0.15),
        at_least("control, all terms checked: k > M >= .15", every, 0.15),
        nothing("k > M: policy right by chance +- .05", guessed, tolerance=0.05),
        at_least("but sounds surer than if all were checked", surer, 0),
        at_least("k <= M: it is right more than by chance", easy, 0),
        at_least("control, all checked: k > M too", seen, 0),
    ]


def plot(axes, found: dict[str, np.ndarray]) -> None:
    """What raters see, and what a policy learns of them, by the number of terms."""
    blue, orange, green, *_, grey = rj.report.COLOURS
    terms = 1 + np.arange(TERMS)
    for side, name, arm, label, style, colour in (
        (0, "nine", 1, f"{RATERS} who check all terms", "s:", grey),
        (0, "nine", 0, f"most of {RATERS} who check {CHECKED}", "o-", blue),
        (0, "one", 0, "one of them", "o-", orange),
        (1, "gold", 1, "right, learnt of those who check all", "s:", grey),
        (1, "gold", 0, f"right, of those who check {CHECKED}", "o-", blue),
        (1, "sure", 0, "how sure it sounds then", "^--", green),
    ):
        rows = found[name][:, arm]
        band(axes[side], terms, rows, style, every=True, color=colour, label=label)
    for axis, chance, title in zip(axes, (0.5, 1 / BASE), ("raters", "policy"), strict=True):
        axis.axhline(chance, color=grey, lw=0.5)
        axis.axvline(CHECKED + 0.5, color=grey, ls=":", lw=1)
        axis.set_xticks(terms)
        axis.set(xlabel="terms to add up", title=f"{title} (line: chance)", ylim=(0, 1.25))
        axis.legend(frameon=False, fontsize=8, loc="upper right")
    axes[0].set(ylabel="the right total preferred")
    axes[1].set(ylabel="of the policy's answers")


CHALLENGE = challenge("hard-tasks", measure, judge, plot, seeds=5, fast_seeds=2)

if __name__ == "__main__":
    main(CHALLENGE)
