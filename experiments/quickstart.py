"""RLHF on real human ratings, from nothing to an improved policy, with its central problem on show.

Pretrains a small language model on film reviews, fits a reward model to real raters' comparisons,
improves the policy with RLOO while an independent judge (other snippets, other ratings) watches.
About 4 minutes on two cores, 2 once the language model is cached. Writes runs/quickstart/.
"""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
import tyro

import rlhf_jax as rj
from rlhf_jax.feedback import Pairs
from rlhf_jax.rewards import Standardised
from rlhf_jax.types import Preferences, Prompts, Sequences


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a preset fixes; lengths in tokens."""

    vocabulary: int = 8192
    width: int = 128
    pretrain_steps: int = 300
    comparisons: int = 600_000
    judge_steps: int = 800
    prompts: int = 32
    samples: int = 8
    new_tokens: int = 20
    evaluated: int = 512


# "tiny" takes seconds, to see that everything runs; its figures mean nothing.
PRESETS = {"default": Sizes(), "tiny": Sizes(512, 32, 20, 9_000, 40, 8, 4, 8, 64)}
TEXT_LENGTH, PROMPT_LENGTH = 48, 5
DISCLOSED = {
    "pretraining": "None but the film reviews of the data themselves (Hutto & Gilbert 2014, MIT).",
    "evaluators": "Raters screened and trained by the data's authors; who they were is unknown.",
    "examples": "Sentences that people wrote, drawn uniformly; none came from the policy.",
    "feedback_type": "Which of two is more positive, from one rating of each; ties left out.",
    "reward_loss": "Bradley-Terry, L2 and token dropout; raters' disagreement is taken for noise.",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The main job. A run folder that exists needs --resume or --overwrite."""

    run_dir: Path = Path("runs/quickstart")
    seed: int = 0
    iterations: int = 50
    """Policy steps at most; training stops earlier where the budget is spent."""
    kl_coefficient: float = 0.25
    """SDs of reward per nat; it rises while the KL is above its target. With 0 there is neither
    penalty nor budget: watch the policy exploit the reward model."""
    kl_target: float = 6.0  # nats a sequence
    kl_budget: float = 10.0  # nats a sequence
    learning_rate: float = 1e-3
    preset: Literal["default", "tiny"] = "default"
    data: Path | None = None
    """A copy of the ratings at hand, folder or archive; by default they are fetched."""
    resume: bool = False
    overwrite: bool = False


def pretrain(model: rj.models.LanguageModel, rows: np.ndarray, steps: int):
    """Step 0, the language model: trained once, then from the cache."""
    rate = optax.warmup_cosine_decay_schedule(0, 4e-3, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98))
    algorithm = rj.algorithms.supervised(model.factored_logits_fn, optimizer)
    # Unknown words are read and never predicted, so that the model does not learn to say them.
    text = Sequences(rows, np.ones(rows.shape, bool), rows != rj.data.UNK)
    batches = rj.data.epochs(text, 64, seed=0)
    made_of = {"model": model.config, "steps": steps, "text": rj.checkpoint.digest(rows)}
    run = rj.runs.cached("language_models", made_of)
    state = partial(algorithm.init, model.init(jax.random.key(0)), jax.random.key(1))
    fitted = run.fit("pretraining", algorithm, state, batches, steps=steps, show=["loss"])
    return fitted.state.params


