"""Operations of a step, counted from its shapes, and the time that peaks would allow.

A compiler's own count takes the body of a loop once, however often it runs, so it is not used.
"""

import dataclasses

from rlhf_jax.models import TransformerConfig
from rlhf_jax.planning.topologies import Chip
from rlhf_jax.planning.workloads import Workload

__all__ = ["Roofline", "operations", "roofline"]


def operations(workload: Workload) -> dict[str, float]:
    r"""Floating-point operations of one step, by phase.

    .. math:: F = 2 N T + 4 L H d \sum_t T_t

    for a forward pass of ``T`` tokens through ``N`` weights that are multiplied with (the embedding
    is only looked up; the unembedding counts for responses alone), and attention of ``H`` heads of
    ``d`` to the ``T_t`` columns that are computed for each, masked ones included. A backward pass
    is twice that, or once where the weights are frozen under adapters; ``remat`` repeats the
    layers' forward pass, and the logits' is always repeated (``vocabulary``). All responses are
    taken to be of full length. With ``share_prompts`` a prompt counts once for policy and
    reference, and as often as it has answers for a reward model and a critic beside them.

    Args:
        workload: the step.

    Returns:
        Operations of ``generate``, ``score`` (reference, reward and critic), ``update``, and
        ``recompute``, what of the update is done twice to save memory.

    >>> counted = operations(Workload(algorithm="supervised", batch=8))
    >>> sorted(counted), round(counted["update"] / (6 * 7.24e9 * 8 * 1024), 2)
    (['recompute', 'update'], 1.04)
    """
    config, length = workload.config, workload.length
    tokens, prompt = workload.sequences * length, workload.prompt_length
    whole = _layers(config, tokens, tokens * length)
    answered, layers = workload.sequences * workload.response_length, whole
    if workload.share_prompts:
        prompts = workload.sequences // workload.sharing
        read, pairs = prompts * prompt + answered, prompts * prompt**2 + answered * length
        layers = _layers(config, read, pairs)
    logits = 2.0 * answered * config.hidden_size * config.vocab_size
    backward = 1 if workload.lora_rank else 2
    heads = layers if workload.algorithm == "reward_model" else layers + logits
    again = layers * _repeated(workload.remat) + (heads - layers)
    critic = workload.algorithm == "ppo" and workload.reward == "model"
    trained = heads + (whole if critic else 0)
    found = {
        "update": (1 + backward) * trained * workload.resolved_epochs,
        "recompute": again * workload.resolved_epochs,
    }
    if critic:
        found["recompute"] += whole * _repeated(workload.remat) * workload.resolved_epochs
    if workload.algorithm == "dpo":
        found["score"] = heads
    if workload.on_policy:
        reward = whole if workload.reward == "model" else 0
        found["score"] = heads + reward + (whole if critic else 0)
        found["generate"] = _generation(workload)
    return found


def _layers(config: TransformerConfig, tokens: float, pairs: float) -> float:
    """Of the layers' weights for so many tokens, and of attention for so many pairs."""
    head = config.resolved_head_dim
    weights = config.hidden_size * head * 2 * (config.num_heads + config.num_kv_heads)
    weights += (2 + config.gated_mlp) * config.hidden_size * config.intermediate_size
    return config.num_layers * (2.0 * weights * tokens + 4.0 * config.num_heads * head * pairs)


def _repeated(remat: bool | str) -> float:
    """How much of the layers' forward pass the backward pass repeats; the products alone count."""
    return {False: 0.0, "everything_saveable": 0.0, "dots_saveable": 0.0}.get(remat, 1.0)


def _generation(workload: Workload) -> float:
    config, prompt, answer = workload.config, workload.prompt_length, workload.response_length
    cached, rows = workload.length - 1, workload.sequences
    # Every new token is compared with the whole of the cache, filled or not, and with itself.
    pairs = rows * (prompt * (cached + prompt) + (answer - 1) * (cached + 1))
    read = rows * (prompt + answer - 1)
    logits = 2.0 * rows * answer * config.hidden_size * config.vocab_size
    return _layers(config, read, pairs) + logits


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step that peaks would allow: an estimate, never a measurement, and never reached.

    Attributes:
        compute: all operations at the chips' peak.
        weights: reading parameters and cache from memory once a generated token.
        links: sending what the collectives send at the links' peak; ``None`` if not compiled.
        tokens: of all sequences of a step, prompt and response.
    """

    compute: float
    weights: float
    links: float | None
    tokens: int

    @property
    def least(self) -> float:
        """The longest of the three, as if all could go on at once: no step is shorter."""
        return max(self.compute, self.weights, self.links or 0.0)

    @property
    def most(self) -> float:
        """Their sum, as if nothing overlapped; real steps can be longer still."""
        return self.compute + self.weights + (self.links or 0.0)


def roofline(
    workload: Workload,
    chip: Chip,
    chips: int,
    *,
    weights: float,
    cache: float,
    sent: float | None,
) -> Roofline | None:
    """The time of a step by the peaks of its chips.

    Args:
        workload: the step.
        chip: of which kind.
        chips: how many.
        weights: bytes of the policy that a chip reads for one generated token.
        cache: bytes of the cache, likewise.
        sent: bytes that a chip sends and receives in a step; ``None`` if unknown.

    Returns:
        The ``Roofline``, or ``None`` for a chip whose peaks nobody has published.
    """
    if not chip.flops:
        return None
    # No chip of the table says another peak for float32, which several bfloat16 products make.
    reads = workload.response_length * (weights + cache) if workload.on_policy else 0.0
    return Roofline(
        sum(operations(workload).values()) / (chips * chip.flops),
        reads / chip.bandwidth,
        None if sent is None else sent / chip.link,
        workload.sequences * workload.length,
    )
