"""Atomic writes: a reader sees the old file or the whole new one, even after a crash."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".partial"
"""SUFFIX: ending of all temporary files, by which the leftovers of a killed process are found."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EACCES)
"""NO_LINKS: errors of file systems, or of their settings, that allow no hard link."""


FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
"""FORBIDDEN: errors of a disk that is mounted to be read only, and of missing rights."""


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


def copy_atomically(source: Path, path: Path) -> None:
    """Replace ``path`` with a copy of the file ``source``."""
    with write_atomically(path) as temporary:
        shutil.copyfile(source, temporary)


def keep_as(path: Path, name: Path) -> None:
    """Give the content of ``path`` the second name ``name`` of the same disk, and sync it.

    A later atomic write to ``path`` leaves ``name`` as it is. Where the file system has no hard
    links the content is copied. Raises OSError.
    """
    try:
        with temporary_file(name.parent) as temporary:
            os.link(path, temporary)
            move_into_place(temporary, name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        copy_atomically(path, name)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes left in ``folder``; return their paths.

    The caller makes sure that no other process writes there now.
    """
    leftovers = [path for path in folder.glob(f".*{SUFFIX}") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def is_full(error: BaseException) -> bool:
    """Return whether an error means that the disk, or the quota of the account, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_forbidden(error: BaseException) -> bool:
    """Return whether an error means that this account may not write there, or nobody may."""
    return isinstance(error, OSError) and error.errno in FORBIDDEN


def can_write(folder: str | Path) -> bool:
    """Return whether this account may write in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return not is_forbidden(error)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
