"""The README's code runs as it stands, and its file tree is the one that is there."""

import re
from pathlib import Path

import jax
import numpy as np
import toys

from rlhf_jax.algorithms import presets

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs_as_it_stands():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    batch = toys.preferences(4)
    batches = jax.tree.map(lambda x: np.stack([x, x]), batch)
    names = {"batch": batch, "batches": batches}
    exec(compile(code, "README.md", "exec"), names)
    assert names["history"]["loss"].shape == (2,)
    assert np.isfinite(names["metrics"]["loss"])


def test_every_method_with_a_name_is_in_its_tables():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert set(presets.__all__) <= named


def test_it_is_short_and_names_only_what_is_there():
    assert len(README.splitlines()) <= 200
    package = {path.stem for path in (ROOT / "rlhf_jax").iterdir() if not path.stem.startswith("_")}
    (tree,) = re.findall(r"```\n(rlhf_jax/\n.*?)```", README, re.DOTALL)
    named = set(re.findall(r"(?<![\w/])(\w+)(?:\.py|/)", tree.split("experiments/")[0]))
    assert named - {"rlhf_jax"} == package
    for path in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / path).exists(), path
