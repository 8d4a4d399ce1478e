"""Heads on a transformer: a score of the text or of each part, a value before every token.

Either a transformer of its own under each, or one trunk that all read: the frozen reference, whose
forward pass a policy step needs anyway.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.models.configuration import TransformerConfig
from rlhf_jax.models.transformer import Transformer
from rlhf_jax.sequences import align, last_token, positions, segmented
from rlhf_jax.types import (
    FactoredLogits,
    Forked,
    Key,
    LogitsFn,
    Params,
    ScoreFn,
    Sequences,
    Shared,
    ValueFn,
)

__all__ = [
    "Head",
    "ScoreModel",
    "ValueModel",
    "feature_values",
    "last_score",
    "linear_head",
    "score_model",
    "shared_trunk",
    "token_score_model",
    "trunk_scores",
    "value_model",
]


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
        return _dense(self.config.hidden_size, 1, name="head")(hidden)[..., 0]


def _dense(hidden_size: int, outputs: int, name: str | None = None) -> nn.Dense:
    # Starts near 0, so that an untrained head has no opinion.
    init = nn.initializers.normal(0.01 * hidden_size**-0.5)
    return nn.Dense(outputs, kernel_init=init, dtype=jnp.float32, name=name)


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
        A ``ScoreModel``; a row without any real token scores 0. Of packed or forked rows
        (segment ids or ``Forked`` for a mask) its scores are those at all tokens, as of
        ``token_score_model``.

    >>> model = score_model(TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1))
    >>> params = model.init(jax.random.key(0))
    >>> model.score_fn(params, jnp.array([[3, 1, 4]]), jnp.ones([1, 3], bool)).shape
    (1,)
    """
    module = _ScalarTransformer(config)

    def score_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        scores = module.apply({"params": params}, tokens, mask)
        if _several(mask):  # Who laid out the rows knows where each sequence ends.
            return scores
        return jnp.sum(jnp.where(last_token(mask), scores, 0), axis=-1)

    return ScoreModel(_init(module), score_fn)


def value_model(config: TransformerConfig) -> ValueModel:
    """A transformer that estimates, before each token is chosen, the return to come.

    Args:
        config: the trunk's shape.

    Returns:
        A ``ValueModel``; a sequence's first token, before which there is nothing to see, has 0.

    >>> model = value_model(TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1))
    >>> params = model.init(jax.random.key(0))
    >>> model.value_fn(params, jnp.array([[3, 1, 4]]), jnp.ones([1, 3], bool)).shape
    (1, 3)
    """
    module = _ScalarTransformer(config)

    def value_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        values = align(module.apply({"params": params}, tokens, mask))
        return jnp.where(positions(mask) == 0, 0, values) if segmented(mask) else values

    return ValueModel(_init(module), value_fn)


def token_score_model(config: TransformerConfig) -> ScoreModel:
    """A transformer that scores a text as far as each of its tokens: of steps, of spans.

    Its parameters are as ``score_model``'s, so that either's fit the other.

    Args:
        config: the trunk's shape.

    Returns:
        A ``ScoreModel`` whose scores are ``float32[B, T]``, entry ``t`` read after token ``t``.
        Those on padding mean nothing.

    >>> model = token_score_model(TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1))
    >>> params = model.init(jax.random.key(0))
    >>> model.score_fn(params, jnp.array([[3, 1, 4]]), jnp.ones([1, 3], bool)).shape
    (1, 3)
    """
    module = _ScalarTransformer(config)

    def score_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return module.apply({"params": params}, tokens, mask)

    return ScoreModel(_init(module), score_fn)


