"""The size of a series on the DICOM server is asked for rarely, and never waited for long."""

import threading
import time

import requests
from pydicom.dataset import Dataset

from lib.datastore import series_sizes
from lib.datastore.series_sizes import SeriesSizes


def header(size):
    found = Dataset()
    found.NumberOfSeriesRelatedInstances = size
    return found


def test_each_series_is_asked_for_once_a_minute():
    asked, now = [], [0.0]
    sizes = SeriesSizes(lambda uid: asked.append(uid) or header(len(asked)))
    sizes._sizes = series_sizes.TTLCache(10, series_sizes.AGAIN_SECONDS, timer=lambda: now[0])
    assert [sizes.get(uid) for uid in ("1.2", "1.3", "1.2")] == [1, 2, 1]
    now[0] = series_sizes.AGAIN_SECONDS + 1
    assert sizes.get("1.2") == 3
    assert asked == ["1.2", "1.3", "1.2"]


def test_what_the_server_does_not_tell_is_0():
    def fail(uid):
        raise requests.ConnectionError("gone")

    for find in (lambda uid: None, lambda uid: Dataset(), fail):
        assert SeriesSizes(find).get("1.2") == 0


def test_a_silent_server_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(series_sizes, "PATIENCE_SECONDS", 0.05)
    answers, asked = threading.Event(), []
    sizes = SeriesSizes(lambda uid: asked.append(uid) or answers.wait(60) and header(7))
    started = time.monotonic()
    assert [sizes.get(uid) for uid in ("1.2", "1.3", "1.4")] == [0, 0, 0]
    assert time.monotonic() - started < 30
    assert asked == ["1.2"], "others are not asked for meanwhile"
    answers.set()
    deadline = time.monotonic() + 30
    while sizes.get("1.2") != 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [sizes.get("1.2"), sizes.get("1.3")] == [7, 7]
