"""Memory of a chip by part: what the shardings say exactly, and an estimate of the rest."""

import math
from collections.abc import Mapping

import jax

from rlhf_jax import parallel, trees
from rlhf_jax.models import TransformerConfig
from rlhf_jax.planning.cutting import check_mesh
from rlhf_jax.planning.programs import Program, program
from rlhf_jax.planning.workloads import Workload
from rlhf_jax.types import PyTree

__all__ = ["PARTS", "arithmetic", "cache_bytes", "held", "temporaries"]

PARTS = {
    "parameters": "what trains, and what lies frozen beside it (the base under adapters)",
    "critic": "parameters of the critic",
    "reference": "frozen copy of the policy",
    "reward": "frozen reward model",
    "optimiser": "Adam's moments",
    "batch": "prompts or texts, keys, counters",
    "cache": "keys and values of the tokens while generating",
    "temporaries": "activations, gradients, gathered weights, logits, the compiler's copies",
}


def arithmetic(
    workload: Workload, axes: Mapping[str, int], shapes: Program | None = None
) -> dict[str, int]:
    """Bytes of a chip by part without compiling: ``temporaries`` is an estimate, all else exact.

    Raises:
        ValueError: if the mesh cannot cut the workload.
    """
    check_mesh(workload, axes)
    shapes = program(workload) if shapes is None else shapes
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    parts = held(shapes, mesh)
    phases = temporaries(workload, shapes, axes)
    cache = cache_bytes(shapes.cache, workload.config, axes)
    # The cache is gone when the updates begin.
    generating = phases.get("generate", 0) + cache
    rest = max(phases["update"], phases.get("score", 0))
    parts["cache"] = cache
    parts["temporaries"] = max(generating, rest) - cache
    return parts


