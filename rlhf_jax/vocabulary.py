"""Log-probabilities and entropies over a large vocabulary, a block of it at a time.

The logits of ``N`` tokens over ``V`` words are one matrix product, ``hidden @ unembedding``, and by
far the largest array of a training step where the vocabulary is a real one. It is never made: the
forward pass keeps a running maximum and sum, the backward pass multiplies each block out again. So
there are four products where a full log-softmax needs three, and no pass over ``[N, V]`` in memory.
"""

from functools import partial

import jax
import jax.numpy as jnp

from rlhf_jax.placing import looked_up, pieces, placed

__all__ = ["MAX_BLOCK", "blockwise", "default_block", "logits_of", "statistics"]

# A vocabulary up to this size is one block: at once, and kept for the backward pass.
MAX_BLOCK = 8192
# Of one block of logits, 512 MiB in float32: with very many rows, blocks are narrower.
_MAX_ENTRIES = 2**27
# Stands for minus infinity where it will be multiplied by a probability of 0: -inf * 0 is nan.
_NEGATIVE = -1e30


def default_block(rows: int) -> int:
    """How much of the vocabulary to hold at a time for so many rows."""
    return max(128, min(MAX_BLOCK, _MAX_ENTRIES // max(rows, 1)))


def logits_of(
    products: jax.Array, temperature: float | jax.Array, softcap: float | None = None
) -> jax.Array:
    """Logits of the products ``hidden @ unembedding``, soft-capped if asked; elementwise."""
    if softcap is not None:
        products = softcap * jnp.tanh(products.astype(jnp.float32) / softcap)
    return products / temperature


def statistics(logits: jax.Array, entropies: bool) -> tuple[jax.Array, jax.Array | None]:
    """``(log_normaliser[N], entropy[N] or None)`` of ``logits[N, V]``, at once."""
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    if not entropies:
        return log_normaliser, None
    log_probs = logits - log_normaliser[:, None]
    return log_normaliser, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def blockwise(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    block_size: int,
    entropies: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    r"""Log-probability of each target, and the entropy of what it was drawn from.

    .. math:: \frac{\partial \log p_x}{\partial z_v} = [v = x] - p_v, \qquad
              \frac{\partial H}{\partial z_v} = -p_v \left(\log p_v + H\right)

    Memory is ``N * block_size`` and not ``N * V``, in both directions. Products are accumulated in
    float32, whatever the dtype of ``hidden``. What is not asked for is not computed: with a frozen
    unembedding, its gradient's product is dead code.

    Args:
        hidden: ``float[N, D]``.
        unembedding: ``float[D, V]``; fastest if it is a transposed ``[V, D]``, as tied ones are.
        targets: ``int32[N]``.
        temperature: what the logits are divided by.
        softcap: ``c`` of ``c * tanh(logits / c)``, before the temperature; ``None`` without.
        block_size: the most words in a block. Fewer if the vocabulary can then be cut evenly;
            otherwise it is padded, which costs a copy of the unembedding.
        entropies: whether those are wanted.

    Returns:
        ``float32[N]`` in nats, and ``float32[N]`` in nats or ``None``.

    >>> log_probs, _ = blockwise(jnp.ones([1, 2]), jnp.ones([2, 4]), jnp.array([3]), block_size=3)
    >>> log_probs.tolist()
    [-1.3863]
    """
    width, vocabulary = unembedding.shape
    fewest = -(-vocabulary // block_size)
    even = (n for n in range(fewest, 2 * fewest) if vocabulary % n == 0)
    blocks = next(even, fewest)
    table = jnp.pad(unembedding.T, ((0, -vocabulary % blocks), (0, 0)))
    # Block i is the words i, i + blocks, i + 2 blocks ...: where the vocabulary is cut over
    # devices, each has a share of every block, and none waits for another.
    table = placed(table.reshape(-1, blocks, width), "words", None, "width")
    temperature = jnp.asarray(temperature, jnp.float32)
    return _blockwise(hidden, table, targets, temperature, softcap, vocabulary, entropies)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _blockwise(hidden, table, targets, temperature, softcap, vocabulary, entropies):
    return _forwards(hidden, table, targets, temperature, softcap, vocabulary, entropies)[0]


def _block(hidden, table, index):
    """One block's kernel ``[block, D]``, its products ``float32[N, block]``, its words' numbers."""
    kernel = jax.lax.dynamic_index_in_dim(table, index, axis=1, keepdims=False)
    kernel = placed(kernel.astype(hidden.dtype), "words")
    words = jnp.arange(table.shape[0]) * table.shape[1] + index
    products = jnp.matmul(hidden, kernel.T, preferred_element_type=jnp.float32)
    return kernel, products, words


def _known(logits, words, table, vocabulary):
    padded = table.shape[0] * table.shape[1] > vocabulary
    return jnp.where(words < vocabulary, logits, _NEGATIVE) if padded else logits


def _forwards(hidden, table, targets, temperature, softcap, vocabulary, entropies):
    def body(carry, index):
        maximum, normaliser, weighted = carry
        _, products, words = _block(hidden, table, index)
        logits = _known(logits_of(products, temperature, softcap), words, table, vocabulary)
        larger = jnp.maximum(maximum, logits.max(-1))
        shrink = jnp.exp(maximum - larger)
        relative = logits - larger[:, None]
        exponentials = jnp.exp(relative)
        if entropies:  # Of logits relative to the maximum, so that large ones do not cancel out.
            weighted = shrink * (weighted + normaliser * (maximum - larger))
            weighted += (exponentials * relative).sum(-1)
        normaliser = normaliser * shrink + exponentials.sum(-1)
        return (larger, normaliser, weighted), None

    # The targets' logits from their own columns: picking them out of every block costs more.
    kernel = looked_up(table.reshape(-1, table.shape[-1]), targets).astype(hidden.dtype)
    picked = jnp.sum(hidden.astype(jnp.float32) * kernel, axis=-1)
    zeros = jnp.zeros(hidden.shape[0], jnp.float32)
    carry = (zeros + _NEGATIVE, zeros, zeros)
    carry, _ = jax.lax.scan(body, carry, jnp.arange(table.shape[1]))
    maximum, normaliser, weighted = carry
    log_normaliser = maximum + jnp.log(normaliser)
    log_probs = logits_of(picked, temperature, softcap) - log_normaliser
    entropy = jnp.log(normaliser) - weighted / normaliser if entropies else None
    return (log_probs, entropy), (hidden, table, targets, temperature, log_normaliser, entropy)


def _backwards(softcap, vocabulary, entropies, kept, cotangents):
    hidden, table, targets, temperature, log_normaliser, entropy = kept
    of_log_prob, of_entropy = (None if x is None else x[:, None] for x in cotangents)
    parts = pieces(table.shape[0], "words")

    def body(carry, index):
        d_hidden, d_table, d_temperature = carry
        kernel, products, words = _block(hidden, table, index)
        logits, pullback = jax.vjp(partial(logits_of, softcap=softcap), products, temperature)
        logits = _known(logits, words, table, vocabulary)
        log_probs = logits - log_normaliser[:, None]
        weight = of_log_prob
        if entropies:
            weight = weight + of_entropy * (log_probs + entropy[:, None])
        picked = jnp.where(words == targets[:, None], of_log_prob, 0)
        d_products, d_scale = pullback(picked - weight * jnp.exp(log_probs))
        d_products = d_products.astype(hidden.dtype)
        d_hidden += _of_hidden(d_products, kernel, parts)
        d_kernel = jnp.matmul(d_products.T, hidden, preferred_element_type=jnp.float32)
        d_kernel = placed(d_kernel.astype(table.dtype), "words", "width")
        d_table = jax.lax.dynamic_update_index_in_dim(d_table, d_kernel, index, axis=1)
        return (d_hidden, d_table, d_temperature + d_scale), None

    d_hidden = jnp.zeros(hidden.shape if parts == 1 else (parts, *hidden.shape), jnp.float32)
    d_table = placed(jnp.zeros_like(table), "words", None, "width")
    carry = (d_hidden, d_table, jnp.float32(0))
    carry, _ = jax.lax.scan(body, carry, jnp.arange(table.shape[1]))
    d_hidden, d_table, d_temperature = carry
    d_hidden = d_hidden if parts == 1 else placed(d_hidden.sum(0), "rows")
    return d_hidden.astype(hidden.dtype), d_table, None, d_temperature


def _of_hidden(d_products, kernel, parts):
    """A block's share of the hidden states' gradient, ``[N, D]``.

    Where the words are cut over devices, ``[parts, N, D]``, each device's by itself: they are added
    up once, and not for every block.
    """
    if parts == 1:
        return jnp.matmul(d_products, kernel, preferred_element_type=jnp.float32)
    d_products = d_products.reshape(len(d_products), parts, -1)
    kernel = kernel.reshape(parts, -1, kernel.shape[-1])
    each = jnp.einsum("npv,pvd->pnd", d_products, kernel, preferred_element_type=jnp.float32)
    return placed(each, "words", "rows")


_blockwise.defvjp(_forwards, _backwards)
