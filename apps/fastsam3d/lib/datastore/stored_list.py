"""The list of a datastore's images and labels, and who may change it.

MONAI Label keeps the names of segments in one list that it rewrites in place. Here the list is
written aside, synced and swapped, and a broken one is put aside.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel

from lib.atomic_file import SUFFIX, can_write, is_forbidden, is_full, write_text_atomically
from lib.datastore.read_only import ReadOnlyModel
from lib.errors import ReadOnlyError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""RETRY_SECONDS: time after which a list that could not be renewed is tried again."""


class StoredList(LocalDatastore):
    """The list on the disk, which other threads and other servers on the same folder change too.

    The subclasses make it from the files.
    """

    _datastore: LocalDatastoreModel
    _config_ts: float

    def __init__(self, datastore_path: str, *args: Any, **kwargs: Any) -> None:
        self.read_only = os.path.isdir(datastore_path) and not can_write(datastore_path)
        self._mutex = threading.RLock()
        self._is_started = False
        self._renewal: threading.Timer | None = None
        if self.read_only:
            logger.warning(
                "the folder %s may not be written: clicks work, labels cannot be saved; give the "
                "account of the server the right to write there",
                datastore_path,
            )
        super().__init__(datastore_path, *args, **kwargs)
        self._is_started = True
        if hasattr(self, "_handler"):  # the watcher of the base class, which misses new names
            self._handler.on_moved = self._on_moved

    # --- changes by others ------------------------------------------------------------------------

    def _on_moved(self, event: Any) -> None:
        """Follow a file that got another name; atomic writes end with such an event, too."""
        if not os.fsdecode(event.src_path).endswith(SUFFIX):
            self._on_any_event(event)

    def _on_any_event(self, event: Any) -> None:
        """Make the list anew after a change in the folder, and try again after an error.

        An error would end the thread of the watcher, and no further change would be noticed.
        """
        try:
            self._reconcile_datastore()
        except Exception as error:
            self._renew_later(error)

    def _on_modify_event(self, event: Any) -> None:
        try:
            super()._on_modify_event(event)
        except Exception as error:
            self._renew_later(error)

    def _renew_later(self, error: Exception) -> None:
        logger.warning(
            "the list of %s is not renewed (%s); again soon", self._datastore_path, error
        )
        waits = self._renewal is not None and not self._renewal.finished.is_set()
        if not waits or self._renewal is threading.current_thread():
            self._renewal = threading.Timer(RETRY_SECONDS, self._on_any_event, [None])
            self._renewal.daemon = True
            self._renewal.start()

    # --- reading and writing ----------------------------------------------------------------------

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the list if it changed; put a broken one aside, so that it is made anew."""
        with self._exclusive():
            self._load_list()
            if self.read_only and not isinstance(self._datastore, ReadOnlyModel):
                self._datastore = ReadOnlyModel(
                    **self._datastore.model_dump(),
                    empty_folder=tempfile.mkdtemp(prefix="no-labels-"),
                )

    def _refresh(self) -> None:
        """Read the list again if another server on the same folder has changed it."""
        try:
            changed = os.stat(self._datastore_config_path).st_mtime
        except FileNotFoundError:
            return
        if self._is_started and changed != self._config_ts:
            with self._exclusive():
                pass  # entering it reads the list

    def _load_list(self) -> None:
        path = Path(self._datastore_config_path)
        try:
            changed = path.stat().st_mtime
            if changed == self._config_ts:
                return
            loaded = type(self._datastore).model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return
        except ValueError as error:
            self._put_aside(path, error)
            return
        loaded.base_path = self._datastore_path
        if isinstance(loaded, ReadOnlyModel):
            loaded.empty_folder = getattr(self._datastore, "empty_folder", "")
        self._datastore, self._config_ts = loaded, changed

    def _put_aside(self, path: Path, error: ValueError) -> None:
        aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}")
        logger.warning(
            "the list %s is broken (%s); it is made anew from the files, and kept as %s",
            path,
            str(error).splitlines()[0],
            aside.name,
        )
        self._datastore.objects = {}
        self._is_started = False  # the descriptions beside the labels count now
        if not self.read_only:
            os.replace(path, aside)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the list; on a full disk it stays old.

        The files, and the descriptions beside the labels, are complete without the list.
        """
        try:
            self._write_list()
        except OSError as error:
            if not is_full(error):
                raise
            logger.warning("the disk is full: the list of %s is old", self._datastore_path)

    def _write_list(self) -> None:
        """Write the list; raises OSError, also on a full disk. The list alone has images' infos."""
        if self.read_only:
            return
        with self._exclusive():
            path = Path(self._datastore_config_path)
            text = self._datastore.model_dump_json(
                exclude={"base_path", "empty_folder"}, indent=2, fallback=str
            )
            write_text_atomically(path, text)
            self._config_ts = path.stat().st_mtime

    # --- access -----------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(
                "the folder of studies may not be written by the server, so nothing can be saved; "
                "give its account the right to write there and start it again"
            )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other threads, and other processes on the same folder, from changing it."""
        with self._mutex:
            if self.read_only:
                yield
                return
            with self._file_lock():
                if self._is_started:
                    self._load_list()  # another server may have saved a label meanwhile
                yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Do as `_exclusive`, or without the lock on a disk that became read only meanwhile."""
        with self._mutex, ExitStack() as stack:
            try:
                stack.enter_context(self._exclusive())
            except OSError as error:
                if not is_forbidden(error):
                    raise
            yield

    def _file_lock(self) -> FileLock:
        lock = getattr(self, "_process_lock", None)
        if lock is None:  # the base class sets the path in its constructor, and uses it there
            lock = self._process_lock = FileLock(self._lock_file, thread_local=False)
        return lock
