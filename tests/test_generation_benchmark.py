"""The benchmark of generation, at a toy shape: its responses are as long as it says."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import sampling
from rlhf_jax.types import Decoder, Prompts

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks" / "generation.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("generation_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["generation_benchmark"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_responses_are_a_quarter_of_the_longest_on_average(benchmark):
    level = Decoder(
        init_cache=lambda batch, length: (),
        apply=lambda params, tokens, mask, cache: (jnp.zeros([len(tokens), 50]), cache),
        vocab_size=50,
        max_length=50,
    )
    ending = benchmark.ending(level, mean=8.0, longest=32)
    sample = sampling.sampler(ending, max_new_tokens=32, eos_id=benchmark.EOS)
    prompts = Prompts(jnp.ones([1, 1], jnp.int32), jnp.ones([1, 1], bool))
    out = jax.jit(sample)((), prompts, jax.random.split(jax.random.key(0), 2000))
    lengths = out.response_mask.sum(axis=1)
    assert abs(lengths.mean() - 8) < 0.5
    assert lengths.min() == 1
    assert lengths.max() == 32


@pytest.mark.slow
def test_all_ways_are_measured(benchmark, tmp_path, capsys):
    benchmark.main(benchmark.Config(run_dir=tmp_path / "run", fast=True))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["unequal"]) == 4
    assert result["unequal"][0]["times_first"] == 1
    assert "slots refilled" in capsys.readouterr().out


def test_impossible_settings_are_refused(benchmark):
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        benchmark.main(benchmark.Config(rounds=0))
