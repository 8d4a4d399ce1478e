"""Preference losses: from the rewards of two answers to the loss of having preferred the first.

All take ``chosen: float[B]`` and ``rejected: float[B]``, in whatever unit the rewards have, and
return ``float[B]``. They serve reward models (the rewards are scores) and direct preference
optimisation (the rewards are ``beta`` times an implicit reward) alike. ``beta`` is not applied
here but once, by ``algorithms.direct``.
"""

import chex
import jax
import jax.numpy as jnp

__all__ = ["bradley_terry", "hinge", "squared"]


def _check(chosen: jax.Array, rejected: jax.Array) -> None:
    chex.assert_equal_shape([chosen, rejected], exception_type=ValueError)
    chex.assert_type([chosen, rejected], float)


def bradley_terry(
    chosen: jax.Array, rejected: jax.Array, *, margin: float | jax.Array = 0.0
) -> jax.Array:
    r"""Negative log-likelihood of the preference under the Bradley-Terry model.

    .. math:: \ell = -\log \sigma(r_w - r_l - m)

    Args:
        chosen: ``float[B]``, reward of the preferred answer, in nats.
        rejected: ``float[B]``, reward of the other.
        margin: by how much ``chosen`` should win, a number or ``float[B]``.

    Returns:
        ``float[B]`` in nats; log 2 where the rewards differ by the margin.

    Raises:
        ValueError: if the shapes differ.

    Reference: Bradley and Terry 1952, Biometrika 39; as a reward model's loss, Ouyang et al. 2022,
    eq. 1, https://arxiv.org/abs/2203.02155; on implicit rewards, Rafailov et al. 2023, eq. 7,
    https://arxiv.org/abs/2305.18290; with a margin, Touvron et al. 2023, eq. 2,
    https://arxiv.org/abs/2307.09288

    >>> bradley_terry(jnp.array([0.04]), jnp.array([-0.02])).tolist()
    [0.663597]
    """
    _check(chosen, rejected)
    return jax.nn.softplus(rejected - chosen + margin)


def hinge(chosen: jax.Array, rejected: jax.Array, *, margin: float = 1.0) -> jax.Array:
    r"""Zero once the preferred answer leads by the margin, linear before.

    .. math:: \ell = \max(0, m - (r_w - r_l))

    Args:
        chosen: ``float[B]``, reward of the preferred answer.
        rejected: ``float[B]``, reward of the other.
        margin: the lead at which the loss ends.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ.

    Reference: Zhao et al. 2023 (SLiC-HF), eq. 1, https://arxiv.org/abs/2305.10425

    >>> hinge(jnp.array([2.0, 0.5]), jnp.array([0.0, 0.0])).tolist()
    [0.0, 0.5]
    """
    _check(chosen, rejected)
    return jax.nn.relu(margin - (chosen - rejected))


def squared(chosen: jax.Array, rejected: jax.Array, *, tau: float = 0.5) -> jax.Array:
    r"""Pulls the lead of the preferred answer to one finite value (IPO).

    .. math:: \ell = \left(r_w - r_l - \frac{1}{2\tau}\right)^2

    Unlike Bradley-Terry it does not ask for an infinite lead when preferences are deterministic.
    With ``algorithms.direct`` use ``beta=1``: ``tau`` is IPO's own regularisation.

    Args:
        chosen: ``float[B]``, reward of the preferred answer.
        rejected: ``float[B]``, reward of the other.
        tau: strength of the regularisation; the lead asked for is ``1 / (2 tau)``.

    Returns:
        ``float[B]``.

    Raises:
        ValueError: if the shapes differ or ``tau`` is not positive.

    Reference: Azar et al. 2023, eq. 17, https://arxiv.org/abs/2310.12036

    >>> squared(jnp.array([0.4]), jnp.array([-0.2]), tau=0.1).tolist()
    [19.36]
    """
    _check(chosen, rejected)
    if tau <= 0:
        raise ValueError(f"tau must be positive, not {tau}")
    return jnp.square(chosen - rejected - 1 / (2 * tau))
