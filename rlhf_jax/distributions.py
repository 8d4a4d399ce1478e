r"""Rewards that are distributions: what a model says about how far people differ.

A model's outputs ``[..., size]`` are a distribution's parameters, and a ``Distribution`` the
functions that read them. Where people disagree, or want different things for reasons that the data
do not show, the spread says so; a low ``quantile`` is a reward for the cautious.

Reference: Siththaranjan et al. 2023 (distributional preference learning),
https://arxiv.org/abs/2312.08358
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = ["Distribution", "categorical", "explained_share", "normal"]


class Distribution(NamedTuple):
    """The functions that read a model's outputs ``float[..., size]``.

    Attributes:
        size: how many outputs a model needs.
        mean: ``(outputs) -> float[...]``.
        variance: ``(outputs) -> float[...]``.
        quantile: ``(outputs, level) -> float[...]``, the level from 0 to 1.
        above: ``(outputs, value) -> float[...]``, the probability that a draw exceeds the value,
            and half of that that it equals it.
        log_prefers: ``(first, second) -> float[...]`` in nats, the log-probability that a draw from
            the first exceeds an independent one from the second.
        log_density: ``(outputs, value[...]) -> float[...]``, of a rating, in nats.
    """

    size: int
    mean: Callable[[jax.Array], jax.Array]
    variance: Callable[[jax.Array], jax.Array]
    quantile: Callable[[jax.Array, float | jax.Array], jax.Array]
    above: Callable[[jax.Array, float | jax.Array], jax.Array]
    log_prefers: Callable[[jax.Array, jax.Array], jax.Array]
    log_density: Callable[[jax.Array, jax.Array], jax.Array]


def normal(*, least: float = 1e-3) -> Distribution:
    r"""A normal distribution, whose mean and spread the model says.

    .. math::
        \mu = o_1, \quad \sigma = \operatorname{softplus}(o_2) + \sigma_0, \qquad
        P(a \succ b) = \Phi\left(\frac{\mu_a - \mu_b}{\sqrt{\sigma_a^2 + \sigma_b^2}}\right)

    Comparisons fix neither the zero nor the unit: only spreads relative to differences mean
    something, unless ratings are learnt from.

    Args:
        least: sigma_0, the least standard deviation.

    Returns:
        A ``Distribution`` of size 2.

    Raises:
        ValueError: if ``least`` is not positive.

    >>> outputs = jnp.array([[1.0, 0.5413], [0.0, 0.5413]])  # softplus(0.5413) = 1
    >>> beliefs = normal()
    >>> print(beliefs.mean(outputs), beliefs.variance(outputs).round(2))
    [1. 0.] [1. 1.]
    >>> round(float(jnp.exp(beliefs.log_prefers(*outputs))), 2)  # Phi(1 / sqrt 2)
    0.76
    """
    checks.positive(least=least)

    def deviation(outputs):
        return jax.nn.softplus(outputs[..., 1]) + least

    def quantile(outputs, level):
        checks.probability(level=level)
        return outputs[..., 0] + deviation(outputs) * jax.scipy.special.ndtri(level)

    def above(outputs, value):
        return jax.scipy.stats.norm.sf(value, outputs[..., 0], deviation(outputs))

    def log_prefers(first, second):
        checks.pair(first, second)
        spread = jnp.hypot(deviation(first), deviation(second))
        return jax.scipy.stats.norm.logcdf((first[..., 0] - second[..., 0]) / spread)

    return Distribution(
        2,
        lambda outputs: outputs[..., 0],
        lambda outputs: jnp.square(deviation(outputs)),
        quantile,
        above,
        log_prefers,
        lambda outputs, value: jax.scipy.stats.norm.logpdf(
            value, outputs[..., 0], deviation(outputs)
        ),
    )


def categorical(atoms: jax.Array) -> Distribution:
    r"""A distribution over fixed rewards, of any form: two modes, for instance.

    .. math::
        p = \operatorname{softmax}(o), \qquad
        P(a \succ b) = \sum_{i > j} p^a_i \, p^b_j + \tfrac12 \sum_i p^a_i \, p^b_i

    Args:
        atoms: ``float[size]``, the rewards there are, ascending; of a scale of ratings, its steps.

    Returns:
        A ``Distribution`` of that size. The quantile is the least atom by which so much has come.

    Raises:
        ValueError: if the atoms are not of rank 1, at least 2, and ascending.

    >>> opinions = categorical(jnp.array([-1.0, 0.0, 1.0]))
    >>> split, mild = jnp.log(jnp.array([[0.5, 1e-9, 0.5], [1e-9, 1.0, 1e-9]]))
    >>> print(opinions.mean(split), opinions.variance(split), opinions.quantile(split, 0.1))
    0.0 1.0 -1.0
    >>> round(float(jnp.exp(opinions.log_prefers(split, mild))), 3)
    0.5
    >>> print(opinions.above(split, 0.5), opinions.above(mild, 0.0))
    0.5 0.5
    """
    checks.vectors(atoms=atoms)
    checks.floating(atoms=atoms)
    if len(atoms) < 2 or not np.all(np.diff(np.asarray(atoms)) > 0):
        raise ValueError(f"atoms must be at least 2, ascending, not {atoms}")
    atoms = np.asarray(atoms, np.float32)

    def mean(outputs):
        return jax.nn.softmax(outputs, axis=-1) @ atoms

    def variance(outputs):
        apart = jnp.square(atoms - mean(outputs)[..., None])
        return jnp.sum(jax.nn.softmax(outputs, axis=-1) * apart, axis=-1)

    def quantile(outputs, level):
        checks.probability(level=level)
        reached = jnp.cumsum(jax.nn.softmax(outputs, axis=-1), axis=-1) >= level - 1e-6
        return jnp.asarray(atoms)[jnp.argmax(reached, axis=-1)]

    def above(outputs, value):
        beyond = 0.5 + 0.5 * jnp.sign(atoms - jnp.asarray(value)[..., None])
        return jnp.sum(jax.nn.softmax(outputs, axis=-1) * beyond, axis=-1)

    def log_prefers(first, second):
        checks.pair(first, second)
        log_first, log_second = (jax.nn.log_softmax(x, axis=-1) for x in (first, second))
        # log P(second < atom) + half of P(second = atom), in logarithms so that it cannot be log 0.
        up_to = jax.lax.cumlogsumexp(log_second, axis=log_second.ndim - 1)
        half = jnp.log(0.5)
        below = jnp.logaddexp(up_to[..., 1:] + half, up_to[..., :-1] + half)
        below = jnp.concatenate([up_to[..., :1] + half, below], axis=-1)
        return jax.nn.logsumexp(log_first + below, axis=-1)

    def log_density(outputs, value):
        nearest = jnp.argmin(jnp.abs(jnp.asarray(value)[..., None] - atoms), axis=-1)
        log_probs = jax.nn.log_softmax(outputs, axis=-1)
        return jnp.take_along_axis(log_probs, nearest[..., None], axis=-1)[..., 0]

    return Distribution(len(atoms), mean, variance, quantile, above, log_prefers, log_density)


def explained_share(means: jax.Array, variances: jax.Array) -> jax.Array:
    r"""How much of what rewards vary by comes from the answers, and not from hidden context.

    .. math:: r^2 = \frac{\operatorname{Var}_x \mu(x)}
              {\operatorname{Var}_x \mu(x) + \mathbb E_x \sigma^2(x)}

    1 where all people agree for all reasons; near 0 where who or what is not in the data decides.

    Args:
        means: ``float[B]``, of many answers.
        variances: ``float[B]``, of the same.

    Returns:
        ``float[]`` from 0 to 1; NaN if nothing varies.

    Raises:
        ValueError: if the shapes differ, are not ``[B]``, or not floating.

    Reference: Siththaranjan et al. 2023, section 4, https://arxiv.org/abs/2312.08358

    >>> explained_share(jnp.array([0.0, 2.0]), jnp.array([3.0, 3.0])).item()
    0.25
    """
    checks.alike(means=means, variances=variances)
    checks.vectors(means=means)
    checks.floating(means=means, variances=variances)
    between = jnp.var(means)
    return between / (between + jnp.mean(variances))
