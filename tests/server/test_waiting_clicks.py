"""Clicks that wait leave threads to the other routes: more than a site allows are refused."""

import asyncio
import threading
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

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


async def click(client):
    reply = await client.post("/infer/fastsam3d?image=head&output=json", data={"params": "{}"})
    return reply


async def replies_to_clicks(served):
    """Return the replies to the refused clicks, to another route meanwhile, and to the others."""
    app = FastAPI()
    install(app)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        clicks = {asyncio.create_task(click(client)) for _ in range(CLICKS)}
        refused = set()
        try:
            async with asyncio.timeout(SECONDS):
                while len(refused) < CLICKS - PLACES:
                    done, clicks = await asyncio.wait(clicks, return_when=asyncio.FIRST_COMPLETED)
                    refused |= done
                other = await client.get("/docs")  # a route that runs in a thread
        finally:
            served.may_end.set()
        answered = await asyncio.gather(*clicks)
        again = await click(client)
    return [task.result() for task in refused], other, [*answered, again]


def test_other_routes_are_answered_while_clicks_wait(served):
    refused, other, answered = asyncio.run(replies_to_clicks(served))
    assert other.status_code == 200
    assert {reply.status_code for reply in refused} == {503}
    assert "too many clicks wait on this server" in refused[0].json()["detail"]
    assert int(refused[0].headers["Retry-After"]) > 0
    assert [reply.status_code for reply in answered] == [200] * (PLACES + 1)


def test_a_click_that_fails_gives_its_place_back(served):
    served.may_end.set()

    async def fail_often():
        app = FastAPI()
        install(app)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [
                (await client.post("/infer/unknown?image=head")).status_code
                for _ in range(PLACES + 1)
            ]

    assert asyncio.run(fail_often()) == [404] * (PLACES + 1)
