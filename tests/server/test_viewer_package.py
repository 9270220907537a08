"""The viewer's package is checked, trimmed, moved below its prefix, and kept compressed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from lib.server import viewer_package
from lib.server.viewer_package import (
    PREFIX,
    ViewerError,
    adapt,
    cache_folder,
    fetch_viewer,
    viewer_files,
)

CONTENT = {
    "LICENSE": b"MIT",
    "dist/index.html": b'<script src="/app.bundle.js"></script><link href="/a.css">',
    "dist/app.bundle.0123456789abcdef.js": b'__webpack_require__.p = "/"; // "/other"',
    "dist/assets/icon.png": b"\x89PNG",
    "dist/a.css": b"a { background: url(/a.png) }",
    "dist/app.bundle.0123456789abcdef.js.map": b"{}",
    "dist/ort/ort.wasm": b"large",
    "dist/dicom-microscopy-viewer/viewer.js": b"large",
    "dist/sw.js": b"importScripts('https://elsewhere.example')",
    "dist/app-config.js": b"window.config = {public: true}",
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in the form of npm's, whose checksum is the expected one."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as package:
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(viewer_package, "SHA512", digest)
    monkeypatch.setenv("FASTSAM3D_VIEWER_CACHE", str(tmp_path / "cache"))
    viewer_files.cache_clear()
    yield path
    viewer_files.cache_clear()


def test_what_is_served_is_kept(archive: Path) -> None:
    with pytest.raises(ViewerError, match="make viewer"):
        viewer_files()
    folder = fetch_viewer(archive)
    files = viewer_files()
    assert set(files) == {
        "LICENSE.txt",
        "index.html",
        "app.bundle.0123456789abcdef.js",
        "assets/icon.png",
        "a.css",
    }
    for name, file in files.items():
        stored = file.path.read_bytes()
        content = gzip.decompress(stored) if file.is_gzipped else stored
        assert hashlib.sha256(content).hexdigest().startswith(file.digest), name
    assert not files["assets/icon.png"].is_gzipped
    assert fetch_viewer() == folder  # nothing is fetched twice


def test_another_package_is_refused(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tgz"
    other.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(ViewerError, match="sha512"):
        fetch_viewer(other)
    assert not cache_folder().exists()
    assert not list(cache_folder().parent.iterdir())


@pytest.fixture
def npm(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that packs the archive, and writes a line into the returned file each time."""
    calls = tmp_path / "calls"
    calls.touch()
    program = tmp_path / "npm"
    program.write_text(f"#!/bin/sh\necho pack >> {calls}\ncp {archive} $4/ohif.tgz\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return calls


def test_an_interrupted_fetch_goes_on_with_its_download(
    npm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(viewer_package, "_unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_viewer()
    stray = cache_folder().parent / "fetching-killed"
    stray.mkdir()
    os.utime(stray, (0, 0))
    running = cache_folder().parent / "fetching-now"
    running.mkdir()
    folder = fetch_viewer()
    assert npm.read_text() == "pack\n"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "fetching-now"}


def test_a_damaged_download_is_fetched_again(npm: Path) -> None:
    cache_folder().parent.mkdir(parents=True)
    damaged = cache_folder().with_name(f"{cache_folder().name}.tgz")
    damaged.write_bytes(b"half")
    with pytest.raises(ViewerError, match="sha512"):
        fetch_viewer()
    assert fetch_viewer().is_dir()
    assert npm.read_text() == "pack\n"


def test_without_a_network_the_message_says_so(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho 'npm error network is unreachable' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ViewerError, match="could not be downloaded: .*network is unreachable"):
        fetch_viewer()


def test_the_app_is_moved_below_the_prefix() -> None:
    page = adapt("index.html", CONTENT["dist/index.html"])
    assert page.count(f'"{PREFIX}'.encode()) == 2 and b'"/a' not in page
    script = adapt("app.js", CONTENT["dist/app.bundle.0123456789abcdef.js"])
    assert script == f'__webpack_require__.p = "{PREFIX}"; // "/other"'.encode()
    assert adapt("a.css", b"url(/a.png)") == f"url({PREFIX}a.png)".encode()
    assert adapt("assets/a.json", b'"/"') == b'"/"'


def test_the_fetched_app_has_the_pieces_that_are_replaced() -> None:
    """A release that needs other replacements makes this test fail."""
    try:
        files = viewer_files()
    except ViewerError as error:
        pytest.skip(str(error))
    scripts = [name for name in files if name.endswith(".js") and "/" not in name]
    contents = {name: gzip.decompress(files[name].path.read_bytes()) for name in scripts}
    piece = b'__webpack_require__.p = "'
    moved = [name for name, content in contents.items() if piece + PREFIX.encode() in content]
    assert len(moved) == sum(piece in content for content in contents.values()) == 8
    page = gzip.decompress(files["index.html"].path.read_bytes())
    assert f'src="{PREFIX}app-config.js"'.encode() in page
    assert b"init-service-worker" not in page and b"https://" not in page
