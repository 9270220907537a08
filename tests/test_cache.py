"""The cache: its bound in bytes, its order, and threads that ask for the same value."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lib.cache import ByteCache, array_nbytes


def test_the_least_recently_used_value_is_removed_first():
    cache = ByteCache(max_bytes=100, nbytes=len)
    for key in "abc":
        cache.put(key, b"x" * 30)
    assert cache.get("a") is not None
    cache.put("d", b"x" * 30)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert cache.nbytes == 90


def test_bytes_of_arrays_are_counted():
    cache = ByteCache(10**6, array_nbytes)
    cache.put("volume", np.zeros((10, 20, 30), dtype=np.int16))
    assert cache.nbytes == 10 * 20 * 30 * 2


def test_a_value_over_the_bound_is_returned_but_not_stored():
    cache = ByteCache(max_bytes=10, nbytes=len)
    cache.put("small", b"12345")
    assert cache.get_or_make("large", lambda: b"x" * 11) == b"x" * 11
    assert cache.get("large") is None
    assert cache.get("small") == b"12345"


def test_only_one_of_many_threads_makes_the_value():
    cache = ByteCache(max_bytes=100, nbytes=len)
    made = []
    start = threading.Barrier(8)

    def make():
        made.append(1)
        time.sleep(0.05)
        return b"value"

    def ask(_):
        start.wait()
        return cache.get_or_make("key", make)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {b"value"}
    assert len(made) == 1


def test_an_exception_reaches_the_caller_and_is_not_stored():
    cache = ByteCache(max_bytes=100, nbytes=len)

    def fail():
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        cache.get_or_make("key", fail)
    assert cache.get_or_make("key", lambda: b"now") == b"now"


def test_clear():
    cache = ByteCache(max_bytes=100, nbytes=len)
    cache.put("key", b"value")
    cache.clear()
    assert cache.get("key") is None
    assert cache.nbytes == 0
