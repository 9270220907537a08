"""Atomic writes: a reader sees the old file or the whole new one, even after a crash."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".partial"
"""SUFFIX: ending of all temporary files, by which the leftovers of a killed process are found."""


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Yield an unused path in ``folder``, which exists; remove the file afterwards if it is there.

    Other processes do not use the same path.
    """
    path = folder / f".{uuid.uuid4().hex}{SUFFIX}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def move_into_place(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Replace ``path`` with the file ``temporary`` of the same folder.

    durable: sync the content before and the folder after the move, so that the new file survives a
    power cut. Raises OSError. If only the last sync fails, the new file is already in place.
    """
    if durable:
        _sync(temporary)
    os.replace(temporary, path)
    if durable:
        _sync(path.parent)


@contextmanager
def write_atomically(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; move it to ``path`` when the block succeeds.

    After an error ``path`` is unchanged, and the temporary file is removed. durable: see
    :func:`move_into_place`.
    """
    with temporary_file(path.parent) as temporary:
        yield temporary
        move_into_place(temporary, path, durable=durable)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` with ``text``, in UTF-8."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
