"""What `mode_collapse` measures and asks for, the same on a finite bandit and a language model."""

import jax
import jax.numpy as jnp
import numpy as np
from protocol import Claim, at_least, at_most, interval, near, nothing

import rlhf_jax as rj

DELTA = 0.05
TEXT = ("distinct-2", "EAD", "self-BLEU")
QUESTIONS = 4096


def of_modes(log_probs: jax.Array, liked: jax.Array) -> dict[str, jax.Array]:
    """Of the answers worth giving, ``[..., K]``, half of them liked more: how many are left."""

    def total(which: jax.Array | None = None) -> jax.Array:
        return jax.nn.logsumexp(log_probs, axis=-1, where=which)

    return {
        "modes": rj.measures.effective_modes(log_probs),
        "good": jnp.exp(total()),
        "log ratio": total(liked) - total(~liked),
    }


def calibration(key: jax.Array, policy: jax.Array, given: jax.Array, good: jax.Array) -> jax.Array:
    """The calibration error of answers given by log-probabilities ``[N]``.

    Which one is right the question does not say: each of those ``good[K]`` is as often.
    """
    right = given == good[jax.random.randint(key, given.shape, 0, len(good))]
    return rj.measures.expected_calibration_error(jnp.exp(policy[given]), 1.0 * right)


def of_text(tokens: jax.Array, mask: jax.Array, words: int, *, n: int = 2) -> dict[str, jax.Array]:
    """Of texts ``[B, T]`` in a vocabulary of so many words; EAD is of ``n`` neighbours."""
    ead = rj.measures.expectation_adjusted_distinct(tokens, mask, n, vocab_size=words)
    found = rj.measures.distinct_n(tokens, mask, 2), ead, rj.measures.self_bleu(tokens, mask)
    return dict(zip(TEXT, found, strict=True))


def claims(
    arms: dict[str, dict[str, np.ndarray]], *, of: str, ece: np.ndarray, kept: str = ""
) -> list[Claim]:
    """What must come out of the arms "first" (the initial policy), "0", "2" and "4" (beta / delta).

    Args:
        arms: what was measured of each, ``[seeds]``; "modes" as the shares that are asked about.
        of: what they are shares of at beta 0.
        kept: what they are shares of with a penalty, if of something else.
        ece: the calibration error that the policy at beta 2 delta should have, ``[seeds]``.
    """
    first, none, twice, four = (arms[name] for name in ("first", "0", "2", "4"))
    # A language model in fifty steps comes less near than a bandit in 1500.
    tolerance = 0.1 if kept else 0.05
    least = np.minimum(twice["modes"], four["modes"])
    asked = [
        at_most(f"beta 0: effective modes <= .5 of {of}", interval(none["modes"]), 0.5, null=1),
        at_least(f"beta >= 2 delta: >= .9{kept} (the least)", interval(least), 0.9, null=0.5),
    ]
    for times, arm in ((2, twice), (4, four)):
        text = f"beta {times} delta: log ratio of liked to others"
        text += f"{' rises by' if kept else ' is'} delta / beta (x 1 +- {tolerance})"
        rise = times * (arm["log ratio"] - first["log ratio"])
        asked.append(near(text, interval(rise), 1, tolerance, null=0))
    asked += [
        at_least("beta 0: calibration error rises", interval(none["ECE"] - first["ECE"]), 0),
        nothing(
            f"beta 2 delta: it {'is as the tilt' if kept else 'does not'} (+- .05)",
            interval(twice["ECE"] - ece),
            tolerance=0.05,
        ),
    ]
    for name, sign in zip(TEXT, (1, 1, -1), strict=True):
        text = f"{name} is {'lower' if sign > 0 else 'higher'} at beta 0 than at 2 delta, by"
        asked.append(at_least(text, interval(sign * (twice[name] - none[name])), 0))
    return asked
