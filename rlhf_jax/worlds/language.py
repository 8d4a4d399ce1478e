"""Small token languages whose true utility is a program: what a policy says can be judged exactly.

The policy and the reward model are transformers, generation and training are those of large models;
only what people want is known.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import checks, models, sampling
from rlhf_jax.feedback import Pairs
from rlhf_jax.types import ActorCritic, Key, Params, Prompts, SampleFn, Sequences

__all__ = ["TokenLanguage", "token_language", "word_values"]


class TokenLanguage(NamedTuple):
    """A language of ``V`` tokens without an end: all answers have ``R`` tokens.

    Attributes:
        utility: of ``Sequences``, ``float[B]``: what people want, the truth.
        model: the policy, a ``LanguageModel``; its ``init`` is a reference policy that says nearly
            everything alike often.
        reward_model: a ``ScoreModel`` of the same shape.
        sample_fn: the policy, generating.
        prompts: ``(B) -> (key -> Prompts)``, random tokens.
        pairs: ``(B) -> Query``: two of the policy's own answers to each of so many prompts.
    """

    utility: Callable[[Sequences], jax.Array]
    model: models.LanguageModel
    reward_model: models.ScoreModel
    sample_fn: SampleFn
    prompts: Callable[[int], Callable[[Key], Prompts]]
    pairs: Callable[[int], Callable[[Key, Params, Params], Pairs]]


def token_language(
    utility: Callable[[Sequences], jax.Array],
    *,
    vocab_size: int = 32,
    prompt_length: int = 2,
    new_tokens: int = 10,
    hidden_size: int = 64,
    num_layers: int = 2,
) -> TokenLanguage:
    """A token language with transformers of some 0.1 million parameters.

    Args:
        utility: of ``Sequences`` of ``prompt_length + new_tokens`` columns, ``float[B]``.
        vocab_size: ``V``.
        prompt_length: ``P`` tokens, which are drawn uniformly.
        new_tokens: ``R``, of each answer.
        hidden_size: of both transformers.
        num_layers: likewise.

    Returns:
        A ``TokenLanguage``.

    >>> world = token_language(word_values(jnp.arange(32.0)), hidden_size=16, num_layers=1)
    >>> params, key = world.model.init(jax.random.key(0)), jax.random.key(1)
    >>> pairs = world.pairs(4)(key, params, ())
    >>> pairs.first.tokens.shape, bool((pairs.first.tokens == pairs.second.tokens)[:, :2].all())
    ((4, 12), True)
    """
    config = models.TransformerConfig(
        vocab_size,
        hidden_size,
        2 * hidden_size,
        num_layers,
        num_heads=2,
        num_kv_heads=2,
        max_length=prompt_length + new_tokens,
    )
    model = models.language_model(config)
    sample_fn = sampling.sampler(model.decoder, max_new_tokens=new_tokens)

    def prompts(rows: int) -> Callable[[Key], Prompts]:
        def draw(key: Key) -> Prompts:
            tokens = jax.random.randint(key, (rows, prompt_length), 0, vocab_size)
            return Prompts(tokens, jnp.ones(tokens.shape, bool))

        return draw

    def pairs(rows: int) -> Callable[[Key, Params, Params], Pairs]:
        def query(key: Key, policy: Params, reward: Params) -> Pairs:
            policy = policy.policy if isinstance(policy, ActorCritic) else policy
            keys = jax.random.split(key)
            twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), prompts(rows)(keys[0]))
            answers = sample_fn(policy, twice, jax.random.split(keys[1], 2 * rows))
            return Pairs(*(jax.tree.map(lambda x, n=n: x[n:][:rows], answers) for n in (0, rows)))

        return query

    score_model = models.score_model(config)
    return TokenLanguage(utility, model, score_model, sample_fn, prompts, pairs)


def word_values(values: jax.Array, *, at_most: int = 1) -> Callable[[Sequences], jax.Array]:
    r"""A utility that values words, and none of them more often than so many times.

    .. math:: u(x) = \sum_v c_v \min(n_v(x), m)

    where ``n`` counts a word in the answer, the prompt left out. A reward model that has learnt
    that a word is good will go on paying for it: repetition is what it can be fooled with.

    Args:
        values: ``float[V]``, ``c``.
        at_most: ``m``.

    Returns:
        ``Sequences -> float32[B]``.

    Raises:
        ValueError: if ``values`` is not ``[V]`` or ``at_most`` is below 1.

    >>> mask = jnp.array([[False, True, True, True]])
    >>> text = Sequences(jnp.array([[2, 1, 1, 0]]), jnp.ones_like(mask), mask)
    >>> word_values(jnp.array([0.5, 1.0, 9.0]))(text).tolist()
    [1.5]
    """
    checks.vectors(values=values)
    if at_most < 1:
        raise ValueError(f"at_most must be at least 1, not {at_most}")

    def utility(sequences: Sequences) -> jax.Array:
        words = jax.nn.one_hot(sequences.tokens, len(values))
        counts = jnp.sum(jnp.where(sequences.response_mask[..., None], words, 0), axis=-2)
        return jnp.minimum(counts, at_most) @ values

    return utility
