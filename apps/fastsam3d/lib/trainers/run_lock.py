"""The lock of a folder of runs: one training at a time, of all processes that share the folder.

The processes may be servers and train.py on several machines. Each can see what runs, and stop it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from lib.errors import InputError

PATIENCE_SECONDS = 1.0
"""PATIENCE_SECONDS: how long a run tries to lock, as another process may look at the lock."""

WATCH_SECONDS = 1.0
"""WATCH_SECONDS: interval in which a run looks for a request to stop."""


@contextmanager
def only_run(folder: Path, name: str) -> Iterator[None]:
    """Lock a folder for a run; raise InputError if another process holds the lock.

    name: of the trainer. The lock ends with the process, however it ends. A request to stop becomes
    a SIGTERM for this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _lock(file):
            if time.monotonic() > deadline:
                raise InputError(
                    f"another training is running ({_describe(_content(file))}); wait for it, or "
                    "stop it"
                )
            time.sleep(0.1)
        _write_content(file, name)
        _stop_file(folder).unlink(missing_ok=True)
        with _watched(_stop_file(folder)):
            yield


def running(folder: Path) -> dict[str, Any] | None:
    """Return trainer, host and start of the run that holds the lock; None if none does."""
    try:
        with (folder / "lock").open("a+") as file:
            return None if _lock(file, fcntl.LOCK_SH) else _content(file)
    except OSError:  # without the folder, or the right to write there, nothing runs
        return None


def request_stop(folder: Path) -> None:
    """Ask the run that holds the lock to end after the update under way."""
    _stop_file(folder).touch()


def _stop_file(folder: Path) -> Path:
    return folder / "stop"


def _lock(file: TextIO, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock a file without waiting; return whether that worked. Closing the file unlocks it.

    kind: LOCK_EX for a run; LOCK_SH to look whether one has the lock, as several may do at once.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_content(file: TextIO, name: str) -> None:
    file.truncate(0)
    start = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    json.dump({"model": name, "host": socket.gethostname(), "start": start}, file)
    file.flush()


def _content(file: TextIO) -> dict[str, Any]:
    """Return what the run wrote; only empty texts if it has not written yet."""
    file.seek(0)
    content: dict[str, Any] = {"model": "", "host": "", "start": ""}
    with suppress(ValueError):
        content |= json.loads(file.read())
    return content


def _describe(content: dict[str, Any]) -> str:
    return f"{content['model']} on {content['host']}, since {content['start']}"


@contextmanager
def _watched(stop_file: Path) -> Iterator[None]:
    """Send SIGTERM to this process if the file appears within the block."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            if stop_file.exists():
                stop_file.unlink(missing_ok=True)
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
