"""What to ask people about next: ``(key, ...) -> int32[size]``, indices of the candidates to ask.

A candidate is a pair to compare, or whatever is to be asked about; a function sees what is known of
each, such as the differences of reward within each pair, for every member of an ensemble. All
choose without replacement, may be compiled and vmapped over keys, and take ``mask``, true on the
candidates that may be asked; all may by default. Where fewer may be asked than ``size``, the last
indices are -1, unless the mask can be read: then it is a ``ValueError``. So is NaN in what is known
of a candidate that may be asked; where that cannot be read, such a candidate comes last or not at
all. Equals are chosen among at random.

Those that rank (``ensemble_disagreement``, ``bald``, ``near_ties``) look at each candidate alone:
of several that are alike they choose all. What they choose is not a sample of the candidates, so an
accuracy measured on it says nothing of the rest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks
from rlhf_jax.types import Key

__all__ = [
    "bald",
    "ensemble_disagreement",
    "k_centre",
    "near_ties",
    "on_policy",
    "random",
    "stratified",
]


def random(key: Key, candidates: int, *, size: int, mask: jax.Array | None = None) -> jax.Array:
    """Each candidate as likely as any other: what all else has to beat.

    Args:
        key: a key.
        candidates: how many there are, ``N``.
        size: how many to choose.
        mask: ``bool[N]``, true on those that may be asked.

    Returns:
        ``int32[size]``.

    Raises:
        ValueError: if ``size`` is not from 1 to the number of those that may be asked, or the mask
            is not ``bool[N]``.

    >>> sorted(random(jax.random.key(0), 4, size=4).tolist())
    [0, 1, 2, 3]
    """
    return _highest(key, jnp.zeros(candidates), size, mask)


def stratified(
    key: Key,
    strata: jax.Array,
    *,
    size: int,
    proportional: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Equally many of each stratum, or in proportion to their sizes; at random within each.

    Where a stratum has too few, the others make up for it. Which strata get one more, where it does
    not come out even, is random.

    Args:
        key: a key.
        strata: ``int[N]``, the stratum of each candidate (topic, length, group), from 0 to
            ``N - 1``.
        size: how many to choose.
        proportional: whether shares follow the strata's sizes. Each then gets its share, exactly if
            all are whole and nearly if not, where ``random`` gives it on average only.
        mask: ``bool[N]``, true on those that may be asked.

    Returns:
        ``int32[size]``.

    Raises:
        ValueError: as ``random``, or if ``strata`` is not ``int[N]`` or out of range.

    >>> chosen = stratified(jax.random.key(0), jnp.array([0, 0, 0, 0, 1, 1]), size=4)
    >>> sorted((chosen > 3).tolist())
    [False, False, True, True]
    """
    checks.integers(strata=strata)
    checks.vectors(strata=strata)
    count = strata.shape[0]
    keys = jax.random.split(key, 3)
    checks.within(count, strata=strata)
    allowed = _allowed(count, mask)
    # Past the last stratum, where what may not be asked is in nobody's way.
    group = jnp.where(allowed, strata, count)
    shuffled = jax.random.permutation(keys[0], count)
    order = shuffled[jnp.argsort(group[shuffled], stable=True)]
    ordered = group[order]
    start = jnp.searchsorted(ordered, ordered, side="left")
    turn = jnp.zeros(count).at[order].set(jnp.arange(count) - start)  # in its stratum, from 0
    # In a lottery of its own for each stratum, between one turn and the next.
    turn = turn + jax.random.uniform(keys[1], count)[jnp.minimum(group, count - 1)]
    if proportional:
        sizes = jnp.searchsorted(ordered, ordered, side="right") - start
        turn = turn / jnp.zeros(count).at[order].set(sizes)
    return _highest(keys[2], -turn, size, mask)


def ensemble_disagreement(
    key: Key, differences: jax.Array, *, size: int, mask: jax.Array | None = None
) -> jax.Array:
    r"""Where the members of an ensemble differ most about by how much one is better.

    .. math:: \operatorname{std}_m \, (r_m(a) - r_m(b))

    It is large too where all agree which is better and not by how much, as where texts are very
    different: there it can be worse than asking at random. ``bald`` is not drawn there.

    Args:
        key: a key, for ties.
        differences: ``float[M, N]``, reward of the first less that of the second, by member.
        size: how many to choose.
        mask: ``bool[N]``, true on those that may be asked.

    Returns:
        ``int32[size]``, the greatest disagreement first.

    Raises:
        ValueError: as ``random``, or if ``differences`` is not ``float[M, N]`` or not finite.

    Reference: Christiano et al. 2017, section 2.2.4, https://arxiv.org/abs/1706.03741

    >>> differences = jnp.array([[1.0, 0.5, 9.0], [1.0, -0.5, 8.0]])
    >>> ensemble_disagreement(jax.random.key(0), differences, size=2).tolist()
    [1, 2]
    """
    _members(differences)
    checks.finite(_allowed(differences.shape[1], mask), differences=differences)
    return _highest(key, jnp.std(differences, axis=0), size, mask)


