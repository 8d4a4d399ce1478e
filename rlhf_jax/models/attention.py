"""Attention as plain functions of arrays: rotary positions, and what may look at what.

Reference: rotary positions, Su et al. 2021, https://arxiv.org/abs/2104.09864; grouped queries,
Ainslie et al. 2023, https://arxiv.org/abs/2305.13245; windows, Beltagy et al. 2020,
https://arxiv.org/abs/2004.05150
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "IMPLEMENTATIONS",
    "KeyBlock",
    "RopeScaling",
    "attend",
    "near",
    "rotary_frequencies",
    "rotate",
]

# Of attention.
IMPLEMENTATIONS = ("auto", "einsum", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    r"""How rotary frequencies are lowered for texts longer than those of the first training.

    .. math:: \omega_i' = k_i \omega_i + (1 - k_i) \, \omega_i / s

    What keeps its frequency (``k = 1``) is what turns often within the original length; what does
    not even turn ``slow`` times is stretched by the whole factor (``k = 0``).

    Attributes:
        kind: ``"linear"``: all is stretched. ``"llama3"``: between ``slow`` and ``fast`` turns,
            ``k`` rises with the turns. ``"yarn"``: it rises with the index ``i`` of the dimension
            instead, and the scores of attention are larger.
        factor: ``s``, how many times as long texts may be.
        original_length: in tokens; of ``"llama3"`` and ``"yarn"``.
        slow: turns within the original length.
        fast: likewise; 4 is usual for ``"llama3"`` and 32 for ``"yarn"``.
        attention_factor: of ``"yarn"``, by which queries and keys are both multiplied; by default
            ``0.1 log(s) + 1``.
        truncate: of ``"yarn"``, whether the rise starts and ends at whole indices.

    Reference: linear, Chen et al. 2023, https://arxiv.org/abs/2306.15595; llama3, Grattafiori et
    al. 2024, https://arxiv.org/abs/2407.21783; yarn, Peng et al. 2023,
    https://arxiv.org/abs/2309.00071
    """

    kind: str
    factor: float
    original_length: int | None = None
    slow: float = 1.0
    fast: float = 32.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        kinds = ("linear", "llama3", "yarn")
        if self.kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, not {self.kind!r}")
        if self.factor <= 0:
            raise ValueError(f"factor must be above 0, not {self.factor}")
        if self.kind == "linear":
            return
        if self.original_length is None or self.original_length < 1:
            raise ValueError(f"original_length must be at least 1, not {self.original_length}")
        if not 0 < self.slow < self.fast:
            raise ValueError(f"slow ({self.slow}) must be above 0 and below fast ({self.fast})")

    @property
    def resolved_attention_factor(self) -> float:
        """By what queries and keys are multiplied, given or derived."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(max(self.factor, 1.0)) + 1.0


