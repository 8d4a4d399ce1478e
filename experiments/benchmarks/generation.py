"""Tokens a second of generation: prompts read once, slots refilled, and transformers' generate.

First responses of unequal lengths, whose mean is a quarter of the longest: the same prompts and
keys, hence the same tokens, by each way of sampling in turn, round after round. With --peer then
responses of full length, alternately with transformers' generate in a process of its own (whose
python --peer-python names). Random weights: the figures are of shapes. Writes runs/generation/.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rlhf_jax as rj
from rlhf_jax.types import Decoder, Prompts

SHAPES = {
    "toy": rj.models.TransformerConfig(2048),
    "tiny": rj.models.TransformerConfig(49_152),
    "135m": rj.models.TransformerConfig(
        49_152, 576, 1536, num_layers=30, num_heads=9, num_kv_heads=3, rope_theta=100_000.0
    ),
}
EOS = 1
PEER = Path(__file__).parent / "peers" / "transformers_generate.py"


@dataclasses.dataclass(frozen=True)
class Config:
    """Speed of generation. A run folder that exists needs --overwrite."""

    run_dir: Path = Path("runs/generation")
    size: Literal["toy", "tiny", "135m"] = "tiny"
    prompts: int = 64
    samples: int = 4
    """For each prompt."""
    prompt_length: int = 32  # tokens
    response_length: int = 64  # tokens, of the longest
    slots: int = 32
    """Of refilling; and the batch that is compared with the peer."""
    rounds: int = 5
    unrolled: bool = False
    """Whether generation takes the layers apart (``unrolled_decoding``)."""
    peer: bool = False
    peer_python: Path = Path(sys.executable)
    """Of an environment with torch and transformers."""
    peer_threads: tuple[int, ...] = (1, 2)
    """Which is faster depends on what else the machine does."""
    fast: bool = False
    """A toy shape and few responses; its figures mean nothing."""
    overwrite: bool = False


def ending(decoder: Decoder, mean: float, longest: int) -> Decoder:
    """The same model, but that each token ends a response with one probability.

    It is that which gives this mean length: random weights know no end.
    """
    rates = np.linspace(1e-4, 0.999, 100_000)
    rate = rates[np.argmin(np.abs((1 - (1 - rates) ** longest) / rates - mean))]
    # The other logits of random weights are near 0.
    logit = np.log(rate / (1 - rate) * decoder.vocab_size)

    def apply(params, tokens, mask, cache):
        logits, cache = decoder.apply(params, tokens, mask, cache)
        return logits.at[:, EOS].set(logit), cache

    return decoder._replace(apply=apply)


def some_prompts(config: Config, count: int) -> Prompts:
    """Real tokens all: lengths of prompts are not what is measured."""
    shape = (count, config.prompt_length)
    tokens = np.random.default_rng(0).integers(2, SHAPES[config.size].vocab_size, shape)
    return Prompts(jnp.asarray(tokens, jnp.int32), jnp.ones(shape, bool))


def unequal(config: Config, model: rj.models.LanguageModel, params) -> list[dict]:
    """Seconds of each way, in turn; the tokens are the same."""
    longest, samples, slots = config.response_length, config.samples, config.slots
    decoder = ending(model.decoder, longest / 4, longest)
    settings = {"max_new_tokens": longest, "eos_id": EOS}
    plain = jax.jit(rj.sampling.sampler(decoder, **settings))
    refilling = jax.jit(rj.sampling.refilling_sampler(decoder, slots=slots, **settings))
    prompts = some_prompts(config, config.prompts)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)

    def in_batches(keys):
        rows = [slice(start, start + slots) for start in range(0, len(keys), slots)]
        parts = [plain(params, jax.tree.map(lambda x, r=r: x[r], repeated), keys[r]) for r in rows]
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    ways = {
        "each sample reads its prompt, all at once": lambda keys: plain(params, repeated, keys),
        f"the same, {slots} at a time": in_batches,
        "prompts read once, all at once": lambda keys: plain(params, prompts, keys),
        f"prompts read once, {slots} slots refilled": lambda keys: refilling(params, prompts, keys),
    }
    taken, lengths = {name: [] for name in ways}, []
    for number in range(config.rounds + 1):  # The first compiles.
        keys = jax.random.split(jax.random.key(number), config.prompts * samples)
        said = {}
        for name, way in ways.items():
            began = clocks()
            said[name] = jax.block_until_ready(way(keys))
            taken[name].append(clocks() - began)
        first, *others = said.values()
        lengths.append(float(jnp.mean(jnp.sum(first.response_mask, axis=1))))
        for name, other in zip(list(said)[1:], others, strict=True):
            same = float(np.mean(np.all(np.asarray(first.tokens == other.tokens), axis=1)))
            if same < 0.98:  # Rounding may turn a draw.
                raise RuntimeError(f"{name} says the same in {same:.0%} of the sequences only")
    print(f"{len(keys)} responses of {np.mean(lengths[1:]):.1f} tokens on average")
    tokens = len(keys) * float(np.mean(lengths[1:]))
    base, *_ = taken.values()
    rows = [row(name, each, base, tokens) for name, each in taken.items()]
    for found in rows:
        print(
            f"{found['name']:44} {found['tokens_per_second']:8.0f} tokens/s; "
            f"{1 / found['times_first']:5.2f} times as fast as the first, "
            f"by processor time {1 / found['times_first_cpu']:5.2f}",
            flush=True,
        )
    return rows


def clocks() -> np.ndarray:
    """Seconds of the wall, and of processors in this process: what a busy machine distorts less."""
    return np.array([time.perf_counter(), time.process_time()])


def row(name: str, taken: list[np.ndarray], base: list[np.ndarray], tokens: float) -> dict:
    """What was measured of one way, without the first call; ratios are medians over the rounds."""
    taken, base = np.array(taken), np.array(base)
    ratios = np.median(taken[1:] / base[1:], axis=0)
    return {
        "name": name,
        "tokens_per_second": tokens / float(np.median(taken[1:, 0])),
        "times_first": float(ratios[0]),
        "times_first_cpu": float(ratios[1]),
        "seconds": taken[:, 0].tolist(),
        "cpu_seconds": taken[:, 1].tolist(),
    }


def against_peer(config: Config, model: rj.models.LanguageModel, params) -> list[dict]:
    """Full lengths, alternately: ours, then the peer with each number of threads.

    It samples and, to show what its sampling costs, is greedy.
    """
    shape, batch = model.config, config.slots
    sample = jax.jit(rj.sampling.sampler(model.decoder, max_new_tokens=config.response_length))
    prompts = some_prompts(config, batch)
    llama = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_embeddings,
    }
    asked = [llama, np.asarray(prompts.tokens).tolist(), config.response_length]
    peers = {n: Peer(config.peer_python, n, asked) for n in config.peer_threads}
    taken = {"ours": []}
    try:
        for number in range(config.rounds + 1):  # The first compiles and warms up.
            keys = jax.random.split(jax.random.key(number), batch)
            began = clocks()
            jax.block_until_ready(sample(params, prompts, keys))
            taken["ours"].append(clocks() - began)
            for threads, peer in peers.items():
                for how in ("sampling", "greedy"):
                    name = f"transformers, {how}, {threads} threads"
                    taken.setdefault(name, []).append(peer.seconds(how))
    finally:
        for peer in peers.values():
            peer.process.kill()
    tokens = batch * config.response_length
    rows = [row(name, each, taken["ours"], tokens) for name, each in taken.items()]
    for found in rows:
        print(
            f"{found['name']:44} {found['tokens_per_second']:8.0f} tokens/s; ours is "
            f"{found['times_first']:5.2f} times as fast, by processor time "
            f"{found['times_first_cpu']:5.2f}",
            flush=True,
        )
    return rows


class Peer:
    """A process that generates when it is told to, and says how long it took."""

    def __init__(self, python: Path, threads: int, asked: list):
        # Barriers that spin for ever wait out whole time slices on a busy machine.
        variables = os.environ | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "100000"}
        self.process = subprocess.Popen(
            [str(python), str(PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        self.tell(json.dumps(asked))

    def tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def seconds(self, how: str) -> np.ndarray:
        """Of one call, as ``clocks``."""
        self.tell(how)
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"{PEER.name} failed: has --peer-python torch and transformers?")
        return np.array(json.loads(answer))


def main(config: Config) -> None:
    """Both comparisons, and a file of them."""
    if config.rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {config.rounds}")
    if config.fast:
        small = {"size": "toy", "prompts": 4, "samples": 2, "slots": 3, "rounds": 1}
        config = dataclasses.replace(config, **small, prompt_length=4, response_length=8)
    run = rj.runs.start(config.run_dir, config, overwrite=config.overwrite)
    shape = dataclasses.replace(SHAPES[config.size], unrolled_decoding=config.unrolled)
    model = rj.models.language_model(shape)
    params = model.init(jax.random.key(0))
    result = {"size": config.size, "load": os.getloadavg()[0]}
    result["unequal"] = unequal(config, model, params)
    if config.peer:
        result["peer"] = against_peer(config, model, params)
    run.write_json("result.json", result)
    print(f"\nwritten to {run.folder}/result.json")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
