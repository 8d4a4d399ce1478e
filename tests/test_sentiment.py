"""The flagship from end to end, with a tiny random model in place of the one that is fetched."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import rlhf_jax as rj

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
film_reviews, sentiment = map(importlib.import_module, ("film_reviews", "sentiment"))
TINY = {
    "snippets": 40,
    "tests": 40,
    "comparisons": 400,
    "proxy_steps": 10,
    "gold_steps": 10,
    "batch": 32,
    "prompts": 4,
    "samples": 2,
    "new_tokens": 4,
    "top_layers": 1,
    "evaluated": 8,
    "candidates": 2,
    "iterations": 2,
    "minibatches": 2,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The module in a world of 1600 sentences, and the folder of a model."""
    try:
        ratings = rj.data.load_ratings(rj.assets.fetch(rj.assets.VADER_RATINGS))
    except rj.assets.AssetError as error:
        pytest.skip(f"the human ratings are neither cached nor to be fetched: {error}")
    films = (ratings.domain == rj.data.DOMAINS.index("movies")).nonzero()[0]
    ratings = ratings.take(films[:1600])
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, ratings.texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(rj.training, "compilation_cache", lambda: None)
        patch.setattr(rj.data, "load_ratings", lambda data: ratings)
        patch.setattr(sentiment, "FULL", dataclasses.replace(sentiment.FULL, **TINY))
        # Nearly all of the time goes into compiling programs that run once, on next to nothing.
        jax.config.update("jax_disable_most_optimizations", True)
        yield sentiment, folder
        jax.config.update("jax_disable_most_optimizations", False)


def save_model(folder: Path, texts: tuple[str, ...]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = rj.models.TransformerConfig(tokenizer.get_vocab_size(), 8, 16, 2, 1, 1, max_length=96)
    shapes = jax.eval_shape(rj.models.language_model(config).init, jax.random.key(0))
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape).astype(np.float32), shapes)
    rj.pretrained.save(folder, params, config, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["best-of-n", "rloo", "ppo", "grpo", "dpo"],
)
def test_it_runs_from_end_to_end_and_writes_what_it_promises(world, tmp_path, method):
    module, model = world
    folder = tmp_path / "run"
    module.main(module.Config(run_dir=folder, model=str(model), method=method))
    result = json.loads((folder / "result.json").read_text())
    compared = result["best_of_n"]
    assert set(compared) == {"1", "2", "4", "8", "16"} if method == "best-of-n" else {"1", "2"}
    assert compared["1"]["kl"] == 0
    assert compared["2"]["kl"] == pytest.approx(np.log(2) - 0.5)
    assert compared["2"]["reward"] > compared["1"]["reward"]
    assert result["gold_gain_low"] <= result["gold_gain_sd"] <= result["gold_gain_high"]
    report = (folder / "report.md").read_text()
    assert "| best of 2 | 0.19 |" in report
    assert film_reviews.QUESTION.strip() not in (folder / "samples.md").read_text()
    stages = {path.name for path in (folder / "checkpoints").iterdir()}
    if method == "best-of-n":
        assert stages == {"proxy", "gold"}
        assert result["sequence_kl_nats"] == pytest.approx(np.log(16) - 15 / 16)
        return
    assert stages == {"proxy", "gold", "policy"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["proxy"] * 10 + ["gold"] * 10 + ["policy"] * 2
    # Nothing has been updated when the first answers are drawn: the cached sampler, the trunk and
    # the upper layers are the reference policy.
    assert abs(rows[-2]["kl"]) < 1e-3
    assert rows[-1]["kl"] != 0


def test_every_text_has_its_columns():
    layout = film_reviews.Layout(np.array([9]), np.array([7, 8]))
    tokens, mask = layout.rows([[1, 2, 3, 4], [5]], 3)
    assert tokens.tolist() == [[9, 1, 2, 3, 7, 8], [9, 5, 0, 0, 7, 8]]
    assert mask.astype(int).tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]]
    assert layout.text(tokens).tolist() == [[1, 2, 3], [5, 0, 0]]


def test_the_question_stands_behind_the_answer_and_its_end_is_hidden():
    def sample(params, prompts, keys):
        tokens = np.array([[1, 5, 6, 0], [1, 5, 5, 5]], np.int32)
        response = np.array([[0, 1, 1, 0], [0, 1, 1, 1]], bool)
        mask = response | (np.arange(4) == 0)
        return rj.types.Sequences(tokens, mask, response, -response.astype(np.float32))

    asked = film_reviews.Layout(np.array([9]), np.array([7, 8])).asked(sample, end=6)(
        (), None, None
    )
    assert asked.tokens.tolist() == [[1, 5, 6, 0, 7, 8], [1, 5, 5, 5, 7, 8]]
    # The end of the text is learnt and not read.
    assert asked.mask.astype(int).tolist() == [[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert asked.response_mask.astype(int).tolist() == [[0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert asked.log_probs.tolist() == [[0, -1, -1, 0, 0, 0], [0, -1, -1, -1, 0, 0]]


def test_the_best_of_several_is_the_proxys_choice():
    answers = np.arange(6).reshape(2, 3, 1)
    measured = {"proxy": np.array([[1.0, 3.0, 9.0], [5.0, 4.0, 0.0]]), "gold": answers[..., 0]}
    chosen, found = sentiment.best_of(answers, measured, 2)
    assert chosen.tolist() == [[1], [3]]
    assert found["gold"].tolist() == [1, 3]
    assert found["kl"] == pytest.approx([np.log(2) - 0.5] * 2)
