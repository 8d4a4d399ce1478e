"""The step of step.py by TRL, one for each line on the standard input; runs in TRL's environment.

TRL's best settings on a CPU, as far as they were found: float32, no gradient checkpointing (its
default recomputes), no logging, no clipping, all sequences in one batch, no bfloat16 (its default,
which this hardware emulates), glibc told to keep the memory that is freed. GOMP_SPINCOUNT=100000 is
the caller's to set. A line is ``step``, then how many threads it is to take (1 and 2 are tried),
then perhaps ``fast``, which is not TRL: it replaces ``torch.multinomial``, which draws a number for
every word of the vocabulary on one thread.
"""

import argparse
import contextlib
import json
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from turns import Clock, Turns, keep_freed_memory


def fast_multinomial(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
    """One uniform number a row, looked up in the cumulative distribution."""
    if num_samples != 1:
        raise ValueError("one sample a row")
    cumulative = probabilities.cumsum(-1)
    uniform = torch.rand(len(cumulative), 1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform).clamp_(max=cumulative.shape[-1] - 1)


END = "<end>"
MULTINOMIAL = torch.multinomial
# No token of the model ends a text (Llama's default is 2).
MODEL = {"attn_implementation": "sdpa", "bos_token_id": None, "eos_token_id": None}


class NothingMore(Exception):
    """Ends the training, which would otherwise take one more step."""


class OneAtATime(TrainerCallback):
    """Takes a step when it is its turn."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        turns.answer(ready=True)

    def on_step_begin(self, args, state, control, **kwargs):
        """Waits."""
        asked = self.turns.wait()
        if asked is None:
            raise NothingMore
        how = asked.split()[1:]  # "step", "step 1" or "step 2 fast"
        torch.set_num_threads(int(how[0]) if how else 2)
        torch.multinomial = fast_multinomial if "fast" in how else MULTINOMIAL
        self.clock = Clock()

    def on_step_end(self, args, state, control, **kwargs):
        """Answers."""
        self.turns.answer(**self.clock.read())


def tokenizer_of(words: int) -> PreTrainedTokenizerFast:
    """A word for each number, and behind them the end of a text."""
    numbers = {f"w{number}": number for number in range(words)} | {END: words}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, padding_side="left"
    )


def texts(words: int, rows: int, length: int) -> list[str]:
    """Random ones."""
    numbers = torch.randint(words, (rows, length)).tolist()
    return [" ".join(f"w{number}" for number in row) for row in numbers]


def pairs_trainer(asked: argparse.Namespace, shape: dict, common: dict):
    """DPO's or the reward model's."""
    # The trainer puts an end behind each answer.
    words, pairs = shape["vocab_size"] - 1, asked.prompts * asked.group // 2
    rows = pairs * asked.max_steps
    columns = {"prompt": texts(words, rows, asked.prompt_len)}
    for side in ("chosen", "rejected"):
        answers = texts(words, rows, asked.response_len - 1)
        columns[side] = [" " + answer for answer in answers]
    common |= {"per_device_train_batch_size": pairs, "max_length": None}
    config = LlamaConfig(**shape, num_labels=1)
    if asked.task == "reward":
        settings, model = RewardConfig(**common), LlamaForSequenceClassification(config)
        trainer, further = RewardTrainer, {}
    else:
        settings, model = DPOConfig(**common, beta=0.05), LlamaForCausalLM(config)
        further = {"ref_model": LlamaForCausalLM(config)}
        further["ref_model"].load_state_dict(model.state_dict())
        trainer = DPOTrainer
    found = trainer(
        model,
        args=settings,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer_of(words),
        **further,
    )
    whole = asked.prompt_len + asked.response_len
    for row in found.train_dataset.select(range(pairs)):
        if len(row.get("prompt_ids", [])) + len(row["chosen_ids"]) != whole:
            raise RuntimeError(f"a text of another length than {whole}: {row}")
    return found


def policy_trainer(asked: argparse.Namespace, shape: dict, common: dict):
    """GRPO's or RLOO's."""

    def reward(completion_ids, **kwargs):
        if {len(answer) for answer in completion_ids} != {asked.response_len}:
            raise RuntimeError("an answer of another length")
        half = shape["vocab_size"] // 2
        return [sum(i < half for i in answer) / len(answer) for answer in completion_ids]

    # No token of the model is the end, so that no answer ends early.
    words = shape["vocab_size"]
    prompts = texts(words, asked.prompts * asked.max_steps, asked.prompt_len)
    common |= {
        "per_device_train_batch_size": asked.prompts * asked.group,
        "num_generations": asked.group,
        "max_completion_length": asked.response_len,
        "steps_per_generation": 1,
        "num_iterations": 1,
        "beta": 0.05,
        "temperature": 1.0,
    }
    # From a folder, since the trainer reads the reference from where the policy came from.
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(common["output_dir"])
    if asked.task == "grpo":
        trainer, settings = GRPOTrainer, GRPOConfig(**common, loss_type="grpo")
    else:
        trainer, settings = RLOOTrainer, RLOOConfig(**common)
    return trainer(
        common["output_dir"],
        reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer_of(words),
    )


def main() -> None:
    """Takes a step whenever it is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("grpo", "rloo", "dpo", "reward"), required=True)
    parser.add_argument("--shape", type=json.loads, required=True, help="of transformers' Llama")
    for name in ("prompts", "group", "prompt-len", "response-len", "max-steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked, turns = parser.parse_args(), Turns()
    keep_freed_memory()
    build = pairs_trainer if asked.task in ("dpo", "reward") else policy_trainer
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "max_steps": asked.max_steps,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        trainer = build(asked, asked.shape | MODEL, common)
        trainer.add_callback(OneAtATime(turns))
        with contextlib.suppress(NothingMore):
            trainer.train()


if __name__ == "__main__":
    main()
