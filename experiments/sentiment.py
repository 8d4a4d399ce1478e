"""RLHF on a real language model: SmolLM2-135M learns from human raters how to go on with reviews.

A reward model on its own frozen layers is fitted to real raters' comparisons of film reviews; the
upper layers then learn to earn its reward, while a judge of another kind (words, other sentences,
other ratings) watches. Writes runs/sentiment/; --fast is for a first look.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import rlhf_jax as rj
from film_reviews import (
    Fitting,
    Judges,
    Layout,
    features_of,
    fit_gold,
    fit_proxy,
    last_features,
    reviews,
)
from rlhf_jax.feedback import Pairs
from rlhf_jax.rewards import Standardised
from rlhf_jax.types import (
    ActorCritic,
    Algorithm,
    Key,
    Metrics,
    Params,
    Preferences,
    Prompts,
    SampleFn,
    Sequences,
    Shared,
    TrainState,
)

OPENING = 4  # tokens of a review that are given
BEST_OF, DPO_BETA = 16, 0.1
COMPARED = ("kl", "reward", "gold", "distinct_2", "length")
Evaluated = tuple[Sequences, dict[str, np.ndarray]]
DISCLOSED = {
    "pretraining": "SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), quantised to 4 bits.",
    "evaluators": "Raters screened and trained by the data's authors; who they were is unknown.",
    "examples": "Sentences of film reviews that people wrote; none came from the policy.",
    "feedback_type": "Which of two is more positive, from one rating of each; ties left out.",
    "reward_loss": "Bradley-Terry with L2, linear in frozen features of the language model; "
    "raters' disagreement is taken for noise.",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    snippets: int = 3000  # that the reward model learns from
    tests: int = 1000
    comparisons: int = 400_000
    proxy_steps: int = 600
    gold_steps: int = 300
    batch: int = 1024  # comparisons
    prompts: int = 16  # an iteration
    samples: int = 4  # a prompt
    new_tokens: int = 16
    top_layers: int = 8  # that are trained
    evaluated: int = 256
    answers: int = 2  # to each of the prompts evaluated
    candidates: int = 4  # of the reference, of which the best is looked at for comparison
    iterations: int = 30
    epochs: int = 1
    minibatches: int = 2


FULL = Sizes()
FAST = Sizes(snippets=1200, tests=400, evaluated=96, iterations=16)


@dataclasses.dataclass(frozen=True)
class Config:
    """Kinder film reviews. A run folder that exists needs --resume or --overwrite."""

    run_dir: Path = Path("runs/sentiment")
    seed: int = 0
    method: Literal["rloo", "ppo", "grpo", "dpo", "best-of-n"] = "rloo"
    iterations: int | None = None
    """Policy steps at most; by default as many as the sizes say."""
    learning_rate: float = 1.5e-4
    kl_coefficient: float = 0.1
    """SDs of reward per nat; it rises while the KL is above its target."""
    kl_target: float = 5.0  # nats a sequence
    kl_budget: float = 9.0  # nats a sequence; training stops there
    temperature: float = 0.75
    """Of the reference policy: its logits are divided by it once and for all."""
    model: str = "smollm2-135m-instruct"
    """A name of the shelf, or the folder of a Llama-shaped checkpoint."""
    data: Path | None = None
    """A copy of the ratings at hand, folder or archive; by default they are fetched."""
    fast: bool = False
    """Less of everything, for a first look."""
    resume: bool = False
    overwrite: bool = False


def best_against_worst(
    direct: Algorithm, sample: SampleFn, reward_fn: Callable, watch: Callable, *, samples: int
) -> Algorithm:
    """Online DPO: of several answers to a prompt, the best is preferred to the worst."""

    def init(params: Params, key: Key, reward: Params, watched: Params) -> TrainState:
        state = direct.init(params, key)
        return state.replace(frozen=(state.frozen, reward, watched))

    def step(state: TrainState, prompts: Prompts) -> tuple[TrainState, Metrics]:
        reference, reward, watched = state.frozen
        asked = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(asked.tokens))
        answers = sample(state.params, asked, keys)
        rewards = reward_fn(state.params, reward, answers)
        groups = rewards.reshape(-1, samples)
        first = jnp.arange(len(groups)) * samples
        rows = [first + pick(groups, axis=1) for pick in (jnp.argmax, jnp.argmin)]
        pairs = Preferences(*(jax.tree.map(lambda x, r=r: x[r], answers) for r in rows))
        after, metrics = direct.step(state.replace(frozen=reference), pairs)
        # Of the pairs alone, and so that of their answers.
        metrics["kl"] = (metrics["chosen_reward"] + metrics["rejected_reward"]) / 2 / DPO_BETA
        length = answers.response_mask.sum(axis=1).astype(jnp.float32)
        seen = {"reward": rewards, "length": length} | watch(watched, answers)
        metrics |= {name: jnp.mean(x) for name, x in seen.items()}
        return after.replace(frozen=state.frozen), metrics

    return Algorithm(init, step)


def best_of(answers: Sequences, measured: dict[str, np.ndarray], count: int):
    """Of the first ``count`` answers to each prompt, ``[P, K, ...]``, the one the proxy prefers."""
    best = measured["proxy"][:, :count].argmax(axis=1)
    rows = np.arange(len(best)), best
    answers, measured = jax.tree.map(lambda x: np.asarray(x)[rows], (answers, measured))
    # Exact, for a continuous reward (Hilton and Gao 2022).
    return answers, measured | {"kl": np.full(len(best), np.log(count) - (count - 1) / count)}


def main(config: Config) -> None:
    """The three steps of RLHF, straight down."""
    began, sizes = time.perf_counter(), FAST if config.fast else FULL
    key = jax.random.key(config.seed)
    ratings = rj.data.load_ratings(config.data)
    run = rj.runs.begin(config, free=("iterations", "data"))
    rj.training.compilation_cache()
    loaded = rj.pretrained.load(config.model)
    top = min(sizes.top_layers, loaded.config.num_layers - 1)
    model = rj.models.language_model(dataclasses.replace(loaded.config, num_top_layers=top))
    # Logits are linear in the last norm's scale: this divides them by the temperature.
    norm = {"scale": loaded.params["final_norm"]["scale"] / config.temperature}
    reference = rj.models.split_layers(loaded.params | {"final_norm": norm}, top)

    def encode(text: str) -> list[int]:
        return loaded.tokenizer.encode(text, add_special_tokens=False).ids

    films = reviews(ratings, encode, sizes.tests)
    layout, learnt = films.layout, films.ours[: sizes.snippets]

    # The reward model is linear in features of the layers that are frozen: a policy step, which
    # runs these for the policy, has it for nothing.
    @jax.jit
    def read(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return last_features(model.trunk_fn(params, tokens, mask))

    lower = {name: value for name, value in reference.items() if name != "top_layers"}
    made_of = rj.checkpoint.digest(lower)
    table, unseen = (
        features_of([films.texts[i] for i in items], layout, partial(read, lower), made_of)
        for items in (learnt, films.test)
    )
    how = Fitting(sizes.comparisons, sizes.batch, sizes.proxy_steps, config.seed)
    weights = fit_proxy(run, films, learnt, table, how)

    size = loaded.config.vocab_size
    vocabulary = [loaded.tokenizer.decode([i]).strip().lower() for i in range(size)]
    special = len(loaded.tokenizer.get_added_tokens_decoder())
    words = rj.models.hashed_model(vocabulary, special_tokens=special)
    counted = fit_gold(run, films, words, how._replace(steps=sizes.gold_steps))

    # Generation, and what both judges make of it.
    newline = encode("\n")
    end = newline[0] if len(newline) == 1 else loaded.eos_id
    generate = rj.sampling.sampler(model.decoder, max_new_tokens=sizes.new_tokens, eos_id=end)
    sample = layout.asked(generate, end)

    def proxy_fn(judge: Standardised, hidden: jax.Array) -> jax.Array:
        return (last_features(hidden) @ judge.params - judge.mean) / judge.deviation

    gold_fn = rj.rewards.standardised(
        lambda params, tokens, mask: words.score_fn(params, layout.text(tokens), layout.text(mask))
    )

    def watch(judge: Standardised, answers: Sequences) -> dict[str, jax.Array]:
        distinct = rj.measures.distinct_n(answers.tokens, answers.response_mask, 2)
        return {"gold": gold_fn(judge, answers), "distinct_2": distinct}

    def reward_fn(params: Params, judge: Standardised, answers: Sequences) -> jax.Array:
        hidden = model.trunk_fn(params, answers.tokens, answers.mask)
        return proxy_fn(judge, hidden)

    def shared_fn(params: Params, judge: Standardised, answers: Sequences, hidden) -> Shared:
        logits = model.top_fn(params, hidden, answers.mask)
        return Shared(logits, proxy_fn(judge, hidden), logits.hidden)

    @jax.jit
    def measure(policy: Params, reference: Params, judges: Judges, prompts: Prompts, keys: Key):
        answers = sample(policy, prompts, keys)
        hidden = model.trunk_fn(reference, answers.tokens, answers.mask)
        found = shared_fn(reference, judges.proxy, answers, hidden)
        known = rj.sequences.token_log_probs(found.logits, answers.tokens)
        ratio = jnp.where(answers.response_mask, answers.log_probs - known, 0)
        return answers, {
            "proxy": found.rewards,
            "gold": gold_fn(judges.gold, answers),
            "kl": ratio.sum(axis=1),
            "length": answers.response_mask.sum(axis=1).astype(jnp.float32),
        }

    def ask(policy: Params, judges: Judges, count: int) -> Evaluated:
        """So many answers to each of the prompts kept for it, ``[P, count, ...]``."""
        asked = jax.tree.map(lambda x: np.repeat(x, count, axis=0), kept)
        keys = jax.random.split(jax.random.fold_in(key, 4), len(asked.tokens))
        parts = [
            measure(policy, reference, judges, jax.tree.map(lambda x, b=b: x[b], asked), keys[b])
            for b in np.array_split(np.arange(len(keys)), -(-len(keys) // 128))
        ]
        parts = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), parts)

    openings = partial(films.openings, length=OPENING, decode=loaded.tokenizer.decode)
    kept = openings(films.test)
    kept = jax.tree.map(lambda x: np.resize(x, (sizes.evaluated, x.shape[1])), kept)
    unit = np.float32(0), np.float32(1)
    raw = Judges(Standardised(weights, *unit), Standardised(counted, *unit))
    candidates = BEST_OF if config.method == "best-of-n" else sizes.candidates
    base, before = ask(reference, raw, candidates)
    judges = Judges(
        *(
            judge._replace(mean=before[name].mean(), deviation=before[name].std())
            for name, judge in raw._asdict().items()
        )
    )
    for name, judge in judges._asdict().items():
        before[name] = (before[name] - judge.mean) / judge.deviation

    # Step 3: the upper layers are trained on the proxy; the gold judge only watches.
    chosen = {n: summary(*best_of(base, before, n)) for n in (1, 2, 4, 8, 16) if n <= candidates}
    if config.method == "best-of-n":
        rows = [row | {"step": i, "skipped": 0.0} for i, row in enumerate(chosen.values())]
        policy = rj.training.Fit(None, rows, "nothing was trained: answers were chosen")
        answers, after = jax.tree.map(lambda x: x[:, None], best_of(base, before, BEST_OF))
    else:
        algorithm = method(config, sizes, model, sample, reward_fn, shared_fn, watch)
        params = reference
        if config.method == "ppo":
            critic = rj.models.linear_head(loaded.config.hidden_size).init(key)
            params = ActorCritic(reference, critic)
        state = partial(algorithm.init, params, key, reward=judges.proxy, watched=judges.gold)
        size = sizes.prompts * (sizes.samples if config.method == "ppo" else 1)
        batches = rj.data.epochs(openings(films.ours), size, seed=config.seed)
        reason = f"the budget of {config.kl_budget:g} nats is spent"
        stop = rj.callbacks.stop_when(lambda row: row["kl"] > config.kl_budget, reason)
        settings = {"steps": config.iterations or sizes.iterations, "chunk": 1, "callbacks": [stop]}
        settings |= {"save_every": 20, "keep": 1, "show": ["reward", "gold", "kl", "distinct_2"]}
        policy = run.fit("policy", algorithm, state, batches, **settings)
        trained = policy.state.params
        trained = trained.policy if config.method == "ppo" else trained
        answers, after = ask(trained, judges, sizes.answers)

    # What came of it, on openings that nothing was trained on.
    count = after["gold"].shape[1]
    pair = [
        jax.tree.map(lambda x: x[:, :count], each) for each in ((base, before), (answers, after))
    ]
    gains = {n: (pair[1][1][n] - pair[0][1][n]).mean(axis=1) for n in ("proxy", "gold")}
    tests = ratings.take(films.test)
    pairs = Pairs(*jax.random.randint(jax.random.fold_in(key, 5), (2, 50_000), 0, len(tests)))
    odd = tests.rating_mask & films.odd
    human = jax.jit(rj.humans.real_raters(tests.ratings, odd))
    read_words = jax.jit(words.score_fn)(counted, *films.rows(films.test))
    result = rj.report.policy_report(
        run.folder,
        policy,
        budget=config.kl_budget,
        samples=tuple(flat(layout, *each) for each in pair),
        decode=lambda row: " ".join(loaded.tokenizer.decode(row.tolist()).split()),
        prompt_length=OPENING,
        held_out={"proxy": unseen @ weights, "gold": read_words},
        truth=tests.mean,
        compared=(pairs, human(jax.random.fold_in(key, 6), pairs)),
        others=np.ma.masked_array(tests.ratings, ~tests.rating_mask | odd).mean(axis=1).data,
        disclosed=DISCLOSED,
        title="A language model learns from raters of film reviews",
    )
    for name, gain in gains.items():
        interval = rj.measures.bootstrap(gain, key=jax.random.fold_in(key, 7))
        result |= {
            f"{name}_gain_low": float(interval.low),
            f"{name}_gain_high": float(interval.high),
        }
    result["method"] = config.method
    result["best_of_n"] = {str(n): row for n, row in chosen.items()}
    final = reference if policy.state is None else policy.state.params
    result["parameters_sha256"] = rj.checkpoint.digest(final)
    result["seconds"] = time.perf_counter() - began
    result["cpu_seconds"] = time.process_time()
    run.write_json("result.json", result)
    lines = [[f"best of {n}", *(f"{row[k]:.2f}" for k in COMPARED)] for n, row in chosen.items()]
    own = summary(*jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pair[1]))
    lines.append([config.method, *(f"{own[k]:.2f}" for k in COMPARED)])
    compared = rj.report.table(lines, ["policy", *COMPARED])
    with (run.folder / "report.md").open("a", encoding="utf-8") as page:
        page.write(f"\n## Compared with choosing among the reference's answers\n\n{compared}\n")
    rj.report.show({k: v for k, v in result.items() if k != "best_of_n"}, run.folder)
    print(compared)


def method(
    config: Config,
    sizes: Sizes,
    model: rj.models.LanguageModel,
    sample: SampleFn,
    reward_fn: Callable,
    shared_fn: Callable,
    watch: Callable,
) -> Algorithm:
    """The algorithm by its name; all train the upper layers and read the lower ones once."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    of_layers = {"trunk_fn": model.trunk_fn, "trainable": ("top_layers/*",)}
    if config.method == "dpo":
        direct = rj.algorithms.dpo(model.top_fn, optimizer, beta=DPO_BETA, **of_layers)
        return best_against_worst(direct, sample, reward_fn, watch, samples=sizes.samples)
    # Thirty iterations are few, so it reacts faster than in runs of thousands.
    aims = {"target": config.kl_target, "minimum": config.kl_coefficient, "gain": 0.5}
    settings = {
        "shared_fn": shared_fn,
        "kl_coefficient": rj.divergences.adaptive_coefficient(config.kl_coefficient, **aims),
        # Sampling costs more than an update, so each sample is used for several.
        "policy_loss": rj.losses.ppo_clip,
        "epochs": sizes.epochs,
        "minibatches": sizes.minibatches,
        "watch": watch,
    } | of_layers
    if config.method == "ppo":
        head = rj.models.linear_head(model.config.hidden_size)
        settings["value_fn"] = rj.models.feature_values(head)
        settings["trainable"] = ("policy/top_layers/*", "critic/*")
    else:
        settings["samples_per_prompt"] = sizes.samples
    build = {"rloo": rj.algorithms.rloo, "ppo": rj.algorithms.ppo, "grpo": rj.algorithms.grpo}
    return build[config.method](model.top_fn, sample, None, optimizer, **settings)


def summary(answers: Sequences, measured: dict[str, np.ndarray]) -> dict[str, float]:
    """The means of answers ``[B, ...]``, under the names of the training's metrics."""
    distinct = rj.measures.distinct_n(answers.tokens, answers.response_mask, 2)
    means = {name: float(x.mean()) for name, x in measured.items()}
    return {"reward": means.pop("proxy"), "distinct_2": float(distinct)} | means


def flat(layout: Layout, answers: Sequences, measured: dict[str, np.ndarray]) -> Evaluated:
    """Answers ``[P, N, ...]`` in rows, every prompt's first answer first; the text alone."""
    rows = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), (answers, measured))
    answers, measured = jax.tree.map(np.asarray, rows)
    answers = jax.tree.map(layout.text, answers)
    hidden = answers.replace(tokens=np.where(answers.mask, answers.tokens, 0))
    distinct = rj.measures.distinct_n(answers.tokens, answers.response_mask, 2)
    return hidden, measured | {"distinct_2": distinct}


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
