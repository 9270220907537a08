"""Copies of patients' scans on the disk of the server: find them, and remove them.

Labels, journals and images that a client added to the studies are no copies, and stay.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.datastore.fetched_series import ABANDONED_SECONDS, FETCHING

PACS_FOLDER = re.compile(r"[0-9a-f]{32}")
"""PACS_FOLDER: name of the folder of a DICOM server in the cache, the MD5 of its address."""

LABELS = "labels"
"""LABELS: name of the folder of labels and journals beside the series."""

SERIES = "series"
SESSION = "session"
TRAINING = "training"
"""TRAINING: kind of the copies of a training, ROIs of many scans in files without their names."""


@dataclass(frozen=True)
class CachedScan:
    """A copy of a scan, or the copies of a training.

    kind: SERIES, SESSION or TRAINING. name: SeriesInstanceUID, ID of the session, or model. paths:
    files and folders in the order in which they are removed; at least one.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """The size of all files in bytes."""
        return sum(file.lstat().st_size for file in self._files())

    @property
    def age_days(self) -> float:
        """Days since a file was fetched or, for sessions and trainings, used."""
        newest = max(file.lstat().st_mtime for file in (*self.paths, *self._files()))
        return (time.time() - newest) / 86400

    def remove(self) -> None:
        """Remove the copy; a server fetches a series again when it is asked for. Raises OSError."""
        for path in self.paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        for path in self.paths:
            yield from (each for each in path.rglob("*") if each.is_file())
            if path.is_file():
                yield path


def find_series(cache: Path) -> list[CachedScan]:
    """Return the series that servers fetched; cache: MONAI_LABEL_DICOMWEB_CACHE_PATH.

    A file without its folder of slices beside it was added by a client, and is no copy.
    """
    pacs_folders = [each for each in _folders(cache) if PACS_FOLDER.fullmatch(each.name)]
    scans = []
    for slices in (each for pacs in pacs_folders for each in _folders(pacs)):
        is_being_fetched = slices.name.startswith(FETCHING) and (
            time.time() - slices.stat().st_mtime < ABANDONED_SECONDS
        )
        if slices.name == LABELS or is_being_fetched:
            continue
        image = slices.with_name(f"{slices.name}.nii.gz")
        # the folder last, by which the file is known as a copy if the removal is interrupted
        paths = (image, slices) if image.is_file() else (slices,)
        scans.append(CachedScan(SERIES, slices.name, paths))
    return scans


def find_sessions(folder: Path) -> list[CachedScan]:
    """Return the volumes that clients uploaded; folder: MONAI_LABEL_SESSION_PATH."""
    sessions = [each for each in _folders(folder) if (each / "meta.info").is_file()]
    return [CachedScan(SESSION, each.name, (each,)) for each in sessions]


def find_training_copies(model_dir: Path) -> list[CachedScan]:
    """Return the copies of each model's trainings; model_dir: the option of that name."""
    return [
        CachedScan(TRAINING, model.name, (model / "run" / "cache",))
        for model in _folders(model_dir)
        if (model / "run" / "cache").is_dir()
    ]


def _folders(parent: Path) -> list[Path]:
    """Return the folders in a folder that may be missing, without links and hidden ones."""
    if not parent.is_dir():
        return []
    return sorted(
        each
        for each in parent.iterdir()
        if each.is_dir() and not each.is_symlink() and not each.name.startswith(".")
    )
