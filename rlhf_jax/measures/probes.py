"""What a reward depends on that it should not: length, nuisances, whatever features can show.

All are linear and descriptive: they say what a reward goes along with on the data they are given,
not what it would do if that were changed. ``triggers.trigger_scan`` changes the text itself.
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = [
    "LengthBias",
    "LengthGain",
    "Probe",
    "length_bias",
    "length_gain",
    "nuisance_share",
    "probe",
]


class LengthBias(NamedTuple):
    """How a reward goes along with length.

    Attributes:
        correlation: ``float32[]``, Pearson's, of reward and length.
        partial_correlation: ``float32[]``, of what is left of the two after the gold reward is
            taken out of both, linearly; NaN without gold.
    """

    correlation: jax.Array
    partial_correlation: jax.Array


class LengthGain(NamedTuple):
    """How much of a policy's gain in reward is there at equal length.

    Attributes:
        gain: ``float32[]``, mean reward of the new answers less that of the old.
        same_length_gain: ``float32[]``, the same among answers of one length.
        length_share: ``float32[]``, the share of ``gain`` that is gone at equal length; above 1 if
            answers of one length got worse, negative if the change in length cost reward.
        covered: ``float32[]``, the share of new answers for whose length there is an old one; of
            the others nothing is known.
    """

    gain: jax.Array
    same_length_gain: jax.Array
    length_share: jax.Array
    covered: jax.Array


class Probe(NamedTuple):
    """A linear read-out of features.

    Attributes:
        weights: ``float32[F]``, per unit of each feature; 0 for one that is constant in training.
        intercept: ``float32[]``.
        prediction: ``float32[N]``, of all rows.
        train_r2: ``float32[]``, share of variance explained in the rows fitted to.
        held_out_r2: ``float32[]``, in the others, against their own mean; can be negative.
    """

    weights: jax.Array
    intercept: jax.Array
    prediction: jax.Array
    train_r2: jax.Array
    held_out_r2: jax.Array


def length_bias(
    rewards: jax.Array, lengths: jax.Array, gold: jax.Array | None = None
) -> LengthBias:
    r"""The correlation of reward and length, and what of it the gold reward does not account for.

    .. math:: \operatorname{corr}(r, \ell), \qquad
              \operatorname{corr}(r - \hat r(g), \; \ell - \hat\ell(g))

    where the hats are least-squares lines in the gold reward. Better answers may well be longer:
    the first alone proves no bias; where the second is 0, length goes along with the reward just as
    far as it does with the gold.

    Args:
        rewards: ``float[N]``, of answers.
        lengths: ``number[N]``, in tokens.
        gold: ``float[N]``, what the answers are worth.

    Returns:
        ``LengthBias``; NaN where something does not vary, or nothing of it is left.

    Raises:
        ValueError: if the shapes are not ``[N]`` or differ.

    Reference: Singhal et al. 2023, https://arxiv.org/abs/2310.03716, for the correlation

    >>> lengths, gold = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, -1.0, -1.0, 1.0])
    >>> found = length_bias(gold + 0.5 * lengths, lengths, gold)
    >>> found.correlation.item(), found.partial_correlation.item()
    (0.488, 1.0)
    """
    arrays = {"rewards": rewards, "lengths": lengths} | ({} if gold is None else {"gold": gold})
    checks.alike(**arrays)
    checks.vectors(**arrays)
    both = jnp.stack([jnp.asarray(rewards, jnp.float32), jnp.asarray(lengths, jnp.float32)], 1)
    nothing = jnp.zeros([len(both), 0])
    partial = jnp.float32(jnp.nan) if gold is None else _cosine(both, jnp.asarray(gold)[:, None])
    return LengthBias(_cosine(both, nothing), partial)


def length_gain(
    rewards: jax.Array,
    lengths: jax.Array,
    old_rewards: jax.Array,
    old_lengths: jax.Array,
    *,
    bins: int = 10,
) -> LengthGain:
    r"""How much of a gain in reward is left between answers of the same length.

    .. math:: \frac{\sum_b n_b (\bar r_b - \bar r^{\text{old}}_b)}{\sum_b n_b}, \qquad
              1 - \frac{\text{this}}{\bar r - \bar r^{\text{old}}}

    over bins ``b`` of length that hold answers of both, with :math:`n_b` new ones. The bins hold
    about as many of all answers each; within one, length can still differ, so that with few bins
    the share comes out too small.

    Args:
        rewards: ``float[N]``, of the new policy's answers.
        lengths: ``number[N]``, theirs, in tokens.
        old_rewards: ``float[K]``, of the policy before, by the same reward.
        old_lengths: ``number[K]``.
        bins: how many.

    Returns:
        ``LengthGain``; its share is NaN if there is no gain, and with its gain at equal length if
        no bin holds answers of both.

    Raises:
        ValueError: if the shapes are not ``[N]`` and ``[K]``, or ``bins`` is not positive.

    Reference: in the manner of the stratified gain of Singhal et al. 2023,
    https://arxiv.org/abs/2310.03716, whose bins are others

    >>> found = length_gain(
    ...     jnp.array([2.0, 4.0, 4.0, 4.0]), jnp.array([1, 2, 2, 2]),
    ...     jnp.array([1.0, 1.0, 1.0, 3.0]), jnp.array([1, 1, 1, 2]), bins=2,
    ... )
    >>> found.gain.item(), found.same_length_gain.item(), found.length_share.item()
    (2.0, 1.0, 0.5)
    """
    checks.alike(rewards=rewards, lengths=lengths)
    checks.alike(old_rewards=old_rewards, old_lengths=old_lengths)
    checks.vectors(rewards=rewards, old_rewards=old_rewards)
    if operator.index(bins) < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    lengths, old_lengths = (jnp.asarray(x, jnp.float32) for x in (lengths, old_lengths))
    inner = jnp.arange(1, bins) / bins
    edges = jnp.quantile(jnp.concatenate([lengths, old_lengths]), inner)

    def by_bin(values: jax.Array, of: jax.Array) -> jax.Array:
        place = jnp.searchsorted(edges, of, side="left")
        return jnp.zeros(bins).at[place].add(values)

    new, old = (by_bin(jnp.ones_like(of), of) for of in (lengths, old_lengths))
    means = by_bin(rewards, lengths) / new, by_bin(old_rewards, old_lengths) / old
    both = (new > 0) & (old > 0)
    covered = jnp.sum(jnp.where(both, new, 0))
    within = jnp.sum(jnp.where(both, new * (means[0] - means[1]), 0)) / covered
    gain = jnp.mean(rewards) - jnp.mean(old_rewards)
    share = jnp.where(gain == 0, jnp.nan, 1 - within / gain)
    return LengthGain(gain, within, share, covered / len(lengths))


def nuisance_share(rewards: jax.Array, features: jax.Array, nuisances: jax.Array) -> jax.Array:
    r"""The share of a reward's variance that nuisances explain beyond what should matter.

    .. math:: R^2(r \mid \text{features, nuisances}) - R^2(r \mid \text{features})

    the semipartial :math:`R^2` of linear regressions with an intercept. What the two explain
    together is put down to the features. It cannot fall below 0 and is not 0 by chance either:
    ``F`` irrelevant nuisances get about ``F / N`` of what the features leave unexplained.

    Args:
        rewards: ``float[N]``.
        features: ``float[N, G]``, what the reward should depend on; ``G`` may be 0.
        nuisances: ``float[N, F]``, what it should not; some may be combinations of others.

    Returns:
        ``float32[]`` from 0 to 1; NaN if the rewards do not vary.

    Raises:
        ValueError: if the shapes are not ``[N]``, ``[N, G]`` and ``[N, F]``.

    >>> feature, nuisance = jnp.array([1.0, 1, -1, -1]), jnp.array([1.0, -1, 1, -1])
    >>> nuisance_share(2 * feature + nuisance, feature[:, None], nuisance[:, None]).item()
    0.2
    """
    checks.vectors(rewards=rewards)
    features, nuisances = (
        _matrix(rewards, **{name: value})
        for name, value in (("features", features), ("nuisances", nuisances))
    )
    target = jnp.asarray(rewards, jnp.float32)[:, None]
    none, some, all_ = (
        jnp.sum(jnp.square(_residuals(target, design)))
        for design in (features[:, :0], features, jnp.concatenate([features, nuisances], axis=1))
    )
    return jnp.where(none > 0, jnp.maximum(some - all_, 0) / none, jnp.nan)


def probe(
    features: jax.Array, target: jax.Array, held_out: jax.Array, *, penalty: float = 1e-3
) -> Probe:
    r"""What can be read off features by a line, measured on rows that it was not fitted to.

    .. math:: \min_w \frac1n \sum_i (y_i - \bar y - w \cdot z_i)^2 + \lambda \|w\|^2

    in closed form, where ``z`` are the features in SDs about their means in training. A high
    :math:`R^2` of a reward on nuisance features, or of a nuisance on a reward model's hidden
    states, says that the one is there to be read in the other, not that it is used.

    Args:
        features: ``float[N, F]``.
        target: ``number[N]`` or ``bool[N]``, of which 1 and 0 are then predicted.
        held_out: ``bool[N]``, true on rows to measure on and not to fit to.
        penalty: lambda, as a share of a feature's variance; it must be positive where features
            depend on each other or outnumber the rows.

    Returns:
        ``Probe``; an :math:`R^2` is NaN where the target does not vary.

    Raises:
        ValueError: if the shapes are not ``[N, F]`` and ``[N]``, ``held_out`` is not boolean or
            leaves nothing to fit to or to measure on, or ``penalty`` is negative.

    Reference: Alain and Bengio 2016, https://arxiv.org/abs/1610.01644

    >>> features = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    >>> held_out = jnp.array([False, False, False, True])
    >>> found = probe(features, 1 + 2 * features[:, 0], held_out, penalty=0.0)
    >>> found.weights.tolist(), found.intercept.item()
    ([2.0], 1.0)
    """
    checks.vectors(target=target)
    checks.alike(target=target, held_out=held_out)
    checks.booleans(held_out=held_out)
    features = _matrix(target, features=features)
    if not isinstance(penalty, jax.core.Tracer) and not penalty >= 0:
        raise ValueError(f"penalty must be at least 0, not {penalty}")
    if not isinstance(held_out, jax.core.Tracer) and len(np.unique(held_out)) != 2:
        raise ValueError("held_out must be true on some rows, to measure on, and not on all")
    target = jnp.asarray(target, jnp.float32)
    test = jnp.asarray(held_out)[:, None]
    count = jnp.sum(~test)

    def trained(array: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(test, 0, array), axis=0)

    mean, mean_target = trained(features) / count, trained(target[:, None]) / count
    spread = jnp.sqrt(trained(jnp.square(features - mean)) / count)
    varies = spread > 1e-6 * jnp.abs(mean)
    scale = jnp.where(varies, spread, 1)
    inputs = jnp.where(varies, features - mean, 0) / scale
    fitted = jnp.where(test, 0, inputs)
    products = jnp.matmul(fitted.T, fitted, precision="highest") / count
    # A constant feature has a row of zeros: with a one in its diagonal it gets the weight 0.
    products += jnp.diag(jnp.where(varies, penalty, 1))
    with_target = jnp.matmul(fitted.T, target - mean_target, precision="highest") / count
    weights = jax.scipy.linalg.solve(products, with_target, assume_a="pos")
    prediction = mean_target + jnp.matmul(inputs, weights, precision="highest")

    def r2(rows: jax.Array) -> jax.Array:
        about = jnp.sum(jnp.where(rows, target, 0)) / jnp.sum(rows)
        total = jnp.sum(jnp.where(rows, jnp.square(target - about), 0))
        left = jnp.sum(jnp.where(rows, jnp.square(target - prediction), 0))
        return jnp.where(total > 0, 1 - left / total, jnp.nan)

    weights = weights / scale
    intercept = mean_target[0] - jnp.dot(weights, mean, precision="highest")
    return Probe(weights, intercept, prediction, r2(~test[:, 0]), r2(test[:, 0]))


def _matrix(rows: jax.Array, **arrays: jax.Array) -> jax.Array:
    ((name, array),) = arrays.items()
    if jnp.ndim(array) != 2 or len(array) != len(rows):
        raise ValueError(f"{name} must be [{len(rows)}, F], not {list(jnp.shape(array))}")
    return jnp.asarray(array, jnp.float32)


def _residuals(values: jax.Array, design: jax.Array) -> jax.Array:
    """What is left of columns after a regression on others, an intercept among them."""
    values, design = (x - jnp.mean(x, axis=0) for x in (values, design))
    if design.shape[1] == 0:
        return values
    size = jnp.linalg.norm(design, axis=0)
    basis, spread, _ = jnp.linalg.svd(design / jnp.where(size > 0, size, 1), full_matrices=False)
    # Directions that are rounding alone: columns that are combinations of others.
    basis = jnp.where(spread > 1e-5 * jnp.max(spread, initial=1), basis, 0)
    for _ in range(2):  # the second takes out what rounding left of the first
        values = values - jnp.matmul(
            basis, jnp.matmul(basis.T, values, precision="highest"), precision="highest"
        )
    return values


def _cosine(both: jax.Array, design: jax.Array) -> jax.Array:
    """The correlation of two columns, given those of the design."""
    centred = both - jnp.mean(both, axis=0)
    left = _residuals(both, design.astype(jnp.float32))
    squares = jnp.sum(jnp.square(left), axis=0)
    # Rounding alone may be all that is left: then there is nothing to correlate.
    there = jnp.all(squares > 1e-10 * jnp.sum(jnp.square(centred), axis=0))
    sizes = jnp.where(there, jnp.sqrt(squares), jnp.nan)
    return jnp.sum(left[:, 0] * left[:, 1]) / (sizes[0] * sizes[1])
