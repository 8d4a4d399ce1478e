"""Published language models: loaded as pure functions, saved so that others can load them."""

from rlhf_jax.pretrained.loading import Pretrained, load

__all__ = ["Pretrained", "load"]
