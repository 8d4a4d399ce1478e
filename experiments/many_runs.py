"""64 complete RLHF runs as one program against the same 64 one after the other.

Each asks simulated people, fits a reward model and improves a policy, several rounds, on a finite
bandit and on a token language. Prints the ratio of the times, compilation left out, and checks that
the runs are the same. About 5 minutes on two cores. Writes runs/many_runs/.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import rlhf_jax as rj
from rlhf_jax.pipeline import Learners, Pipeline


@dataclasses.dataclass(frozen=True)
class Config:
    """Many runs at once. A run folder that exists needs --overwrite."""

    run_dir: Path = Path("runs/many_runs")
    seed: int = 0
    runs: int = 64
    repeats: int = 3
    """How often each way is timed, in turns; the fastest counts."""
    fast: bool = False
    """The bandit only."""
    overwrite: bool = False


def on_bandit(key: jax.Array) -> rj.types.Metrics:
    """A run on 64 answers that differ in 8 respects: RLOO against a fitted reward model."""
    keys = jax.random.split(key, 3)
    features = jax.random.normal(keys[0], (64, 8))
    world = rj.worlds.bandit(features @ jax.random.normal(keys[1], (8,)), features=features)
    policy = rj.algorithms.rloo(
        world.logits_fn,
        world.sample_fn,
        rj.rewards.from_scores(world.score_fn),
        optax.adam(0.1),
        samples_per_prompt=4,
        kl_coefficient=0.2,
    )
    reward = rj.algorithms.reward_model(world.score_fn, optax.adam(0.1))
    human = rj.humans.boltzmann(world.utility)
    pipeline = Pipeline(world.pairs(32), human, reward, policy)

    def measure(key, policy, reward):
        return {"gold": jax.nn.softmax(policy) @ world.utilities}

    start = Learners(world.reference, jnp.zeros(8))
    settings = {"rounds": 8, "memory": 8, "reward_steps": 20, "batch_size": 32}
    settings |= {"policy_steps": 20, "prompts": world.prompts(4), "measure": measure}
    return rj.pipeline.run(pipeline, keys[2], start, **settings)[1]


def on_token_language(key: jax.Array) -> rj.types.Metrics:
    """A run of transformers on 10 tokens of 32, of which each has a value the first time."""
    keys = jax.random.split(key, 4)
    utility = rj.worlds.word_values(jax.random.normal(keys[0], (32,)))
    world = rj.worlds.token_language(utility, hidden_size=32, num_layers=1)
    policy = rj.algorithms.rloo(
        world.model.factored_logits_fn,
        world.sample_fn,
        rj.rewards.from_scores(world.reward_model.score_fn),
        optax.adam(3e-3),
        samples_per_prompt=4,
        kl_coefficient=0.1,
    )
    reward = rj.algorithms.reward_model(world.reward_model.score_fn, optax.adam(1e-2))
    human = rj.humans.boltzmann(utility)
    pipeline = Pipeline(world.pairs(64), human, reward, policy)

    def measure(key, policy, reward):
        prompts = world.prompts(64)(key)
        answers = world.sample_fn(policy, prompts, jax.random.split(key, 64))
        return {"gold": jnp.mean(utility(answers))}

    start = Learners(world.model.init(keys[1]), world.reward_model.init(keys[2]))
    settings = {"rounds": 4, "memory": 4, "reward_steps": 20, "batch_size": 64}
    settings |= {"policy_steps": 10, "prompts": world.prompts(8), "measure": measure}
    return rj.pipeline.run(pipeline, keys[3], start, **settings)[1]


def compared(whole: Callable, keys: jax.Array, repeats: int) -> dict[str, float]:
    """Seconds of both ways, the fastest of several in turns; and how far the results differ."""
    together, alone = jax.jit(jax.vmap(whole)), jax.jit(whole)
    split = [jax.block_until_ready(key) for key in keys]

    def in_sequence():
        return [jax.block_until_ready(alone(key)) for key in split]

    ways = {"together": partial(together, keys), "in_sequence": in_sequence}
    found, seconds = {}, {name: [] for name in ways}
    for _ in range(1 + repeats):  # the first compiles
        for name, way in ways.items():
            began = time.perf_counter()
            found[name] = jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - began)
    one_by_one = jax.tree.map(lambda *x: jnp.stack(x), *found["in_sequence"])
    best = {name: min(times[1:]) for name, times in seconds.items()}
    gold = np.asarray(found["together"]["gold"])
    return {
        **{f"{name}_seconds": x for name, x in best.items()},
        "ratio": best["in_sequence"] / best["together"],
        "compile_seconds": seconds["together"][0] - best["together"],
        "gold_before": float(gold[:, 0].mean()),
        "gold_after": float(gold[:, -1].mean()),
        "gold_after_in_sequence": float(one_by_one["gold"][:, -1].mean()),
        "runs_that_agree": float(
            np.isclose(gold[:, -1], one_by_one["gold"][:, -1], atol=0.05).mean()
        ),
    }


def main(config: Config) -> None:
    """Run, time, write, show."""
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    rj.training.compilation_cache()
    worlds = {"finite bandit": on_bandit, "token language": on_token_language}
    keys = jax.random.split(jax.random.key(config.seed), config.runs)
    result = {
        name: compared(whole, keys, config.repeats)
        for name, whole in list(worlds.items())[: 1 if config.fast else None]
    }
    run.write_json("result.json", {"runs": config.runs, "worlds": result})
    shown = Table("world", *next(iter(result.values())), title=f"{config.runs} runs")
    for name, row in result.items():
        shown.add_row(name, *(f"{value:.3g}" for value in row.values()))
    Console().print(shown)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
