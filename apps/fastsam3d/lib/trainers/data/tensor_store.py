"""Tensors kept on disk between epochs and runs, bounded, never half of an entry."""

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

    Holds up to `max_bytes`. Where an entry has no room, those that were not asked for since this
    object was made go first, the longest unused before others. What is used now stays, and the new
    entry is not kept: epochs that pass over more than fits would otherwise find nothing again.
    Several processes may share a folder. Where the disk is full or not to be written, nothing is
    kept; an entry that is damaged counts as missing.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._since = time.time()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, on the CPU; None where there is none that is whole."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                checksum = (file.metadata() or {}).get("crc32")
            if checksum != _checksum(tensors):
                raise SafetensorError("its checksum is wrong")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s is made anew: %s", path, error)
            return None
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep contiguous CPU tensors under a key that may be part of a file's name."""
        path = self._path(key)
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(nbytes):
                return
            with write_atomically(path, durable=False) as temporary:
                save_file(dict(tensors), temporary, metadata={"crc32": _checksum(tensors)})
        except (OSError, SafetensorError) as error:
            logger.warning("%s is not kept: %s", path, error)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, those of other processes included."""
        return sum(nbytes for _, nbytes, _ in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _entries(self) -> list[tuple[float, int, str]]:
        """(last use, bytes, path) of all entries and of what other processes are writing."""
        entries = []
        if self.folder.is_dir():
            with os.scandir(self.folder) as found:
                for file in found:
                    try:
                        stat = file.stat()
                    except FileNotFoundError:  # another process removed it
                        continue
                    entries.append((stat.st_mtime, stat.st_size, file.path))
        return sorted(entries)

    def _make_room(self, nbytes: int) -> bool:
        """Remove what was not used since this object was made; whether `nbytes` more fit then."""
        entries = self._entries()
        free = self.max_bytes - sum(entry[1] for entry in entries)
        for used, size, path in entries:
            if free >= nbytes or used >= self._since:
                break
            Path(path).unlink(missing_ok=True)
            free += size
        return free >= nbytes


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, value)
    return str(value)
