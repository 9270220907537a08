"""Which image a request is about, and reading it before the first click on it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from cachetools import TTLCache
from fastapi import UploadFile
from monailabel.interfaces.app import MONAILabelApp

from lib.errors import InputError, NotFoundError

logger = logging.getLogger(__name__)


@contextmanager
def image_file(
    instance: MONAILabelApp, image: str, session_id: str, file: UploadFile | None
) -> Iterator[str]:
    """The path of the image that a request is about, for as long as the request takes."""
    if session_id:
        yield find_session(instance, session_id)
    elif file is not None:
        suffix = "".join(Path(file.filename or "").suffixes) or ".nii.gz"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"image{suffix}")
            with path.open("wb") as stored:
                shutil.copyfileobj(file.file, stored)
            yield str(path)
    elif image:
        yield find_image(instance, image)
    else:
        raise InputError("there is no image; name one, or a session, or send a file")


def find_session(instance: MONAILabelApp, session_id: str) -> str:
    """Its image's path; raises NotFoundError."""
    is_name = os.path.basename(session_id) == session_id
    sessions = instance.sessions()
    session = sessions.get_session(session_id) if is_name and sessions is not None else None
    if not session:
        raise NotFoundError(f"session {session_id!r} has expired; upload the image again")
    return str(session.image)


def find_image(instance: MONAILabelApp, image: str) -> str:
    """The path of one of the studies; raises NotFoundError."""
    # an id is never a path: MONAI Label would open any file of the server that the name leads to
    is_name = os.path.basename(image) == image
    path = instance.datastore().get_image_uri(image) if is_name else ""
    if not path or not os.path.exists(path):
        raise NotFoundError(f"there is no image {image!r} among the studies of this server")
    return str(path)


class ReadAhead:
    """Decodes an image that a client opened, so that it is there when the first click comes.

    One at a time, in a thread of its own; a click that comes meanwhile waits for that very read.
    What fails is left to the click, whose client can be told.

    load: takes a dictionary with ``image_path``, and keeps what it reads.
    """

    MOST_WAITING = 4
    FRESH_SECONDS = 60  # a viewer fetches an image in hundreds of requests

    def __init__(self, load: Callable[[dict[str, Any]], Any]) -> None:
        self._load = load
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._asked: TTLCache[str, None] = TTLCache(1024, self.FRESH_SECONDS)
        self._waiting = 0
        self._lock = threading.Lock()

    def __call__(self, name: str, find: Callable[[], str]) -> None:
        """Read the image whose path ``find`` gives, soon; name: of it, to know it again."""
        with self._lock:
            if name in self._asked or self._waiting >= self.MOST_WAITING:
                return
            self._asked[name] = None
            self._waiting += 1
        self._thread.submit(self._read, name, find)

    def _read(self, name: str, find: Callable[[], str]) -> None:
        try:
            self._load({"image_path": find()})
            logger.info("%s was read ahead", name)
        except (InputError, NotFoundError, requests.RequestException, OSError) as error:
            logger.info("%s was not read ahead: %s", name, error)
        except Exception:
            logger.exception("%s was not read ahead", name)
        finally:
            with self._lock:
                self._waiting -= 1
