"""Scalar heads on a transformer: a score for the whole sequence, a value before every token."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.models.transformer import Transformer, TransformerConfig
from rlhf_jax.sequences import align, last_token
from rlhf_jax.types import Key, Params, ScoreFn, ValueFn

__all__ = ["ScoreModel", "ValueModel", "score_model", "value_model"]


class ScoreModel(NamedTuple):
    """A reward model as pure functions.

    Attributes:
        init: ``key -> params``.
        score_fn: a ``ScoreFn``.
    """

    init: Callable[[Key], Params]
    score_fn: ScoreFn


class ValueModel(NamedTuple):
    """A critic as pure functions.

    Attributes:
        init: ``key -> params``.
        value_fn: a ``ValueFn``.
    """

    init: Callable[[Key], Params]
    value_fn: ValueFn


class _ScalarTransformer(nn.Module):
    """A number after every token."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens, mask):
        hidden, _ = Transformer(self.config, name="trunk")(tokens, mask)
        # Starts near 0, so that an untrained head has no opinion.
        init = nn.initializers.normal(0.01 * self.config.hidden_size**-0.5)
        return nn.Dense(1, kernel_init=init, dtype=jnp.float32, name="head")(hidden)[..., 0]


def _init(module: nn.Module) -> Callable[[Key], Params]:
    tokens, mask = jnp.zeros([1, 2], jnp.int32), jnp.ones([1, 2], bool)
    return jax.jit(lambda key: module.init(key, tokens, mask)["params"])


def score_model(config: TransformerConfig) -> ScoreModel:
    """A transformer that scores a sequence at its last real token.

    The parameters are ``{"trunk": ..., "head": ...}``; a language model's parameters of the same
    ``config`` fit as ``trunk``.

    Args:
        config: the trunk's shape.

    Returns:
        A ``ScoreModel``; a row without any real token scores 0.

    >>> model = score_model(TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1))
    >>> params = model.init(jax.random.key(0))
    >>> model.score_fn(params, jnp.array([[3, 1, 4]]), jnp.ones([1, 3], bool)).shape
    (1,)
    """
    module = _ScalarTransformer(config)

    def score_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        scores = module.apply({"params": params}, tokens, mask)
        return jnp.sum(jnp.where(last_token(mask), scores, 0), axis=-1)

    return ScoreModel(_init(module), score_fn)


def value_model(config: TransformerConfig) -> ValueModel:
    """A transformer that estimates, before each token is chosen, the return to come.

    Args:
        config: the trunk's shape.

    Returns:
        A ``ValueModel``; column 0, before which there is nothing to see, is 0.

    >>> model = value_model(TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1))
    >>> params = model.init(jax.random.key(0))
    >>> model.value_fn(params, jnp.array([[3, 1, 4]]), jnp.ones([1, 3], bool)).shape
    (1, 3)
    """
    module = _ScalarTransformer(config)

    def value_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return align(module.apply({"params": params}, tokens, mask))

    return ValueModel(_init(module), value_fn)
