"""Losses of a reward learnt from demonstrations, which are told from a policy's samples.

All take *evidence*: ``rewards: float[B]`` and ``log_ratios: float[B]``, log pi(x) - log pi_ref(x),
both in nats, and ``demonstrated: bool[B]``, whether a person or the policy wrote the row. Below,
``f(x) = r(x) + log pi_ref(x)`` up to a constant is what the reward says of the demonstrators.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import checks

__all__ = ["airl", "gail", "maximum_entropy"]


def maximum_entropy(
    rewards: jax.Array, log_ratios: jax.Array, demonstrated: jax.Array
) -> jax.Array:
    r"""Maximum entropy: the demonstrations' reward up, that of the policy's samples down.

    .. math:: \nabla L = E_\pi[\nabla r] - E_{demo}[\nabla r]

    The gradient of the demonstrations' negative log-likelihood, once the policy is what the reward
    asks for, or its samples are weighted as if it were. Until then nothing bounds it: keep the
    reward's learning rate low, or its updates few.

    Args:
        rewards: ``float[B]`` in nats.
        log_ratios: ``float[B]``, which do not matter here.
        demonstrated: ``bool[B]``.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ, or are not floating and boolean.

    Reference: Ziebart et al. 2008, AAAI; with samples, Finn et al. 2016,
    https://arxiv.org/abs/1603.00448

    >>> rewards, seen = jnp.array([1.0, 0.5]), jnp.array([True, False])
    >>> maximum_entropy(rewards, jnp.zeros(2), seen).tolist()
    [-1.0, 0.5]
    """
    _check_evidence(rewards, log_ratios, demonstrated)
    return jnp.where(demonstrated, -rewards, rewards)


def airl(rewards: jax.Array, log_ratios: jax.Array, demonstrated: jax.Array) -> jax.Array:
    r"""Adversarial inverse RL: tells demonstrations from samples, knowing who wrote the samples.

    .. math:: D(x) = \frac{e^{f(x)}}{e^{f(x)} + \pi(x)}, \qquad f(x) = r(x) + \log \pi_{ref}(x)

    and the loss is the cross-entropy of ``D``. Because the discriminator is told the policy, what
    is left for the reward to learn does not depend on it: at the optimum, for *any* policy,
    ``f`` is the demonstrators' log-probability.

    Args:
        rewards: ``float[B]`` in nats.
        log_ratios: ``float[B]``, log pi(x) - log pi_ref(x).
        demonstrated: ``bool[B]``.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ, or are not floating and boolean.

    Reference: Fu et al. 2017, https://arxiv.org/abs/1710.11248, here over whole answers, as in Finn
    et al. 2016, https://arxiv.org/abs/1611.03852

    >>> rewards, seen = jnp.array([1.0, 0.5]), jnp.array([True, False])
    >>> airl(rewards, jnp.array([1.0, 0.5]), seen).tolist()
    [0.6931, 0.6931]
    """
    _check_evidence(rewards, log_ratios, demonstrated)
    return gail(rewards - log_ratios, log_ratios, demonstrated)


def gail(rewards: jax.Array, log_ratios: jax.Array, demonstrated: jax.Array) -> jax.Array:
    r"""Adversarial imitation: tells demonstrations from samples by a plain discriminator.

    .. math:: D(x) = \sigma(r(x))

    The policy is rewarded with the logit, ``log D - log(1 - D)``. In the end that is 0 everywhere:
    the policy imitates, and no reward is learnt that would be good for another.

    Args:
        rewards: ``float[B]``, the logits, in nats.
        log_ratios: ``float[B]``, which do not matter here.
        demonstrated: ``bool[B]``.

    Returns:
        ``float[B]`` in nats.

    Raises:
        ValueError: if the shapes differ, or are not floating and boolean.

    Reference: Ho and Ermon 2016, https://arxiv.org/abs/1606.03476 (there log D is the reward)

    >>> rewards, seen = jnp.array([0.0, 0.0]), jnp.array([True, False])
    >>> gail(rewards, jnp.zeros(2), seen).tolist()
    [0.6931, 0.6931]
    """
    _check_evidence(rewards, log_ratios, demonstrated)
    return jax.nn.softplus(jnp.where(demonstrated, -rewards, rewards))


def _check_evidence(rewards: jax.Array, log_ratios: jax.Array, demonstrated: jax.Array) -> None:
    checks.alike(rewards=rewards, log_ratios=log_ratios, demonstrated=demonstrated)
    checks.floating(rewards=rewards, log_ratios=log_ratios)
    checks.booleans(demonstrated=demonstrated)
