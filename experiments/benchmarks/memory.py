"""What a training step at SmolLM2-135M's shape needs in memory, and what each saving saves.

Each variant changes one thing and is compiled and run in a process of its own: what the compiler
plans, the process's peak, and the time of a step. Random weights: the figures are of shapes.
Writes runs/memory/.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import rlhf_jax as rj
from rlhf_jax.types import Preferences, Prompts, Sequences

SHAPES = {
    "135m": rj.models.TransformerConfig(
        49_152, 576, 1536, num_layers=30, num_heads=9, num_kv_heads=3, rope_theta=100_000.0
    ),
    "toy": rj.models.TransformerConfig(
        16_384, 32, 64, num_layers=2, num_heads=2, num_kv_heads=2, rope_theta=100_000.0
    ),
}
TASKS = ("supervised", "dpo", "policy-gradient")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to take a step; the defaults are what saves nothing."""

    softmax: Literal["full", "blocks"] = "full"
    accumulate: int = 1
    remat: bool | str = False
    moments: Literal["float32", "bfloat16"] = "float32"  # Adam's first; the second must be float32


# Each adds one saving to those before it.
VARIANTS = {
    "nothing saved": Variant(),
    "vocabulary in blocks": Variant("blocks"),
    "and keep only the dense products": Variant("blocks", 1, "dots_with_no_batch_dims_saveable"),
    "or keep only the blocks' inputs": Variant("blocks", 1, True),
    "and in 4 parts": Variant("blocks", 4, True),
    "and a first moment in bfloat16": Variant("blocks", 4, True, "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Memory of a step. A run folder that exists needs --overwrite."""

    run_dir: Path = Path("runs/memory")
    size: Literal["135m", "toy"] = "135m"
    rows: int = 16
    """Sequences in a step, prompt and response; for DPO so many pairs are half as many."""
    length: int = 64  # tokens
    tasks: tuple[str, ...] = TASKS
    fast: bool = False
    """A toy shape, to see it work; its figures mean nothing."""
    overwrite: bool = False


def step_of(task: str, variant: Variant, size: str, rows: int, length: int):
    """``(step, state, batch)`` of one variant."""
    model = rj.models.language_model(dataclasses.replace(SHAPES[size], remat=variant.remat))
    logits_fn = model.factored_logits_fn if variant.softmax == "blocks" else model.logits_fn
    optimizer = optax.adam(1e-5, mu_dtype=jnp.dtype(variant.moments))
    shape = (rows, length)
    tokens = np.random.default_rng(0).integers(2, model.config.vocab_size, shape, dtype=np.int32)
    response = np.broadcast_to(np.arange(length) >= length // 2, shape)
    text = Sequences(tokens, np.ones(shape, bool), response)
    settings = {"accumulate": variant.accumulate}
    if task == "supervised":
        algorithm = rj.algorithms.supervised(logits_fn, optimizer, **settings)
        batch = text
    elif task == "dpo":
        algorithm = rj.algorithms.direct(logits_fn, optimizer, **settings)
        batch = Preferences(*(jax.tree.map(lambda x, n=n: x[n::2], text) for n in (0, 1)))
    else:

        def answer(params, prompts, keys):  # Fixed, since it is the update that is measured.
            log_probs = np.where(response, -1.0, 0.0).astype(np.float32)
            return text.replace(log_probs=jnp.asarray(log_probs))

        def reward(params, sequences):
            return jnp.mean(sequences.tokens.astype(jnp.float32), axis=-1) / 1e4

        algorithm = rj.algorithms.policy_gradient(
            logits_fn, answer, reward, optimizer, samples_per_prompt=4, **settings
        )
        prompts = tokens[::4, : length // 2]
        batch = Prompts(prompts, np.ones(prompts.shape, bool))
    params = model.init(jax.random.key(0))
    return algorithm.step, algorithm.init(params, jax.random.key(1)), batch


def measure(task: str, variant: Variant, size: str, rows: int, length: int) -> dict:
    """One variant, in this process; sizes in MB."""
    step, state, batch = step_of(task, variant, size, rows, length)
    # The state is given up to the step, as in training: but a reference is not the policy's copy.
    state = jax.tree.map(lambda x: x.copy() if hasattr(x, "copy") else x, state)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    planned = compiled.memory_analysis()
    times = []
    for _ in range(2):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - began)
    return {
        "planned_arguments_mb": planned.argument_size_in_bytes / 1e6,
        "planned_temporary_mb": planned.temp_size_in_bytes / 1e6,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "step_s": min(times),
        "loss": float(metrics["loss"]),
    }


def main(config: Config) -> None:
    """Every task with every variant; then a table."""
    if unknown := set(config.tasks) - set(TASKS):
        raise ValueError(f"tasks must be of {', '.join(TASKS)}, not {', '.join(sorted(unknown))}")
    size, rows, length = config.size, config.rows, config.length
    if config.fast:
        size, rows, length = "toy", 8, 16
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    rows_of_table = []
    for task in config.tasks:
        for name, variant in VARIANTS.items():
            asked = json.dumps([task, dataclasses.asdict(variant), size, rows, length])
            command = [sys.executable, __file__, "--measure", asked]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{task}, {name}: {done.stderr.strip()[-500:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            rows_of_table.append({"task": task, "variant": name, **found})
            print(line(rows_of_table[-1]), flush=True)
    run.write_json(
        "result.json", {"size": size, "rows": rows, "length": length, "steps": rows_of_table}
    )
    print(f"\nwritten to {run.folder}/result.json")


def line(row: dict) -> str:
    """One variant, as a row of the table."""
    return (
        f"{row['task']:16} {row['variant']:34} planned {row['planned_temporary_mb']:7.0f} MB + "
        f"{row['planned_arguments_mb']:5.0f} of state; peak {row['peak_rss_mb']:6.0f} MB; "
        f"{row['step_s']:6.2f} s; loss {row['loss']:.5f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        task, variant, *sizes = json.loads(sys.argv[2])
        print(json.dumps(measure(task, Variant(**variant), *sizes)))
        sys.exit()
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
