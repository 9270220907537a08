"""The routes of the viewer: files as they are kept, our configuration, the app for other paths."""

from __future__ import annotations

import json
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.server.install import install
from lib.server.viewer import EXTENSION_FOLDER
from lib.server.viewer_package import ViewerError, viewer_files


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    install(app)
    return TestClient(app)


@pytest.fixture
def fetched() -> dict:
    try:
        return viewer_files()
    except ViewerError as error:
        pytest.skip(str(error))


def test_any_path_is_the_app(client: TestClient, fetched: dict) -> None:
    page = client.get("/viewer/")
    assert page.status_code == 200 and "<title>OHIF Viewer</title>" in page.text
    for path in ("fastsam3d?StudyInstanceUIDs=1.2", "no/such/thing.js"):
        assert client.get(f"/viewer/{path}").content == page.content
    assert client.get("/viewer").url.path == "/viewer/"


def test_a_browser_keeps_files_whose_name_has_a_hash(client: TestClient, fetched: dict) -> None:
    name = next(name for name in fetched if name.startswith("app.bundle.") and name.endswith("js"))
    reply = client.get(f"/viewer/{name}")
    assert "immutable" in reply.headers["cache-control"]
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.headers["content-type"].startswith("text/javascript")
    again = client.get(f"/viewer/{name}", headers={"If-None-Match": reply.headers["etag"]})
    assert again.status_code == 304 and not again.content
    plain = client.get(f"/viewer/{name}", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.content == reply.content
    assert client.get("/viewer/").headers["cache-control"] == "no-cache"


def test_the_policy_allows_this_server_only(client: TestClient) -> None:
    policy = client.get("/viewer/app-config.js").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:|\*", policy)


def test_the_configuration_names_this_server_only(client: TestClient) -> None:
    script = client.get("/viewer/app-config.js").text
    config = json.loads(script[script.index("{") : script.index("\n};") + 2])
    assert "http" not in script
    assert config["routerBasename"] == "/viewer"
    for path in config["extensions"] + config["modes"]:
        assert client.get(path).headers["content-type"].startswith("text/javascript")


def test_the_licences_of_what_is_bundled_are_shown(client: TestClient, fetched: dict) -> None:
    """The package's own licence, the names of all packages, and the notices in their code."""
    reply = client.get("/viewer/licences.txt")
    assert reply.headers["content-type"].startswith("text/plain")
    own, names, title, *notices = reply.text.split("-" * 80)
    assert "Open Health Imaging Foundation" in own and "Permission is hereby granted" in own
    listed = names.split("NAME:")[1].split()
    assert {"@cornerstonejs/tools", "@kitware/vtk.js", "react-dom", "dcmjs"} <= set(listed)
    assert "Notices" in title and len(notices) > 20
    for text in ("Ken Martin, Will Schroeder, Bill Lorensen", "Facebook, Inc.", "Timothy A. Davis"):
        assert text in reply.text
    assert len(notices) == len(set(notices))


def test_every_module_is_served_and_none_else(client: TestClient) -> None:
    modules = sorted(EXTENSION_FOLDER.glob("*.js"))
    for module in modules:
        reply = client.get(f"/viewer/extension/{module.name}")
        assert reply.content == module.read_bytes()
        imported = re.findall(r"from '\./([^']+)'", reply.text)
        assert set(imported) <= {other.name for other in modules}
    for path in ("README.md", "../main.py", "%2e%2e/main.py", "none.js"):
        reply = client.get(f"/viewer/extension/{path}")
        assert "FastSAM3D as a MONAI Label app" not in reply.text
        assert path == "../main.py" or reply.status_code == 404


def test_without_the_package_the_message_names_the_cure(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("FASTSAM3D_VIEWER_CACHE", str(tmp_path))
    viewer_files.cache_clear()
    reply = client.get("/viewer/")
    viewer_files.cache_clear()
    assert reply.status_code == 404
    assert "make viewer" in reply.json()["detail"] and "/ohif/" in reply.json()["detail"]
