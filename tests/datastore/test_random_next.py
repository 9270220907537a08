"""The next sample at random, also when two people ask for the last image at once."""

from collections import Counter
from types import SimpleNamespace

import pytest

from lib.datastore import random_next
from lib.datastore.random_next import RandomNext


def next_of(infos):
    store = SimpleNamespace(
        get_unlabeled_images=lambda tag, labels: list(infos), get_image_info=infos.__getitem__
    )
    return RandomNext()({"strategy": "random"}, store)


NOW = 1_000_000


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch):
    """No second begins between the offer and the look at it."""
    monkeypatch.setattr(random_next, "time", SimpleNamespace(time=lambda: NOW + 0.5))


def offered(seconds_ago):
    return {"strategy": {"random": {"ts": NOW - seconds_ago}}}


def test_no_image_is_left():
    assert next_of({}) is None


@pytest.mark.parametrize("seconds_ago", [0, -100])
def test_the_last_image_is_offered_again_at_once(seconds_ago):
    assert next_of({"a": offered(seconds_ago)}) == {"id": "a", "weight": 1}


def test_images_that_were_not_offered_come_first():
    infos = {"old": {}, "new": offered(0)}
    assert Counter(next_of(infos)["id"] for _ in range(50)) == {"old": 50}


@pytest.mark.parametrize(
    "info",
    [{"strategy": value} for value in (None, 3, "x", [1], {"random": 3}, {"random": {"ts": "x"}})]
    + [{"strategy": {"random": {"ts": value}}} for value in (None, float("nan"), 10**400, -1e308)],
)
def test_what_a_client_wrote_there_does_no_harm(info):
    assert next_of({"a": info})["id"] == "a"
