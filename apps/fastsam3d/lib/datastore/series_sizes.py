"""How many slices the DICOM server has of a series, to notice one that still arrives there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from cachetools import TTLCache
from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 60.0
"""AGAIN_SECONDS: time after which the DICOM server is asked about a series again."""

PATIENCE_SECONDS = 2.0
"""PATIENCE_SECONDS: a click waits no longer for the answer."""

MOST_SERIES = 4096
"""MOST_SERIES: series whose size is remembered at a time."""


def size_of(header: Dataset) -> int:
    """Return the number of instances in a search result of a series; 0 if the server is silent."""
    return int(header.get("NumberOfSeriesRelatedInstances") or 0)


class SeriesSizes:
    """Asks for the size of each series from time to time, one at a time, and never for long."""

    def __init__(self, find: Callable[[str], Dataset | None]) -> None:
        """find: returns the search result of a series, or None if there is none."""
        self._find = find
        self._sizes: TTLCache[str, int] = TTLCache(MOST_SERIES, AGAIN_SECONDS)
        self._lock = threading.Lock()
        self._question: Future[None] | None = None

    def get(self, series_uid: str) -> int:
        """Return the number of instances; 0 if the DICOM server does not tell, or not soon."""
        with self._lock:
            if series_uid in self._sizes:
                return self._sizes[series_uid]
            if self._question is not None and not self._question.done():
                return 0  # the server does not answer, and should not be asked more
            self._sizes[series_uid] = 0
            question = self._question = Future()
        # a daemon: the server may end while the DICOM server is silent
        threading.Thread(target=self._ask, args=(series_uid, question), daemon=True).start()
        try:
            question.result(PATIENCE_SECONDS)
        except FutureTimeoutError:
            logger.warning("the DICOM server does not tell the size of series %s", series_uid)
        with self._lock:
            return self._sizes.get(series_uid, 0)

    def _ask(self, series_uid: str, question: Future[None]) -> None:
        try:
            header = self._find(series_uid)
            with self._lock:
                self._sizes[series_uid] = size_of(header) if header is not None else 0
        except Exception as error:  # a click goes on without an answer, whatever it was
            logger.warning("the size of series %s is unknown: %s", series_uid, error)
        finally:
            question.set_result(None)
