"""Checkpoints from the Hugging Face hub, by a name and a revision."""

import re
from pathlib import Path

__all__ = ["download", "is_hub_name"]


def is_hub_name(name: str) -> bool:
    """Whether a name looks like ``organisation/model``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def download(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub."""
    raise NotImplementedError
