"""Published language models: loaded as pure functions, and saved so that others can load them."""

from rlhf_jax.pretrained.cards import Card
from rlhf_jax.pretrained.loading import Pretrained, load
from rlhf_jax.pretrained.saving import save
from rlhf_jax.pretrained.shelf import SHELF
from rlhf_jax.pretrained.tokenizers import Vocabulary

__all__ = ["SHELF", "Card", "Pretrained", "Vocabulary", "load", "save"]
