"""Real ratings as a small world: texts as rows of features, and a reward that is linear in them.

The truth is what all the raters say in the mean. ``worlds.bandit(ratings.mean, features=...)`` of
``text_features(ratings.texts)`` is a bandit whose answers are the texts. It reads far less out of a
text than ``models.hashed_model`` does; but its fit is exact, and hundreds of them take a second.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import checks

__all__ = ["ridge", "text_features"]

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[!?:;()]+")


def text_features(texts: Sequence[str], *, width: int = 512) -> np.ndarray:
    """Which of the commonest words and pairs of words are in each text, the rarer the weightier.

    Args:
        texts: ``N`` of them.
        width: how many features, the first of which is 1 for all: where there are fewer words and
            pairs, the rest is 0.

    Returns:
        ``float32[N, width]``, NumPy; without the first, each row is of length 1 or 0. The same for
        the same texts on every machine.

    Raises:
        ValueError: if ``texts`` is one string or none, or ``width`` is below 2.

    >>> features = text_features(["a good film", "a bad film", "good"], width=4)
    >>> features.shape, features[:, 0].tolist()
    ((3, 4), [1.0, 1.0, 1.0])
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts must be several, not {texts!r:.40}")
    if width < 2:
        raise ValueError(f"width must be at least 2, not {width}")
    found = []
    for text in texts:
        words = _WORD.findall(text.lower())
        found.append({*words, *itertools.pairwise(words)})
    count = Counter(item for items in found for item in items)
    # By how common, then by name: the order of a set is another in every process.
    common = sorted(count, key=lambda item: (-count[item], str(item)))[: width - 1]
    place = {item: column for column, item in enumerate(common, start=1)}
    features = np.zeros((len(texts), width), np.float32)
    for row, items in enumerate(found):
        for item in items:
            if item in place:
                features[row, place[item]] = np.log((len(texts) + 1) / count[item])
    length = np.linalg.norm(features, axis=1, keepdims=True)
    features /= np.where(length > 0, length, 1)
    features[:, 0] = 1
    return features


def ridge(
    features: jax.Array,
    targets: jax.Array,
    *,
    weight: jax.Array | None = None,
    l2: float | jax.Array,
) -> jax.Array:
    r"""The linear reward nearest to given numbers; its first weight, the intercept, is free.

    .. math:: \min_\phi \sum_n w_n (x_n \cdot \phi - y_n)^2 + \lambda \sum_{d > 0} \phi_d^2

    Args:
        features: ``float[N, D]``, the first of which is 1, as ``text_features`` has it.
        targets: ``float[N]``, ratings say.
        weight: ``float[N]``, how much each row counts, 0 for one to be left out; all alike by
            default.
        l2: lambda, positive.

    Returns:
        ``float32[D]``. Where the intercept is free, the mean of what it predicts of the rows is
        that of the targets, both by weight.

    Raises:
        ValueError: if the shapes do not fit, or ``l2`` is not positive.

    >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0]])
    >>> ridge(x, jnp.array([5.0, 1.0]), l2=2.0).tolist()
    [3.0, 1.0]
    """
    checks.positive(l2=l2)
    if jnp.ndim(features) != 2 or jnp.shape(targets) != jnp.shape(features)[:1]:
        found = f"{list(jnp.shape(features))} and {list(jnp.shape(targets))}"
        raise ValueError(f"features and targets must be [N, D] and [N], not {found}")
    if weight is None:
        weight = jnp.ones(len(targets))
    if jnp.shape(weight) != jnp.shape(targets):
        found = f"{list(jnp.shape(targets))}, not {list(jnp.shape(weight))}"
        raise ValueError(f"weight must be as the targets are {found}")
    weighed = features * weight[:, None]
    penalty = l2 * jnp.eye(features.shape[1]).at[0, 0].set(0)
    gram = jnp.matmul(features.T, weighed, precision="highest") + penalty
    return jnp.linalg.solve(gram, jnp.matmul(targets, weighed, precision="highest"))
