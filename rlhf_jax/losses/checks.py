"""What the losses demand of their arguments, as ``ValueError`` with the name and the value."""

import chex
import jax

__all__ = ["check_flip_rate", "check_pair", "check_positive"]


def check_pair(chosen: jax.Array, rejected: jax.Array) -> None:
    """The two are floating and of one shape."""
    chex.assert_equal_shape([chosen, rejected], exception_type=ValueError)
    chex.assert_type([chosen, rejected], float, exception_type=ValueError)


def check_positive(name: str, value: float | jax.Array) -> None:
    """``value`` is above 0; one that is being traced is taken on trust."""
    if not isinstance(value, jax.core.Tracer) and not value > 0:
        raise ValueError(f"{name} must be positive, not {value}")


def check_flip_rate(value: float | jax.Array, *, may_be_zero: bool = True) -> None:
    """``value`` is a rate of flipped labels below one half; a traced one is taken on trust."""
    if isinstance(value, jax.core.Tracer):
        return
    if not (0 <= value < 0.5) or (value == 0 and not may_be_zero):
        low = "at least 0" if may_be_zero else "above 0"
        raise ValueError(f"flip_rate must be {low} and below 0.5, not {value}")
