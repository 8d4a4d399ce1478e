"""The key-value cache of a transformer: filled, continued by several rows, begun anew row by row.

Generation reads all prompts into one cache, ``fork`` lets ``K`` rows continue each of its rows, and
what these read is written into a block of columns of their own, used as a ring. All rows write in
the same column, so that a step of generation updates one slice of the cache, in place. Nothing
depends on the order of the columns: what a token sees is decided by the positions, which are kept
beside them.

Reference: attention to a prompt that several samples share, Athiwaratkun et al. 2024,
https://arxiv.org/abs/2403.08845
"""

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax.sequences import positions

__all__ = [
    "KVCache",
    "apart",
    "empty",
    "fork",
    "insert",
    "marked",
    "positions_of",
    "refill",
    "seen_by",
]


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
        keys: ``dtype[L, B, G, C, D]``, rotated: of each layer, row and head ``C`` columns of ``D``
            numbers, which lie as the products of attention read them; or, if the layers are apart,
            a tuple of ``L`` arrays ``[B, G, C, D]``.
        values: as ``keys``.
        mask: ``bool[B, C]``, true where a real token was read.
        positions: ``int32[B, C]``, the position of each among the real tokens of its row.
        length: ``int32[]``, how many tokens were read into these columns, of each row.
        prefix: the cache that the rows continue, of ``B / K`` rows, each continued by ``K``
            neighbours; ``None`` if they begin here.
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    mask: jax.Array
    positions: jax.Array
    length: jax.Array
    prefix: "KVCache | None" = None


def empty(shape: tuple[int, int, int, int, int], dtype: jnp.dtype) -> KVCache:
    """A cache in which nothing was read, of keys and values ``[L, B, G, C, D]``.

    >>> empty((2, 1, 1, 3, 4), jnp.float32).mask.tolist()
    [[False, False, False]]
    """
    _, batch, _, columns, _ = shape
    blank = jnp.zeros(shape, dtype)
    nowhere = jnp.zeros([batch, columns], jnp.int32)
    return KVCache(blank, blank, nowhere > 0, nowhere, jnp.int32(0))


def insert(block: jax.Array, new: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """``block`` with ``new`` in the columns from ``start``, round the ring.

    What fills the whole block at once replaces it: a prompt is never compared with an empty cache.
    """
    columns = block.shape[axis]
    new = new.astype(block.dtype)
    if new.shape[axis] == columns:
        return new
    return jax.lax.dynamic_update_slice_in_dim(block, new, start % columns, axis)


def marked(cache: KVCache, mask: jax.Array) -> tuple[KVCache, jax.Array]:
    """The cache with its new tokens' mask and positions, and these ``int32[B, S]`` by themselves.

    Args:
        cache: of what was read before; keys, values and length remain as they are.
        mask: ``bool[B, S]`` of the new tokens.
    """
    before = jnp.sum(cache.mask, axis=-1)
    if cache.prefix is not None:
        read = jnp.sum(cache.prefix.mask, axis=-1)
        before += jnp.repeat(read, mask.shape[0] // read.shape[0])
    places = positions(mask) + before[:, None]
    cache = cache.replace(
        mask=insert(cache.mask, mask, cache.length, 1),
        positions=insert(cache.positions, places, cache.length, 1),
    )
    return cache, places


def positions_of(cache: KVCache, rows: int) -> tuple[jax.Array, jax.Array]:
    """Positions and mask of a cache's columns ``[rows, C]``, each row as often as it is shared."""
    samples = rows // cache.mask.shape[0]
    return tuple(jnp.repeat(x, samples, axis=0) for x in (cache.positions, cache.mask))


def seen_by(
    places: jax.Array, cache: KVCache, window: int | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """What of a cache tokens at ``places[B, S]`` see: ``bool[B, S, C]``, and what within a window.

    >>> cache = empty((1, 1, 1, 3, 2), jnp.float32)
    >>> cache, places = marked(cache, jnp.array([[False, True, True]]))
    >>> seen, near = seen_by(places, cache, window=1)
    >>> seen[0, 2].tolist(), near[0, 2].tolist()
    ([False, True, True], [False, False, True])
    """
    columns, mask = positions_of(cache, places.shape[0])
    ago = places[:, :, None] - columns[:, None, :]
    seen = mask[:, None, :] & (ago >= 0)
    return seen, None if window is None else seen & (ago < window)


def apart(cache: KVCache) -> KVCache:
    """The cache with each layer's keys and values by themselves, updated where they lie."""
    keys, values = tuple(cache.keys), tuple(cache.values)
    prefix = None if cache.prefix is None else apart(cache.prefix)
    return cache.replace(keys=keys, values=values, prefix=prefix)


def fork(cache: KVCache, samples: int, length: int) -> KVCache:
    """A cache of which ``samples`` neighbouring rows continue each row of another.

    Args:
        cache: of ``B`` rows. It is neither copied nor changed.
        samples: ``K``.
        length: ``R``, how many more tokens a row may read. Of more, the last ``R`` are kept.

    Returns:
        A ``KVCache`` of ``B * K`` rows.

    Raises:
        ValueError: if the cache continues another itself.
    """
    if cache.prefix is not None:
        raise ValueError("a cache that continues another cannot be continued by others")
    layers, batch, heads, _, width = cache.keys.shape
    own = empty((layers, batch * samples, heads, length, width), cache.keys.dtype)
    return own.replace(prefix=cache)


def refill(cache: KVCache, slots: jax.Array, source: KVCache, rows: jax.Array) -> KVCache:
    """A forked cache some of whose rows begin anew, as rows of another.

    Args:
        cache: from ``fork(..., samples=1)``.
        slots: ``int32[N]``, which of its rows; one that it does not have is left out.
        source: of as many columns as ``cache.prefix``, its layers stacked.
        rows: ``int32[N]``, what row of ``source`` each is to continue.

    Returns:
        The ``KVCache``; what was read into the slots is forgotten.
    """

    def copied(into: jax.Array, read: jax.Array, axis: int) -> jax.Array:
        where = (slice(None),) * axis + (slots,)
        return into.at[where].set(jnp.take(read, rows, axis=axis, mode="clip"), mode="drop")

    def copied_layers(into, read: jax.Array):
        if not isinstance(into, tuple):
            return copied(into, read, 1)
        return tuple(copied(layer, read[number], 0) for number, layer in enumerate(into))

    prefix = cache.prefix.replace(
        keys=copied_layers(cache.prefix.keys, source.keys),
        values=copied_layers(cache.prefix.values, source.values),
        mask=copied(cache.prefix.mask, source.mask, 0),
        positions=copied(cache.prefix.positions, source.positions, 0),
    )
    return cache.replace(mask=cache.mask.at[slots].set(False, mode="drop"), prefix=prefix)
