"""The masks that requests of the journal started from, so that unsaved work can be restored.

The journal names such a mask by the SHA-256 of its file. The newest of each image are kept.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from lib.atomic_file import copy_atomically
from lib.datastore.label_history import file_sha256

logger = logging.getLogger(__name__)

KEPT = 16
"""KEPT: masks of each image that stay; a compressed mask of a large scan has some 100 kB."""


class JournalMasks:
    """Keeps mask files of one image in a folder, by the SHA-256 of their content."""

    def __init__(self, folder: Path, is_on: bool = True) -> None:
        """is_on: whether masks are kept at all."""
        self._folder = folder
        self._is_on = is_on

    def keep(self, path: Path) -> None:
        """Keep a copy of a mask file, and remove the oldest ones.

        A disk that cannot be written is logged and not raised: a mask does not depend on it.
        """
        if not self._is_on:
            return
        try:
            digest = file_sha256(path)
            kept = self.find(digest)
            if kept is not None:
                os.utime(kept)
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            extension = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
            copy_atomically(path, self._folder / f"{digest}{extension}")
            for old in sorted(self._folder.glob("*"), key=_age)[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("a mask to start from is not kept: %s", error)

    def find(self, digest: str) -> Path | None:
        """Return the file with a SHA-256, in hexadecimal digits; None if it is not kept."""
        if not digest.isalnum():
            return None
        return next(iter(self._folder.glob(f"{digest}.*")), None)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed by another thread
        return 0.0