def bald(
    key: Key, differences: jax.Array, *, size: int, mask: jax.Array | None = None
) -> jax.Array:
    r"""Where an answer tells most about which member of the ensemble is right (BALD).

    .. math::
        H\left(\tfrac1M \sum_m p_m\right) - \tfrac1M \sum_m H(p_m), \qquad
        p_m = \sigma(r_m(a) - r_m(b)), \quad H \text{ in nats}

    The expected information that one rater's answer has about the member, if raters answer as
    Bradley-Terry says. Unlike for near-ties, answers that all members expect to be a toss-up count
    for nothing.

    Args:
        key: a key, for ties.
        differences: ``float[M, N]``, reward of the first less that of the second, by member, on the
            scale of log-odds, infinite for one who is certain.
        size: how many to choose.
        mask: ``bool[N]``, true on those that may be asked.

    Returns:
        ``int32[size]``, the most informative first.

    Raises:
        ValueError: as ``random``, or if ``differences`` is not ``float[M, N]`` or has NaN.

    Reference: Houlsby et al. 2011, https://arxiv.org/abs/1112.5745

    >>> differences = jnp.array([[0.0, 3.0, 9.0], [0.0, -3.0, 6.0]])
    >>> bald(jax.random.key(0), differences, size=2).tolist()
    [1, 2]
    """
    _members(differences)
    _no_nan(mask, differences=differences)
    for_first = jnp.mean(jax.nn.sigmoid(differences), axis=0)
    for_second = jnp.mean(jax.nn.sigmoid(-differences), axis=0)  # exact where 1 - p is not
    total = jax.scipy.special.entr(for_first) + jax.scipy.special.entr(for_second)
    # Of one who is certain (a judge without probabilities) nothing, and not 0 times infinity.
    sure = jnp.isinf(differences)
    signs = (jnp.where(sure, 0.0, x) for x in (differences, -differences))
    each = -sum(jax.nn.sigmoid(x) * jax.nn.log_sigmoid(x) for x in signs)
    each = jnp.where(sure, 0.0, each)
    return _highest(key, total - jnp.mean(each, axis=0), size, mask)


def near_ties(
    key: Key, differences: jax.Array, *, size: int, mask: jax.Array | None = None
) -> jax.Array:
    r"""Where the reward model is least sure which is better: the least :math:`|r(a) - r(b)|`.

    In B-Pref's study this is entropy sampling. People are unsure there as well, so the answers are
    the noisiest ones.

    Args:
        key: a key, for ties.
        differences: ``float[N]``, reward of the first less that of the second.
        size: how many to choose.
        mask: ``bool[N]``, true on those that may be asked.

    Returns:
        ``int32[size]``, the nearest first.

    Raises:
        ValueError: as ``random``, or if ``differences`` is not ``float[N]`` or has NaN.

    Reference: Lee et al. 2021 (B-Pref), https://arxiv.org/abs/2111.03026

    >>> near_ties(jax.random.key(0), jnp.array([3.0, -0.1, 0.2]), size=2).tolist()
    [1, 2]
    """
    checks.vectors(differences=differences)
    checks.floating(differences=differences)
    _no_nan(mask, differences=differences)
    return _highest(key, -jnp.abs(differences), size, mask)


def on_policy(
    key: Key, log_weights: jax.Array, *, size: int, mask: jax.Array | None = None
) -> jax.Array:
    r"""What the policy would say: candidates in proportion to its probability of each.

    .. math:: \operatorname{argtop}_n \, (\log w_n + G_n), \qquad G_n \sim \text{Gumbel}(0, 1)

    which draws one after the other without replacement. Where the candidates are a list of all that
    can be said, the weight is the policy's probability; where they are a sample of an older policy,
    it is the ratio of the two, and the log-ratio is what to give. Fresh samples of the policy
    itself need no weights: ask about those.

    Args:
        key: a key.
        log_weights: ``float[N]``, in nats, up to a constant: the policy's log-probability, less
            that under which the candidate was drawn. Minus infinity is never chosen.
        size: how many to choose.
        mask: ``bool[N]``, true on those that may be asked.

    Returns:
        ``int32[size]``, in the order drawn.

    Raises:
        ValueError: as ``random``, or if ``log_weights`` is not ``float[N]`` or has NaN.

    Reference: Kool et al. 2019, https://arxiv.org/abs/1903.06059

    >>> on_policy(jax.random.key(0), jnp.array([0.0, 50.0, -jnp.inf]), size=3).tolist()
    [1, 0, -1]
    """
    checks.vectors(log_weights=log_weights)
    checks.floating(log_weights=log_weights)
    _no_nan(mask, log_weights=log_weights)
    noise_key, key = jax.random.split(key)
    noise = jax.random.gumbel(noise_key, log_weights.shape, log_weights.dtype)
    return _highest(key, log_weights + noise, size, mask, possible=log_weights > -jnp.inf)


