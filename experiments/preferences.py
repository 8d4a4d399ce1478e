"""The standard pipeline on any preference data: imitate, then a reward model and PPO, or DPO.

SFT on the chosen answers, then either one of the direct methods, or a reward model and a policy
gradient; judged on prompts held out. Data in any format that data.load_feedback reads, from a file,
a folder or the hub; a published model, or a small one from scratch. Writes runs/preferences/.
"""

import dataclasses
import math
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import rlhf_jax as rj
from rlhf_jax import algorithms, data
from rlhf_jax.measures import Interval
from rlhf_jax.rewards import Standardised
from rlhf_jax.types import ActorCritic, Batch, Params, Preferences, Prompts, Sequences

Direct = Literal["dpo", "cdpo", "rdpo", "ipo", "slic", "cpo", "simpo", "orpo", "kto"]
Online = Literal["ppo", "rloo", "remax", "raft", "grpo", "dr_grpo", "dapo", "gspo", "cispo"]
METHODS = {name: getattr(algorithms, name) for name in (*Direct.__args__, *Online.__args__)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Preference data to a policy. A run folder that exists needs --resume or --overwrite."""

    data: Annotated[str, tyro.conf.Positional]
    """A file or folder (jsonl, json, csv, parquet), or a name on the hub."""
    method: Direct | Online = "dpo"
    model: str = "scratch"
    """A folder, a .gguf file, or a name that pretrained.load knows; "scratch" for a small one."""
    model_revision: str | None = None  # of a model on the hub
    run_dir: Path = Path("runs/preferences")
    seed: int = 0

    format: str | None = None  # of the data, if it is not to be recognised
    split: str = "train"
    data_revision: str | None = None  # of data on the hub
    pairs: bool = False  # compare rated answers with each other
    held_out: float = 0.1  # share of the prompts
    max_length: int = 256  # tokens of prompt and answer
    new_tokens: int = 64  # tokens sampled

    sft_steps: int = 200
    reward_steps: int = 200
    steps: int = 200
    batch: int = 16  # pairs
    prompts: int = 8  # a step of a policy gradient
    sft_rate: float = 5e-5
    reward_rate: float = 5e-5
    rate: float = 5e-6
    lora_rank: int | None = None
    """Train low-rank adapters of the policy instead of its weights."""
    width: int = 128  # of a model from scratch, which has
    layers: int = 4
    vocabulary: int = 4096
    devices: int = 1  # that each batch is cut over
    mesh: str | None = None
    """Or how batch and parameters are cut over devices: "data=2,fsdp=4,tensor=2"."""
    activations_gb: float | None = None
    """What the backward pass may keep on each; blocks are computed again if it is not enough."""
    evaluated: int = 128  # prompts held out that are answered, at most
    resume: bool = False
    overwrite: bool = False


class Base(NamedTuple):
    """A language model to begin with, and how text becomes its tokens."""

    model: rj.models.LanguageModel
    params: Params
    tokenizer: Any
    tokens: dict[str, Any]  # for data.tokenise_*
    eos_id: int | None  # at which answers that are sampled end
    final: int | None  # which is to be set behind answers that are given


def base(config: Config, rows: list[dict]) -> Base:
    """A published model, or a small one whose tokenizer is fitted to the training rows."""
    if config.model != "scratch":
        found = rj.pretrained.load(
            config.model, revision=config.model_revision, compute_dtype=rj.models.compute_dtype()
        )
        if found.tokenizer is None:
            raise ValueError(
                f"{config.model} has no tokenizer.json, without which there are no tokens"
            )
        tokens = {"pad_id": found.pad_id}
        if found.template is not None:
            tokens["template"] = found.template
        # A template of conversations may write the first and the last token of them itself.
        row = {"prompt": rows[0]["prompt"], "completion": rows[0]["chosen"]}
        how = {"encode": found.tokenizer, "max_length": 10**6} | tokens
        written = data.tokenise_sequences([row], **how).batch.tokens[0].tolist()
        tokens["bos_id"] = None if written[0] == found.bos_id else found.bos_id
        final = None if found.eos_id in written[-2:] else found.eos_id
        return Base(found.model, found.params, found.tokenizer, tokens, found.eos_id, final)
    texts = [text(row[name]) for row in rows for name in ("prompt", "chosen", "rejected")]
    tokenizer = data.train_tokenizer(
        texts, vocab_size=config.vocabulary, lowercase=False, kind="bpe"
    )
    width, longest = config.width, config.max_length + config.new_tokens
    shape = rj.models.TransformerConfig(
        tokenizer.get_vocab_size(),
        width,
        3 * width,
        config.layers,
        max_length=longest,
        dtype=rj.models.compute_dtype(),
    )
    model = rj.models.language_model(shape)
    params = model.init(jax.random.key(0))
    tokens = {"pad_id": data.PAD, "bos_id": data.BOS}
    return Base(model, params, tokenizer, tokens, data.EOS, data.EOS)


def text(said: str | list[dict]) -> str:
    """A text or a conversation as plain text."""
    return said if isinstance(said, str) else data.plain_template(said, False)


def split(rows: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """Training and held-out rows: all of a prompt are on one side, whatever the seed."""
    if not 0 < share < 1:
        raise ValueError(f"held_out must be between 0 and 1, not {share}")
    held = [zlib.crc32(text(row["prompt"]).encode()) < share * 2**32 for row in rows]
    parts = [[r for r, out in zip(rows, held, strict=True) if out == side] for side in (0, 1)]
    if not all(parts):
        raise ValueError(
            f"{len(rows)} rows make {len(parts[0])} to learn from and {len(parts[1])} held out: "
            "there must be some of both"
        )
    return parts[0], parts[1]


def in_batches(function: Callable[[Batch], jax.Array], rows: Batch, size: int) -> np.ndarray:
    """A compiled function of batches, of all rows: the last batch is filled up, and cut again."""
    rows = jax.tree.map(np.asarray, rows)
    count, parts = len(jax.tree.leaves(rows)[0]), []
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(function(jax.tree.map(partial(np.take, indices=index, axis=0), rows)))
    return np.concatenate(jax.device_get(parts))[:count]


def sides(pairs: Preferences) -> tuple[Sequences, Sequences]:
    """What people preferred, and what they did not."""
    return pairs.chosen, pairs.rejected


def ordered(won: np.ndarray, lost: np.ndarray, key: jax.Array) -> Interval:
    """How often the preferred answer scores higher, ties as half."""
    return rj.measures.bootstrap(jnp.asarray(0.5 + 0.5 * np.sign(won - lost)), key=key)


def prompts(rows: list[dict], tokens: dict[str, Any]) -> Prompts:
    """Every prompt once."""
    different = {text(row["prompt"]): {"prompt": row["prompt"]} for row in rows}
    return data.tokenise_prompts(different.values(), **tokens).batch


def sampler(config: Config, base: Base, **settings: Any) -> rj.types.SampleFn:
    """The base model generating."""
    how = {"max_new_tokens": config.new_tokens, "eos_id": base.eos_id}
    return rj.sampling.sampler(base.model.decoder, **how, pad_id=base.tokens["pad_id"], **settings)


def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a warm-up over a tenth of the steps and a cosine decay over the rest."""
    schedule = optax.warmup_cosine_decay_schedule(0, rate, max(steps // 10, 1), max(steps, 2))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def mesh_of(config: Config) -> jax.sharding.Mesh:
    """The devices: those of all processes, or as many as are asked for."""
    if config.mesh is not None:
        axes = rj.parallel.mesh_axes(config.mesh)
        count = math.prod(axes.values()) if "data" in axes else jax.device_count()
        if count > jax.device_count() or (jax.process_count() > 1 and count < jax.device_count()):
            raise ValueError(
                f"mesh {config.mesh} is of {count} devices: {jax.device_count()} are there"
            )
        return rj.parallel.make_mesh(**axes, devices=jax.devices()[:count])
    if not 1 <= config.devices <= jax.device_count():
        raise ValueError(f"devices must be from 1 to {jax.device_count()}, not {config.devices}")
    used = jax.devices() if jax.process_count() > 1 else jax.devices()[: config.devices]
    return rj.parallel.make_mesh(devices=used)


def fit_reward(
    config: Config, base: Base, fit: Callable, params: Params, pairs: Preferences, key: jax.Array
) -> tuple[rj.models.ScoreModel, Params]:
    """Step 2: a score on top of the imitating model, all of it trained."""
    scores = rj.models.score_model(base.model.config)
    head = scores.init(jax.random.fold_in(key, 1))["head"]
    algorithm = algorithms.reward_model(
        scores.score_fn, optimizer(config.reward_rate, config.reward_steps)
    )
    start = partial(algorithm.init, {"trunk": params, "head": head}, jax.random.fold_in(key, 2))
    show = ["loss", "accuracy"]
    fitted = fit("reward", algorithm, start, pairs, config.reward_steps, config.batch, show)
    return scores, fitted.state.params


def main(config: Config) -> None:
    """The pipeline, straight down."""
    rj.parallel.initialise()
    began, key = time.perf_counter(), jax.random.key(config.seed)
    mesh = mesh_of(config)
    loaded = data.load_feedback(
        config.data,
        format=config.format,
        split=config.split,
        pairs=config.pairs,
        revision=config.data_revision,
    )
    if loaded.kind != "preference":
        raise ValueError(
            f"{config.data} holds {loaded.kind} rows, and this learns from pairs; rated answers to "
            "the same prompts become pairs with --pairs"
        )
    train, test = split(list(loaded), config.held_out)
    run = rj.runs.begin(config, free=("devices", "mesh"))
    rj.training.compilation_cache()
    begin = base(config, train)
    if config.activations_gb is not None:
        rows = -(-max(2 * config.batch, 8 * config.prompts) // rj.parallel.row_devices(mesh))
        longest, room = config.max_length + config.new_tokens, 1e9 * config.activations_gb
        remat = rj.models.choose_remat(begin.model.config, rows, longest, room)
        shape = dataclasses.replace(begin.model.config, remat=remat)
        begin = begin._replace(model=rj.models.language_model(shape))
    model, params, direct = begin.model, begin.params, config.method in Direct.__args__
    tokens = begin.tokens | {"encode": begin.tokenizer, "max_length": config.max_length}
    both = [data.tokenise_preferences(rows, eos_id=begin.final, **tokens) for rows in (train, test)]
    pairs, unseen = (found.batch for found in both)
    rules = rj.parallel.rules_for(model.config, mesh)

    def fit(stage: str, algorithm, init, rows: Batch, steps: int, size: int, show: list[str]):
        count = len(jax.tree.leaves(rows)[0])
        if size > count:
            raise ValueError(f"{stage}: batches of {size} rows, but there are {count}")
        cut = rj.parallel.state_shardings(jax.eval_shape(init), mesh, rules)
        fitted = run.fit(
            stage,
            algorithm,
            lambda: rj.parallel.put(init(), cut),
            data.epochs(rows, size, seed=config.seed),
            steps=steps,
            show=show,
            compile=partial(rj.parallel.shard_step, mesh=mesh, state_shardings=cut, batch_axis=1),
        )
        # Of several processes each needs all of it, for the next stage and to judge it.
        params = rj.parallel.whole_here(fitted.state.params)
        return fitted._replace(state=fitted.state.replace(params=params))

    # Step 0: the chosen answers are imitated.
    if config.sft_steps:
        chosen = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in train]
        texts = data.tokenise_sequences(chosen, eos_id=begin.final, **tokens).batch
        rate = optimizer(config.sft_rate, config.sft_steps)
        most = data.longest_response(texts)
        algorithm = algorithms.supervised(model.factored_logits_fn, rate, response_length=most)
        start = partial(algorithm.init, params, key)
        size, show = config.batch, ["loss"]
        params = fit("sft", algorithm, start, texts, config.sft_steps, size, show).state.params

    # Steps 2 and 3: of the pairs themselves, or of a reward model's opinion of new answers.
    policy, settings = params, {}
    if config.lora_rank is not None:
        rank = {"rank": config.lora_rank, "alpha": 2.0 * config.lora_rank}
        policy = rj.models.lora.add(jax.random.fold_in(key, 3), params, **rank)
        settings["trainable"] = rj.models.lora.TRAINABLE
    method, rate = METHODS[config.method], optimizer(config.rate, config.steps)
    judges, reads, measured = {}, {}, {"learnt_from": len(train), "held_out": len(test)}
    if direct:
        batch = data.unpaired(pairs, unrelated=True) if config.method == "kto" else pairs
        settings["response_length"] = data.longest_response(batch)
        algorithm = method(model.factored_logits_fn, rate, **settings)
        start = partial(algorithm.init, policy, key)
        show = ["loss", "reward"] if config.method == "kto" else ["loss", "accuracy"]
        fitted = fit("policy", algorithm, start, batch, config.steps, config.batch, show)
    else:
        scores, weights = fit_reward(config, begin, fit, params, pairs, key)
        read = jax.jit(lambda rows: scores.score_fn(weights, rows.tokens, rows.mask))
        won, lost = (in_batches(read, side, config.batch) for side in sides(unseen))
        measured["reward_accuracy"] = ordered(won, lost, key)
        # In SDs over the reference's answers, a KL coefficient means the same for any reward.
        asked, sample = prompts(train, tokens), sampler(config, begin)
        some = jax.tree.map(lambda x: np.resize(x, (config.evaluated, x.shape[1])), asked)
        answers = jax.jit(sample)(params, some, jax.random.split(key, config.evaluated))
        raw = in_batches(read, answers, config.batch)
        judges["reward"] = Standardised(weights, np.float32(raw.mean()), np.float32(raw.std()))
        reads["reward"] = rj.rewards.standardised(scores.score_fn)
        if config.method == "ppo":
            values = rj.models.value_model(model.config)
            settings["value_fn"] = values.value_fn
            policy = ActorCritic(policy, weights)  # The critic begins as the reward model.
        if config.method == "remax":
            settings["baseline_fn"] = sampler(config, begin, temperature=0.0)
        functions = (model.factored_logits_fn, sample, reads["reward"], rate)
        algorithm = method(*functions, **settings)
        start = partial(algorithm.init, policy, key, judges["reward"], params)
        show = ["reward", "kl", "length"]
        fitted = fit("policy", algorithm, start, asked, config.steps, config.prompts, show)
    policy = fitted.state.params.policy if config.method == "ppo" else fitted.state.params

    # What came of it: on pairs, and on answers to prompts, that nothing was learnt from.
    @jax.jit
    def log_ratio(rows: Sequences) -> jax.Array:
        """How much likelier an answer has become, in nats."""
        log_probs = [
            rj.sequences.token_log_probs(
                model.factored_logits_fn(weights, rows.tokens, rows.mask), rows.tokens
            )
            for weights in (policy, params)
        ]
        return jnp.sum(jnp.where(rows.response_mask, jnp.subtract(*log_probs), 0), axis=-1)

    won, lost = (in_batches(log_ratio, side, config.batch) for side in sides(unseen))
    measured["implicit_reward_accuracy"] = ordered(won, lost, key)
    asked = jax.tree.map(lambda x: x[: config.evaluated], prompts(test, tokens))
    evaluate = rj.evaluation.policy_evaluation(
        model.factored_logits_fn, sampler(config, begin), reads
    )
    ask = partial(evaluate, reference=params, params=judges, prompts=asked, key=key)
    (old, before), (new, after) = (ask(weights) for weights in (params, policy))
    if judges:
        gain = after["reward"] - before["reward"]
        measured["reward_gain_sd"] = rj.measures.bootstrap(gain, key=key)
    measured["sequence_kl_nats"] = rj.measures.bootstrap(after["kl"], key=key)
    for name in ("length", "distinct_2"):
        measured[name] = float(after[name].mean())
        measured[f"{name}_reference"] = float(before[name].mean())
    measured["stopped"] = fitted.stopped or "as planned"
    measured["seconds"] = time.perf_counter() - began
    if not rj.parallel.is_first():
        return
    run.write_json("result.json", measured)
    columns = asked.tokens.shape[1]
    samples = [
        [begin.tokenizer.decode(row[there].tolist()) for row, there in zip(x, m, strict=True)]
        for x, m in (
            (np.asarray(old.tokens)[:, :columns], np.asarray(asked.mask)),
            *((np.asarray(y.tokens), np.asarray(y.response_mask)) for y in (old, new)),
        )
    ]
    page = rj.report.table(list(zip(*samples, strict=True))[:16], ["prompt", "before", "after"])
    (run.folder / "samples.md").write_text(f"# Samples\n\n{page}\n", encoding="utf-8")
    closing = Table("measure", "value")
    for name, value in measured.items():
        cell = (
            "{:.3f} [{:.3f}, {:.3f}]".format(*map(float, value))
            if isinstance(value, Interval)
            else value
        )
        closing.add_row(name, f"{cell:.4g}" if isinstance(cell, float) else str(cell))
    Console().print(closing)
    print(f"Samples: {run.folder / 'samples.md'}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
