"""The way to the PACS keeps query, Accept and body, and hides the server's own credentials."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore

import torso
from ct_series import write_ct_series
from lib.server import pacs_proxy
from lib.server.install import install
from orthanc import Orthanc
from pacs import delete_series, stored_instances
from serving import RunningServer


@pytest.mark.parametrize(
    ("method", "path", "service"),
    [
        ("GET", "studies", "qido"),
        ("GET", "studies/1.2/series", "qido"),
        ("GET", "studies/1.2/series/3.4/instances", "qido"),
        ("GET", "studies/1.2/series/3.4/metadata", "wado"),
        ("GET", "studies/1.2/series/3.4/instances/5.6/frames/1", "wado"),
        ("GET", "studies/1.2/series/3.4", "wado"),
        ("GET", "studies/1.2/series/3.4/instances/5.6/bulkdata/7", "wado"),
        ("POST", "studies/1.2", "stow"),
    ],
)
def test_service_of_a_path(method: str, path: str, service: str) -> None:
    assert pacs_proxy.service_of(method, path) == service


class EchoingPacs(http.server.BaseHTTPRequestHandler):
    """Answers what it was asked, in headers of its reply; keeps connections open."""

    protocol_version = "HTTP/1.1"
    connections: set = set()

    def do_GET(self) -> None:
        self.connections.add(self.client_address)
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) or b"voxels"
        self.send_response(200)
        self.send_header("content-type", self.headers.get("accept", ""))
        self.send_header("etag", self.path)
        self.send_header("last-modified", str(self.headers.get("authorization")))
        self.send_header("set-cookie", "of-the-pacs=1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of an app whose studies are on the echoing PACS."""
    pacs = http.server.ThreadingHTTPServer(("127.0.0.1", 0), EchoingPacs)
    threading.Thread(target=pacs.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{pacs.server_address[1]}/dicom-web/"
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", url)
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "reader")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "secret")

    class OneStore:
        def datastore(self) -> DICOMWebDatastore:
            return DICOMWebDatastore.__new__(DICOMWebDatastore)

    monkeypatch.setattr(pacs_proxy, "app_instance", OneStore)
    pacs_proxy._client.cache_clear()
    EchoingPacs.connections.clear()
    app = FastAPI()
    install(app)
    with TestClient(app) as client:  # one event loop for all requests
        yield client
    pacs_proxy._client.cache_clear()
    pacs.shutdown()
    pacs.server_close()


def test_query_and_accept_are_kept_and_credentials_are_the_servers(client: TestClient) -> None:
    reply = client.get(
        "/dicom-web/studies?00100020=a%20b&limit=2&limit=3",
        headers={"accept": "application/dicom+json", "authorization": "Bearer key-of-ours"},
    )
    assert reply.headers["etag"] == "/dicom-web/studies?00100020=a%20b&limit=2&limit=3"
    assert reply.headers["content-type"] == "application/dicom+json"
    assert reply.headers["last-modified"].startswith("Basic ")
    assert "set-cookie" not in reply.headers
    assert reply.content == b"voxels"


def test_bodies_are_passed_on(client: TestClient) -> None:
    body = bytes(range(256)) * 4096
    reply = client.post("/dicom-web/studies", content=body)
    assert reply.content == body


def test_the_stock_viewers_paths_lead_to_the_same_place(client: TestClient) -> None:
    reply = client.get("/proxy/dicom/qido/studies?limit=2")
    assert reply.headers["etag"] == "/dicom-web/studies?limit=2"


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2ftools%2fexecute-script",
        "studies/%2e%2e/%2e%2e/instances",
        "studies%3f",
        "%252e%252e/instances",
        "a%00b",
        "studies%23",
        "..%5cinstances",
    ],
)
@pytest.mark.parametrize("start", ["/dicom-web", "/proxy/dicom", "/proxy/dicom/qido"])
def test_no_path_leaves_the_services_of_the_pacs(client: TestClient, start: str, path: str) -> None:
    """The account of the server may do more on the PACS than its clients."""
    reply = client.get(f"{start}/{path}")
    assert reply.status_code == 400, reply.headers
    assert "is no path of a DICOMweb service" in reply.json()["detail"]


def test_connections_are_kept(client: TestClient) -> None:
    for _ in range(20):
        client.get("/dicom-web/studies")
    assert len(EchoingPacs.connections) == 1


def test_services_with_a_prefix(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_WADO_PREFIX", "wado")
    assert (
        client.get("/dicom-web/studies/1/metadata").headers["etag"].startswith("/dicom-web/wado/")
    )
    assert client.get("/dicom-web/studies").headers["etag"] == "/dicom-web/studies"


def test_a_pacs_that_does_not_answer(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:9/dicom-web")
    reply = client.get("/dicom-web/studies")
    assert reply.status_code == 502
    assert "the DICOM server does not answer" in reply.json()["detail"]


@contextmanager
def broken_pacs(monkeypatch: pytest.MonkeyPatch, start: bytes) -> Iterator[None]:
    """Put a PACS in place of the other that sends ``start`` to the first request, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/dicom-web"
        monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", url)
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.1)
        is_over = threading.Event()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(start)
                is_over.wait(0 if start else 60)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"", "ReadTimeout"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n[{", "RemoteProtocolError"),
        (b"HTTP/1.1 500 Error\r\ncontent-length: 2\r\n\r\n[]", "HTTPStatusError"),
    ],
)
def test_a_search_that_breaks_off_is_an_error_with_a_reason(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, start: bytes, kind: str
) -> None:
    """A silent PACS is given up after four times the limit to connect."""
    with broken_pacs(monkeypatch, start):
        started = time.monotonic()
        reply = client.get("/dicom-web/studies")
    assert reply.status_code == 502
    assert f"does not answer as it should ({kind})" in reply.json()["detail"]
    assert time.monotonic() - started < 30


def test_orthanc_through_the_server(
    pacs: Orthanc, dicom_server: RunningServer, tmp_path: Path
) -> None:
    """A slice that is stored through the server comes back through it, with its pixels."""
    affine_mm = torso.centred_affine((30, 26, 4), (10.0, 11.0, 20.0), "LPS")
    hu, _ = torso.sample((30, 26, 4), affine_mm, seed=1)
    slices = write_ct_series(hu, affine_mm, tmp_path / "series", seed=61)
    header = pydicom.dcmread(slices[0])
    root = f"{dicom_server.url}/dicom-web/studies"
    part = b"--b\r\nContent-Type: application/dicom\r\n\r\n%s\r\n--b--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    body = part % Path(slices[0]).read_bytes()
    stored = requests.post(root, body, headers={"content-type": kind}, timeout=60)
    assert stored.status_code == 200, stored.text
    assert len(stored_instances(pacs, header.SeriesInstanceUID)) == 1
    url = f"{root}/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
    frame = requests.get(
        f"{url}/instances/{header.SOPInstanceUID}/frames/1",
        headers={"accept": "multipart/related; type=application/octet-stream"},
        timeout=60,
    )
    assert header.PixelData in frame.content
    delete_series(pacs, header.SeriesInstanceUID)