def k_centre(
    key: Key,
    features: jax.Array,
    *,
    size: int,
    asked: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    r"""Candidates that cover the others: each in turn the farthest from all chosen (k-centre).

    .. math:: \operatorname{argmax}_n \min_{c \,\in\, \text{chosen}} \lVert x_n - x_c \rVert

    The radius within which all candidates have a chosen one is at most twice the least possible.
    It goes for outliers, and the distance means what the features mean. Takes ``A + size`` passes
    over the candidates.

    Args:
        key: a key, for the first choice where nothing was asked before, and for ties.
        features: ``float[N, D]``, such as the difference of the two texts' features.
        size: how many to choose.
        asked: ``float[A, D]``, the features of what was asked before, which covers too. What of it
            is among the candidates is not chosen again only if ``mask`` says so.
        mask: ``bool[N]``, true on those that may be asked.

    Returns:
        ``int32[size]``, in the order chosen.

    Raises:
        ValueError: as ``random``, or if ``features`` is not ``float[N, D]`` or ``asked`` not
            ``float[A, D]``, or either is not finite.

    Reference: Gonzalez 1985, Theoretical Computer Science 38; for active learning Sener & Savarese
    2018, https://arxiv.org/abs/1708.00489

    >>> features, asked = jnp.array([[0.0], [1.0], [5.0], [9.0]]), jnp.array([[0.0]])
    >>> k_centre(jax.random.key(0), features, size=2, asked=asked).tolist()
    [3, 2]
    """
    checks.floating(features=features)
    if jnp.ndim(features) != 2:
        raise ValueError(f"features must be [N, D], not {list(jnp.shape(features))}")
    count, width = features.shape
    if asked is not None:
        checks.floating(asked=asked)
        if jnp.ndim(asked) != 2 or asked.shape[1] != width:
            raise ValueError(f"asked must be [A, {width}], not {list(jnp.shape(asked))}")
    allowed = _allowed(count, mask)
    _enough(size, allowed)
    checks.finite(allowed[:, None], features=features)
    if asked is not None:
        checks.finite(np.ones(asked.shape, bool), asked=asked)
    # In random order, so that the first of equals is any of them.
    order = jax.random.permutation(key, count)
    features, allowed = features[order], allowed[order]

    def cover(nearest: jax.Array, centre: jax.Array) -> tuple[jax.Array, None]:
        return jnp.minimum(nearest, jnp.sum(jnp.square(features - centre), axis=1)), None

    def choose(state: tuple[jax.Array, jax.Array], _: None):
        nearest, allowed = state
        chosen = jnp.argmax(jnp.where(allowed, nearest, -1.0))
        index = jnp.where(allowed[chosen], order[chosen], -1)
        nearest, _ = cover(nearest, features[chosen])
        return (nearest, allowed.at[chosen].set(False)), index

    nearest = jnp.full(count, jnp.inf, features.dtype)
    if asked is not None:
        nearest, _ = jax.lax.scan(cover, nearest, asked)
    _, chosen = jax.lax.scan(choose, (nearest, allowed), length=size)
    return chosen.astype(jnp.int32)


def _highest(
    key: Key,
    scores: jax.Array,
    size: int,
    mask: jax.Array | None,
    possible: jax.Array | bool = True,
) -> jax.Array:
    """The ``size`` highest scores that may be chosen, equals in random order."""
    allowed = _allowed(scores.shape[0], mask)
    _enough(size, allowed)
    allowed = allowed & possible
    shuffled = jax.random.permutation(key, scores.shape[0])
    # Not by a score of minus infinity: that may be one's own.
    chosen = shuffled[jnp.lexsort((-scores[shuffled], ~allowed[shuffled]))[:size]]
    return jnp.where(allowed[chosen], chosen, -1).astype(jnp.int32)


def _allowed(count: int, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return jnp.ones(count, bool)
    checks.booleans(mask=mask)
    if jnp.shape(mask) != (count,):
        raise ValueError(f"mask must be [{count}], as many as candidates, not {jnp.shape(mask)}")
    return jnp.asarray(mask)


def _enough(size: int, allowed: jax.Array) -> None:
    """As many may be asked as are to be; of a mask that is being traced, as there are."""
    traced = isinstance(allowed, jax.core.Tracer)
    available = allowed.shape[0] if traced else int(np.sum(np.asarray(allowed)))
    if not 1 <= size <= available:
        raise ValueError(f"size must be from 1 to {available}, as many may be asked, not {size}")


def _no_nan(mask: jax.Array | None, **arrays: jax.Array) -> None:
    for name, array in arrays.items():
        allowed = _allowed(array.shape[-1], mask)
        checks.finite(allowed, **{name: jnp.where(jnp.isinf(array), 0, array)})


def _members(differences: jax.Array) -> None:
    checks.floating(differences=differences)
    if jnp.ndim(differences) != 2 or differences.shape[0] < 2:
        found = list(jnp.shape(differences))
        raise ValueError(f"differences must be [M, N] of 2 members or more, not {found}")
