"""This machine's best matrix-multiply rate in float32, measured whenever a line asks for it."""

import jax
import jax.numpy as jnp

from experiments.benchmarks.peers.turns import Clock, Turns

SIZES = (768, 1024, 1536)
REPEATS = 8


def main() -> None:
    """Answers with the best of a few products."""
    turns, multiply = Turns(), jax.jit(jnp.matmul)
    factors = [jax.random.normal(jax.random.key(0), [size, size]) for size in SIZES]
    for factor in factors:
        multiply(factor, factor).block_until_ready()
    turns.answer(ready=True)
    while turns.wait():
        whole, rates = Clock(), []
        for factor in factors:
            for _ in range(REPEATS):
                clock = Clock()
                multiply(factor, factor).block_until_ready()
                rates.append(2 * len(factor) ** 3 / clock.read()["seconds"])
        turns.answer(**whole.read(), flops_per_s=max(rates))


if __name__ == "__main__":
    main()