def rotary_frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
    r"""Radians by which each pair of dimensions turns from one token to the next.

    .. math:: \omega_i = \theta^{-2 i / D}

    Args:
        width: ``D`` of a head.
        theta: the base.
        scaling: what is done to them.

    Returns:
        ``float32[D / 2]``.

    >>> rotary_frequencies(4, 100.0).tolist()
    [1.0, 0.1]
    >>> rotary_frequencies(4, 100.0, RopeScaling("linear", factor=2.0)).tolist()
    [0.5, 0.05]
    """
    half = width // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        kept = 0.0
    elif scaling.kind == "llama3":
        turns = scaling.original_length * frequencies / (2 * math.pi)
        kept = jnp.clip((turns - scaling.slow) / (scaling.fast - scaling.slow), 0, 1)
    else:
        kept = _kept_by_index(width, theta, scaling)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _kept_by_index(width: int, theta: float, scaling: RopeScaling) -> jax.Array:
    """YaRN's ``k``: 1 up to the index that turns ``fast`` times, 0 from that of ``slow``."""

    def index(turns: float) -> float:
        return (
            width
            * math.log(scaling.original_length / (turns * 2 * math.pi))
            / (2 * math.log(theta))
        )

    first, last = index(scaling.fast), index(scaling.slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    rise = (jnp.arange(width // 2, dtype=jnp.float32) - first) / max(last - first, 1e-3)
    return 1 - jnp.clip(rise, 0, 1)


def rotate(x: jax.Array, token_positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotates the pairs ``(i, i + D/2)`` of every head by position times frequency.

    Args:
        x: ``float[B, S, H, D]``.
        token_positions: ``int32[B, S]``.
        frequencies: ``float32[D / 2]``.

    Returns:
        As ``x``, computed in float32.

    >>> rotate(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[1]]), jnp.array([3.14159265])).tolist()
    [[[[-1.0, -0.0]]]]
    """
    angles = token_positions[..., None].astype(jnp.float32) * frequencies
    cosine, sine = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def near(query_positions: jax.Array, key_positions: jax.Array, window: int) -> jax.Array:
    """Whether a key is the query's own or one of the ``window - 1`` real tokens before it.

    Positions count real tokens, so that padding takes no room in the window.

    Args:
        query_positions: ``int32[B, S]``.
        key_positions: ``int32[B, T]``.
        window: in tokens.

    Returns:
        ``bool[B, S, T]``; of keys after the query it says nothing.

    >>> near(jnp.array([[2]]), jnp.array([[0, 1, 2]]), 2).tolist()
    [[[False, True, True]]]
    """
    return query_positions[:, :, None] - key_positions[:, None, :] < window


class KeyBlock(NamedTuple):
    """Keys and values that lie together, and what is seen of them.

    Attributes:
        keys: ``dtype[N, G, T, D]``, where ``N`` divides ``B``: each row is read by ``B / N``
            neighbouring rows of queries.
        values: ``dtype[N, G, T, D]``.
        seen: ``bool[B, S, T]``, true where a query may see a key.
    """

    keys: jax.Array
    values: jax.Array
    seen: jax.Array


def attend(
    queries: jax.Array,
    blocks: Sequence[KeyBlock],
    *,
    scale: float,
    softcap: float | None = None,
    implementation: str = "auto",
) -> jax.Array:
    r"""Attention of ``S`` queries to the keys of one block or more.

    .. math:: o_s = \sum_t \operatorname{softmax}_t(c \tanh(a \, q_s \cdot k_t / c)) \, v_t

    The scores of several blocks are computed apart and normalised together, so that a cache is read
    where it lies and neither copied nor concatenated.

    Args:
        queries: ``dtype[B, S, H, D]``, where ``H`` is a multiple of the blocks' ``G``.
        blocks: what they look at, of the queries' dtype or one that is cast to it.
        scale: ``a``.
        softcap: ``c``, which no score goes beyond; ``None`` leaves them as they are.
        implementation: ``"einsum"``, of plain products; ``"xla"`` or ``"cudnn"``, of
            ``jax.nn.dot_product_attention``, without soft cap, and of several blocks only if there
            are several queries a row: the blocks are then put together (the rest is plain);
            ``"auto"``, ``"cudnn"`` where there is a GPU and the shapes and dtype allow, or plain.

    Returns:
        ``dtype[B, S, H * D]``. A query that sees nothing gets some finite mean.
    """
    batch, new, heads, width = queries.shape
    whole = [block.keys.shape[0] for block in blocks] == [batch]
    # To put a cache together for one more token would take longer than to read it.
    fused = softcap is None and (whole or new > 1)
    if implementation == "auto":
        implementation = "cudnn" if fused and _cudnn_can(queries, blocks) else "einsum"
    if fused and implementation != "einsum":
        keys, values, seen = blocks[0] if whole else _joined(blocks, batch)
        keys, values = (x.swapaxes(1, 2).astype(queries.dtype) for x in (keys, values))
        mixed = jax.nn.dot_product_attention(
            queries,
            keys,
            values,
            mask=seen[:, None],
            scale=scale,
            implementation=implementation,
        )
        return mixed.reshape(batch, new, heads * width)

    groups = blocks[0].keys.shape[1]
    grouped = queries.reshape(batch, new, groups, heads // groups, width)

    def shared(x: jax.Array, block: KeyBlock) -> jax.Array:
        """``[B, ...]`` as ``[N, B / N, ...]``."""
        rows = block.keys.shape[0]
        return x.reshape(rows, batch // rows, *x.shape[1:])

    def scores(block: KeyBlock) -> jax.Array:
        raw = jnp.einsum(
            "nksgmd,ngtd->nkgsmt",
            shared(grouped, block),
            block.keys.astype(queries.dtype),
            preferred_element_type=jnp.float32,
        )
        raw = raw.reshape(batch, groups, new, heads // groups, -1) * scale
        if softcap is not None:
            raw = softcap * jnp.tanh(raw / softcap)
        return jnp.where(block.seen[:, None, :, None], raw, jnp.finfo(jnp.float32).min)

    weights = jnp.concatenate([scores(block) for block in blocks], axis=-1)
    weights = jax.nn.softmax(weights, axis=-1).astype(queries.dtype)
    ends = list(itertools.accumulate(block.keys.shape[2] for block in blocks))
    mixed = [
        jnp.einsum("nkgsmt,ngtd->nksgmd", shared(part, block), block.values.astype(queries.dtype))
        for part, block in zip(jnp.split(weights, ends[:-1], axis=-1), blocks, strict=True)
    ]
    first, *rest = (x.reshape(batch, new, heads * width) for x in mixed)
    return sum(rest, first)


def _joined(blocks: Sequence[KeyBlock], batch: int) -> KeyBlock:
    """One block of several, with the keys that rows share repeated for each of them."""

    def together(*parts: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.repeat(x, batch // len(x), axis=0) for x in parts], axis=2)

    keys, values, seen = map(together, *blocks)
    return KeyBlock(keys, values, seen)


def _cudnn_can(queries: jax.Array, blocks: Sequence[KeyBlock]) -> bool:
    """Whether cuDNN's attention takes these arrays, here."""
    _, new, _, width = queries.shape
    return (
        jax.default_backend() == "gpu"
        and queries.dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
        # Those of the backward pass must be even.
        and new % 2 == 0
        and sum(block.keys.shape[2] for block in blocks) % 2 == 0
    )
