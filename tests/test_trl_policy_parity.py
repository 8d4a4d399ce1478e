"""Policy losses and advantages against the values and gradients of TRL 1.16.0's own code.

``goldens/make_trl_policy.py`` made the numbers; torch is not needed here. TRL's loss type is our
loss and our aggregation; the tables say which. Where we differ on purpose a test says so.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import advantages, divergences, losses, sequences

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "trl_policy.json").read_text())
ROWS, TOKENS = 8, 8


def padded(values):
    """To one shape, so that each operation is compiled once. What is padding must not matter."""
    values = np.array(values)
    widths = [(0, to - size) for to, size in zip((ROWS, TOKENS), values.shape, strict=False)]
    fill = False if values.dtype == bool else 77
    return jnp.array(np.pad(values, widths, constant_values=fill))


BATCHES = {
    name: {field: padded(values) for field, values in batch.items()}
    for name, batch in GOLDEN["batches"].items()
}
CASES = {
    f"{case['function']}-" + "-".join(f"{k}={v}" for k, v in case["arguments"].items()): case
    for case in GOLDEN["cases"]
}
LOSSES = {name: case for name, case in CASES.items() if "gradient" in case}


AGGREGATION = {
    "grpo": sequences.sequence_mean,
    "sapo": sequences.sequence_mean,
    "bnpo": sequences.token_mean,
    "dapo": sequences.token_mean,
    "cispo": sequences.token_mean,
    "vespo": sequences.token_mean,
    "dr_grpo": partial(sequences.constant_length, length=11),
    "luspo": sequences.sequence_sum,
}


def grpo(loss, *, level="token", low=0.2, high=0.2, delta=None, **settings):
    if loss == "cispo":  # TRL's epsilon_high is the bound itself, and there is none below
        return partial(losses.clipped_is, clip_range_high=high - 1)
    if loss == "sapo":
        names = {"temperature": "sapo_pos", "negative_temperature": "sapo_neg"}
        return partial(losses.soft_gate, **renamed(settings, names))
    if loss == "vespo":
        names = {
            "power": "k_pos",
            "decay": "lambda_pos",
            "negative_power": "k_neg",
            "negative_decay": "lambda_neg",
        }
        return partial(losses.vespo, **renamed(settings, names))
    if level == "sequence":  # GSPO, and LUSPO under its aggregation
        return partial(losses.sequence_clip, clip_range=low, clip_range_high=high)
    return partial(losses.ppo_clip, clip_range=low, clip_range_high=high, dual_clip=delta)


def renamed(settings, names):
    return {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}


def mean_of_grpo(log_probs, batch, *, loss, beta=0.0, **settings):
    mask, aggregate = batch["mask"], AGGREGATION[loss]
    spread = jnp.broadcast_to(batch["advantages"][:, None], mask.shape)
    values = grpo(loss, **settings)(log_probs, batch["old_log_probs"], spread, mask)
    penalty = divergences.kl_k3(log_probs, batch["ref_log_probs"])
    total, count = aggregate(values + beta * penalty, mask)
    return total / count


def mean_of_rloo(log_probs, batch, *, low=0.2, high=0.2):
    """TRL's RLOO clips the ratio of whole answers: they are single actions to ``ppo_clip``."""
    mask = batch["mask"]
    answers = [
        jnp.where(mask, x, 0).sum(-1, keepdims=True) for x in (log_probs, batch["old_log_probs"])
    ]
    estimates, counts = batch["advantages"][:, None], mask.any(-1, keepdims=True)
    clip = partial(losses.ppo_clip, clip_range=low, clip_range_high=high)
    return sequences.masked_mean(clip(*answers, estimates, counts), counts)


def ours(case):
    arguments = dict(case["arguments"])
    batch = BATCHES[arguments.pop("name")]
    function = {"grpo": mean_of_grpo, "rloo": mean_of_rloo}[case["function"]]
    return jax.value_and_grad(lambda x: function(x, batch, **arguments))(batch["log_probs"])


def assert_equal(found, case, factor=1.0):
    mean, gradient = found
    np.testing.assert_allclose(mean, factor * case["mean"], rtol=1e-5, atol=1e-7)
    expected = factor * np.array(case["gradient"])
    rows, tokens = expected.shape
    close = {"rtol": 1e-5, "atol": 1e-6 * np.abs(expected).max()}
    np.testing.assert_allclose(gradient[:rows, :tokens], expected, **close)
    assert not gradient[rows:].any()
    assert not gradient[:, tokens:].any()


@pytest.mark.parametrize("name", [name for name in LOSSES if "empty row" not in name])
def test_value_and_gradient_are_those_of_trl(name):
    case = LOSSES[name]
    assert_equal(ours(case), case)


def test_a_row_without_tokens_does_not_count_here_and_does_in_trl():
    assert np.any(GOLDEN["batches"]["empty row"]["mask"], -1).tolist() == [True, False, True]
    for loss, factor in (("grpo", 3 / 2), ("dapo", 1)):
        case = LOSSES[f"grpo-name=empty row-loss={loss}"]
        assert_equal(ours(case), case, factor)


def test_rloo_on_policy_is_reinforce_on_the_sum_over_tokens():
    """Ours has no ratio: the gradient is TRL's as long as nothing has moved."""
    batch = BATCHES["wide"] | {"old_log_probs": BATCHES["wide"]["log_probs"]}
    mask, log_probs = batch["mask"], batch["log_probs"]
    spread = jnp.broadcast_to(batch["advantages"][:, None], mask.shape)

    def reinforce(log_probs):
        total, count = sequences.sequence_sum(
            losses.reinforce(log_probs, log_probs, spread, mask), mask
        )
        return total / count

    theirs = jax.grad(lambda x: mean_of_rloo(x, batch))(log_probs)
    np.testing.assert_allclose(jax.grad(reinforce)(log_probs), theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "estimate"),
    [
        ("grpo_advantages-scale=group", partial(advantages.group_normalised, ddof=1)),
        ("grpo_advantages-scale=none", partial(advantages.group_normalised, scale=False)),
        ("rloo_advantages-", advantages.leave_one_out),
    ],
)
def test_advantages_are_those_of_trl(case, estimate):
    found = estimate(jnp.array(GOLDEN["rewards"]))
    np.testing.assert_allclose(found, CASES[case]["advantages"], rtol=1e-5, atol=1e-6)


def test_the_goldens_are_of_trl_and_reach_every_corner():
    assert GOLDEN["versions"] == {"trl": "1.16.0", "torch": "2.13.0"}
    found = {case["arguments"]["loss"] for case in LOSSES.values() if case["function"] == "grpo"}
    assert found == set(AGGREGATION)
    assert len(found) == 8
    batch = BATCHES["wide"]
    ratios = jnp.exp(batch["log_probs"] - batch["old_log_probs"])
    good = (batch["advantages"] > 0)[:, None]
    for far in (ratios < 0.8, ratios > 1.5):
        for sign in (good, ~good):
            assert (far & sign & batch["mask"]).any()