class Head(NamedTuple):
    """What is read off a model's features, as pure functions.

    Attributes:
        init: ``key -> params``.
        apply: ``(params, features[..., D]) -> float32[...]``, or ``[..., outputs]``.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, jax.Array], jax.Array]


def linear_head(hidden_size: int, outputs: int | None = None) -> Head:
    r"""Numbers that are linear in the features.

    .. math:: z = W h + b

    Args:
        hidden_size: ``D``.
        outputs: how many; ``None`` for one without an axis of its own, whose parameters are as the
            ``head`` of ``score_model`` and ``value_model``.

    Returns:
        A ``Head``, near 0 at first.

    >>> head = linear_head(8, outputs=3)
    >>> head.apply(head.init(jax.random.key(0)), jnp.ones([2, 5, 8])).shape
    (2, 5, 3)
    """
    module = _dense(hidden_size, 1 if outputs is None else outputs)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros([1, hidden_size]))["params"]

    def apply(params: Params, features: jax.Array) -> jax.Array:
        found = module.apply({"params": params}, features)
        return found[..., 0] if outputs is None else found

    return Head(init, apply)


def last_score(scores: jax.Array, sequences: Sequences) -> jax.Array:
    """A text's score: that at its last real token.

    Args:
        scores: ``float[B, T]``, or ``[B, T, M]``.
        sequences: of ``B`` rows.

    Returns:
        ``float[B]``, 0 in a row without any real token; or ``[M, B]``, as several rewards are.

    >>> mask = jnp.array([[True, True, False]])
    >>> last_score(jnp.array([[1.0, 2.0, 3.0]]), Sequences(None, mask, mask)).tolist()
    [2.0]
    """
    last = last_token(sequences.mask).reshape(*scores.shape[:2], *[1] * (scores.ndim - 2))
    return jnp.moveaxis(jnp.sum(jnp.where(last, scores, 0), axis=1), 0, -1)


def shared_trunk(
    factored_logits_fn: LogitsFn,
    head: Head,
    *,
    reward: Callable[[jax.Array, Sequences], jax.Array] = last_score,
) -> Callable[..., Shared]:
    r"""The reference's logits, its features, and a reward read off them, of one forward pass.

    .. math:: h = f_{ref}(x), \qquad \log \pi_{ref} = \operatorname{log softmax}(U h), \qquad
              r = g_\phi(h)

    Args:
        factored_logits_fn: the reference's, such as ``LanguageModel.factored_logits_fn``: it must
            return ``FactoredLogits``.
        head: the reward's, trained by ``trunk_scores``.
        reward: ``(scores[B, T], sequences) -> rewards``: ``[B]``, or ``[B, T]`` if each is earned
            at its token. The scores are ``[B, T, M]`` if the head has several outputs, and the
            rewards then ``[M, B]`` or ``[M, B, T]``.

    Returns:
        ``shared_fn`` for ``algorithms.policy_gradient``, of the reference's parameters, the
        head's, the sequences, and, of a model above a trunk (``trunk_fn``), what that model reads
        in the tokens' place. For a critic that reads the same features, ``feature_values``.

    Raises:
        TypeError: when called, if the logits are not factored.

    >>> from rlhf_jax.models import language_model
    >>> config = TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1)
    >>> model, head = language_model(config), linear_head(8)
    >>> shared_fn = shared_trunk(model.factored_logits_fn, head)
    >>> text = Sequences(jnp.array([[3, 1, 4]]), jnp.ones([1, 3], bool), jnp.ones([1, 3], bool))
    >>> keys = jax.random.split(jax.random.key(0))
    >>> found = shared_fn(model.init(keys[0]), head.init(keys[1]), text)
    >>> found.rewards.shape, found.features.shape
    ((1,), (1, 3, 8))
    """

    def shared_fn(
        reference: Params, params: Params, sequences: Sequences, hidden: jax.Array | None = None
    ) -> Shared:
        read = sequences.tokens if hidden is None else hidden
        logits = _factored(factored_logits_fn, reference, read, sequences.mask)
        rewards = reward(head.apply(params, logits.hidden), sequences)
        return Shared(logits, rewards, logits.hidden)

    return shared_fn


def trunk_scores(
    factored_logits_fn: LogitsFn,
    head: Head,
    *,
    reward: Callable[[jax.Array, Sequences], jax.Array] = last_score,
) -> ScoreFn:
    """A score on top of a frozen language model, to train its head.

    No gradient goes through the trunk. The optimiser must not hold a state for it either, nor decay
    it: ``reward_model(..., trainable="head/*")``.

    Args:
        factored_logits_fn: the frozen model's.
        head: what is trained.
        reward: as of ``shared_trunk``; with several outputs the scores are ``[B, M]``, the last
            axis being theirs, as ``algorithms.reward_model`` wants them.

    Returns:
        A ``ScoreFn`` of ``{"trunk": ..., "head": ...}``, of packed rows as ``score_model``'s. What
        is trained under ``"head"`` is ``shared_trunk``'s ``frozen.reward``, if ``"trunk"`` is its
        reference.

    Raises:
        TypeError: when called, if the logits are not factored.

    >>> import optax
    >>> from rlhf_jax.models import language_model
    >>> config = TransformerConfig(vocab_size=16, hidden_size=8, num_layers=1)
    >>> model, head = language_model(config), linear_head(8)
    >>> score_fn = trunk_scores(model.factored_logits_fn, head)
    >>> keys = jax.random.split(jax.random.key(0))
    >>> params = {"trunk": model.init(keys[0]), "head": head.init(keys[1])}
    >>> from rlhf_jax import trees
    >>> head_alone, _ = trees.split(params, "head/*")
    >>> state = optax.adam(1e-3).init(head_alone)
    >>> sum(x.size for x in jax.tree.leaves(state))  # twice 8 + 1, and a count
    19
    """

    def score_fn(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        logits = _factored(factored_logits_fn, params["trunk"], tokens, mask)
        scores = head.apply(params["head"], jax.lax.stop_gradient(logits.hidden))
        if _several(mask):
            if reward is not last_score:
                raise ValueError(
                    "packed or forked rows are scored at last tokens: reward must be last_score"
                )
            return scores
        rewards = reward(scores, Sequences(tokens, mask, mask))
        return rewards if scores.ndim == 2 else jnp.moveaxis(rewards, 0, -1)

    return score_fn


def feature_values(head: Head) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
    """A critic that reads the frozen reference's features instead of the tokens.

    Args:
        head: with one output.

    Returns:
        ``(params, features[B, T, D], mask[B, T]) -> values[B, T]``, for ``value_fn`` beside
        ``shared_fn``; column 0, before which there is nothing to see, is 0.

    >>> head = linear_head(8)
    >>> params = head.init(jax.random.key(0))
    >>> feature_values(head)(params, jnp.ones([1, 3, 8]), jnp.ones([1, 3], bool)).shape
    (1, 3)
    """

    def value_fn(params: Params, features: jax.Array, mask: jax.Array) -> jax.Array:
        return align(head.apply(params, features))

    return value_fn


def _several(mask: jax.Array | Forked) -> bool:
    """Whether a row is of several sequences."""
    return isinstance(mask, Forked) or segmented(mask)


def _factored(
    logits_fn: LogitsFn, params: Params, tokens: jax.Array, mask: jax.Array
) -> FactoredLogits:
    logits = logits_fn(params, tokens, mask)
    if not isinstance(logits, FactoredLogits):
        raise TypeError(
            f"factored_logits_fn must return FactoredLogits, not {type(logits).__name__}: of a "
            "language_model that is its factored_logits_fn"
        )
    return logits
