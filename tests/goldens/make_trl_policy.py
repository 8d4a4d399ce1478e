"""Makes trl_policy.json: what TRL 1.16.0's own code says of invented policies and rewards.

Run it where trl 1.16.0 and torch 2.13.0 (CPU) are installed: ``python make_trl_policy.py``. The
tests only read the JSON. TRL's ``_compute_loss`` is called as it is, on a stub for the trainer;
gradients are torch's, with respect to the log-probabilities, in float64. The advantages are worked
out in the middle of a method that also generates: their lines are taken out of it and run.
"""

import collections
import inspect
import json
import os
import textwrap
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace as Stub

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

torch.manual_seed(0)
torch.set_num_threads(1)
ACCELERATOR = Stub(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction=None: x,
    num_processes=1,
    sync_gradients=False,
)


def batch(lengths, tokens, drift):
    """Rows of unequal length, the first with a hole in it, and drifted from the old policy.

    Row by row advantages alternate in sign, and every two rows the drift does. What padding holds
    is as wild as what counts.
    """
    rows = torch.arange(len(lengths))
    shape = len(lengths), tokens
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    mask[0, 1] = False
    log_probs = -3 * torch.rand(shape)
    direction = (1 - 2 * (rows // 2 % 2))[:, None]
    drifts = drift * (torch.randn(shape) + direction * (0.5 + torch.rand(len(lengths), 1)))
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs - drifts,
        "ref_log_probs": log_probs + 0.5 * torch.randn(shape),
        "advantages": (1 - 2 * (rows % 2)) * (0.2 + torch.rand(len(lengths))),
        "mask": mask,
    }


BATCHES = {
    "wide": batch([8, 3, 6, 8, 1, 7, 2, 3], tokens=8, drift=0.3),
    "near": batch([5, 3, 2, 5], tokens=5, drift=5e-4),
    "one": batch([4], tokens=7, drift=0.3),
    "empty row": batch([3, 0, 2], tokens=3, drift=0.3),
}


def stub(log_probs, **further):
    zeros = torch.zeros_like(log_probs)
    return Stub(
        model=Stub(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, zeros, None),
        **further,
    )


def inputs(given):
    mask = given["mask"].double()
    rows = len(mask)
    return {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": given["advantages"].double(),
        "num_items_in_batch": mask.sum(),
    }


def differentiated(loss, given):
    log_probs = given["log_probs"].double().requires_grad_()
    value = loss(log_probs)
    (gradient,) = torch.autograd.grad(value, log_probs)
    return {"mean": value.item(), "gradient": gradient.tolist()}


def grpo(name, loss, level="token", low=0.2, high=0.2, delta=None, beta=0.0, **settings):
    given = BATCHES[name]

    def value(log_probs):
        trainer = stub(
            log_probs,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level=level,
            beta=beta,
            args=Stub(
                use_bias_correction_kl=False,
                delta=delta,
                sapo_temperature_pos=settings.get("sapo_pos", 1.0),
                sapo_temperature_neg=settings.get("sapo_neg", 1.05),
                vespo_k_pos=settings.get("k_pos", 2.0),
                vespo_lambda_pos=settings.get("lambda_pos", 3.0),
                vespo_k_neg=settings.get("k_neg", 3.0),
                vespo_lambda_neg=settings.get("lambda_neg", 2.0),
                steps_per_generation=1,
            ),
            loss_type=loss,
            epsilon_low=low,
            epsilon_high=high,
            use_vllm=False,
            vllm_importance_sampling_correction=False,
            current_gradient_accumulation_steps=1,
            max_completion_length=11,
            _entropy_bonus_enabled=False,
            get_gamma_weights=GRPOTrainer.get_gamma_weights,
        )
        further = {
            "old_per_token_logps": given["old_log_probs"].double(),
            "ref_per_token_logps": given["ref_log_probs"].double(),
        }
        return GRPOTrainer._compute_loss(trainer, None, inputs(given) | further)

    return differentiated(value, given)


def rloo(name, low=0.2, high=0.2):
    given = BATCHES[name]

    def value(log_probs):
        trainer = stub(log_probs, epsilon_low=low, epsilon_high=high)
        further = {"old_logps": (given["old_log_probs"].double() * given["mask"]).sum(1)}
        return RLOOTrainer._compute_loss(trainer, None, inputs(given) | further)

    return differentiated(value, given)


def lines(trainer, first, last):
    """The lines of TRL that work out advantages, from one to before another."""
    source = inspect.getsource(trainer._generate_and_score_completions)
    start, end = source.index(first), source.index(last)
    start = source.rindex("\n", 0, start) + 1
    return textwrap.dedent(source[start : source.rindex("\n", 0, end)])


REWARDS = torch.cat([torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 1], [2.0, 2, 2, 2]])])


