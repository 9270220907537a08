"""A small DICOMweb server that misbehaves as it is told: slow, silent, cut off, rubbish."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset

SERVICES = ("search", "retrieve", "store")

FAULTS = (
    "slow",  # sends a piece at a time
    "silent",  # accepts the request and never answers
    "refused",  # closes the connection at once
    "cut",  # closes it in the middle of the body
    "lost",  # leaves a slice out
    "short",  # each slice ends in the middle
    "rubbish",  # random bytes instead of the body
    "html",  # a page to sign in at, with HTTP 200
    "empty",  # HTTP 200 without a body
    "wrong json",  # JSON that is no DICOM
    "error",  # HTTP 500
    "busy",  # HTTP 503
)

PIECE, PAUSE_SECONDS = 20_000, 0.02
"""PIECE, PAUSE_SECONDS: bytes that a slow server sends at a time, and the time between them."""

BOUNDARY = "part-of-a-series"
LISTED = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate")


@dataclass
class FakePacs:
    """The content of the server and its present fault. series: UID -> instances."""

    series: dict[str, list[Dataset]] = field(default_factory=dict)
    url: str = ""
    fault: str = ""
    services: tuple[str, ...] = SERVICES
    """services: those that have the fault."""
    healed: threading.Event = field(default_factory=threading.Event)

    def add(self, folder: Path) -> str:
        """Add the slices of a series; return its SeriesInstanceUID."""
        instances = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
        uid = str(instances[0].SeriesInstanceUID)
        self.series[uid] = instances
        return uid

    def breaks(self, fault: str, services: tuple[str, ...] = SERVICES) -> None:
        """Have a fault from now on."""
        self.healed.clear()
        self.fault, self.services = fault, services

    def heals(self) -> None:
        """Work as it should from now on; requests that wait for an answer end."""
        self.fault = ""
        self.healed.set()

    # --- replies ----------------------------------------------------------------------------------

    def search(self, query: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        """Return the series that fit a query as DICOM JSON."""
        found = []
        for instances in self.series.values():
            header, first = Dataset(), instances[0]
            for name in LISTED:
                setattr(header, name, first.get(name, ""))
            header.NumberOfSeriesRelatedInstances = len(instances)
            filters = {key: query[key][0] for key in (*LISTED, "0020000E", "00080060")
                       if key in query}  # fmt: skip
            if all(str(header.get(key, value)) == value for key, value in filters.items()):
                found.append(header.to_json_dict())
        return found[int(query.get("offset", ["0"])[0]) :]

    def parts(self, uid: str) -> bytes:
        """Return the instances of a series as a multipart body."""
        body = io.BytesIO()
        for index, instance in enumerate(self.series[uid]):
            if self.fault == "lost" and index == 3:
                continue
            content = io.BytesIO()
            instance.save_as(content, write_like_original=False)
            part = content.getvalue()
            part = part[: len(part) // 2] if self.fault == "short" else part
            body.write(f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode())
            body.write(part + b"\r\n")
        body.write(f"--{BOUNDARY}--\r\n".encode())
        return body.getvalue()

    def store(self, body: bytes) -> dict[str, Any]:
        """Keep the instance of a STOW request; return the reply as DICOM JSON."""
        start = body.index(b"\r\n\r\n") + 4
        stored = pydicom.dcmread(io.BytesIO(body[start:]), force=True)
        uid = str(stored.SeriesInstanceUID)
        self.series[uid] = [stored]
        reply = Dataset()
        reply.RetrieveURL = f"{self.url}/studies/{stored.StudyInstanceUID}/series/{uid}"
        return reply.to_json_dict()


class PacsHandler(BaseHTTPRequestHandler):
    """Answers a request; the class of each server has its FakePacs."""

    protocol_version = "HTTP/1.1"
    pacs: FakePacs

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        names = parts.path.strip("/").split("/")[1:]
        if len(names) == 4 and names[3] in self.pacs.series:
            kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
            self._answer("retrieve", kind, lambda: self.pacs.parts(names[3]))
        elif names[-1] == "metadata":
            headers = [each.to_json_dict() for each in self.pacs.series.get(names[3], [])]
            self._answer("retrieve", "application/dicom+json", lambda: json.dumps(headers).encode())
        else:
            found = self.pacs.search(parse_qs(parts.query))
            self._answer("search", "application/dicom+json", lambda: json.dumps(found).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        stored = self.pacs.store if self._fault("store") in ("", "slow") else lambda body: {}
        self._answer("store", "application/dicom+json", lambda: json.dumps(stored(body)).encode())

    def _fault(self, service: str) -> str:
        return self.pacs.fault if service in self.pacs.services else ""

    def _answer(self, service: str, kind: str, make_body: Any) -> None:
        fault = self._fault(service)
        if fault == "refused":
            self.close_connection = True
            return
        if fault == "silent":
            self.pacs.healed.wait(600)
            self.close_connection = True
            return
        status = {"error": 500, "busy": 503}.get(fault, 200)
        body = make_body()
        if fault == "html":
            kind, body = "text/html", b"<html><form>Sign in</form></html>"
        elif fault in ("rubbish", "wrong json", "empty"):
            body = {"rubbish": bytes(range(256)) * 40, "empty": b""}.get(fault, b'[{"a": 1}, 2]')
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._write(body, fault)

    def _write(self, body: bytes, fault: str) -> None:
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        if fault != "slow":
            self.wfile.write(body)
            return
        for start in range(0, len(body), PIECE):
            self.wfile.write(body[start : start + PIECE])
            time.sleep(PAUSE_SECONDS)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class QuietServer(ThreadingHTTPServer):
    """A server whose clients may go away."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing; the client is the one under test."""


@contextmanager
def fake_pacs() -> Iterator[FakePacs]:
    """Run a server on a free port; yield its content, which is empty at first."""
    pacs = FakePacs()
    handler = type("Handler", (PacsHandler,), {"pacs": pacs})
    server = QuietServer(("127.0.0.1", 0), handler)
    pacs.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield pacs
    finally:
        pacs.heals()
        server.shutdown()
        server.server_close()
