"""Reading an image before the first click on it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from cachetools import TTLCache

from lib.errors import InputError, NotFoundError

logger = logging.getLogger(__name__)


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
