"""Best-of-n sampling in closed form.

Best-of-n draws ``n`` answers and keeps the one with the highest (proxy) reward: the simplest way to
optimise against a reward, and one whose policy is known exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = [
    "best_of_n_estimate",
    "best_of_n_kl",
    "best_of_n_policy",
    "best_of_n_win_rate",
]


def best_of_n_kl(n: int | jax.Array) -> jax.Array:
    r"""An upper bound on how far best-of-n is from the policy that it samples from.

    .. math:: KL(\pi_n \| \pi) \le \log n - \frac{n - 1}{n}

    Often quoted as the divergence itself. It is that only in the limit where no two answers have
    the same reward and each is improbable; of few answers, or with ties, the divergence is less.
    ``best_of_n_policy`` gives the exact one of a finite policy.

    Args:
        n: how many answers are drawn, an integer or an array of them.

    Returns:
        ``float32[...]`` in nats, shaped like ``n``.

    Raises:
        ValueError: if ``n`` is below 1.

    Reference: as a bound, Beirami et al. 2024, https://arxiv.org/abs/2401.01879

    >>> best_of_n_kl(jnp.array([1, 4, 64, 1024])).tolist()
    [0.0, 0.636294, 3.174508, 5.932448]
    """
    n = _draws(n)
    return jnp.log(n) - (n - 1) / n


def best_of_n_win_rate(n: int | jax.Array) -> jax.Array:
    r"""How often best-of-n beats a single answer of the same policy, by the reward it uses.

    .. math:: \frac{n}{n + 1}

    Exact if no two answers have the same reward; with ties, each counted as half a win, it is an
    upper bound. By any other reward it is wrong.

    Args:
        n: how many answers are drawn, an integer or an array of them.

    Returns:
        ``float32[...]`` from 0.5 to 1, shaped like ``n``.

    Raises:
        ValueError: if ``n`` is below 1.

    >>> best_of_n_win_rate(4).item()
    0.8
    """
    n = _draws(n)
    return n / (n + 1)


def best_of_n_policy(
    log_probs: jax.Array, rewards: jax.Array, n: int | float | jax.Array
) -> jax.Array:
    r"""The exact distribution of the best of ``n`` answers of a finite policy.

    .. math::
        \pi_n(x) = \frac{\pi(x)}{\pi(r = r_x)}
        \left[\pi(r \le r_x)^n - \pi(r < r_x)^n\right]

    Among answers of equal reward the first that was drawn is kept, so they share in proportion to
    their probability. Stable for large ``n`` and small probabilities. Not meant to be
    differentiated; ``n`` may be traced, to ``vmap`` over it.

    Args:
        log_probs: ``float[N]`` in nats, of all answers there are; logits will do.
        rewards: ``float[N]``, by which the best is chosen.
        n: how many are drawn, at least 1.

    Returns:
        ``float32[N]``, log-probabilities in nats, ``-inf`` where they are below about -80.

    Raises:
        ValueError: if the shapes differ, are not ``[N]`` or not floating, or ``n`` is below 1.

    Reference: Beirami et al. 2024, https://arxiv.org/abs/2401.01879

    >>> log_probs = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> jnp.exp(best_of_n_policy(log_probs, jnp.array([1.0, 0.0, 2.0]), 4)).tolist()
    [0.4015, 0.0081, 0.5904]
    """
    _check_answers(log_probs=log_probs, rewards=rewards)
    n = _draws(n)
    log_probs = jax.nn.log_softmax(log_probs.astype(jnp.float32))
    order = jnp.argsort(rewards)
    first, last = _tied(rewards[order], rewards)
    # log pi(r <= r_x): from below where that is small, through its complement where it is near 1.
    upwards = jax.lax.cumlogsumexp(log_probs[order])[last]
    downwards = jax.lax.cumlogsumexp(log_probs[order], reverse=True)
    above = jnp.append(downwards, -jnp.inf)[last + 1]
    log_cdf = jnp.where(above < -1, jax.nn.log1mexp(jnp.maximum(-above, 1)), upwards)
    # log pi(r = r_x)
    tied = jax.ops.segment_sum(jnp.exp(log_probs), first, len(rewards))[first]
    # log(F^n - (F - p)^n) = n log F + log(1 - (1 - p / F)^n), with no difference of near equals.
    share = jnp.minimum(tied / jnp.exp(log_cdf), 1)
    log_best = n * log_cdf + jax.nn.log1mexp(-n * jnp.log1p(-share))
    possible = tied > 0
    return jnp.where(
        possible, log_probs - jnp.log(jnp.where(possible, tied, 1)) + log_best, -jnp.inf
    )


def best_of_n_estimate(gold: jax.Array, proxy: jax.Array, n: int | float | jax.Array) -> jax.Array:
    r"""The expected gold reward of best-of-n by the proxy, from ``N`` samples and without bias.

    .. math::
        \hat R_n = \sum_{i=n}^{N} \frac{\binom{i - 1}{n - 1}}{\binom{N}{n}} \, g_{(i)}

    :math:`g_{(i)}` is the gold reward of the sample whose proxy reward is the ``i``-th from below:
    the mean over all subsets of ``n`` samples of the gold reward of the best one. Samples of equal
    proxy reward share their weights. One set of samples serves every ``n``, so the estimates of a
    curve are correlated; near ``N`` they rest on a few samples. ``n`` may be traced, to ``vmap``
    over it.

    Args:
        gold: ``float[N]``, of independent samples of the policy.
        proxy: ``float[N]``, of the same samples; give it as ``gold`` too for the proxy's own curve.
        n: how many answers are drawn, from 1 to ``N``.

    Returns:
        ``float32[]`` in units of gold reward. NaN where a traced ``n`` is above ``N``.

    Raises:
        ValueError: if the shapes differ, are not ``[N]`` or not floating, or ``n`` is not from 1
            to ``N``.

    Reference: Nakano et al. 2021, appendix I, https://arxiv.org/abs/2112.09332

    >>> gold, proxy = jnp.array([3.0, 1.0, 2.0, 0.0]), jnp.array([0.1, 0.4, 0.2, 0.3])
    >>> n = jnp.arange(1, 5)
    >>> jax.vmap(lambda n: best_of_n_estimate(gold, proxy, n))(n).tolist()
    [1.5, 0.833333, 0.75, 1.0]
    """
    _check_answers(gold=gold, proxy=proxy)
    samples = len(gold)
    n = _draws(n, at_most=samples)
    # The largest weighs n / N, and weight i is (i + 1 - n) / i of weight i + 1. Logarithms of
    # factorials would lose three digits at N = 4096; these sums of small terms do not.
    rank = jnp.arange(1, samples, dtype=jnp.float32)
    steps = jnp.log1p(-jnp.minimum((n - 1) / rank, 1))
    falls = jnp.cumsum(steps[::-1])[::-1]
    weights = jnp.exp(jnp.log(n / samples) + jnp.append(falls, 0))
    order = jnp.argsort(proxy)
    first, last = _tied(proxy[order], proxy[order])
    shared = jax.ops.segment_sum(weights, first, samples)[first] / (last + 1 - first)
    estimate = jnp.sum(shared * gold[order].astype(jnp.float32))
    return jnp.where(n <= samples, estimate, jnp.nan)


def _draws(n: int | float | jax.Array, at_most: float = np.inf) -> jax.Array:
    if not isinstance(n, jax.core.Tracer):
        values = np.asarray(n)
        if not np.all((values >= 1) & (values <= at_most)):
            allowed = "at least 1" if at_most == np.inf else f"from 1 to {at_most}"
            raise ValueError(f"n must be {allowed}, not {n}")
    return jnp.asarray(n, jnp.float32)


def _check_answers(**arrays: jax.Array) -> None:
    checks.alike(**arrays)
    checks.vectors(**arrays)
    checks.floating(**arrays)


def _tied(ordered: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and the last place that each of ``values`` takes in the order."""
    first = jnp.searchsorted(ordered, values, side="left")
    return first, jnp.searchsorted(ordered, values, side="right") - 1
