"""What of a device's memory and arithmetic a model uses: both chosen by size and by device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from rlhf_jax.models.configuration import TransformerConfig
from rlhf_jax.models.transformer import language_model

__all__ = ["activation_bytes", "choose_remat", "compute_dtype"]

# For TransformerConfig.remat, from the fastest to the leanest.
_POLICIES = (False, "dots_with_no_batch_dims_saveable", True)
# The compiler planned 0.92 to 1.22 times what activation_bytes says (tests/test_resources.py).
_MARGIN = 1.25


def activation_bytes(config: TransformerConfig, rows: int, length: int) -> int:
    r"""What the transformer keeps of a forward pass until its backward pass has used it.

    .. math:: A_{remat} = \sum_{\text{kept}} |x| + \frac{1}{L} \sum_{\text{kept without}} |x|

    Nothing is estimated: the model is traced, without any arrays, and what its backward pass is
    handed is added up. A block that is computed again (``config.remat``) needs, once, what a block
    keeps that is not: the second term. The compiler's own plans were 0.92 to 1.22 times this.

    Args:
        config: the model, with its ``remat``.
        rows: that one device reads at once: of pairs both sides; a part only, with ``accumulate``.
        length: ``T``, tokens in a row.

    Returns:
        Bytes, without the parameters, the gradient and the optimiser's state, and without what the
        vocabulary needs: a block of ``[rows * T, 8192]`` float32, or, of logits that are
        not factored, several arrays ``[rows, T, V]``.

    Raises:
        ValueError: if ``rows`` or ``length`` is below 1, or the model cannot read so many tokens.

    >>> config = TransformerConfig(vocab_size=64, hidden_size=8, num_layers=4)
    >>> half = activation_bytes(config, rows=2, length=16)
    >>> activation_bytes(config, rows=4, length=16) / half
    2.0
    >>> activation_bytes(dataclasses.replace(config, remat=True), rows=2, length=16) < half / 2
    True
    """
    for name, value in (("rows", rows), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    kept = _kept(config, rows, length)
    if not config.remat:
        return kept
    whole = _kept(dataclasses.replace(config, remat=False), rows, length)
    return kept + whole // config.num_layers


@functools.cache
def _kept(config: TransformerConfig, rows: int, length: int) -> int:
    model = language_model(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((rows, length), bool)

    def backward(params, tokens, mask):
        return jax.vjp(lambda p: model.factored_logits_fn(p, tokens, mask).hidden, params)[1]

    program = jax.make_jaxpr(backward)(params, tokens, mask).jaxpr
    results = {each for each in program.outvars if not isinstance(each, Literal)}
    handed = results - set(program.invars) - set(program.constvars)  # Not the parameters.
    return sum(each.aval.size * each.aval.dtype.itemsize for each in handed)


def choose_remat(
    config: TransformerConfig, rows: int, length: int, bytes_available: float
) -> bool | str:
    """How much the backward pass must compute again, for a step to fit into memory.

    Args:
        config: the model; its own ``remat`` does not matter.
        rows: as of ``activation_bytes``.
        length: ``T``, tokens in a row.
        bytes_available: on one device, for activations: its memory without parameters, reference,
            gradient, optimiser's state and what the vocabulary needs. A fifth of it is left free.

    Returns:
        For ``TransformerConfig.remat``: ``False`` (everything is kept) if that fits,
        ``"dots_with_no_batch_dims_saveable"`` (all but the dense layers' products is computed
        again), or ``True`` (blocks keep their inputs only).

    Raises:
        ValueError: if not even that fits, or as ``activation_bytes``.

    >>> config = TransformerConfig(vocab_size=64, hidden_size=8, num_layers=4)
    >>> choose_remat(config, rows=2, length=16, bytes_available=1e9)
    False
    >>> choose_remat(config, rows=2, length=16, bytes_available=4.5e5)
    True
    """
    for remat in _POLICIES:
        needed = activation_bytes(dataclasses.replace(config, remat=remat), rows, length) * _MARGIN
        if needed <= bytes_available:
            return remat
    raise ValueError(
        f"bytes_available must be at least {needed:.3g}, not {bytes_available:.3g}, for {rows} "
        f"rows of {length} tokens, even if every block is computed again: read fewer rows at a "
        "time (accumulate), cut them over more devices, or make them shorter"
    )


def compute_dtype(device: jax.Device | None = None) -> jnp.dtype:
    """What to compute in: bfloat16 where the device multiplies it faster, else float32.

    For ``TransformerConfig.dtype``, with parameters, optimiser, norms, attention's weights and
    losses in float32 as always. Matrix units add up the products of bfloat16 numbers in float32;
    what is rounded is what goes from layer to layer.

    Args:
        device: by default the first.

    Returns:
        bfloat16 for a TPU, and for NVIDIA's GPUs from compute capability 8.0 on; float32 for
        everything else: CPUs, where bfloat16 is slower, and GPUs of which this is not known.

    >>> compute_dtype(jax.devices("cpu")[0])
    dtype('float32')
    """
    device = jax.devices()[0] if device is None else device
    capability = str(getattr(device, "compute_capability", ""))
    matrix_units = device.platform == "tpu" or (
        device.platform in ("gpu", "cuda")
        and capability.replace(".", "", 1).isdigit()
        and float(capability) >= 8
    )
    return jnp.dtype(jnp.bfloat16 if matrix_units else jnp.float32)