def main(config: Config) -> None:
    """The three steps of RLHF, straight down."""
    began, sizes, key = time.perf_counter(), PRESETS[config.preset], jax.random.key(config.seed)
    ratings = rj.data.load_ratings(config.data)
    run = rj.runs.begin(config, free=("iterations", "data"))
    rj.training.compilation_cache()
    # The humans. Proxy and gold judge share no snippet and no column of ratings; 1,000 are tests.
    films = np.flatnonzero(ratings.domain == rj.data.DOMAINS.index("movies"))
    films = np.random.default_rng(0).permutation(films)
    test, texts = films[:1000], [ratings.texts[i] for i in films[1000:]]
    others = np.random.default_rng(1).permutation(np.setdiff1d(np.arange(len(ratings)), test))
    cut, even = round(0.65 * len(others)), np.arange(ratings.ratings.shape[1]) % 2 == 0
    tokenizer = rj.data.train_tokenizer(texts, vocab_size=sizes.vocabulary)
    tokens, mask = rj.data.encode(tokenizer, ratings.texts, length=TEXT_LENGTH)

    shape = (sizes.vocabulary, sizes.width, 3 * sizes.width, 2)
    model = rj.models.language_model(rj.models.TransformerConfig(*shape, max_length=64))
    rows = rj.data.stream(tokenizer, texts, length=TEXT_LENGTH)
    reference = pretrain(model, rows, sizes.pretrain_steps)

    # Steps 1 and 2: comparisons of single ratings, and a reward model fitted to them.
    vectors = rj.data.word_vectors(tokens[others], mask[others], vocab_size=sizes.vocabulary)

    def fit_judge(name: str, snippets: np.ndarray, raters: np.ndarray, key: jax.Array):
        judge, keys = models[name], jax.random.split(key, 3)
        human = rj.humans.real_raters(ratings.ratings, ratings.rating_mask & raters)
        pairs = Pairs(*jax.random.choice(keys[0], snippets, (2, sizes.comparisons)))
        sides = rj.feedback.decided(pairs, jax.jit(human)(keys[1], pairs))
        picked = rj.data.epochs(sides, 2048, seed=config.seed)

        def batches(step: int) -> Preferences:
            return Preferences(*(Sequences(tokens[i], mask[i], mask[i]) for i in picked(step)))

        rate = optax.cosine_decay_schedule(1e-2, sizes.judge_steps)
        decay = optax.masked(optax.add_decayed_weights(6e-6), judge.trained)
        optimizer = optax.chain(decay, optax.adam(rate, b2=0.99))
        algorithm = rj.algorithms.reward_model(judge.score_fn, optimizer, token_dropout=0.5)
        state = partial(algorithm.init, judge.init(keys[2], vectors), keys[2])
        settings = {"steps": sizes.judge_steps, "show": ["loss", "accuracy"]}
        return run.fit(name, algorithm, state, batches, **settings).state.params

    # The gold judge counts a word once, as a reader who is not impressed by repetition.
    counts = {"proxy": False, "gold": True}
    models = {n: rj.models.ngram_model(sizes.vocabulary, presence=p) for n, p in counts.items()}
    proxy = fit_judge("proxy", others[:cut], even, jax.random.fold_in(key, 1))
    gold = fit_judge("gold", others[cut:], ~even, jax.random.fold_in(key, 2))
    weights = {"proxy": proxy, "gold": gold}

    # Both judges are read in SDs over the reference policy's answers.
    sample = rj.sampling.sampler(model.decoder, max_new_tokens=sizes.new_tokens, eos_id=rj.data.EOS)
    known = (tokens[test, 1:PROMPT_LENGTH] > rj.data.UNK).all(axis=1)
    starts = tokens[test[known & mask[test, PROMPT_LENGTH + 3]], :PROMPT_LENGTH]
    prompts = Prompts(starts, np.ones(starts.shape, bool))
    asked = jax.tree.map(lambda x: np.resize(x, (sizes.evaluated, x.shape[1])), prompts)
    reads = {name: rj.rewards.standardised(judge.score_fn) for name, judge in models.items()}
    judges = {name: Standardised(params, 0.0, 1.0) for name, params in weights.items()}
    evaluate = rj.evaluation.policy_evaluation(model.factored_logits_fn, sample, reads)
    _, raw = evaluate(reference, reference, judges, asked, jax.random.fold_in(key, 3))
    judges = {n: Standardised(weights[n], raw[n].mean(), raw[n].std()) for n in judges}

    # Step 3: the policy is trained on the proxy; the gold judge only watches.
    controller, stops = rj.divergences.fixed_coefficient(0.0), []
    if config.kl_coefficient > 0:
        aims = {"target": config.kl_target, "minimum": config.kl_coefficient}
        controller = rj.divergences.adaptive_coefficient(config.kl_coefficient, **aims)
        reason = f"the budget of {config.kl_budget:g} nats is spent"
        stops = [rj.callbacks.stop_when(lambda row: row["kl"] > config.kl_budget, reason)]

    def watch(gold: Standardised, answers: Sequences) -> dict[str, jax.Array]:
        distinct = rj.measures.distinct_n(answers.tokens, answers.response_mask, 2)
        return {"gold": reads["gold"](gold, answers), "distinct_2": distinct}

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    functions = (model.factored_logits_fn, sample, reads["proxy"], optimizer)
    settings = {"samples_per_prompt": sizes.samples, "kl_coefficient": controller, "watch": watch}
    algorithm = rj.algorithms.policy_gradient(*functions, **settings)
    state = partial(algorithm.init, reference, key, judges["proxy"], watched=judges["gold"])
    batches = rj.data.epochs(prompts, sizes.prompts, seed=config.seed)
    settings = {"chunk": 2, "save_every": 10, "callbacks": stops}
    settings |= {"steps": config.iterations, "show": ["reward", "gold", "kl", "distinct_2"]}
    policy = run.fit("policy", algorithm, state, batches, **settings)

    # What came of it, on the same prompts with the same draws.
    ask = partial(evaluate, reference=reference, params=judges, prompts=asked)
    pairs = Pairs(*jax.random.randint(jax.random.fold_in(key, 5), (2, 50_000), 0, len(test)))
    unseen, odd = ratings.take(test), ratings.rating_mask[test] & ~even
    human = jax.jit(rj.humans.real_raters(unseen.ratings, odd))
    result = rj.report.policy_report(
        run.folder,
        policy,
        budget=config.kl_budget if stops else None,
        samples=[ask(p, key=jax.random.fold_in(key, 4)) for p in (reference, policy.state.params)],
        decode=partial(rj.data.decode, tokenizer),
        prompt_length=PROMPT_LENGTH,
        held_out={n: models[n].score_fn(w, tokens[test], mask[test]) for n, w in weights.items()},
        truth=unseen.mean,
        compared=(pairs, human(jax.random.fold_in(key, 6), pairs)),
        others=np.ma.masked_array(unseen.ratings, ~unseen.rating_mask | odd).mean(axis=1).data,
        disclosed=DISCLOSED,
    )
    result["parameters_sha256"] = rj.checkpoint.digest(policy.state.params)
    result["seconds"] = time.perf_counter() - began
    run.write_json("result.json", result)
    rj.report.show(result, run.folder)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
