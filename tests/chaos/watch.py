"""Watch folders for any access by any process, also by libraries in C++ (inotify of Linux)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

OPENED, READ, CHANGED, MOVED, CREATED, DELETED = 0x20, 0x1, 0x2, 0xC0, 0x100, 0x200
EVENTS = OPENED | READ | CHANGED | MOVED | CREATED | DELETED
HEAD = struct.Struct("iIII")
"""HEAD: watch, mask, cookie and length of the name of an event (man 7 inotify)."""


class FolderWatch:
    """Collects which entries of some folders were touched since it was made."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._handle = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            raise OSError(ctypes.get_errno(), "inotify is not available")
        self._folders = {}
        for folder in folders:
            number = self._library.inotify_add_watch(self._handle, os.fsencode(folder), EVENTS)
            self._folders[number] = folder

    def touched(self) -> set[Path]:
        """Return the entries that were touched since the last call."""
        paths = set()
        while True:
            try:
                events = os.read(self._handle, 2**16)
            except BlockingIOError:
                return paths
            while events:
                number, _, _, length = HEAD.unpack_from(events)
                name = events[HEAD.size : HEAD.size + length].rstrip(b"\0")
                if name:  # without one it is the folder itself
                    paths.add(self._folders[number] / os.fsdecode(name))
                events = events[HEAD.size + length :]

    def close(self) -> None:
        os.close(self._handle)
