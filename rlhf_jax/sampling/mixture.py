"""A decoder made of two others."""

import jax
import jax.numpy as jnp

from rlhf_jax.types import Decoder, Params, PyTree

__all__ = ["geometric_mixture"]


def geometric_mixture(decoder: Decoder, *, reference_weight: float) -> Decoder:
    r"""A policy between a policy and its reference, token by token.

    .. math:: \log \pi_{mix}(x_t \mid x_{<t}) = (1 - \alpha) \log \pi(x_t \mid x_{<t})
              + \alpha \log \pi_{ref}(x_t \mid x_{<t}) + \text{constant}

    Args:
        decoder: of both.
        reference_weight: ``alpha``, from 0 (the policy) to 1 (the reference).

    Returns:
        A ``Decoder`` of the parameters ``(policy, reference)``.

    Raises:
        ValueError: if ``reference_weight`` is not in [0, 1].

    Reference: Munos et al. 2023, https://arxiv.org/abs/2312.00886
    """
    if not 0 <= reference_weight <= 1:
        raise ValueError(f"reference_weight must be from 0 to 1, not {reference_weight}")
    weights = (1 - reference_weight, reference_weight)

    def init_cache(batch_size: int, length: int) -> PyTree:
        return tuple(decoder.init_cache(batch_size, length) for _ in weights)

    def apply(
        params: tuple[Params, Params], tokens: jax.Array, mask: jax.Array, cache: PyTree
    ) -> tuple[jax.Array, PyTree]:
        mixed, caches = 0.0, []
        for weight, own_params, own_cache in zip(weights, params, cache, strict=True):
            logits, own_cache = decoder.apply(own_params, tokens, mask, own_cache)
            mixed += weight * jax.nn.log_softmax(logits.astype(jnp.float32))
            caches.append(own_cache)
        return mixed, tuple(caches)

    def fork(caches: PyTree, samples: int, length: int) -> PyTree:
        return tuple(decoder.fork(cache, samples, length) for cache in caches)

    def refill(caches: PyTree, slots: jax.Array, sources: PyTree, rows: jax.Array) -> PyTree:
        pairs = zip(caches, sources, strict=True)
        return tuple(decoder.refill(cache, slots, source, rows) for cache, source in pairs)

    def prepare(params: tuple[Params, Params], caches: PyTree) -> tuple[PyTree, PyTree]:
        both = zip(params, caches, strict=True)
        return tuple(zip(*(decoder.prepare(*each) for each in both), strict=True))

    return decoder._replace(
        init_cache=init_cache,
        apply=apply,
        fork=decoder.fork and fork,
        refill=decoder.refill and refill,
        prepare=prepare,
    )
