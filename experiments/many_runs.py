"""64 complete RLHF runs as one program against the same 64 one after the other.

Each asks simulated people, fits a reward model and improves a policy, several rounds, on finite
bandits and on a token language. Prints how many times as fast one program is on one device, and
with its runs cut over all cores, where each makes its share at once or run by run; compilation left
out; and whether the runs are the same. The token language takes most of the time, some 5 minutes on
two cores; `--fast` leaves it out. Writes runs/many_runs/.
"""

import dataclasses
import os
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
from jax.sharding import NamedSharding, PartitionSpec
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
    repeats: int = 5
    """How often each way is timed, in turns, at most; the fastest counts."""
    patience: float = 60.0
    """Seconds after which a world gets no further turn."""
    fast: bool = False
    """The bandits only."""
    devices: int = os.cpu_count() or 1
    """Into how many devices the CPU is cut for the third way; 1 leaves it out."""
    overwrite: bool = False


def on_bandit(
    key: jax.Array, *, answers: int, respects: int, samples: int, pairs: int
) -> rj.types.Metrics:
    """A run on answers that differ in some respects: RLOO against a fitted reward model."""
    keys = jax.random.split(key, 3)
    features = jax.random.normal(keys[0], (answers, respects))
    utilities = features @ jax.random.normal(keys[1], (respects,))
    world = rj.worlds.bandit(utilities, features=features)
    policy = rj.algorithms.rloo(
        world.logits_fn,
        world.sample_fn,
        rj.rewards.from_scores(world.score_fn),
        optax.adam(0.1),
        samples_per_prompt=samples,
        kl_coefficient=0.2,
    )
    reward = rj.algorithms.reward_model(world.score_fn, optax.adam(0.1))
    human = rj.humans.boltzmann(world.utility)
    pipeline = Pipeline(world.pairs(pairs), human, reward, policy)

    def measure(key, policy, reward):
        return {"gold": jax.nn.softmax(policy) @ world.utilities}

    start = Learners(world.reference, jnp.zeros(respects))
    settings = {"rounds": 8, "memory": 8, "reward_steps": 20, "batch_size": pairs}
    settings |= {"policy_steps": 20, "prompts": world.prompts(1), "measure": measure}
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


WORLDS = {
    "bandit of 16 answers": partial(on_bandit, answers=16, respects=4, samples=8, pairs=16),
    "bandit of 64 answers": partial(on_bandit, answers=64, respects=8, samples=16, pairs=32),
    "token language": on_token_language,
}


def compared(whole: Callable, keys: jax.Array, repeats: int, patience: float) -> dict[str, float]:
    """Seconds of all ways, the fastest of several in turns; and how far the results agree."""
    split = [jax.block_until_ready(key) for key in keys]
    alone = jax.jit(whole).lower(split[0]).compile()
    began = time.perf_counter()
    together = jax.jit(jax.vmap(whole)).lower(keys).compile()
    compiling = time.perf_counter() - began

    def in_sequence():
        found = [jax.block_until_ready(alone(key)) for key in split]
        return jax.tree.map(lambda *x: jnp.stack(x), *found)

    ways = {"in_sequence": in_sequence, "together": partial(together, keys)}
    count = len(jax.devices())
    if count > 1 and len(keys) % count == 0:
        mesh, runs = jax.make_mesh((count,), ("runs",)), PartitionSpec("runs")
        placed = jax.device_put(keys, NamedSharding(mesh, runs))
        # No run knows of another, so each device makes its share by itself: all of it at once, or
        # run by run, which suits those whose products of matrices are large enough by themselves.
        shares = {
            "on_all_cores": jax.vmap(whole),
            "in_turn_on_all_cores": partial(jax.lax.map, whole),
        }
        for name, share in shares.items():
            cut = jax.shard_map(share, mesh=mesh, in_specs=runs, out_specs=runs, check_vma=False)
            ways[name] = partial(jax.jit(cut).lower(placed).compile(), placed)
    found, seconds, of_cpu = {}, {name: [] for name in ways}, {name: [] for name in ways}
    first = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - first > patience:
            break
        for name, way in ways.items():
            began, cpu = time.perf_counter(), time.process_time()
            found[name] = jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - began)
            of_cpu[name].append(time.process_time() - cpu)
    best = {name: min(times) for name, times in seconds.items()}
    cheapest = {name: min(times) for name, times in of_cpu.items()}
    gold = {name: np.asarray(each["gold"]) for name, each in found.items()}
    last = gold["in_sequence"][:, -1]
    return {
        **{f"{name}_seconds": x for name, x in best.items()},
        **{f"{name}_cpu_seconds": x for name, x in cheapest.items()},
        **{f"{name}_ratio": best["in_sequence"] / x for name, x in list(best.items())[1:]},
        "together_cpu_ratio": cheapest["in_sequence"] / cheapest["together"],
        "compile_seconds": compiling,
        "turns": len(seconds["together"]),
        "gold_before": float(gold["together"][:, 0].mean()),
        **{f"{name}_gold_after": float(each[:, -1].mean()) for name, each in gold.items()},
        # To rounding they are the same; what is drawn after a rounding is not always.
        "runs_that_agree": float(np.isclose(gold["together"][:, -1], last, atol=0.05).mean()),
    }


def main(config: Config) -> None:
    """Run, time, write, show."""
    jax.config.update("jax_num_cpu_devices", config.devices)  # before anything runs
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    rj.training.compilation_cache()
    keys = jax.random.split(jax.random.key(config.seed), config.runs)
    console, result = Console(), {}
    for name, whole in list(WORLDS.items())[: 2 if config.fast else None]:
        console.print(f"{name}: {config.runs} runs in one program, and one after the other")
        result[name] = compared(whole, keys, config.repeats, config.patience)
        run.write_json("result.json", {"runs": config.runs, "worlds": result})
    shown = Table("", *result, title=f"{config.runs} runs")
    for name in next(iter(result.values())):
        shown.add_row(name.replace("_", " "), *(f"{row[name]:.3g}" for row in result.values()))
    console.print(shown)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