def grpo_advantages(scale):
    names = {
        "torch": torch,
        "nanstd": nanstd,
        "device": torch.device("cpu"),
        "num_generations": REWARDS.shape[1],
        "rewards_per_func": REWARDS.reshape(-1, 1),
        "unscorable_mask": torch.zeros(REWARDS.numel(), dtype=torch.bool),
        "self": Stub(
            multi_objective_aggregation="sum_then_normalize",
            scale_rewards=scale,
            reward_weights=torch.ones(1),
        ),
    }
    exec(
        lines(GRPOTrainer, "if self.multi_objective_aggregation ==", "# Slice to keep only the"),
        names,
    )
    return {"advantages": names["advantages"].view(REWARDS.shape).tolist()}


def rloo_advantages():
    names = {
        "torch": torch,
        "nanstd": nanstd,
        "num_generations": REWARDS.shape[1],
        "rewards": REWARDS.flatten(),
        "self": Stub(normalize_advantages=False),
    }
    exec(lines(RLOOTrainer, "grouped_rewards = rewards.view", "is_std_zero ="), names)
    return {"advantages": names["advantages"].view(REWARDS.shape).tolist()}


def cases():
    for name in ("wide", "near", "one"):
        for loss in ("grpo", "bnpo", "dr_grpo", "dapo"):
            yield grpo, {"name": name, "loss": loss}
        yield grpo, {"name": name, "loss": "dapo", "low": 0.1, "high": 0.3}
        yield grpo, {"name": name, "loss": "grpo", "low": 0.2, "high": 0.28, "delta": 1.5}
        yield grpo, {"name": name, "loss": "grpo", "beta": 0.04}
        yield grpo, {"name": name, "loss": "dr_grpo", "beta": 0.5}
        for high in (1.1, 5.0):
            yield grpo, {"name": name, "loss": "cispo", "high": high}
        yield grpo, {"name": name, "loss": "sapo"}
        yield grpo, {"name": name, "loss": "sapo", "sapo_pos": 2.0, "sapo_neg": 5.0}
        yield grpo, {"name": name, "loss": "vespo"}
        gammas = {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 0.5, "lambda_neg": 1.0}
        yield grpo, {"name": name, "loss": "vespo", **gammas}
        for loss in ("grpo", "luspo"):
            for low, high in ((3e-4, 4e-4), (0.1, 0.2)):
                at = {"level": "sequence", "low": low, "high": high}
                yield grpo, {"name": name, "loss": loss, **at}
        yield rloo, {"name": name}
        yield rloo, {"name": name, "low": 0.5, "high": 2.0}
    yield grpo, {"name": "empty row", "loss": "grpo"}
    yield grpo, {"name": "empty row", "loss": "dapo"}
    for scale in ("group", "none"):
        yield grpo_advantages, {"scale": scale}
    yield rloo_advantages, {}


def main():
    golden = {
        "versions": {name: version(name).split("+")[0] for name in ("trl", "torch")},
        "batches": {
            name: {field: array.tolist() for field, array in given.items()}
            for name, given in BATCHES.items()
        },
        "rewards": REWARDS.tolist(),
        "cases": [
            {"function": function.__name__, "arguments": arguments, **function(**arguments)}
            for function, arguments in cases()
        ],
    }
    path = Path(__file__).with_name("trl_policy.json")
    path.write_text(json.dumps(golden).replace('{"function"', '\n{"function"') + "\n")


if __name__ == "__main__":
    main()
