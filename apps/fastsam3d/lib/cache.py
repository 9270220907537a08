"""Caches with a bound on their bytes, safe under threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keeps the values used last, up to ``max_bytes`` in all; a value that is larger is not kept.

    Values must not be changed by those who get them.
    """

    def __init__(self, max_bytes: int, nbytes: Callable[[Value], int]) -> None:
        self._nbytes = nbytes
        self._kept: LRUCache[Hashable, Value] = LRUCache(max_bytes, getsizeof=nbytes)
        self._under_way: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            return self._kept.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            if self._nbytes(value) <= self._kept.maxsize:
                self._kept[key] = value

    def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of ``key``; made once, however many threads ask for it at the same time.

        Whatever ``make`` raises reaches all of them, and is not kept.
        """
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            running = self._under_way.get(key)
            if running is None:
                mine: Future[Value] = Future()
                self._under_way[key] = mine
        if running is not None:
            return running.result()
        try:
            value = make()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            self.put(key, value)
            mine.set_result(value)
            return value
        finally:
            with self._lock:
                del self._under_way[key]

    @property
    def nbytes(self) -> int:
        """Bytes of all values kept."""
        with self._lock:
            return int(self._kept.currsize)

    def drop(self, is_stale: Callable[[Any], bool]) -> None:
        """Remove the values whose keys are stale."""
        with self._lock:
            for key in [key for key in self._kept if is_stale(key)]:
                del self._kept[key]

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


def array_nbytes(array: Any) -> int:
    """Bytes of a numpy array or a tensor."""
    return int(array.nbytes)
