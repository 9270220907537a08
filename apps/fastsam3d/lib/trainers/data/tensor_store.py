"""A store of tensors on disk, of bounded size, between epochs and runs."""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.atomic_file import write_atomically

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"


class TensorStore:
    """Entries of named tensors, one file each, memory-mapped when read.

    The store holds up to `max_bytes`. For a new entry it removes entries that were not read since
    this object was made, the least recently used first. Entries in use stay, and the new one is
    then not stored: with a plain LRU cache, epochs longer than the cache would never hit it.
    Several processes may share a folder. A full or read-only disk stores nothing and raises
    nothing. A damaged entry counts as missing.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._since = time.time()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of an entry, on the CPU; None if it is missing or damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                checksum = (file.metadata() or {}).get("crc32")
            if checksum != _checksum(tensors):
                raise SafetensorError("wrong checksum")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s is computed again: %s", path, error)
            return None
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store contiguous CPU tensors; the key becomes the file's name."""
        path = self._path(key)
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(nbytes):
                return
            with write_atomically(path, durable=False) as temporary:
                save_file(dict(tensors), temporary, metadata={"crc32": _checksum(tensors)})
        except (OSError, SafetensorError) as error:
            logger.warning("%s is not stored: %s", path, error)

    @property
    def nbytes(self) -> int:
        """Size of all entries in bytes, including those of other processes."""
        return sum(nbytes for _, nbytes, _ in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _entries(self) -> list[tuple[float, int, str]]:
        """Return (last use, bytes, path) of all files, including unfinished ones."""
        entries = []
        if self.folder.is_dir():
            with os.scandir(self.folder) as files:
                for file in files:
                    try:
                        stat = file.stat()
                    except FileNotFoundError:  # another process removed it
                        continue
                    entries.append((stat.st_mtime, stat.st_size, file.path))
        return sorted(entries)

    def _make_room(self, nbytes: int) -> bool:
        """Remove entries not used since this object was made; return whether `nbytes` fit."""
        entries = self._entries()
        free = self.max_bytes - sum(entry[1] for entry in entries)
        for last_use, size, path in entries:
            if free >= nbytes or last_use >= self._since:
                break
            Path(path).unlink(missing_ok=True)
            free += size
        return free >= nbytes


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, value)
    return str(value)
