"""How varied a policy is, and its text: what both of `mode_collapse`'s testbeds are measured by."""

import jax
import jax.numpy as jnp

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


def calibration(key: jax.Array, policy: jax.Array, good: jax.Array) -> jax.Array:
    """The calibration error of answers drawn from log-probabilities ``[N]``.

    Which one is right the question does not say: each of those ``good[K]`` is as often.
    """
    keys = jax.random.split(key)
    given = jax.random.categorical(keys[0], policy, shape=(QUESTIONS,))
    right = given == jax.random.choice(keys[1], good, given.shape)
    return rj.measures.expected_calibration_error(jnp.exp(policy[given]), 1.0 * right)


def of_text(tokens: jax.Array, mask: jax.Array, words: int, *, n: int = 2) -> dict[str, jax.Array]:
    """Of texts ``[B, T]`` in a vocabulary of so many words; EAD is of ``n`` neighbours."""
    ead = rj.measures.expectation_adjusted_distinct(tokens, mask, n, vocab_size=words)
    found = rj.measures.distinct_n(tokens, mask, 2), ead, rj.measures.self_bleu(tokens, mask)
    return dict(zip(TEXT, found, strict=True))
