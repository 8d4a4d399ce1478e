"""The pipeline on preference data: a small file of pairs to a policy, and what it refuses."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "preferences.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("preferences_experiment", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["preferences_experiment"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Forty prompts, of which a good word is preferred to a bad one."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"prompt": f"film {n} is", "chosen": " good" * (1 + n % 2), "rejected": " bad"}
        for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def tiny(script, pairs, folder, **settings):
    sizes = {"sft_steps": 2, "reward_steps": 2, "steps": 2, "batch": 4, "prompts": 4}
    sizes |= {"max_length": 16, "new_tokens": 3, "width": 8, "layers": 1, "vocabulary": 280}
    return script.Config(pairs, run_dir=folder, **(sizes | {"evaluated": 4} | settings))


def run(script, config):
    script.main(config)
    return json.loads((config.run_dir / "result.json").read_text())


def test_a_file_of_pairs_becomes_a_policy(script, pairs, tmp_path, capsys):
    result = run(script, tiny(script, pairs, tmp_path / "run"))
    assert result["learnt_from"] + result["held_out"] == 40
    assert 0 <= result["implicit_reward_accuracy"]["low"] <= 1
    assert result["sequence_kl_nats"]["estimate"] == pytest.approx(0, abs=0.1)
    stages = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(x["stage"], x["step"]) for x in stages] == [
        ("sft", 1),
        ("sft", 2),
        ("policy", 1),
        ("policy", 2),
    ]
    assert "film" in (tmp_path / "run/samples.md").read_text()
    assert "implicit_reward_accuracy" in capsys.readouterr().out


def test_what_a_models_own_template_writes_is_not_written_again(script, monkeypatch):
    def template(messages, begin_answer):
        said = "".join(f"{m['role'][0]}{m['content']}>" for m in messages)
        return f"<{said}" + "a" * begin_answer

    def loaded(name, **settings):
        ids = {"<": 1, ">": 2}
        given = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "template": template}
        return types.SimpleNamespace(
            model=None, params=None, tokenizer=lambda text: [ids.get(c, 9) for c in text], **given
        )

    def said(prompt, answer, by):
        return [{"role": by, "content": answer}] if isinstance(prompt, list) else answer

    monkeypatch.setattr(script.rj.pretrained, "load", loaded)
    asked = [{"role": "user", "content": "what?"}]
    for prompt, special in (("what?", (1, 2)), (asked, (None, None))):
        sides = {name: said(prompt, "yes", "assistant") for name in ("chosen", "rejected")}
        base = script.base(script.Config("", model="x"), [{"prompt": prompt} | sides])
        assert (base.tokens["bos_id"], base.final, base.eos_id) == (*special, 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kto", "orpo", "ppo", "remax", "grpo"])
def test_every_kind_of_method(script, pairs, tmp_path, method):
    result = run(script, tiny(script, pairs, tmp_path, overwrite=True, method=method, lora_rank=2))
    assert ("reward_gain_sd" in result) == (method in script.Online.__args__)


@pytest.mark.slow
def test_it_learns_what_is_preferred_and_a_mesh_changes_nothing(script, pairs, tmp_path):
    settings = {"sft_steps": 40, "reward_steps": 40, "steps": 150, "width": 32, "method": "rloo"}
    settings |= {"sft_rate": 3e-3, "reward_rate": 3e-3, "rate": 1e-2, "prompts": 8}
    settings |= {"held_out": 0.4, "evaluated": 16}
    whole = run(script, tiny(script, pairs, tmp_path / "one", **settings))
    assert whole["reward_accuracy"]["estimate"] > 0.9
    assert whole["reward_gain_sd"]["low"] > 0
    for n, laid in enumerate([{"devices": 4}, {"mesh": "fsdp=2,tensor=2"}]):
        mesh = run(script, tiny(script, pairs, tmp_path / f"mesh{n}", **settings, **laid))
        for name in ("reward_gain_sd", "sequence_kl_nats"):
            assert mesh[name]["estimate"] == pytest.approx(whole[name]["estimate"], abs=0.1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"devices": 99}, "devices must be from 1 to"),
        ({"mesh": "fsdp=99,data=1"}, "mesh fsdp=99,data=1 is of 99 devices: 4 are there"),
        ({"held_out": 0.0}, "held_out must be between 0 and 1"),
        ({"held_out": 1e-9}, "there must be some of both"),
        ({"batch": 999}, "batches of 999 rows"),
        ({"activations_gb": 1e-9}, "bytes_available must be at least"),
    ],
)
def test_bad_settings(script, pairs, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        script.main(tiny(script, pairs, tmp_path / "run", **settings))


def test_rows_that_are_no_pairs(script, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}')
    with pytest.raises(ValueError, match=r"unpaired rows.*--pairs"):
        script.main(tiny(script, str(tmp_path / "rows.jsonl"), tmp_path / "run"))
