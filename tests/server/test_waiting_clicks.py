"""Clicks that wait leave threads to the other routes: more than a site allows are refused."""

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.server import infer
from lib.server.install import install

PLACES = 24
CLICKS = 60  # more than the 40 threads of the routes
SECONDS = 60  # longest wait of a test; nothing waits that long unless it is broken


@pytest.fixture
def served(monkeypatch, tmp_path):
    """An app that computes a mask until `may_end` is set."""
    may_end = threading.Event()

    def compute(request):
        assert may_end.wait(2 * SECONDS)
        return {"params": {infer.MASK: None, infer.MAPS: {}, "warnings": []}}

    (tmp_path / "head.nii").touch()
    store = SimpleNamespace(get_image_uri=lambda image: str(tmp_path / "head.nii"))
    served = SimpleNamespace(
        models=["fastsam3d"],
        click_places=threading.BoundedSemaphore(PLACES),
        datastore=lambda: store,
        journal=SimpleNamespace(append=lambda entry: None),
        infer=compute,
        may_end=may_end,
    )
    monkeypatch.setattr(infer, "app_instance", lambda: served)
    monkeypatch.setattr(infer, "describe_interaction", lambda *arguments: None)
    return served


@pytest.fixture
def client(served):
    app = FastAPI()
    install(app)
    with TestClient(app) as client:  # one event loop, and so one pool of threads, for all requests
        yield client


def click(client, model="fastsam3d"):
    return client.post(f"/infer/{model}?image=head&output=json", data={"params": "{}"})


def test_other_routes_are_answered_while_clicks_wait(client, served):
    with ThreadPoolExecutor(CLICKS + 1) as threads:
        clicks = [threads.submit(click, client) for _ in range(CLICKS)]
        try:
            early = as_completed(clicks, timeout=SECONDS)
            refused = [next(early).result() for _ in range(CLICKS - PLACES)]
            # a route that runs in a thread
            other = threads.submit(client.get, "/docs").result(SECONDS)
        finally:
            served.may_end.set()
        replies = [each.result(SECONDS) for each in clicks]
    assert other.status_code == 200
    assert {reply.status_code for reply in refused} == {503}
    assert "too many clicks wait on this server" in refused[0].json()["detail"]
    assert int(refused[0].headers["Retry-After"]) > 0
    assert [reply.status_code for reply in replies].count(200) == PLACES
    assert click(client).status_code == 200


def test_a_click_that_fails_gives_its_place_back(client, served):
    replies = [click(client, "unknown") for _ in range(PLACES + 1)]
    assert [reply.status_code for reply in replies] == [404] * (PLACES + 1)
