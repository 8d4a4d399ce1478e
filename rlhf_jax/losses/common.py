"""What several losses share: an exponential without overflow, and a policy's arrays made safe."""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["bounded_exp", "policy_arrays"]

# Its square still fits into a float32, so that neither a gradient nor its norm overflows.
_LARGEST_EXPONENT = 40.0


def bounded_exp(x: jax.Array) -> jax.Array:
    """The exponential, continued by its tangent beyond 40.

    >>> bounded_exp(jnp.array([0.0, 1000.0])).tolist()
    [1.0, 2.2620e+20]
    """
    bounded = jnp.minimum(x, _LARGEST_EXPONENT)
    return jnp.exp(bounded) * (1 + x - bounded)


def policy_arrays(
    log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checked, in float32 at least, 0 where masked, and constant but for the first.

    A clip range of 3e-4 is nothing in bfloat16. And what padding holds must be gone before any
    exponential: an overflow there would turn its zero gradient into nan.
    """
    checks.token_arrays(
        mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )

    def clean(x: jax.Array) -> jax.Array:
        return jnp.where(mask, x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))

    constant = jax.lax.stop_gradient
    return clean(log_probs), constant(clean(old_log_probs)), constant(clean(advantages))
