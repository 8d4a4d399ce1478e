"""Steps a second with packed batches against padded ones, of the same sequences.

Lengths are log-normal with a mean of a quarter of the longest; weights are random. Both programs
take the same step, to rounding, and are timed alternately in one process: what is reported is the
ratio. Writes runs/packing/.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
import tyro

import rlhf_jax as rj
from rlhf_jax.types import Preferences, Sequences

SHAPES = {
    "toy": rj.models.TransformerConfig(2_048, 128, 384, num_layers=4),
    "tiny": rj.models.TransformerConfig(49_152, 128, 384, num_layers=4),
    "135m": rj.models.TransformerConfig(
        49_152, 576, 1536, num_layers=30, num_heads=9, num_kv_heads=3, rope_theta=100_000.0
    ),
}
TASKS = ("supervised", "dpo", "reward")


@dataclasses.dataclass(frozen=True)
class Config:
    """Packing's gain. A run folder that exists needs --overwrite."""

    run_dir: Path = Path("runs/packing")
    size: Literal["toy", "tiny", "135m"] = "toy"
    sequences: int = 32  # in a step
    length: int = 64  # tokens of the longest
    spread: float = 0.6  # standard deviation of the lengths' logarithm
    rounds: int = 7  # of one padded step and one packed
    tasks: tuple[str, ...] = TASKS
    seed: int = 0
    overwrite: bool = False


def text(config: Config) -> Sequences:
    """Random tokens of random lengths, a quarter of each a prompt."""
    rng = np.random.default_rng(config.seed)
    shape = (config.sequences, config.length)
    mean = np.log(config.length / 4) - config.spread**2 / 2
    lengths = np.exp(rng.normal(mean, config.spread, config.sequences)).round()
    lengths = np.clip(lengths, 4, config.length)[:, None]
    lengths[0] = config.length  # What a batch is padded to.
    column = np.arange(config.length)
    tokens = rng.integers(2, SHAPES[config.size].vocab_size, shape, dtype=np.int32)
    mask = column < lengths
    return Sequences(np.where(mask, tokens, 0), mask, mask & (column >= lengths // 4))


def algorithm_of(task: str, config: Config):
    """``(algorithm, initial state)``."""
    shape, optimizer = SHAPES[config.size], optax.adam(1e-5)
    if task == "reward":
        model = rj.models.score_model(shape)
        algorithm = rj.algorithms.reward_model(model.score_fn, optimizer)
    else:
        model = rj.models.language_model(shape)
        make = rj.algorithms.supervised if task == "supervised" else rj.algorithms.dpo
        algorithm = make(model.factored_logits_fn, optimizer)
    return algorithm, algorithm.init(model.init(jax.random.key(0)), jax.random.key(1))


def measure(task: str, config: Config) -> dict:
    """Both programs of one task, in turn."""
    batch = text(config)
    if task != "supervised":
        batch = Preferences(*(jax.tree.map(lambda x, n=n: x[n::2], batch) for n in (0, 1)))
    # The shortest rows that take every judgement: a pair is in one row.
    row = config.length * (1 if task == "supervised" else 2)
    packed, report = rj.data.pack(batch, row)
    algorithm, state = algorithm_of(task, config)
    batches = {"padded": batch, "packed": packed}
    programs = {n: jax.jit(algorithm.step).lower(state, b).compile() for n, b in batches.items()}
    seconds: dict[str, list[float]] = {name: [] for name in batches}
    losses = {}
    for _ in range(config.rounds + 1):
        for name, each in batches.items():
            began = time.perf_counter()
            _, metrics = jax.block_until_ready(programs[name](state, each))
            seconds[name].append(time.perf_counter() - began)
            losses[name] = float(metrics["loss"])
    # The first of each is left out; the median of ratios, as what else the machine does varies.
    ratios = [a / b for a, b in zip(*(times[1:] for times in seconds.values()), strict=True)]
    return {
        "speed_packed_over_padded": float(np.median(ratios)),
        "ratios": ratios,
        "padded_step_s": float(np.median(seconds["padded"][1:])),
        "packed_step_s": float(np.median(seconds["packed"][1:])),
        "losses": losses,
        **dataclasses.asdict(report),
    }


def main(config: Config) -> None:
    """Every task; then a table."""
    if unknown := set(config.tasks) - set(TASKS):
        raise ValueError(f"tasks must be of {', '.join(TASKS)}, not {', '.join(sorted(unknown))}")
    if config.sequences < 2 or config.sequences % 2 or config.rounds < 1:
        raise ValueError("sequences must be even and at least 2, and rounds at least 1")
    if config.length < 8:
        raise ValueError(f"length must be at least 8 tokens, not {config.length}")
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    result = {}
    for task in config.tasks:
        result[task] = found = measure(task, config)
        print(
            f"{task:11} {found['speed_packed_over_padded']:5.2f} times as many steps a second; "
            f"no padding: {found['full_before']:4.0%} of the tokens before, {found['full']:4.0%} "
            f"packed; loss {found['losses']['padded']:.5f} and {found['losses']['packed']:.5f}",
            flush=True,
        )
    settings = dataclasses.asdict(config)
    run.write_json("result.json", {"settings": settings | {"run_dir": ""}, "tasks": result})
    print(f"\nwritten to {run.folder}/result.json")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
