"""Prefetch an image that a client opened, before the first click on it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from cachetools import TTLCache

from lib.errors import InputError
from lib.imaging.volume import Volume

logger = logging.getLogger(__name__)


class Prefetcher:
    """Reads and decodes images in a background thread, one at a time.

    A click on an image that is being prefetched waits for that read instead of starting another.
    Errors are only logged: the click on the image repeats the read and reports the error to its
    client.

    MAX_QUEUED: images that wait or are being read; further ones are dropped.
    REPEAT_SECONDS: requests for the same image within this time are ignored, because a viewer
    fetches an image in hundreds of requests.
    """

    MAX_QUEUED = 4
    REPEAT_SECONDS = 60

    def __init__(self, load: Callable[[dict[str, Any]], Any]) -> None:
        """load: takes a dictionary with ``image_path`` and keeps the image in a cache."""
        self._load = load
        self._executor = ThreadPoolExecutor(1, "prefetch")
        self._recent: TTLCache[str, None] = TTLCache(1024, self.REPEAT_SECONDS)
        self._queued = 0
        self._lock = threading.Lock()

    def __call__(self, name: str, find: Callable[[], str]) -> None:
        """Queue an image and return at once.

        name: identifies the image. find: returns its path; it is called in the background thread.
        """
        with self._lock:
            if name in self._recent or self._queued >= self.MAX_QUEUED:
                return
            self._recent[name] = None
            self._queued += 1
        self._executor.submit(self._read, name, find)

    def read(self, path: str) -> Volume:
        """Return an image from the cache, or read it now; raises InputError."""
        volume: Volume = self._load({"image_path": path})["volume"]
        return volume

    def _read(self, name: str, find: Callable[[], str]) -> None:
        try:
            self._load({"image_path": find()})
            logger.info("prefetched %s", name)
        except (InputError, requests.RequestException, OSError) as error:
            logger.info("could not prefetch %s: %s", name, error)
        except Exception:
            logger.exception("could not prefetch %s", name)
        finally:
            with self._lock:
                self._queued -= 1
