"""What is to be planned: a model, an algorithm, a batch, and on what."""

import dataclasses

import jax.numpy as jnp

from rlhf_jax.models import TransformerConfig
from rlhf_jax.models.configuration import REMAT_POLICIES
from rlhf_jax.planning.shapes import shape

__all__ = ["ALGORITHMS", "PRECISIONS", "REWARDS", "Workload"]

ALGORITHMS = ("supervised", "reward_model", "dpo", "ppo", "grpo", "rloo")
PRECISIONS = ("mixed", "bfloat16", "float32")
REWARDS = ("model", "shared")
# Answers to each prompt and passes over them, as in ``algorithms.presets``.
_SAMPLES = {"ppo": 1, "grpo": 8, "rloo": 4}
_EPOCHS = {"ppo": 4, "grpo": 1, "rloo": 1}


@dataclasses.dataclass(frozen=True)
class Workload:
    """One step of an algorithm on a model: everything that its memory and its work depend on.

    Attributes:
        model: a name of ``SHAPES``, or a ``TransformerConfig``.
        algorithm: ``supervised``, ``reward_model``, ``dpo``, ``ppo``, ``grpo`` or ``rloo``.
        batch: rows of the step's batch: texts, pairs or, for the last three, prompts.
        prompt_length: in tokens, padding included.
        response_length: likewise; the longest response.
        samples: answers to each prompt; by default the algorithm's own (1, 8 and 4).
        epochs: how often each sample is learnt from; by default the algorithm's own (4, 1 and 1).
        minibatches: updates an epoch.
        accumulate: parts into which each update's batch is cut, one after the other.
        precision: ``mixed``: float32 parameters (which are the master weights) and Adam moments,
            bfloat16 computation, cache and frozen models. ``bfloat16``: the parameters bfloat16
            too, Adam's moments float32. ``float32``: everything.
        momentum_bfloat16: whether Adam's first moment is bfloat16; the second stays float32.
        remat: as of ``TransformerConfig``: ``True``, ``False`` or the name of a policy.
        lora_rank: of adapters on all linear layers; the base is then frozen, and bfloat16 unless
            the precision is ``float32``. ``None``: all parameters train.
        share_prompts: whether policy and reference (or the reward model that is trained) read a
            prompt once for all answers to it, both of a pair or all samples.
        reward: for ``ppo``, ``grpo`` and ``rloo``: ``model``, a frozen reward model of the policy's
            shape (and for ``ppo`` a critic of the same); or ``shared``, heads on the reference.
    """

    model: str | TransformerConfig = "llama-3-8b"
    algorithm: str = "ppo"
    batch: int = 256
    prompt_length: int = 512
    response_length: int = 512
    samples: int | None = None
    epochs: int | None = None
    minibatches: int = 1
    accumulate: int = 1
    precision: str = "mixed"
    momentum_bfloat16: bool = False
    remat: bool | str = True
    lora_rank: int | None = None
    share_prompts: bool = False
    reward: str = "model"

    def __post_init__(self):
        for name, known in (
            ("algorithm", ALGORITHMS),
            ("precision", PRECISIONS),
            ("reward", REWARDS),
            ("remat", (True, False, *REMAT_POLICIES)),
        ):
            if getattr(self, name) not in known:
                listed = ", ".join(map(str, known))
                raise ValueError(f"{name} must be one of {listed}, not {getattr(self, name)!r}")
        counts = ("batch", "prompt_length", "response_length", "minibatches", "accumulate")
        for name in (*counts, "samples", "epochs", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        config = shape(self.model)
        if self.length > config.max_length:
            raise ValueError(
                f"prompt_length {self.prompt_length} and response_length {self.response_length} "
                f"make {self.length} tokens, but {self.name} reads at most {config.max_length}"
            )
        if self.share_prompts and self.answers == 1:
            raise ValueError(
                f"share_prompts is for several answers to a prompt, and {self.algorithm} has one "
                "(samples)"
            )
        if self.on_policy:
            if self.sequences // self.sharing % self.minibatches:
                raise ValueError(
                    f"minibatches={self.minibatches} must divide the {self.sequences} sequences "
                    f"({self.batch} prompts, {self.resolved_samples} samples each"
                    f"{', kept together by share_prompts' if self.share_prompts else ''})"
                )
        elif self.samples or self.epochs or self.minibatches > 1:
            raise ValueError(
                f"samples, epochs and minibatches are of ppo, grpo and rloo, not {self.algorithm}"
            )
        if self.part % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} must divide the {self.part} rows of an update"
            )

    @property
    def name(self) -> str:
        """The model's."""
        return self.model if isinstance(self.model, str) else "the model"

    @property
    def on_policy(self) -> bool:
        """Whether the step generates."""
        return self.algorithm in _SAMPLES

    @property
    def length(self) -> int:
        """Tokens of a sequence, prompt and response."""
        return self.prompt_length + self.response_length

    @property
    def resolved_samples(self) -> int:
        """Answers to each prompt, given or the algorithm's own; 1 where nothing is generated."""
        return self.samples or _SAMPLES.get(self.algorithm, 1)

    @property
    def resolved_epochs(self) -> int:
        """Passes over the samples, given or the algorithm's own; 1 where nothing is generated."""
        return self.epochs or _EPOCHS.get(self.algorithm, 1)

    @property
    def answers(self) -> int:
        """Sequences that begin alike: both sides of a pair, all samples of a prompt."""
        return self.resolved_samples * (2 if self.algorithm in ("dpo", "reward_model") else 1)

    @property
    def sharing(self) -> int:
        """How many of them are read behind one reading of their prompt."""
        return self.answers if self.share_prompts else 1

    @property
    def sequences(self) -> int:
        """Sequences that are read: both sides of every pair, all samples of every prompt."""
        return self.batch * self.answers

    @property
    def read_length(self) -> int:
        """Tokens that are read of a sequence, its share of a prompt included."""
        return -(-self.prompt_length // self.sharing) + self.response_length

    @property
    def part(self) -> int:
        """Rows of the batch of one update, before ``accumulate`` cuts it."""
        if not self.on_policy:
            return self.batch
        return self.sequences // self.sharing // self.minibatches

    @property
    def dtype(self) -> jnp.dtype:
        """Of computation, cache and frozen parameters."""
        return jnp.float32 if self.precision == "float32" else jnp.bfloat16

    @property
    def param_dtype(self) -> jnp.dtype:
        """Of the parameters that train, and of those beside them."""
        keeps = self.precision == "mixed" and self.lora_rank is None
        return jnp.float32 if keeps else self.dtype

    @property
    def config(self) -> TransformerConfig:
        """The model's shape, with the precision and remat of this workload."""
        return dataclasses.replace(
            shape(self.model), dtype=self.dtype, param_dtype=self.param_dtype, remat=self.remat
        )
