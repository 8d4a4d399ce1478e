"""Parts of a tree of parameters, by the paths of its leaves.

A leaf's path is its keys joined by ``/``: ``layers/query/kernel``, or ``policy/embed/embedding`` of
``ActorCritic``. A part of a tree is the tree with ``None`` in place of every other leaf. JAX takes
``None`` for a subtree without leaves, so gradients, optimisers and checkpoints see the part alone.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import jax

from rlhf_jax.types import PyTree

__all__ = ["Patterns", "axes", "join", "matches", "paths", "skeleton", "split"]

# Patterns of paths, as of a shell (``*`` also stands for ``/``), or a predicate of the path.
Patterns = str | Sequence[str] | Callable[[str], bool]


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in the order of ``jax.tree.leaves``.

    >>> paths({"layers": {"kernel": 1.0}, "head": [2.0, 3.0]})
    ['head/0', 'head/1', 'layers/kernel']
    """
    return [_joined(path) for path, _ in jax.tree.leaves_with_path(tree)]


def matches(among: Iterable[str], patterns: Patterns, *, name: str = "patterns") -> list[bool]:
    """Which of these paths match.

    Args:
        among: the paths.
        patterns: any of which must match, or a predicate.
        name: what the patterns are called in an error.

    Returns:
        One ``bool`` a path.

    Raises:
        ValueError: if there is no pattern, or one of them (or the predicate) matches nothing: its
            writer meant something that is not there.

    >>> matches(["head/kernel", "layers/query/lora_a"], ("layers/*/lora_*",))
    [False, True]
    >>> matches(["head/kernel", "layers/query/kernel"], "heads/*", name="trainable")
    Traceback (most recent call last):
    ValueError: trainable 'heads/*' matches nothing: there are head/kernel, layers/query/...
    """
    among = list(among)
    if callable(patterns):
        found = {getattr(patterns, "__name__", "the predicate"): list(map(patterns, among))}
    else:
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        found = {repr(p): [fnmatchcase(path, p) for path in among] for p in patterns}
    if not found:
        raise ValueError(f"{name} is empty: give at least one pattern, or None for all")
    for pattern, each in found.items():
        if not any(each):
            raise ValueError(f"{name} {pattern} matches nothing: there are {_top(among)}")
    return [any(each) for each in zip(*found.values(), strict=True)]


def split(
    tree: PyTree, patterns: Patterns | None, *, name: str = "patterns"
) -> tuple[PyTree, PyTree]:
    """A tree in two parts: what matches, and the rest.

    Args:
        tree: any.
        patterns: of paths; ``None`` for all.
        name: what the patterns are called in an error.

    Returns:
        Two trees like ``tree``, with ``None`` for each other's leaves; for ``None`` the tree itself
        and ``None``. ``join`` puts them together again. Nothing is copied.

    Raises:
        ValueError: if a pattern matches nothing.

    >>> split({"head": 1.0, "trunk": 2.0}, "head")
    ({'head': 1.0, 'trunk': None}, {'head': None, 'trunk': 2.0})
    """
    if patterns is None:
        return tree, None
    found = matches(paths(tree), patterns, name=name)
    leaves, structure = jax.tree.flatten(tree)
    both = list(zip(leaves, found, strict=True))
    return (
        structure.unflatten([leaf if hit else None for leaf, hit in both]),
        structure.unflatten([None if hit else leaf for leaf, hit in both]),
    )


def join(part: PyTree, rest: PyTree) -> PyTree:
    """A part of a tree, and from another what it lacks.

    Args:
        part: a tree with ``None`` where leaves are missing.
        rest: a tree of the same structure, whole or a part; or ``None``, if nothing is missing.

    Returns:
        The tree.

    Raises:
        ValueError: if the two are of different structure.

    >>> join({"head": 1.0, "trunk": None}, {"head": None, "trunk": 2.0})
    {'head': 1.0, 'trunk': 2.0}
    """
    if rest is None:
        return part
    if skeleton(part) != skeleton(rest):
        raise ValueError(
            f"the parts of a tree must have one structure, not {skeleton(part)} and "
            f"{skeleton(rest)}"
        )
    return jax.tree.map(lambda a, b: b if a is None else a, part, rest, is_leaf=_missing)


def axes(tree: PyTree, patterns: Patterns | None, *, name: str = "patterns") -> PyTree:
    """What ``jax.vmap`` is to map over: axis 0 of what matches, and nothing of the rest.

    Args:
        tree: any.
        patterns: of paths; ``None`` for all.
        name: what the patterns are called in an error.

    Returns:
        A tree for ``in_axes`` and ``out_axes``.

    >>> axes({"head": 1.0, "trunk": 2.0}, "head")
    {'head': 0, 'trunk': None}
    """
    if patterns is None:
        return jax.tree.map(lambda _: 0, tree)
    found = matches(paths(tree), patterns, name=name)
    return jax.tree.structure(tree).unflatten([0 if hit else None for hit in found])


def skeleton(tree: PyTree) -> jax.tree_util.PyTreeDef:
    """The structure of a tree, whichever of its leaves are missing."""
    return jax.tree.structure(tree, is_leaf=_missing)


def _missing(leaf: PyTree) -> bool:
    return leaf is None


def _joined(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _top(among: list[str]) -> str:
    """The first two keys of each path, a dozen at most."""
    keys = [path.split("/") for path in among]
    heads = ["/".join(k if len(k) < 3 else [*k[:2], "..."]) for k in keys]
    seen = list(dict.fromkeys(heads))
    return ", ".join(seen[:12]) + (f" and {len(seen) - 12} more" if len(seen) > 12 else "")
