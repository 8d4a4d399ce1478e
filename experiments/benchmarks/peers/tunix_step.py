"""The step of step.py by Tunix, one a line on the standard input; runs in Tunix's environment.

Tunix's best settings on a CPU, as far as they were found: all sequences in one batch, no
rematerialisation, top_p=1 and no top_k (anything else sorts the vocabulary, and None is greedy), a
cache of just the length that is needed, the default threefry keys (rbg is slower here), freed
memory kept. It asks for a step's data when the step before is done, which is where it is made to
wait.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput
from turns import Clock, Turns, keep_freed_memory

NEVER = 10**9


class Words:
    """A tokenizer of which each word is a number; it puts a beginning in front, as Tunix asks."""

    def __init__(self, vocabulary: int) -> None:
        self._last = vocabulary - 1

    def encode(self, text: str, **kwargs) -> list[int]:
        """Numbers of words."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **kwargs) -> str:
        """Words of numbers."""
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        """The beginning of a text."""
        return self._last

    def eos_id(self) -> int:
        """Its end, which the sampler is told not to heed."""
        return self._last

    def pad_id(self) -> int:
        """Padding. Sampled by chance it is masked: no shape and no time depends on that."""
        return self._last


class OneAtATime:
    """Batches; each is given out when it is this process's turn."""

    def __init__(self, turns: Turns, batch) -> None:
        self._turns, self._batch, self._clock = turns, batch, None

    def __iter__(self):
        return self

    def __next__(self):
        for array in jax.live_arrays():
            array.block_until_ready()
        if self._clock is None:
            self._turns.answer(ready=True)
        else:
            self._turns.answer(**self._clock.read())
        if self._turns.wait() is None:
            raise StopIteration
        batch = self._batch()
        self._clock = Clock()
        return batch


def model_of(shape: dict, mesh: jax.sharding.Mesh) -> Llama3:
    """Random weights."""
    config = ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        rope_theta=10_000,
        norm_eps=shape["rms_norm_eps"],
        weight_tying=True,
    )
    with mesh:
        model = nnx.jit(lambda: Llama3(config, rngs=nnx.Rngs(0)))()
        # As large as others' random weights: much larger ones would make a policy that repeats.
        keys = iter(jax.random.split(jax.random.key(0), 10_000))

        def small(x):
            wanted = x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)
            return 0.02 * jax.random.normal(next(keys), x.shape, x.dtype) if wanted else x

        nnx.update(model, jax.tree.map(small, nnx.state(model, nnx.Param)))
    return model


def grpo(asked: argparse.Namespace, mesh: jax.sharding.Mesh, turns: Turns) -> None:
    """Trains by GRPO until the input ends."""
    shape, generator = asked.shape, np.random.default_rng(0)
    half = shape["vocab_size"] // 2

    def reward(prompts, completions, **kwargs) -> list[float]:
        answers = [[int(word) for word in text.split()] for text in completions]
        if {len(answer) for answer in answers} != {asked.response_len}:
            raise RuntimeError("an answer of another length")
        return [sum(i < half for i in answer) / len(answer) for answer in answers]

    def batch() -> dict[str, np.ndarray]:
        size = (asked.prompts, asked.prompt_len - 1)
        rows = generator.integers(shape["vocab_size"] - 1, size=size)
        return {"prompts": np.array([" ".join(map(str, row)) for row in rows])}

    roles = rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=model_of(shape, mesh),
        reference=model_of(shape, mesh),
        tokenizer=Words(shape["vocab_size"]),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys((roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-5), eval_every_n_steps=NEVER, max_steps=NEVER
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=asked.response_len,
                max_prompt_length=asked.prompt_len,
                kv_cache_size=asked.prompt_len + asked.response_len,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                eos_tokens=[-1],
            ),
        ),
    )
    config = GRPOConfig(num_generations=asked.group, num_iterations=1, beta=0.05)
    GRPOLearner(cluster, config, reward).train(OneAtATime(turns, batch))


def dpo(asked: argparse.Namespace, mesh: jax.sharding.Mesh, turns: Turns) -> None:
    """Trains by DPO until the input ends."""
    shape, generator = asked.shape, np.random.default_rng(0)
    pairs = asked.prompts * asked.group // 2

    def batch() -> TrainingInput:
        lengths = {"prompt": asked.prompt_len, "chosen": asked.response_len}
        lengths["rejected"] = asked.response_len
        found = {}
        for name, length in lengths.items():
            tokens = generator.integers(shape["vocab_size"], size=(pairs, length))
            found[f"{name}_ids"] = tokens.astype(np.int32)
            found[f"{name}_mask"] = np.ones(tokens.shape, np.int32)
        return TrainingInput(**found)

    settings = DPOTrainingConfig(beta=0.05, eval_every_n_steps=NEVER, max_steps=NEVER)
    trainer = DPOTrainer(model_of(shape, mesh), model_of(shape, mesh), optax.adamw(1e-5), settings)
    with mesh:
        trainer.train(OneAtATime(turns, batch))


def main() -> None:
    """Takes a step whenever it is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("grpo", "dpo"), required=True)
    parser.add_argument("--shape", type=json.loads, required=True, help="of transformers' Llama")
    for name in ("prompts", "group", "prompt-len", "response-len", "max-steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked, turns = parser.parse_args(), Turns()
    keep_freed_memory()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    (grpo if asked.task == "grpo" else dpo)(asked, mesh, turns)


if __name__ == "__main__":
    main()
