"""Configurations as plain values: written as JSON, and compared field by field."""

import dataclasses
import enum
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["Config", "differences", "plain"]

Config = Any  # a dataclass instance or a mapping


def plain(value: Any) -> Any:
    """Turn a configuration into what JSON can hold: the same for the same configuration.

    Dataclasses and named tuples become mappings, tuples lists, paths and enum members strings,
    functions their names, and floats that are not finite ``"NaN"``, ``"Infinity"`` or
    ``"-Infinity"``.

    Raises:
        ValueError: if something else is in it.

    Example:
        >>> from pathlib import Path
        >>> plain({"rates": (0.1, float("inf")), "data": Path("a/b")})
        {'rates': [0.1, 'Infinity'], 'data': 'a/b'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise ValueError(f"a {type(value).__name__} cannot be written as JSON: {value!r}")


def differences(saved: Config, given: Config) -> list[str]:
    """Name every field in which two configurations differ, with both values.

    Example:
        >>> differences({"seed": 0, "adam": {"rate": 0.1}}, {"seed": 0, "adam": {"rate": 0.2}})
        ['adam.rate: 0.1 there, 0.2 now']
    """
    before, now = _flat(plain(saved)), _flat(plain(given))
    absent = "absent"
    return [
        f"{name}: {json.dumps(before[name]) if name in before else absent} there, "
        f"{json.dumps(now[name]) if name in now else absent} now"
        for name in sorted(before.keys() | now.keys())
        if name not in before or name not in now or before[name] != now[name]
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; an empty one counts as a value."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}.{name}" if prefix else name)
    return flat
