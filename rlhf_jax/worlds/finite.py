"""The finite bandit: ``N`` answers with known rewards, for which the optimal policy is known too.

Log-probabilities are ``float[..., N]`` in nats over all answers there are. Its divergences are
``divergences.exact_kl``, its comparisons in ``comparisons``, its best-of-n
``measures.best_of_n_policy``.
"""

import jax

from rlhf_jax import checks

__all__ = ["tilt", "tilt_value"]


def tilt(
    ref_log_probs: jax.Array, rewards: jax.Array, *, beta: float | jax.Array = 1.0
) -> jax.Array:
    r"""The policy that is best under a KL penalty: the reference, tilted by the rewards.

    .. math::
        \pi^*(x) = \frac{\pi_{ref}(x) \, e^{r(x) / \beta}}{Z}
        = \arg\max_\pi \, \mathbb E_\pi[r] - \beta \, KL(\pi \| \pi_{ref})

    Where PPO, RLOO and DPO end if they have the capacity, the data and the time. An answer that the
    reference never gives stays impossible.

    Args:
        ref_log_probs: ``float[..., N]`` in nats; logits will do.
        rewards: ``float[..., N]``.
        beta: strength of the penalty, reward per nat; a number, or an array that broadcasts.

    Returns:
        ``float[..., N]``, log-probabilities in nats.

    Raises:
        ValueError: if the shapes differ or are not floating, or ``beta`` is not positive.

    Reference: Rafailov et al. 2023, eq. 4, https://arxiv.org/abs/2305.18290

    >>> import jax.numpy as jnp
    >>> ref_log_probs = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> jnp.exp(tilt(ref_log_probs, jnp.array([1.0, 0.0, 2.0]), beta=0.5)).tolist()
    [0.24772, 0.02012, 0.73217]
    """
    return jax.nn.log_softmax(_tilted(ref_log_probs, rewards, beta))


def tilt_value(
    ref_log_probs: jax.Array, rewards: jax.Array, *, beta: float | jax.Array = 1.0
) -> jax.Array:
    r"""What the tilt is worth: its expected reward less its penalty, more than any other policy's.

    .. math:: \max_\pi \, \mathbb E_\pi[r] - \beta \, KL(\pi \| \pi_{ref})
              = \beta \log Z = \beta \log \mathbb E_{\pi_{ref}}[e^{r / \beta}]

    Args:
        ref_log_probs: ``float[..., N]`` in nats; logits will do.
        rewards: ``float[..., N]``.
        beta: strength of the penalty, reward per nat, a number.

    Returns:
        ``float[...]`` in units of reward.

    Raises:
        ValueError: if the shapes differ or are not floating, or ``beta`` is not positive.

    >>> import jax.numpy as jnp
    >>> ref_log_probs = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> tilt_value(ref_log_probs, jnp.array([1.0, 0.0, 2.0]), beta=1.0).item()
    1.143252
    """
    return beta * jax.nn.logsumexp(_tilted(ref_log_probs, rewards, beta), axis=-1)


def _tilted(ref_log_probs, rewards, beta):
    checks.alike(ref_log_probs=ref_log_probs, rewards=rewards)
    checks.floating(ref_log_probs=ref_log_probs, rewards=rewards)
    checks.positive(beta=beta)
    return jax.nn.log_softmax(ref_log_probs) + rewards / beta
