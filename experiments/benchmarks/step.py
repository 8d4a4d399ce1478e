"""How long one training step takes, of the library's own algorithms, compiled once.

Random weights, random prompts, fixed lengths, float32. A step is one AdamW update over all
``prompts * group`` sequences, with the KL (or DPO's beta) to a frozen reference at 0.05. For
``dpo`` and ``reward`` as many sequences are pairs. The last line printed is one JSON object.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro

import rlhf_jax as rj
from experiments.benchmarks.peers.turns import Clock, Turns
from rlhf_jax.types import ActorCritic, Algorithm, Batch, Preferences, Prompts, Sequences

# The fastest settings on a CPU: what is not a product of matrices is computed again in the backward
# pass, since to write and read it takes longer.
_shape = partial(rj.models.TransformerConfig, remat="dots_with_no_batch_dims_saveable")
_small = partial(_shape, unroll=4, unrolled_decoding=True)
SHAPES = {
    "toy": _small(2_048, 128, 512),
    "tiny": _small(49_152, 128, 512),
    # SmolLM2-135M's.
    "135m": _shape(
        49_152, 576, 1536, num_layers=30, num_heads=9, num_kv_heads=3, rope_theta=100_000.0
    ),
}
# Forward passes over all tokens, in the usual count of work: generation, the reference and (rloo's
# usual implementation) the old log-probs are one each, an update three. What is left out, such as
# prompt positions of the vocabulary or a prompt that was read already, does not change the count.
PASSES = {"grpo": 5, "rloo": 6, "ppo": 5, "dpo": 4, "reward": 3}
CRITIC_PASSES = 4
KL = 0.05


@dataclasses.dataclass(frozen=True)
class Config:
    """One training step's time."""

    task: Literal["grpo", "rloo", "ppo", "dpo", "reward"] = "grpo"
    size: Literal["toy", "tiny", "135m"] = "toy"
    prompts: int = 4
    group: int = 8
    """Answers to each prompt; there are half as many pairs as answers."""
    prompt_len: int = 8
    response_len: int = 16
    steps: int = 10
    """Timed ones, after the first, which compiles."""
    devices: int = 1
    """Over which the batch is cut; simulated ones need
    XLA_FLAGS=--xla_force_host_platform_device_count=N."""
    share_prompts: bool = True
    """Whether a prompt is read once for all answers to it."""
    turns: bool = False
    """Take a step for each line on the standard input, as compare.py asks."""

    def __post_init__(self):
        for name in ("prompts", "group", "prompt_len", "response_len", "steps", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.task in ("dpo", "reward") and self.sequences % 2:
            raise ValueError(
                f"prompts * group ({self.sequences}) must be even: two answers make a pair"
            )

    @property
    def sequences(self) -> int:
        """How many a step learns from."""
        return self.prompts * self.group

    @property
    def tokens(self) -> int:
        """How many a step reads, prompts' and answers'."""
        return self.sequences * (self.prompt_len + self.response_len)


class Work(NamedTuple):
    """A step to take, and parts of it that can be timed by themselves.

    Attributes:
        algorithm: whose step it is.
        state: before the first step.
        batch: ``step -> batch``.
        parts: functions and their arguments, by name.
    """

    algorithm: Algorithm
    state: rj.types.TrainState
    batch: Callable[[int], Batch]
    parts: dict[str, tuple]


def weights(size: str, head: bool = True) -> int:
    """How many numbers of the model are in matrix products: all but norms and embedding look-up."""
    shape = SHAPES[size]
    width = shape.resolved_head_dim
    attention = 2 * shape.hidden_size * width * (shape.num_heads + shape.num_kv_heads)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    return shape.num_layers * layer + head * shape.vocab_size * shape.hidden_size


def flops(config: Config) -> int:
    """Work of a step by the usual count: 2 for each weight, token and forward pass."""
    passes, size = PASSES[config.task], config.size
    total = passes * weights(size, head=config.task != "reward")
    if config.task == "ppo":
        total += CRITIC_PASSES * weights(size, head=False)
    return 2 * config.tokens * total


def work(config: Config) -> Work:
    """The step of a configuration."""
    build = _preferences if config.task in ("dpo", "reward") else _policy
    return build(config, rj.models.language_model(SHAPES[config.size]), optax.adamw(1e-5))


def _random(config: Config, step: int, *shape: int) -> np.ndarray:
    vocabulary = SHAPES[config.size].vocab_size
    return np.random.default_rng(step).integers(0, vocabulary, shape, dtype=np.int32)


def _text(config: Config, tokens: np.ndarray) -> Sequences:
    response = np.arange(tokens.shape[-1]) >= config.prompt_len
    return Sequences(tokens, np.ones(tokens.shape, bool), np.broadcast_to(response, tokens.shape))


def _reference(config: Config, model):
    def reference(params, tokens, mask):
        logits = model.factored_logits_fn(params, tokens, mask)
        return rj.sequences.token_log_probs(logits, tokens, start=config.prompt_len)

    return reference


def _preferences(config: Config, model, optimizer) -> Work:
    """Of pairs, the first of which was preferred."""
    length, key = config.prompt_len + config.response_len, jax.random.key(0)

    def batch(step: int) -> Preferences:
        tokens = _random(config, step, 2, config.sequences // 2, length)
        tokens[1, :, : config.prompt_len] = tokens[0, :, : config.prompt_len]
        return Preferences(*(_text(config, side) for side in tokens))

    lengths = {"prompt_length": config.prompt_len if config.share_prompts else None}
    lengths["response_length"] = config.response_len

    if config.task == "reward":
        scores = rj.models.score_model(SHAPES[config.size])
        algorithm = rj.algorithms.reward_model(scores.score_fn, optimizer, **lengths)
        return Work(algorithm, algorithm.init(scores.init(key), key), batch, {})
    algorithm = rj.algorithms.dpo(model.factored_logits_fn, optimizer, beta=KL, **lengths)
    state = algorithm.init(model.init(key), key)
    rows = _text(config, _random(config, 0, config.sequences, length))
    part = (_reference(config, model), (state.params, rows.tokens, rows.mask))
    return Work(algorithm, state, batch, {"reference": part})


def _policy(config: Config, model, optimizer) -> Work:
    """Of answers to prompts, each rewarded by how many of its tokens are low numbers."""
    key, shape = jax.random.key(0), SHAPES[config.size]
    sample = rj.sampling.sampler(model.decoder, max_new_tokens=config.response_len)

    def reward(params, sequences):
        low = sequences.tokens < shape.vocab_size // 2
        return rj.sequences.masked_mean(low, sequences.response_mask, axis=-1)

    settings = {"samples_per_prompt": config.group, "kl_coefficient": KL}
    settings |= {"share_prompts": config.share_prompts}
    params = model.init(key)
    if config.task == "ppo":
        critic = rj.models.value_model(shape)
        settings |= {"value_fn": critic.value_fn, "epochs": 1}
        params = ActorCritic(params, critic.init(key))
    preset = getattr(rj.algorithms, config.task)

    def built(sample_fn) -> Algorithm:
        return preset(model.factored_logits_fn, sample_fn, reward, optimizer, **settings)

    def batch(step: int) -> Prompts:
        tokens = _random(config, step, config.prompts, config.prompt_len)
        return Prompts(tokens, np.ones(tokens.shape, bool))

    algorithm = built(sample)
    state = algorithm.init(params, key)
    policy = params.policy if config.task == "ppo" else params
    keys = jax.random.split(key, config.sequences)
    rows = jax.jit(sample)(policy, batch(0), keys)
    given = built(lambda params, prompts, keys: rows)
    return Work(
        algorithm,
        state,
        batch,
        {
            "generate": (sample, (policy, batch(0), keys)),
            "reference": (_reference(config, model), (policy, rows.tokens, rows.mask)),
            "all but generate": (given.step, (state, batch(0))),
        },
    )


class Stepper:
    """The compiled step and the state it is to go on with."""

    def __init__(self, config: Config) -> None:
        if config.devices > jax.device_count():
            raise ValueError(f"--devices {config.devices}, but jax has {jax.device_count()}")
        self.work, self.taken = work(config), 0
        # As training.fit does: in memory of its own, which the step may take over.
        self.state = jax.tree.map(lambda x: x.copy(), self.work.state)
        self.length = config.response_len
        if config.devices > 1:
            mesh = rj.parallel.data_mesh(jax.devices()[: config.devices])
            self.state = rj.parallel.place(self.state, mesh)
            self.step = rj.parallel.shard_step(self.work.algorithm.step, mesh)
        else:
            self.step = rj.training.donating_jit(self.work.algorithm.step)
        self.compiled = {}

    def __call__(self) -> dict[str, float]:
        """Take a step."""
        batch = self.work.batch(self.taken)
        clock = Clock()
        self.state, metrics = jax.block_until_ready(self.step(self.state, batch))
        found = clock.read()
        self.taken += 1
        if metrics["skipped"] or metrics.get("length", self.length) != self.length:
            raise RuntimeError(f"not the step that was to be timed: {jax.device_get(metrics)}")
        return found

    def part(self, name: str) -> dict[str, float]:
        """Run a part of it, with the state that it began with; not its first time."""
        function, arguments = self.work.parts[name]
        if name not in self.compiled:
            self.compiled[name] = jax.jit(function)
            jax.block_until_ready(self.compiled[name](*arguments))
        clock = Clock()
        jax.block_until_ready(self.compiled[name](*arguments))
        return clock.read()


class Compilations:
    """How many programs were compiled since it was made."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def result(config: Config, first: dict[str, float], steps: list[dict[str, float]]) -> dict:
    """What is printed last."""
    return {
        "task": config.task,
        "size": config.size,
        "median_step_s": statistics.median(step["seconds"] for step in steps),
        "first_step_s": first["seconds"],
        "steps": len(steps),
        "tokens_per_step": config.tokens,
        "flops_per_step": flops(config),
        "peak_rss_mb": max(step["peak_rss_mb"] for step in steps),
    }


def main(config: Config) -> None:
    """Take the steps, and say how long they took."""
    rj.training.keep_freed_memory()
    turns = Turns() if config.turns else None
    stepper = Stepper(config)
    if turns is None:
        first = stepper()
        compiled = Compilations()
        steps = [stepper() for _ in range(config.steps)]
        if compiled.count:
            raise RuntimeError(f"{compiled.count} programs were compiled after the first step")
        print(json.dumps(result(config, first, steps)))
        return
    turns.answer(ready=True, parts=list(stepper.work.parts), flops=flops(config))
    while asked := turns.wait():
        turns.answer(**(stepper() if asked == "step" else stepper.part(asked)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