def held(program: Program, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> dict[str, int]:
    """Bytes of a chip that the step's arguments take: exactly, from the shardings.

    Args:
        program: state and batch.
        mesh: the devices, or an ``AbstractMesh`` of none.

    Returns:
        Bytes by part, without ``cache`` and ``temporaries``.

    Raises:
        ValueError: if an array cannot be cut over the mesh.
    """
    shardings = parallel.state_shardings(program.state, mesh)
    found = dict.fromkeys(list(PARTS)[:-2], 0)
    paths, leaves = trees.paths(program.state), jax.tree.leaves(program.state)
    for path, leaf, sharding in zip(paths, leaves, jax.tree.leaves(shardings), strict=True):
        found[_part(path)] += _size(leaf, sharding.shard_shape(leaf.shape))
    rows = _rows(mesh)
    found["batch"] += sum(_size(x, x.shape) // rows for x in jax.tree.leaves(program.batch))
    return found


def cache_bytes(cache: PyTree, config: TransformerConfig, axes: Mapping[str, int]) -> int:
    """Bytes of a chip that generation's cache takes: rows cut, heads too if they can be.

    Args:
        cache: as of ``Decoder.init_cache``, all rows; or ``None``.
        config: the model's shape.
        axes: sizes of the mesh's axes.
    """
    rows, tensor = axes["data"] * axes["fsdp"], axes["tensor"]
    heads = tensor if config.num_kv_heads % tensor == 0 else 1
    large = [x for x in jax.tree.leaves(cache) if x.ndim == 5]
    small = [x for x in jax.tree.leaves(cache) if 1 < x.ndim < 5]
    keys_and_values = sum(_size(x, x.shape) for x in large) // (rows * heads)
    return keys_and_values + sum(_size(x, x.shape) for x in small) // rows


def temporaries(workload: Workload, program: Program, axes: Mapping[str, int]) -> dict[str, int]:
    """About what a chip needs besides the arguments, by phase of the step: an estimate.

    It counts what is known to be large, layer by layer: the residual stream that the backward pass
    needs, attention's scores in float32, the feed-forward layer, one layer's weights put together,
    a block of logits, the gradients, and, where a step makes several updates and may undo them,
    another copy of what it trains. A compiler does better here and worse there.

    Args:
        workload: the step.
        program: its shapes.
        axes: sizes of the mesh's axes.

    Returns:
        Bytes by phase: ``generate``, ``score`` and ``update``. What counts is the largest.
    """
    config, tensor = workload.config, axes.get("tensor", 1)
    rows, whole = axes.get("data", 1) * axes.get("fsdp", 1), axes.get("fsdp", 1) * tensor
    width = workload.dtype.dtype.itemsize
    length, sequences = workload.length, -(-workload.sequences // rows)
    read = workload.read_length
    updated = -(-workload.sequences // (workload.minibatches * workload.accumulate * rows))
    trained = sum(x.size for x in jax.tree.leaves(program.state.opt_state)) / 2
    wide = workload.param_dtype.dtype.itemsize
    models = 2 if workload.algorithm == "ppo" and workload.reward == "model" else 1

    # Two layers at once, one being computed with and one under way; the vocabulary stays cut.
    gathered = 2 * _layer_weights(config) // tensor * width * (axes.get("fsdp", 1) > 1)
    # What is only scored reads the whole of every sequence.
    scored = length if workload.on_policy and workload.reward == "model" else read
    reading = _layer(config, sequences, scored, length, tensor, width)
    block = 8192 if config.vocab_size > 8192 else config.vocab_size
    logits = 3 * updated * read * block // min(tensor, block) * 4
    stream = updated * read * config.hidden_size * width
    kept = stream if workload.remat else 0
    if not workload.remat:
        kept = _layer(config, updated, read, length, tensor, width)
    gradient = trained / whole * (4 if workload.accumulate > 1 or wide == 4 else wide)
    gradient += trained / whole * wide if workload.accumulate > 1 else 0
    update = {
        "residual streams": models * config.num_layers * kept,
        "one layer": 1.5 * _layer(config, updated, read, length, tensor, width),
        "weights": gathered + logits,
        "gradient": gradient,
    }
    phases = {"update": sum(update.values())}
    again = 0
    if workload.on_policy:
        if workload.resolved_epochs * workload.minibatches > 1:
            # Only after the last is known whether to undo them: it keeps what it began with.
            state = jax.tree.leaves(program.state.opt_state)
            again = (sum(x.size * x.dtype.itemsize for x in state) + trained * wide) / whole
        words = 2 * sequences * read * block // tensor * 4
        phases["score"] = reading + gathered + words
        new = workload.prompt_length
        prompt = _layer(config, sequences, new, new + length, tensor, width)
        drawing = 4 * sequences * config.vocab_size // tensor * 4
        cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.cache))
        heads = tensor if config.num_kv_heads % tensor == 0 else 1
        prefill = cache // (rows * heads) * workload.prompt_length // length
        phases["generate"] = prefill + prompt + drawing + gathered
    elif workload.algorithm == "dpo":
        phases["score"] = reading // workload.accumulate + gathered
    return {name: int(size + again) for name, size in phases.items()}


def _layer(
    config: TransformerConfig, rows: int, new: int, seen: int, tensor: int, width: int
) -> int:
    """What one layer's forward pass has at once, of so many rows."""
    heads = -(-config.num_heads // tensor)
    scores = rows * heads * new * seen * (4 + width)
    inner = 3 * rows * new * (config.intermediate_size // tensor) * width
    return scores + inner + 6 * rows * new * config.hidden_size * width


def _layer_weights(config: TransformerConfig) -> int:
    head = config.resolved_head_dim
    attention = config.hidden_size * head * 2 * (config.num_heads + config.num_kv_heads)
    return attention + (2 + config.gated_mlp) * config.hidden_size * config.intermediate_size


def _part(path: str) -> str:
    if path.startswith("params/critic"):
        return "critic"
    if path.startswith("params"):
        return "parameters"
    if path.startswith("opt_state"):
        return "optimiser"
    if path.startswith("frozen/reward"):
        return "reward"
    return "reference" if path.startswith("frozen") else "batch"


def _size(leaf: PyTree, shape: tuple[int, ...]) -> int:
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return math.prod(shape) * (8 if key else leaf.dtype.itemsize)


def _rows(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    return mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)
