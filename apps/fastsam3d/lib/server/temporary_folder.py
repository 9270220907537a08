"""The folder of all temporary files of a server: private, and gone however the server ends.

It lies in the temporary folder of the machine. A running server holds a lock on a file in it, so
that the next start of any server knows the folders of killed ones, and removes them.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

PREFIX = "fastsam3d-server-"
"""PREFIX: start of the names of these folders."""

LOCK = "lock"
"""LOCK: name of the file that a running server locks."""

YOUNG_SECONDS = 60
"""YOUNG_SECONDS: a folder without a lock that is younger belongs to a server that starts."""

_locks: list[int] = []


def use_private_folder() -> Path:
    """Make the folder of this process and let `tempfile` use it from now on; return its path."""
    parent = Path(tempfile.gettempdir())
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # only this account may enter
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    _locks.append(handle)
    tempfile.tempdir = str(folder)
    atexit.register(leave, folder)
    return folder


def leave(folder: Path) -> None:
    """Remove the folder of this process; also for an end without the functions of `atexit`."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the folders of killed servers of this account; return their paths."""
    abandoned = []
    for folder in parent.glob(f"{PREFIX}*"):
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or _is_in_use(folder):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        abandoned.append(folder)
        logger.info("removed %s, which a killed server left", folder)
    return abandoned


def remove_log_config() -> None:
    """Remove the copy of its logging settings that MONAI Label made for the start.

    uvicorn has read it by now; MONAI Label leaves it in the temporary folder of the machine.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "action_start_server":
        frame = frame.f_back
    path = frame.f_locals.get("log_config") if frame else None
    if isinstance(path, str) and Path(path).parent == Path(tempfile.gettempdir()):
        Path(path).unlink(missing_ok=True)


def _is_in_use(folder: Path) -> bool:
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # a server makes the lock right after the folder
        return time.time() - folder.stat().st_mtime < YOUNG_SECONDS
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
