"""Trained versions of a model: kept beside one another, of which a small file names the served one.

A version belongs to the base weights that its server was started with: ``<folder>/<base>/`` holds
the versions' files and ``served.json``. Everything is written beside, synced and swapped in, so
that a reader finds a whole version whenever a writer stops, for whatever reason.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lib.errors import InputError, NotFoundError
from lib.networks import FastSAM3D, save_checkpoint
from lib.weights.files import Weights, file_sha256

logger = logging.getLogger(__name__)

BASE = 0
"""Number of the weights that the server was started with; they are never removed."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Version:
    """A published student. parent: number of the version that it was compared with and replaced."""

    number: int
    file: str
    sha256: str
    parent: int
    created: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What ``served.json`` says."""

    served: int = BASE
    versions: tuple[Version, ...] = ()

    def find(self, number: int) -> Version | None:
        return next((version for version in self.versions if version.number == number), None)


class PublishedVersions:
    """The versions of one model that were trained from the weights ``base_id``."""

    def __init__(self, folder: Path, base_id: str) -> None:
        self.folder = folder / hashlib.sha256(base_id.encode()).hexdigest()[:16]
        self._manifest = self.folder / "served.json"

    def stamp(self) -> Stamp | None:
        """Changes whenever another version is served; cheap enough for every request."""
        try:
            status = self._manifest.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def read(self) -> Manifest:
        """Nothing was published where there is no file; raises InputError for a broken one."""
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
            versions = tuple(Version(**each) for each in content["versions"])
            return Manifest(content["served"], versions)
        except FileNotFoundError:
            return Manifest()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._manifest} cannot be used: {error}; remove it") from error

    def path_of(self, version: Version) -> Path:
        return self.folder / version.file

    def publish(self, network: FastSAM3D, facts: Mapping[str, str], keep: int) -> Version:
        """Serve ``network`` from now on.

        facts: what is to be known of it, also in the file's metadata. keep: how many versions
        before it stay for a rollback. Raises OSError where it cannot be written; then the served
        version stays what it was, and nothing is left behind.
        """
        with self._locked():
            manifest = self.read()
            number = 1 + max((version.number for version in manifest.versions), default=BASE)
            self._remove_strays(manifest)
            path, digest = self._write(network, number, facts)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            version = Version(number, path.name, digest, manifest.served, created, facts)
            try:
                self._serve(Manifest(number, (*_newest(manifest, keep), version)))
            finally:  # it may have been swapped in although the last sync failed: look
                self._remove_strays(self.read())
        logger.info("version %d is served now: %s", number, path)
        return version

    def rollback(self, number: int | None = None) -> int:
        """Serve an older version again: ``number``, or the one that the served one replaced.

        -> its number; 0 stands for the weights that the server was started with. Raises
        NotFoundError where there is no such version (any more).
        """
        with self._locked():
            manifest = self.read()
            served = manifest.find(manifest.served)
            if number is None:
                if served is None:
                    raise NotFoundError(
                        "there is nothing to roll back: the weights that the server was started "
                        "with are served"
                    )
                number = served.parent if manifest.find(served.parent) else BASE
            if number != BASE and not self._is_kept(manifest, number):
                kept = ", ".join(str(version.number) for version in manifest.versions)
                raise NotFoundError(f"there is no version {number}; there are 0, {kept}")
            self._serve(Manifest(number, manifest.versions))
        logger.info("version %d is served again", number)
        return number

    def _is_kept(self, manifest: Manifest, number: int) -> bool:
        version = manifest.find(number)
        return version is not None and self.path_of(version).is_file()

    def _write(self, network: FastSAM3D, number: int, facts: Mapping[str, str]) -> tuple[Path, str]:
        partial = self.folder / f"{number:04d}.partial"
        try:
            save_checkpoint(network, partial, facts)
            _sync(partial)
            digest = file_sha256(partial)
            path = self.folder / f"{number:04d}-{digest[:12]}.safetensors"
            os.replace(partial, path)
            _sync(self.folder)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return path, digest

    def _serve(self, manifest: Manifest) -> None:
        replace_file(self._manifest, json.dumps(asdict(manifest), indent=1))

    def _remove_strays(self, manifest: Manifest) -> None:
        """Files of versions that are not kept, and what a killed writer left."""
        kept = {version.file for version in manifest.versions}
        for path in self.folder.iterdir():
            if path.suffix in (".safetensors", ".partial") and path.name not in kept:
                path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, of all processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _newest(manifest: Manifest, count: int) -> tuple[Version, ...]:
    """The versions to keep when another one comes: the served one, then the latest."""
    ranked = sorted(
        manifest.versions, key=lambda each: (each.number == manifest.served, each.number)
    )
    kept = ranked[max(0, len(ranked) - count) :]
    return tuple(sorted(kept, key=lambda each: each.number))


def published_facts(weights: Weights, published: PublishedVersions) -> dict:
    """For clients: the number of the served version, and all that can be rolled back to."""
    manifest = published.read()
    versions = [asdict(version) for version in manifest.versions]
    return {"served": manifest.served, "weights": weights.info(), "versions": versions}


def replace_file(path: Path, text: str) -> None:
    """A reader sees the old text or the new one, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
