"""The versions of labels in a folder: what is replaced stays, with its time and user.

Beside the label ``ID.nii.gz`` lies ``ID.json`` with the description of the label, names of segments
included, so that a list of all labels can be made anew from the files. What was replaced lies in
``.versions/ID/`` as ``000001.nii.gz`` and ``000001.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.atomic_file import keep_as, write_atomically, write_text_atomically
from lib.errors import NotFoundError

logger = logging.getLogger(__name__)

VERSIONS = ".versions"
"""VERSIONS: folder of the earlier versions, beside the labels."""


@dataclass(frozen=True)
class LabelVersion:
    """A label as it was saved.

    number: 1, 2, … in the order of saving. time: UTC, ISO 8601. user: empty if unknown. sha256: of
    the file. extension: of the file. info: what the client sent, such as the names of segments.
    """

    number: int
    time: str
    user: str
    sha256: str
    extension: str
    info: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """Return the version as clients see it."""
        names = self.info.get("label_info")
        return {
            "version": self.number,
            "time": self.time,
            "user": self.user,
            "sha256": self.sha256,
            "label_info": names if isinstance(names, list) else [],
        }


class LabelHistory:
    """The versions of the labels with one tag.

    The caller makes sure that one thread of one process changes the folder at a time.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """folder: of the labels. keep: how many earlier versions of each label stay."""
        self._folder = folder
        self._keep = keep

    def current(self, label_id: str, path: Path) -> LabelVersion | None:
        """Return the version that the label file ``path`` is; None if there is no such file.

        A file that another program wrote is a version of its own, of an unknown user.
        """
        if not path.is_file():
            return None
        digest = file_sha256(path)
        described = self._read_sidecar(label_id)
        for version in described:
            if version.sha256 == digest:
                return version
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        number = 1 + max((v.number for v in (*described, *self.earlier(label_id))), default=0)
        info = described[0].info if described else {}
        extension = path.name[len(label_id) :]
        return LabelVersion(number, changed, "", digest, extension, dict(info))

    def newest(self, label_id: str) -> LabelVersion | None:
        """Return the version that the description beside the label names first, without a look at
        the label itself; None if there is no description."""
        described = self._read_sidecar(label_id)
        return described[0] if described else None

    def earlier(self, label_id: str) -> list[LabelVersion]:
        """Return what was replaced, newest first."""
        files = sorted((self._folder / VERSIONS / label_id).glob("*.json"), reverse=True)
        versions = (_read_json(path) for path in files)
        return [version for data in versions for version in _parse(data)]

    def replace(
        self, label_id: str, source: Path, extension: str, info: dict[str, Any], user: str
    ) -> tuple[LabelVersion, LabelVersion | None]:
        """Make ``source`` the label; return its version, and the one that it replaced.

        A crash at any moment leaves the old label or the new one, with its description. Raises
        OSError; the old label is in place then.
        """
        replaced = self.keep_current(label_id)
        number = 1 + max(
            (v.number for v in (*self._read_sidecar(label_id), *self.earlier(label_id))), default=0
        )
        time = datetime.now(UTC).isoformat(timespec="seconds")
        new = LabelVersion(number, time, user, file_sha256(source), extension, info)
        with write_atomically(self._folder / f"{label_id}{extension}") as temporary:
            shutil.copyfile(source, temporary)  # before the description: the disk may be full
            self._write_sidecar(label_id, [new, *([replaced] if replaced else [])])
        if replaced and replaced.extension != extension:
            (self._folder / f"{label_id}{replaced.extension}").unlink(missing_ok=True)
        self._prune(label_id)
        return new, replaced

    def keep_current(self, label_id: str) -> LabelVersion | None:
        """Keep the label as an earlier version and return it; None if there is no label."""
        path = self.find(label_id)
        current = self.current(label_id, path) if path else None
        if path is None or current is None:
            return None
        folder = self._folder / VERSIONS / label_id
        folder.mkdir(parents=True, exist_ok=True)
        keep_as(path, folder / f"{current.number:06d}{current.extension}")
        write_text_atomically(folder / f"{current.number:06d}.json", json.dumps(asdict(current)))
        return current

    def find(self, label_id: str) -> Path | None:
        """Return the file of a label; None if there is none.

        After a crash there can be two, of different formats: the described one counts.
        """
        newest = self._read_sidecar(label_id)
        for version in newest:
            path = self._folder / f"{label_id}{version.extension}"
            if path.is_file() and file_sha256(path) == version.sha256:
                return path
        for extension in (*(version.extension for version in newest), ".nii.gz", ".nii", ".nrrd"):
            path = self._folder / f"{label_id}{extension}"
            if path.is_file():
                return path
        return None

    def describe(self, label_id: str, path: Path, info: dict[str, Any]) -> None:
        """Change the description beside the label ``path``."""
        current = self.current(label_id, path)
        if current is not None:
            before = [v for v in self._read_sidecar(label_id) if v.sha256 != current.sha256]
            self._write_sidecar(label_id, [replace(current, info=info), *before[:1]])

    def version_file(self, label_id: str, number: int) -> tuple[LabelVersion, Path]:
        """Return an earlier version and its file; raises NotFoundError."""
        versions = {version.number: version for version in self.earlier(label_id)}
        if number not in versions:
            known = ", ".join(map(str, sorted(versions))) or "none"
            raise NotFoundError(
                f"label {label_id!r} has no earlier version {number}; kept: {known}"
            )
        version = versions[number]
        name = f"{number:06d}{version.extension}"
        return version, self._folder / VERSIONS / label_id / name

    def _read_sidecar(self, label_id: str) -> list[LabelVersion]:
        """Return the described versions: the newest, and the one before it."""
        data = _read_json(self._folder / f"{label_id}.json")
        versions = data.get("versions")
        return (
            [v for entry in versions for v in _parse(entry)] if isinstance(versions, list) else []
        )

    def _write_sidecar(self, label_id: str, versions: list[LabelVersion]) -> None:
        text = json.dumps({"versions": [asdict(v) for v in versions]}, ensure_ascii=False, indent=1)
        write_text_atomically(self._folder / f"{label_id}.json", text)

    def _prune(self, label_id: str) -> None:
        for version in self.earlier(label_id)[self._keep :]:
            _, path = self.version_file(label_id, version.number)
            path.unlink(missing_ok=True)
            path.with_name(f"{version.number:06d}.json").unlink(missing_ok=True)
        if not self._keep:
            shutil.rmtree(self._folder / VERSIONS / label_id, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        logger.warning("%s is broken; the description of that label is unknown", path)
        return {}
    return data if isinstance(data, dict) else {}


def _parse(data: Any) -> list[LabelVersion]:
    """Return the version that a JSON object describes, in a list; an empty list if it does not."""
    try:
        version = LabelVersion(**data)
    except TypeError:
        return []
    fits = isinstance(version.number, int) and isinstance(version.info, dict)
    is_name = os.path.basename(str(version.extension)) == version.extension
    return [version] if fits and is_name else []
