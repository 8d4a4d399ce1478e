"""How far a reward model is good elsewhere: by subset, in other domains, for another policy."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.measures.intervals import Interval, bootstrap
from rlhf_jax.types import Key

__all__ = ["SubsetTable", "Transfer", "relearning_gap", "subset_table", "transfer"]


class SubsetTable(NamedTuple):
    """Accuracies by subset and section.

    Attributes:
        accuracy: ``float32[S]``, of each subset; NaN of one without items.
        count: ``int32[S]``, its items.
        section_accuracy: ``float32[C]``, of each section.
        overall: ``float32[]``.
    """

    accuracy: jax.Array
    count: jax.Array
    section_accuracy: jax.Array
    overall: jax.Array


class Transfer(NamedTuple):
    """How models trained in each domain do in all of them.

    Attributes:
        accuracy: ``float32[D, D]``; ``[i, j]`` is of the model trained in ``i``, on items of
            ``j``; NaN where a domain has no items.
        count: ``int32[D]``, items of each domain.
        gap: ``float32[D]``, by how much the model of a domain does better there than models of
            the others do in the mean: the diagonal less the rest of its column.
        mean_gap: ``float32[]``, its mean: the mean of the diagonal less that of all other entries.
    """

    accuracy: jax.Array
    count: jax.Array
    gap: jax.Array
    mean_gap: jax.Array


def subset_table(
    correct: jax.Array,
    subset: jax.Array,
    sections: Sequence[int],
    *,
    subset_weights: jax.Array | None = None,
    section_weights: jax.Array | None = None,
) -> SubsetTable:
    r"""Accuracy by subset, by section and overall, in the manner of RewardBench.

    .. math:: a_c = \frac{\sum_{s \in c} w_s a_s}{\sum_{s \in c} w_s}, \qquad
              a = \frac{\sum_c v_c a_c}{\sum_c v_c}

    By default a section is the mean over its items (``w`` are the counts), and the overall accuracy
    the mean over sections, however large. RewardBench does so with four sections, in which the
    447 items of PRM-Math weigh like 984, as many as the code subsets have; its leaderboard gives
    the prior sets, where they count, the section weight 0.5.

    Args:
        correct: ``number[B]`` or ``bool[B]``: 1 where the chosen answer scored higher, 0 if not, or
            in between, as from ``pair_accuracy``.
        subset: ``int[B]``, the subset of each, from 0.
        sections: ``int[S]``, the section of each subset, from 0; plain numbers, not traced.
        subset_weights: ``float[S]``, not below 0; by default the counts.
        section_weights: ``float[C]``, not below 0; by default all 1.

    Returns:
        ``SubsetTable``. What has weight and no items makes the average over it NaN: an average of
        the others would be another benchmark.

    Raises:
        ValueError: if the shapes do not fit, ``subset`` is not integers or out of range (which
            cannot be seen where it is being traced), or a section from 0 to the last has no subset.

    Reference: Lambert et al. 2024, https://arxiv.org/abs/2403.13787

    >>> correct, subset = jnp.array([1.0, 1, 0, 1, 0, 0]), jnp.array([0, 0, 0, 1, 2, 2])
    >>> found = subset_table(correct, subset, sections=[0, 0, 1])
    >>> found.accuracy.tolist(), found.count.tolist()
    ([0.667, 1.0, 0.0], [3, 1, 2])
    >>> found.section_accuracy.tolist(), found.overall.item()
    ([0.75, 0.0], 0.375)
    """
    checks.alike(correct=correct, subset=subset)
    checks.vectors(correct=correct)
    subsets = len(sections)
    found = sorted(set(map(operator.index, sections)))
    if not found or found != list(range(len(found))):
        raise ValueError(f"sections must be numbered from 0 without a gap, not {found}")
    accuracy, count = _by_group(correct, subset, subsets, "subset")
    if subset_weights is None:
        subset_weights = count
    if section_weights is None:
        section_weights = jnp.ones(len(found))
    for name, weights, size in (
        ("subset_weights", subset_weights, subsets),
        ("section_weights", section_weights, len(found)),
    ):
        if jnp.shape(weights) != (size,):
            raise ValueError(f"{name} must be [{size}], not {list(jnp.shape(weights))}")
        if not isinstance(weights, jax.core.Tracer) and np.any(np.asarray(weights) < 0):
            raise ValueError(f"{name} must not be negative: {weights}")
    belongs = jnp.asarray(sections) == jnp.arange(len(found))[:, None]
    section_accuracy = _weighted(accuracy, jnp.where(belongs, subset_weights, 0))
    return SubsetTable(
        accuracy, count, section_accuracy, _weighted(section_accuracy, section_weights)
    )


def transfer(correct: jax.Array, domain: jax.Array) -> Transfer:
    r"""The accuracy of models trained in each domain on items of every domain.

    .. math:: g_j = a_{jj} - \frac{1}{D - 1} \sum_{i \ne j} a_{ij}

    Items of a domain are harder or easier for all, so a model is held against the others on the
    same items, and not against itself elsewhere. The items must be held out from all models.

    Args:
        correct: ``number[D, B]`` or ``bool[D, B]``, one row a model, in the order of the domains
            they were trained in: how right each is on each item.
        domain: ``int[B]``, the domain of each item, from 0.

    Returns:
        ``Transfer``; its gaps are NaN if there is one domain only.

    Raises:
        ValueError: if the shapes are not ``[D, B]`` and ``[B]``, or ``domain`` is not integers or
            out of range (which cannot be seen where it is being traced).

    >>> correct = jnp.array([[1.0, 1, 0, 1], [0, 1, 1, 1]])
    >>> found = transfer(correct, jnp.array([0, 0, 1, 1]))
    >>> found.accuracy.tolist(), found.gap.tolist()
    ([[1.0, 0.5], [0.5, 1.0]], [0.5, 0.5])
    """
    if jnp.ndim(correct) != 2 or jnp.shape(domain) != jnp.shape(correct)[1:]:
        found = f"{list(jnp.shape(correct))} and domain {list(jnp.shape(domain))}"
        raise ValueError(f"correct must be [D, B] and domain [B], not {found}")
    domains = len(correct)
    accuracy, count = _by_group(correct, domain, domains, "domain")
    own = jnp.diagonal(accuracy)
    others = (jnp.sum(accuracy, axis=0) - own) / (domains - 1) if domains > 1 else jnp.nan
    gap = own - others
    return Transfer(accuracy, count, gap, jnp.mean(gap))


def relearning_gap(
    sampler_gold: jax.Array, relearner_gold: jax.Array, *, key: Key, level: float = 0.95
) -> Interval:
    r"""How much worse a new policy does by a learned reward than the policy it was learned with.

    .. math:: \frac1N \sum_n (g^{\text{sampler}}_n - g^{\text{relearner}}_n)

    The sampler is trained together with the reward model, whose data are its own answers; the
    relearner from scratch, on that model frozen. A reward model can be right about nothing but the
    sampler's answers and still let it do well: the relearner finds that out.

    Args:
        sampler_gold: ``float[N]``, gold reward of the sampler, one row a seed (or, of one run, a
            prompt: the interval is then about other prompts and not about other runs).
        relearner_gold: ``float[N]``, of the relearner, on the same seeds or prompts.
        key: a key for the bootstrap.
        level: the interval's nominal coverage.

    Returns:
        An ``Interval`` in the unit of the gold reward, positive where the relearner is worse.

    Raises:
        ValueError: if the shapes are not ``[N]`` or differ, or ``level`` is out of range.

    Reference: McKinney et al. 2023, https://arxiv.org/abs/2301.03652

    >>> sampler, relearner = jnp.array([2.0, 3.0, 4.0]), jnp.array([1.0, 2.0, 3.0])
    >>> relearning_gap(sampler, relearner, key=jax.random.key(0)).low.item()
    1.0
    """
    checks.alike(sampler_gold=sampler_gold, relearner_gold=relearner_gold)
    checks.vectors(sampler_gold=sampler_gold)
    gaps = jnp.asarray(sampler_gold, jnp.float32) - jnp.asarray(relearner_gold, jnp.float32)
    return bootstrap(gaps, key=key, level=level)


def _by_group(
    values: jax.Array, group: jax.Array, groups: int, name: str
) -> tuple[jax.Array, jax.Array]:
    """Means of ``values[..., B]`` by group, and how many there are of each."""
    checks.integers(**{name: group})
    if not isinstance(group, jax.core.Tracer) and np.size(group):
        low, high = np.min(group), np.max(group)
        if low < 0 or high >= groups:
            raise ValueError(f"{name} must be from 0 to {groups - 1}, not {low} to {high}")
    values = jnp.asarray(values, jnp.float32)
    count = jnp.zeros(groups, jnp.int32).at[group].add(1)
    total = jnp.zeros([*values.shape[:-1], groups]).at[..., group].add(values)
    return total / count, count


def _weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted means over the last axis; a NaN that has no weight does not count."""
    weighed = jnp.where(weights > 0, weights * values, 0)
    return jnp.sum(weighed, axis=-1) / jnp.sum(weights, axis=-1)
