"""The journal of interactions: one line of JSON for each mask that a client asked for.

Each image has a file ``.journal/ID.jsonl`` beside its labels, to which lines are only appended. Who
replays the prompts of a line with the same weights gets the mask with the same hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.atomic_file import write_atomically
from lib.datastore.journal_masks import JournalMasks

logger = logging.getLogger(__name__)

FOLDER = ".journal"
"""FOLDER: name of the folder of all journals, beside the folders of labels."""

LONGEST_NAME = 200
"""LONGEST_NAME: bytes of an image ID that is used as a file name; a longer one is hashed."""


@dataclass(frozen=True)
class Interaction:
    """One request for a mask of an image of the studies.

    image: its ID. label: name of the structure, or "". prompts: as the client sent them, in their
    order. options: the other keys that change the mask. weights_sha256: of the weights' file.
    mask_sha256: see `BoxMask.sha256`. user: empty if unknown. initial_mask_sha256: of the file of
    the mask that the request starts from; empty without one.
    """

    image: str
    label: str
    prompts: Sequence[Any] | Mapping[str, Any]
    options: Mapping[str, Any]
    weights_sha256: str
    mask_sha256: str
    user: str = ""
    initial_mask_sha256: str = ""


class Journal:
    """Appends interactions to the files of their images, and reads them.

    Threads, and the processes of several servers, may use one folder at a time.

    A line is in the file before `append` returns, so that a killed process loses none. It is synced
    to the disk within a moment by another thread, so that a click does not wait for the disk.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """folder: of the labels. max_bytes: of one image's journal; 0 turns the journal off.

        When a journal is full, its older half is dropped.
        """
        self._folder = folder / FOLDER
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._syncing: set[Path] = set()
        self._syncer = ThreadPoolExecutor(1, "journal")

    def append(self, interaction: Interaction) -> None:
        """Add a line with the present time.

        A disk that cannot be written is logged and not raised: a mask does not depend on it.
        """
        if not self._max_bytes:
            return
        fields = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **vars(interaction)}
        line = (
            json.dumps(fields, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
        )
        path = self._path(interaction.image)
        try:
            with self._lock, self._locked_folder():
                self._append(path, line)
        except OSError as error:
            logger.warning("an interaction is not in the journal %s: %s", path.name, error)

    def read(self, image: str) -> list[dict[str, Any]]:
        """Return the interactions on an image, oldest first; a line that is torn is left out."""
        try:
            lines = self._path(image).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [entry for line in lines for entry in _parse_line(line)]

    def masks(self, image: str) -> JournalMasks:
        """Return the masks that interactions on an image started from."""
        return JournalMasks(self._path(image).with_suffix(".masks"), is_on=bool(self._max_bytes))

    def flush(self) -> None:
        """Wait until all lines so far are on the disk."""
        self._syncer.submit(lambda: None).result()

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Exclude the writers of other processes, as one of them may replace a full file."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _append(self, path: Path, line: bytes) -> None:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(handle).st_size
            is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            os.write(handle, b"\n" + line if is_torn else line)
        finally:
            os.close(handle)
        if size + len(line) > self._max_bytes:
            self._drop_older_half(path)
        elif path not in self._syncing:
            self._syncing.add(path)
            self._syncer.submit(self._sync, path)

    def _drop_older_half(self, path: Path) -> None:
        content = path.read_bytes()
        rest = content[-(self._max_bytes // 2) :]
        whole = rest.partition(b"\n")[2] if len(rest) < len(content) else rest
        with write_atomically(path) as temporary:
            temporary.write_bytes(whole)
            temporary.chmod(0o600)

    def _sync(self, path: Path) -> None:
        with self._lock:
            self._syncing.discard(path)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(handle)
        except OSError as error:
            logger.warning("the journal %s is not synced: %s", path.name, error)
        finally:
            os.close(handle)

    def _path(self, image: str) -> Path:
        name = image.encode()
        is_name = os.path.basename(image) == image and not image.startswith(".") and image
        if not is_name or len(name) > LONGEST_NAME or b"\0" in name:
            image = hashlib.sha256(name).hexdigest()
        return self._folder / f"{image}.jsonl"


def _parse_line(line: bytes) -> list[dict[str, Any]]:
    """Return the interaction of a line in a list; an empty list if the line is torn."""
    try:
        entry = json.loads(line)
    except ValueError:
        return []
    return [entry] if isinstance(entry, dict) else []
