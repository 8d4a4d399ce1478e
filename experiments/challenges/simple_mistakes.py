"""3.1.2, simple mistakes (tractable): people err, and erring costs labels.

A finite bandit of answers with features; people compare them and turn a share of their answers
round. How many labels it takes until the reward model is right about 90% of pairs, against what
information theory says, ``1 / (1 - 2 e)^2`` times as many; and what a vote of nine restores.
"""

import jax
import jax.numpy as jnp
import numpy as np
from protocol import Challenge, at_least, interval, main, near, nothing, r_squared, slope

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs

FEATURES, ANSWERS, SCALE = 10, 512, 0.1  # small margins: a comparison says little
RATES = jnp.array([0.0, 0.1, 0.2, 0.3, 0.4])
LABELS = jnp.array([2.0**n for n in range(6, 17)])
WANTED, VOTERS = 0.9, 9


def world_of(key: jax.Array) -> rj.worlds.Bandit:
    """Answers whose utility is linear in their features."""
    keys = jax.random.split(key)
    features = jax.random.normal(keys[0], (ANSWERS, FEATURES))
    weights = jax.random.normal(keys[1], (FEATURES,))
    return rj.worlds.bandit(SCALE * features @ weights, features=features)
