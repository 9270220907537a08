"""A real server in a process of its own, and the requests that tests send to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import SimpleITK as sitk

APP = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"
START_SECONDS = 120


class Server:
    """The address of a running server, and its infer request."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def infer(
        self, model: str, image: str, params: dict | str, output: str = "image", **query: str
    ) -> requests.Response:
        body = params if isinstance(params, str) else json.dumps(params)
        query = {"image": image, "output": output, **query}
        return requests.post(
            f"{self.url}/infer/{model}", params=query, data={"params": body}, timeout=120
        )

    def mask(self, model: str, image: str, params: dict) -> sitk.Image:
        """The mask of a request that must succeed."""
        reply = self.infer(model, image, {"result_extension": ".nrrd", **params})
        assert reply.status_code == 200, reply.text
        with tempfile.NamedTemporaryFile(suffix=".nrrd") as file:
            file.write(reply.content)
            file.flush()
            return sitk.ReadImage(file.name)

    def info(self) -> dict:
        return requests.get(f"{self.url}/info/", timeout=30).json()


@contextmanager
def running_server(studies: Path, log: Path, *arguments: str) -> Iterator[Server]:
    """Start ``monailabel start_server`` on a free port; give it when it answers, stop it after."""
    port = free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ, cwd=log.parent
        )
    server = Server(f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_up(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _wait_until_up(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            server.info()
            return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise RuntimeError(
        f"the server did not start:\n{server.log.read_text(encoding='utf-8')[-3000:]}"
    )
