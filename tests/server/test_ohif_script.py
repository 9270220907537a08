"""The corrections to the OHIF viewer fit the installed MONAI Label; browser tests see them work."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.server.ohif import CORRECTIONS, FOLDER, corrected, router


def test_one_script_is_corrected() -> None:
    scripts = {path.name: corrected(path.name) for path in FOLDER.glob("*.js")}
    (script,) = filter(None, scripts.values())
    assert all(script.count(replacement) == 1 for _, replacement in CORRECTIONS)


def test_nothing_else_is_read() -> None:
    assert corrected("index.html") is None
    assert corrected("../ohif.py") is None
    assert corrected("1.bundle.0.js") is None


@pytest.mark.parametrize("path", ["a" * 300, "a%00b", "..%2fohif.py", "%2fetc%2fpasswd", "x/.git"])
def test_any_other_path_is_the_app(path: str) -> None:
    app = FastAPI()
    app.include_router(router)
    reply = TestClient(app).get(f"/ohif/{path}")
    assert reply.status_code == 200
    assert reply.content == (FOLDER / "index.html").read_bytes()
