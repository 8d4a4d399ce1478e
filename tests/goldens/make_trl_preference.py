"""Makes trl_preference.json: what TRL 1.16.0's own code says of invented log-probabilities.

Run it where trl 1.16.0 and torch 2.13.0 (CPU) are installed: ``python make_trl_preference.py``. The
tests only read the JSON. TRL's ``_compute_loss`` is called as it is, on a stub for the trainer and
one for the model; gradients are torch's, with respect to the sequences' log-probabilities.
"""

import collections
import json
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace as Stub

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

torch.manual_seed(0)
torch.set_num_threads(1)
B, T = 8, 6
ACCELERATOR = Stub(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction=None: x,
    num_processes=1,
    sync_gradients=False,
)


def metrics():
    return {"train": collections.defaultdict(list), "eval": collections.defaultdict(list)}


class Model:
    """Returns the log-probabilities it was given."""

    training = True

    def __init__(self, log_probs):
        self.log_probs = log_probs

    def __call__(self, **_):
        zeros = torch.zeros_like(self.log_probs)
        return Stub(
            log_probs=self.log_probs,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            log_sum_sq_probs=zeros,
        )


MASK = torch.ones(2 * B, T, dtype=torch.long)
MASK[:, 0] = 0
MASK[1, 4:] = MASK[5, 3:] = MASK[10, 2:] = 0
LOG_PROBS = -torch.rand(2 * B, T - 1) * 2 * MASK[:, 1:]
REF_LOG_PROBS = LOG_PROBS.sum(1) + 2 * torch.randn(2 * B)
SHARED = {
    "accelerator": ACCELERATOR,
    "aux_loss_enabled": False,
    "precompute_ref_logps": True,
    "_total_train_tokens": 0,
    "_tp_size": 1,
}


def dpo(loss, beta, label_smoothing=0.0, tau=0.05, f_divergence="reverse_kl", alpha=1.0):
    log_probs = LOG_PROBS.clone().requires_grad_()
    trainer = Stub(
        **SHARED,
        model=Model(log_probs),
        ld_alpha=None,
        f_divergence_type=f_divergence,
        f_alpha_divergence_coef=alpha,
        loss_types=[loss],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        args=Stub(discopop_tau=tau),
        use_weighting=False,
        _metrics=metrics(),
    )
    batch = {
        "input_ids": torch.ones(2 * B, T, dtype=torch.long),
        "attention_mask": torch.ones(2 * B, T, dtype=torch.long),
        "completion_mask": MASK,
        "ref_chosen_logps": REF_LOG_PROBS[:B],
        "ref_rejected_logps": REF_LOG_PROBS[B:],
    }
    value = DPOTrainer._compute_loss(trainer, trainer.model, batch, False)
    (gradient,) = torch.autograd.grad(value, log_probs)
    return {"mean": value.item(), "gradient": gradient[:, 0].tolist()}


DESIRABLE = torch.arange(B) % 3 != 1
KL_LOG_RATIOS = torch.rand(B)


def kto(loss, beta, kl_sign=1, desirable_weight=1.0, undesirable_weight=1.0):
    log_probs = LOG_PROBS[:B].clone().requires_grad_()
    trainer = Stub(
        **SHARED,
        model=Model(log_probs),
        calculate_KL=loss == "kto",
        loss_type=loss,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        _metrics=metrics(),
        _compute_kl_logps=lambda *_: kl_sign * KL_LOG_RATIOS,
        args=Stub(),
    )
    batch = {
        "input_ids": torch.zeros(B, T, dtype=torch.long),
        "attention_mask": torch.ones(B, T),
        "completion_mask": MASK[:B],
        "label": DESIRABLE.int(),
        "ref_logps": REF_LOG_PROBS[:B],
        "ref_KL_logps": torch.zeros(B),
    }
    value = KTOTrainer._compute_loss(trainer, trainer.model, batch, False)
    (gradient,) = torch.autograd.grad(value, log_probs)
    kl = kl_sign * KL_LOG_RATIOS.mean().item()
    return {"mean": value.item(), "gradient": gradient[:, 0].tolist(), "kl": kl}


