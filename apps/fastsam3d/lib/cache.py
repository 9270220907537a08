"""A least-recently-used cache with a bound on its bytes, safe under threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keeps the most recently used values, up to ``max_bytes`` in all.

    A single value that is larger is never stored. Callers must not change the values.
    """

    def __init__(self, max_bytes: int, nbytes: Callable[[Value], int]) -> None:
        """nbytes: returns the size of a value."""
        self._nbytes = nbytes
        self._values: LRUCache[Hashable, Value] = LRUCache(max_bytes, getsizeof=nbytes)
        self._pending: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """Return the value of a key; None if it is not stored."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Store a value, unless it is larger than the whole cache."""
        with self._lock:
            if self._nbytes(value) <= self._values.maxsize:
                self._values[key] = value

    def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key; call `make` if it is not stored, once for all threads.

        An exception of `make` reaches all threads that wait for the value, and is not stored.
        """
        with self._lock:
            if key in self._values:
                return self._values[key]
            pending = self._pending.get(key)
            if pending is None:
                future: Future[Value] = Future()
                self._pending[key] = future
        if pending is not None:
            return pending.result()
        try:
            value = make()
        except BaseException as error:
            future.set_exception(error)
            raise
        else:
            self.put(key, value)
            future.set_result(value)
            return value
        finally:
            with self._lock:
                del self._pending[key]

    @property
    def nbytes(self) -> int:
        """The bytes of all stored values."""
        with self._lock:
            return int(self._values.currsize)

    def items(self) -> list[tuple[Any, Value]]:
        """Return the stored keys and values; what is being made is not among them."""
        with self._lock:
            return list(self._values.items())

    def drop(self, is_stale: Callable[[Any], bool]) -> None:
        """Remove the values whose key is stale."""
        with self._lock:
            for key in [key for key in self._values if is_stale(key)]:
                del self._values[key]

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()


def array_nbytes(array: Any) -> int:
    """Return the bytes of a numpy array, a tensor, or another object with ``nbytes``."""
    return int(array.nbytes)
