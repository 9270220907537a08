"""The images that were labelled since the last adaptation, in a file beside the runs.

The count outlives the server, and all servers with the same ``model_dir`` share it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from filelock import FileLock

from lib.atomic_file import write_text_atomically

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
"""PATIENCE_SECONDS: how long a label that was saved waits to be counted."""


class NewLabels:
    """Names of images in a file of `folder`, which is made when the first one is added."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "new_labels.json"

    def add(self, image: str) -> int:
        """Add an image; return how many there are. Raises OSError if it cannot be written."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            names = {*self._read(), image}
            write_text_atomically(self._file, json.dumps(sorted(names)))
        return len(names)

    def clear(self) -> None:
        """Begin to count anew. Raises OSError if the file cannot be removed."""
        if self._file.exists():
            with self._lock():
                self._file.unlink(missing_ok=True)

    def _lock(self) -> FileLock:
        """Return the lock; waiting longer for it than `PATIENCE_SECONDS` is an OSError."""
        return FileLock(self._file.with_suffix(".lock"), timeout=PATIENCE_SECONDS)

    def _read(self) -> list[str]:
        try:
            names = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            logger.warning("%s cannot be read; new labels are counted from 0", self._file)
            return []
        return names
