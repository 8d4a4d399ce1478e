"""Divergence of a policy from its reference: estimators, the exact value, and its coefficient.

The estimators take the log-probabilities of tokens *sampled from the policy*, and estimate
``KL(policy || reference)`` token by token. As a number to report or to subtract from the reward
all three serve. As a *loss* to differentiate they differ: the gradient of ``kl_k1`` is zero in
expectation, that of ``kl_k2`` is the gradient of the divergence, that of ``kl_k3`` is the
gradient of the reverse divergence ``KL(reference || policy)`` (on policy).

Reference: Schulman 2020, "Approximating KL divergence"; on the gradients, Tang and Munos 2025,
https://arxiv.org/abs/2506.09477
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = [
    "Coefficient",
    "adaptive_coefficient",
    "exact_kl",
    "fixed_coefficient",
    "kl_k1",
    "kl_k2",
    "kl_k3",
]


def kl_k1(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    r"""The plain log-ratio: unbiased, of high variance, and negative at times.

    .. math:: k_1 = \log \pi(x) - \log \pi_{ref}(x)

    Args:
        log_probs: ``float[...]`` in nats, of tokens sampled from the policy.
        ref_log_probs: ``float[...]``, of the same tokens under the reference.

    Returns:
        ``float[...]`` in nats.

    Raises:
        ValueError: if the shapes differ.

    >>> kl_k1(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))).tolist()
    [0.6931]
    """
    checks.alike(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return log_probs - ref_log_probs


def kl_k2(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    r"""Half the squared log-ratio: biased, never negative, of low variance.

    .. math:: k_2 = \tfrac12 \left(\log \pi(x) - \log \pi_{ref}(x)\right)^2

    Args:
        log_probs: ``float[...]`` in nats, of tokens sampled from the policy.
        ref_log_probs: ``float[...]``, of the same tokens under the reference.

    Returns:
        ``float[...]`` in nats.

    Raises:
        ValueError: if the shapes differ.

    >>> kl_k2(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))).tolist()
    [0.2402]
    """
    checks.alike(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return 0.5 * jnp.square(log_probs - ref_log_probs)


def kl_k3(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    r"""``k1`` with a control variate: unbiased, never negative, of lower variance (GRPO).

    .. math:: k_3 = \frac{\pi_{ref}(x)}{\pi(x)} - 1 - \log \frac{\pi_{ref}(x)}{\pi(x)}

    Args:
        log_probs: ``float[...]`` in nats, of tokens sampled from the policy.
        ref_log_probs: ``float[...]``, of the same tokens under the reference.

    Returns:
        ``float[...]`` in nats.

    Raises:
        ValueError: if the shapes differ.

    Reference: in the loss, Shao et al. 2024, eq. 4, https://arxiv.org/abs/2402.03300

    >>> kl_k3(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))).tolist()
    [0.1931]
    """
    checks.alike(log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_ratio = ref_log_probs - log_probs
    return jnp.expm1(log_ratio) - log_ratio


def exact_kl(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    r"""The divergence itself, summed over the vocabulary.

    .. math:: KL(\pi \| \pi_{ref}) = \sum_v \pi(v) \left(\log \pi(v) - \log \pi_{ref}(v)\right)

    Args:
        logits: ``float[..., V]`` of the policy.
        ref_logits: ``float[..., V]`` of the reference.

    Returns:
        ``float32[...]`` in nats.

    Raises:
        ValueError: if the shapes differ.

    >>> exact_kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.7, 0.3]))).item()
    0.087177
    """
    checks.alike(logits=logits, ref_logits=ref_logits)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    ref_log_probs = jax.nn.log_softmax(ref_logits.astype(jnp.float32))
    probabilities = jnp.exp(log_probs)
    # A token that the policy cannot draw adds nothing, whatever the difference of infinities.
    terms = jnp.where(probabilities > 0, probabilities * (log_probs - ref_log_probs), 0)
    return jnp.sum(terms, axis=-1)


class Coefficient(NamedTuple):
    """How strongly the divergence is penalised, as pure state.

    Attributes:
        init: ``() -> float32[]``, the first coefficient.
        update: ``(coefficient, kl) -> coefficient``, given the measured divergence in nats a
            sequence.
    """

    init: Callable[[], jax.Array]
    update: Callable[[jax.Array, jax.Array], jax.Array]


def fixed_coefficient(value: float) -> Coefficient:
    """A coefficient that stays what it is.

    Args:
        value: the coefficient, reward per nat.

    Returns:
        A ``Coefficient``.

    >>> coefficient = fixed_coefficient(0.1)
    >>> coefficient.update(coefficient.init(), jnp.float32(99.0)).item()
    0.1
    """
    return Coefficient(lambda: jnp.asarray(value, jnp.float32), lambda coefficient, kl: coefficient)


def adaptive_coefficient(
    initial: float,
    *,
    target: float,
    gain: float = 0.1,
    clip: float = 0.2,
    minimum: float = 0.0,
) -> Coefficient:
    r"""A coefficient that steers the divergence to a target.

    .. math:: \beta \leftarrow \beta \left(1 + K \operatorname{clip}(KL/target - 1, -c, c)\right)

    Args:
        initial: the first coefficient, reward per nat.
        target: the divergence aimed at, nats a sequence.
        gain: ``K``; a step changes the coefficient by at most a factor of ``1 + gain * clip``.
        clip: ``c``, the largest relative error that counts.
        minimum: the coefficient falls no lower. A policy is slow to move at first; a coefficient
            that fell all the while would let it overshoot the target later.

    Returns:
        A ``Coefficient``.

    Raises:
        ValueError: if ``initial`` or ``target`` is not positive (a coefficient of 0 would stay 0:
            use ``fixed_coefficient``).

    Reference: Ziegler et al. 2019, section 2.2, https://arxiv.org/abs/1909.08593

    >>> coefficient = adaptive_coefficient(0.1, target=5.0)
    >>> coefficient.update(coefficient.init(), jnp.float32(50.0)).item()
    0.102
    """
    if initial <= 0 or target <= 0:
        raise ValueError(f"initial and target must be positive, not {initial} and {target}")

    def update(coefficient: jax.Array, kl: jax.Array) -> jax.Array:
        after = coefficient * (1 + gain * jnp.clip(kl / target - 1, -clip, clip))
        return jnp.maximum(after, minimum)

    return Coefficient(lambda: jnp.asarray(initial, jnp.float32), update)
