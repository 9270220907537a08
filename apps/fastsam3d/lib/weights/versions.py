"""The trained versions of a model, and the manifest that names the served one.

A version belongs to the base weights that its server was started with: ``<folder>/<base>/`` holds
the versions' files and the manifest ``served.json``. All files are written atomically, so a reader
finds a complete version at any time, even after a crash of the writer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.atomic_file import SUFFIX, move_into_place, temporary_file, write_text_atomically
from lib.errors import InputError, NotFoundError
from lib.networks import Adaptation, FastSAM3D, save_checkpoint
from lib.weights.files import Weights, file_sha256

logger = logging.getLogger(__name__)

BASE = 0
"""BASE: number of the weights that the server was started with, which are never removed."""

Stamp = tuple[int, int, int]
"""Stamp: modification time, inode and size of a manifest."""


@dataclass(frozen=True)
class Version:
    """A published student. parent: number of the version that it replaced."""

    number: int
    file: str
    sha256: str
    parent: int
    created: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The content of ``served.json``. served: number of the served version."""

    served: int = BASE
    versions: tuple[Version, ...] = ()

    def find(self, number: int) -> Version | None:
        """Return the version with this number; None if it is not kept."""
        return next((version for version in self.versions if version.number == number), None)


class StudentVersions:
    """The versions of one model that were trained from the weights ``base_id``."""

    def __init__(self, folder: Path, base_id: str) -> None:
        self.folder = folder / hashlib.sha256(base_id.encode()).hexdigest()[:16]
        self._manifest = self.folder / "served.json"

    def stamp(self) -> Stamp | None:
        """Return a value that changes with the manifest; None before anything is published."""
        try:
            status = self._manifest.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def read(self) -> Manifest:
        """Read the manifest, empty if there is no file; raises InputError for a broken one."""
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
            versions = tuple(Version(**each) for each in content["versions"])
            return Manifest(content["served"], versions)
        except FileNotFoundError:
            return Manifest()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._manifest} cannot be used: {error}; remove it") from error

    def path_of(self, version: Version) -> Path:
        """Return the path of a version's file."""
        return self.folder / version.file

    def publish(
        self,
        network: FastSAM3D,
        facts: Mapping[str, str],
        keep: int,
        adaptation: Adaptation | None = None,
    ) -> Version:
        """Write ``network`` as a new version and serve it.

        facts: for clients, and for the file's metadata. keep: how many earlier versions stay for a
        rollback. adaptation: what an adapted network keeps of the one before. Raises OSError if the
        version cannot be written; then the served version is unchanged, and no file is left behind.
        """
        with self._locked():
            manifest = self.read()
            number = 1 + max((version.number for version in manifest.versions), default=BASE)
            self._remove_strays(manifest)
            path, digest = self._write(network, number, facts, adaptation)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            version = Version(number, path.name, digest, manifest.served, created, facts)
            try:
                self._serve(Manifest(number, (*_newest(manifest, keep), version)))
            finally:  # the manifest may be in place although the last sync failed: read it again
                self._remove_strays(self.read())
        logger.info("version %d is now served: %s", number, path)
        return version

    def rollback(self, number: int | None = None) -> int:
        """Serve an earlier version again, and return its number.

        number: of the version, 0 for the weights that the server was started with; None for the
        version that the served one replaced. Raises NotFoundError if it is not kept, InputError if
        its file was changed.
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
                kept = ", ".join(
                    str(each) for each in (BASE, *(v.number for v in manifest.versions))
                )
                raise NotFoundError(f"there is no version {number}; these are kept: {kept}")
            self._check_unchanged(manifest.find(number))
            self._serve(Manifest(number, manifest.versions))
        logger.info("version %d is served again", number)
        return number

    def _check_unchanged(self, version: Version | None) -> None:
        """Raise InputError if a version's file is not the published one any more."""
        if version is not None and file_sha256(self.path_of(version)) != version.sha256:
            raise InputError(
                f"version {version.number} cannot be served: {version.file} differs from the "
                "published file; restore it, or roll back to another version"
            )

    def _is_kept(self, manifest: Manifest, number: int) -> bool:
        version = manifest.find(number)
        return version is not None and self.path_of(version).is_file()

    def _write(
        self,
        network: FastSAM3D,
        number: int,
        facts: Mapping[str, str],
        adaptation: Adaptation | None,
    ) -> tuple[Path, str]:
        """Write a version's file; return its path and its SHA-256."""
        with temporary_file(self.folder) as temporary:
            save_checkpoint(network, temporary, facts, adaptation=adaptation)
            digest = file_sha256(temporary)
            path = self.folder / f"{number:04d}-{digest[:12]}.safetensors"
            move_into_place(temporary, path)
        return path, digest

    def _serve(self, manifest: Manifest) -> None:
        write_text_atomically(self._manifest, json.dumps(asdict(manifest), indent=1))

    def _remove_strays(self, manifest: Manifest) -> None:
        """Remove the files of dropped versions, and temporary files of a killed writer."""
        kept = {version.file for version in manifest.versions}
        for path in self.folder.iterdir():
            if path.suffix in (".safetensors", SUFFIX) and path.name not in kept:
                path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude the writers of all other processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _newest(manifest: Manifest, count: int) -> tuple[Version, ...]:
    """Return the ``count`` versions to keep beside a new one: the served one, then the latest."""
    ranked = sorted(
        manifest.versions, key=lambda each: (each.number == manifest.served, each.number)
    )
    kept = ranked[max(0, len(ranked) - count) :]
    return tuple(sorted(kept, key=lambda each: each.number))


def describe_versions(weights: Weights, published: StudentVersions) -> dict[str, Any]:
    """Return for clients: the served version's number, its weights, and all kept versions."""
    manifest = published.read()
    versions = [asdict(version) for version in manifest.versions]
    return {"served": manifest.served, "weights": weights.info(), "versions": versions}
