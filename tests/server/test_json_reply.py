"""Large JSON replies hold no other request up."""

import json
from types import SimpleNamespace

import pytest
from fastapi import Response

from lib.server import json_reply as json_reply_module
from lib.server import system
from lib.server.json_reply import json_reply


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        None,
        7,
        'ü\n"',
        {"a": {}, "b": [], "c": None},
        {"objects": {'肝"臓': {"image": {"ext": ".nii"}, "labels": {}}, "b": [1, [2, {"c": 3}]]}},
        [{"image": "a"}, [], [{}], 3.5],
    ],
)
def test_the_content_is_that_of_json(content):
    reply = json_reply(content)
    assert json.loads(reply.body) == content
    assert reply.media_type == "application/json"


def test_values_that_json_has_not():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_reply({"a": {"b": float("nan")}})


def test_no_piece_is_large(monkeypatch):
    """One long call of the encoder would keep the lock of the interpreter."""
    lengths, dumps = [], json.dumps

    def measured(*arguments, **options):
        lengths.append(len(dumps(*arguments, **options)))
        return dumps(*arguments, **options)

    monkeypatch.setattr(json_reply_module.json, "dumps", measured)
    json_reply({"objects": {f"scan{n}": {"image": {"ext": ".nii"}} for n in range(500)}})
    assert max(lengths) < 100


@pytest.mark.parametrize("output", ["stats", "all", "train"])
def test_long_lists_are_made_in_the_thread_of_the_request(monkeypatch, output):
    """What a route returns as dictionaries is encoded on the event loop by FastAPI."""
    store = SimpleNamespace(
        json=lambda: {"objects": {}}, datalist=lambda: [{"image": "a"}], status=lambda: {"total": 1}
    )
    journal = SimpleNamespace(read=lambda image: [{"prompts": []}])
    served = SimpleNamespace(datastore=lambda: store, journal=journal)
    monkeypatch.setattr(system, "app_instance", lambda: served)
    assert isinstance(system.studies(None, output), Response)
    assert isinstance(system.interactions("head", None), Response)
