"""What a backward pass keeps, against the compiler's plan; remat and dtype by size and device."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from rlhf_jax.models import TransformerConfig, activation_bytes, choose_remat, compute_dtype

CONFIG = TransformerConfig(vocab_size=64, hidden_size=8, num_layers=4)
ROWS, LENGTH = 2, 16


def test_remat_is_as_little_as_fits():
    policies = (False, "dots_with_no_batch_dims_saveable", True)
    needed = [
        activation_bytes(dataclasses.replace(CONFIG, remat=remat), ROWS, LENGTH)
        for remat in policies
    ]
    assert sorted(needed, reverse=True) == needed
    for remat, size in zip(policies, needed, strict=True):
        assert choose_remat(CONFIG, ROWS, LENGTH, size * 1.25) == remat
    with pytest.raises(ValueError, match=r"must be at least .*for 2 rows of 16 tokens.*accumulate"):
        choose_remat(CONFIG, ROWS, LENGTH, needed[-1])
    with pytest.raises(ValueError, match="length must be at least 1, not 0"):
        activation_bytes(CONFIG, ROWS, 0)


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("tpu", None, jnp.bfloat16),
        ("gpu", "8.0", jnp.bfloat16),
        ("gpu", "12.0", jnp.bfloat16),
        ("gpu", "7.5", jnp.float32),
        ("gpu", "gfx90a", jnp.float32),
        ("cpu", None, jnp.float32),
    ],
)
def test_bfloat16_where_it_is_faster(platform, capability, expected):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    assert compute_dtype(device) == expected


COMPARED = """
import dataclasses, json, jax, jax.numpy as jnp
from rlhf_jax.models import TransformerConfig, activation_bytes, language_model
ratios = []
for rows, length in ((8, 64), (2, 256)):
    for remat in (False, "dots_with_no_batch_dims_saveable", True):
        config = TransformerConfig(512, 192, 576, num_layers=6, num_kv_heads=2, remat=remat)
        model = language_model(config)
        params = jax.eval_shape(model.init, jax.random.key(0))
        tokens, mask = (jax.ShapeDtypeStruct((rows, length), t) for t in (jnp.int32, bool))
        loss = lambda p, t, m: jnp.sum(model.factored_logits_fn(p, t, m).hidden ** 2)
        plan = jax.jit(jax.grad(loss)).lower(params, tokens, mask).compile().memory_analysis()
        ratios.append(plan.temp_size_in_bytes / activation_bytes(config, rows, length))
print(json.dumps(ratios))
"""


@pytest.mark.slow
def test_the_compiler_plans_as_much():
    """Within a quarter; with all of the compiler's optimisations, which the other tests forgo."""
    settings = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPARED]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=True
    )
    ratios = json.loads(done.stdout)
    assert len(ratios) == 6 and all(0.8 < ratio < 1.25 for ratio in ratios), ratios