AVERAGE = LOG_PROBS.sum(1) / MASK.sum(1)  # what SimPO and ORPO are given


def per_example(function):
    log_probs = AVERAGE.clone().requires_grad_()
    values = function(log_probs[:B], log_probs[B:])
    (gradient,) = torch.autograd.grad(values.mean(), log_probs)
    return {"mean": values.mean().item(), "gradient": gradient.tolist(), "values": values.tolist()}


def cpo(loss, beta, label_smoothing=0.0, simpo_gamma=0.5):
    trainer = Stub(
        accelerator=ACCELERATOR,
        alpha=0.0,
        loss_type=loss,
        simpo_gamma=simpo_gamma,
        beta=beta,
        label_smoothing=label_smoothing,
    )
    return per_example(lambda c, r: CPOTrainer.cpo_loss(trainer, c, r)[0])


def orpo(beta):
    trainer = Stub(accelerator=ACCELERATOR, beta=beta)
    return per_example(lambda c, r: ORPOTrainer.odds_ratio_loss(trainer, c, r)[0])


SCORES = torch.randn(2 * B)


def reward(margin, centering=None):
    scores = SCORES.clone().requires_grad_()
    trainer = Stub(
        **SHARED,
        model=Stub(training=True),
        args=Stub(center_rewards_coefficient=centering),
        _metrics=metrics(),
    )
    batch = {"attention_mask": torch.ones(2 * B, 2), "margin": torch.full([B], margin)}
    value = RewardTrainer.compute_loss(trainer, lambda **_: Stub(logits=scores[:, None]), batch)
    (gradient,) = torch.autograd.grad(value, scores)
    return {"mean": value.item(), "gradient": gradient.tolist()}


PLAIN = (
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "sft",
)


def cases():
    for beta in (0.1, 0.7):
        for loss in PLAIN:
            yield dpo, {"loss": loss, "beta": beta}
        for loss in ("exo_pair", "robust", "aot", "aot_unpaired"):
            for rate in (0.1, 0.3):
                yield dpo, {"loss": loss, "beta": beta, "label_smoothing": rate}
        for tau in (0.05, 0.5):
            yield dpo, {"loss": "discopop", "beta": beta, "tau": tau}
        for name in ("forward_kl", "js_divergence"):
            yield dpo, {"loss": "sigmoid", "beta": beta, "f_divergence": name}
        for alpha in (-0.5, 0.5, 2.0):
            name = "alpha_divergence"
            yield dpo, {"loss": "sigmoid", "beta": beta, "f_divergence": name, "alpha": alpha}
        for kl_sign in (1, -1):
            yield kto, {"loss": "kto", "beta": beta, "kl_sign": kl_sign}
        for loss in ("kto", "apo_zero_unpaired"):
            weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
            yield kto, {"loss": loss, "beta": beta, **weights}
        for rate in (0.0, 0.1, 0.3):
            yield cpo, {"loss": "sigmoid", "beta": beta, "label_smoothing": rate}
        yield cpo, {"loss": "hinge", "beta": beta}
        yield cpo, {"loss": "ipo", "beta": beta}
        yield cpo, {"loss": "simpo", "beta": beta, "simpo_gamma": 0.5}
        yield orpo, {"beta": beta}
        yield reward, {"margin": beta}
        yield reward, {"margin": beta, "centering": 0.01}


def main():
    golden = {
        "versions": {name: version(name).split("+")[0] for name in ("trl", "torch")},
        "inputs": {
            "log_probs": LOG_PROBS.sum(1).tolist(),
            "ref_log_probs": REF_LOG_PROBS.tolist(),
            "lengths": MASK.sum(1).tolist(),
            "desirable": DESIRABLE.tolist(),
            "scores": SCORES.tolist(),
        },
        "cases": [
            {"trainer": function.__name__, "arguments": arguments, **function(**arguments)}
            for function, arguments in cases()
        ],
    }
    path = Path(__file__).with_name("trl_preference.json")
    path.write_text(json.dumps(golden).replace('{"trainer"', '\n{"trainer"') + "\n")


if __name__ == "__main__":
    main()
