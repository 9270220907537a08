"""The cache: its bound in bytes, its order, and threads that ask for the same value."""

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import pytest

from lib.cache import ByteCache, array_nbytes

WAIT_SECONDS = 30


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


def test_only_one_of_many_threads_makes_the_value(monkeypatch):
    """`make` returns only after the other threads wait for it, or have called it themselves."""
    cache = ByteCache(max_bytes=100, nbytes=len)
    calls = []
    others = threading.Semaphore(0)
    wait_for_result = Future.result

    def result(future, timeout=None):
        others.release()
        return wait_for_result(future, timeout)

    def make():
        calls.append(1)
        if len(calls) > 1:
            others.release()
            return b"value"
        for _ in range(7):
            assert others.acquire(timeout=WAIT_SECONDS)
        return b"value"

    with ThreadPoolExecutor(8) as pool, monkeypatch.context() as patch:
        patch.setattr("lib.cache.Future.result", result)
        answers = [pool.submit(cache.get_or_make, "key", make) for _ in range(8)]
        wait(answers, WAIT_SECONDS)
    assert {answer.result() for answer in answers} == {b"value"}
    assert len(calls) == 1


def test_no_thread_comes_between_a_look_up_and_its_entry():
    """Without the lock, both threads meet inside the look-up, and both make the value."""
    cache = ByteCache(max_bytes=100, nbytes=len)
    meeting = threading.Barrier(2)
    calls = []

    class MeetingDict(dict):
        def get(self, key):
            value = super().get(key)
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(timeout=0.3)
            return value

    def make():
        calls.append(1)
        return b"value"

    cache._pending = MeetingDict()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(cache.get_or_make, "key", make) for _ in range(2)]
    assert [answer.result() for answer in answers] == [b"value"] * 2
    assert len(calls) == 1


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
