"""Preference losses against the values and gradients of TRL 1.16.0's own code.

``goldens/make_trl_preference.py`` made the numbers; torch is not needed here. TRL takes ``beta``
and log-ratios, we take ``beta`` times an implicit reward: the table says what corresponds to what.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import implicit_rewards, losses

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "trl_preference.json").read_text())
INPUTS = {name: jnp.array(value) for name, value in GOLDEN["inputs"].items()}
CASES = {
    f"{case['trainer']}-" + "-".join(map(str, case["arguments"].values())): case
    for case in GOLDEN["cases"]
}
HALF = len(INPUTS["lengths"]) // 2

# TRL's loss of a pair with our name and the keyword that its label_smoothing is.
PAIRED = {
    "sigmoid": (losses.bradley_terry, None),
    "sigmoid_norm": (losses.bradley_terry, None),
    "hinge": (losses.hinge, None),
    "nca_pair": (losses.nca_pair, None),
    "bco_pair": (losses.bco_pair, None),
    "sppo_hard": (losses.sppo_hard, None),
    "apo_zero": (losses.apo_zero, None),
    "apo_down": (losses.apo_down, None),
    "exo_pair": (losses.exo_pair, "flip_rate"),
    "robust": (losses.unbiased, "flip_rate"),
    "aot": (losses.alternative_optimal_transport, "flip_rate"),
    "aot_unpaired": (losses.alternative_optimal_transport, "flip_rate"),
}


def dpo(log_probs, *, loss, beta, label_smoothing=0.0, tau=None, f_divergence=None, alpha=None):
    rows = (log_probs[:, None], INPUTS["ref_log_probs"][:, None], jnp.ones([2 * HALF, 1], bool))
    reward = {
        None: implicit_rewards.log_ratio,
        "forward_kl": implicit_rewards.forward_kl,
        "js_divergence": implicit_rewards.jensen_shannon,
        "alpha_divergence": partial(implicit_rewards.alpha_divergence, alpha=alpha),
    }[f_divergence](*rows)
    if loss == "ipo":  # TRL's beta is IPO's tau, on the ratio per token
        return losses.squared(*jnp.split(reward / INPUTS["lengths"], 2), tau=beta)
    if loss == "sft":  # the mean over all tokens of the chosen answers
        chosen, mask = log_probs[:HALF, None], jnp.ones([HALF, 1], bool)
        return losses.cross_entropy(chosen, mask).sum() / INPUTS["lengths"][:HALF].sum()
    if loss == "sigmoid_norm":
        reward = reward / INPUTS["lengths"]
    chosen, rejected = jnp.split(beta * reward, 2)
    if loss == "discopop":
        return losses.discopop(chosen, rejected, tau=tau)
    ours, keyword = PAIRED[loss]
    keywords = {keyword: label_smoothing} if keyword else {}
    if loss == "aot":
        ref_chosen, ref_rejected = jnp.split(INPUTS["ref_log_probs"], 2)
        keywords["ref_lead"] = beta * (ref_chosen - ref_rejected)
    value = ours(chosen, rejected, **keywords)
    return value / beta**2 if loss == "sppo_hard" else value


def kto(log_probs, *, loss, beta, kl, kl_sign=1, **weights):
    rewards = beta * (log_probs - INPUTS["ref_log_probs"][:HALF])
    ours = {"kto": losses.kto, "apo_zero_unpaired": losses.apo_zero_unpaired}[loss]
    return ours(rewards, INPUTS["desirable"], beta * kl, **weights)


def cpo(averages, *, loss, beta, label_smoothing=0.0, simpo_gamma=0.0):
    if loss == "ipo":
        return losses.squared(*jnp.split(averages, 2), tau=beta)
    chosen, rejected = jnp.split(beta * averages, 2)
    if loss == "sigmoid":
        return losses.smoothed(chosen, rejected, flip_rate=label_smoothing)
    if loss == "simpo":
        return losses.bradley_terry(chosen, rejected, margin=simpo_gamma)
    return losses.hinge(chosen, rejected)


def orpo(averages, *, beta):
    odds = implicit_rewards.log_odds(
        averages[:, None], averages[:, None], jnp.ones([2 * HALF, 1], bool)
    )
    # TRL's sign is the other way round: it subtracts this from its negative log-likelihood.
    return -beta * losses.bradley_terry(*jnp.split(odds, 2))


def reward(scores, *, margin, centering=0.0):
    chosen, rejected = jnp.split(scores, 2)
    value = losses.bradley_terry(chosen, rejected, margin=margin)
    return value + centering * jnp.square(chosen + rejected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradient_are_those_of_trl(case):
    further = {"kl": case["kl"]} if case["trainer"] == "kto" else {}
    given, ours = {
        "dpo": (INPUTS["log_probs"], dpo),
        "kto": (INPUTS["log_probs"][:HALF], kto),
        "cpo": (INPUTS["log_probs"] / INPUTS["lengths"], cpo),
        "orpo": (INPUTS["log_probs"] / INPUTS["lengths"], orpo),
        "reward": (INPUTS["scores"], reward),
    }[case["trainer"]]
    loss = partial(ours, **case["arguments"], **further)
    mean, gradient = jax.value_and_grad(lambda x: loss(x).mean())(given)
    np.testing.assert_allclose(mean, case["mean"], rtol=1e-5)
    scale = np.abs(case["gradient"]).max()
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-5, atol=1e-6 * scale)
    if "values" in case:
        np.testing.assert_allclose(loss(given), case["values"], rtol=1e-5, atol=1e-6)


def test_the_goldens_hold_all_of_trls_losses_of_pairs():
    found = {case["arguments"]["loss"] for case in GOLDEN["cases"] if case["trainer"] == "dpo"}
    assert found == {*PAIRED, "ipo", "discopop", "sft"}
    assert len(found) == 15


def test_the_goldens_are_of_trl_and_hold_both_signs_of_the_kl():
    assert GOLDEN["versions"] == {"trl": "1.16.0", "torch": "2.13.0"}
    kls = [case["kl"] for case in GOLDEN["cases"] if case["trainer"] == "kto"]
    assert min(kls) < 0 < max(kls)
