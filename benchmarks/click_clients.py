"""A real server process, and clients that click over HTTP as OHIF and 3D Slicer do."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from monailabel.client import MONAILabelClient

from lib.errors import AppError

APP = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"
START_SECONDS = 120
MODEL = "fastsam3d"

CLICKS = 10
"""CLICKS: number of clicks on each structure."""

Clicks = Sequence[np.ndarray]
"""Clicks: stored voxel indices, each (3,)."""


@dataclass(frozen=True)
class Server:
    """A running server. processes: the processes that compute masks."""

    url: str
    processes: tuple[psutil.Process, ...]

    def get(self, path: str) -> bytes:
        """Return the body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=120) as reply:
            return reply.read()

    def rss_mb(self) -> float:
        """Return the resident memory of all processes in MiB."""
        return sum(process.memory_info().rss for process in self.processes) / 2**20


@contextmanager
def running_server(studies: Path, folder: Path, conf: Sequence[str] = ()) -> Iterator[Server]:
    """Run ``monailabel start_server`` on a free port; it stops when the block ends.

    studies: folder of images. folder: for the log. conf: name, value, name, value, ….
    """
    port = free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    for name, value in zip(conf[::2], conf[1::2], strict=True):
        command += ["--conf", name, value]
    log = folder / f"server-{port}.log"
    settings = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **settings}
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", (psutil.Process(process.pid),))
        _wait_for_info(server, process, log)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def running_servers(
    count: int, studies: Path, folder: Path, conf: Sequence[str] = ()
) -> Iterator[Server]:
    """Run several servers behind one nginx, which sends a client to the same server each time."""
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if nginx is None:
        raise AppError("--processes needs nginx; on Debian and Ubuntu: apt install nginx-light")
    with ExitStack() as stack:
        servers = [stack.enter_context(running_server(studies, folder, conf)) for _ in range(count)]
        port = free_port()
        config = folder / "nginx.conf"
        config.write_text(NGINX % {"folder": folder, "port": port, "servers": _backends(servers)})
        proxy = subprocess.Popen([nginx, "-c", str(config), "-p", str(folder)])
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)
        processes = tuple(process for server in servers for process in server.processes)
        server = Server(f"http://127.0.0.1:{port}", processes)
        _wait_for_info(server, proxy, folder / "nginx.log")
        yield server


NGINX = """daemon off;
pid %(folder)s/nginx.pid;
error_log %(folder)s/nginx.log;
events {}
http {
  access_log off;
  client_body_temp_path %(folder)s/body;
  proxy_temp_path %(folder)s/proxy;
  fastcgi_temp_path %(folder)s/fastcgi;
  uwsgi_temp_path %(folder)s/uwsgi;
  scgi_temp_path %(folder)s/scgi;
  upstream fastsam3d {
    hash $remote_addr consistent;
%(servers)s
  }
  server {
    listen 127.0.0.1:%(port)s;
    client_max_body_size 0;
    location / {
      proxy_pass http://fastsam3d;
      proxy_buffering off;
      add_header X-Backend $upstream_addr;
    }
  }
}
"""


def _backends(servers: Sequence[Server]) -> str:
    return "\n".join(f"    server {urlsplit(server.url).netloc};" for server in servers)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for_info(server: Server, process: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers; raises AppError with the end of the log if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.get("/info/")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AppError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


@dataclass
class Answer:
    """The reply to a click.

    ms: from the request until the client has the mask. checksum: of the mask's voxels. stages:
    the server's seconds by stage.
    """

    ms: float
    checksum: int
    stages: dict[str, float] = field(default_factory=dict)


class Ohif:
    """A client that sends OHIF's requests and reads the reply as fast as a browser."""

    name = "ohif"

    def __init__(self, url: str, source: str = "127.0.0.1") -> None:
        """Connect to a server; source: address of this client, any of 127.x.x.x on Linux."""
        self._place = urlsplit(url)
        self._source = (source, 0)
        self.backend = ""

    def click(
        self, image: str, foreground: Clicks, background: Clicks = (), output: str = "image"
    ) -> Answer:
        """Request a mask; raises RuntimeError unless the server returns it.

        output: image, as stock OHIF, or box, as this project's mode of OHIF.
        """
        params = {
            "foreground": [list(map(int, point)) for point in foreground],
            "background": [list(map(int, point)) for point in background],
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
            "result_compress": False,
            "restore_label_idx": False,
        }
        boundary = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
            f"{json.dumps(params)}\r\n--{boundary}--\r\n"
        )
        start = time.perf_counter()
        connection = http.client.HTTPConnection(
            str(self._place.hostname), self._place.port, source_address=self._source
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        connection.request("POST", f"/infer/{MODEL}?image={image}&output={output}", body, headers)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        ms = 1e3 * (time.perf_counter() - start)
        self.backend = reply.headers.get("X-Backend", "")
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {content[:300]!r}")
        return Answer(ms, _checksum(content) if output == "image" else zlib.crc32(content))


class Slicer:
    """MONAI Label's own client, as in 3D Slicer; its time includes writing the mask's file."""

    name = "slicer"

    def __init__(self, url: str, folder: Path) -> None:
        self._client = MONAILabelClient(url, str(folder), "benchmark")

    def click(self, image: str, foreground: Clicks, background: Clicks = ()) -> Answer:
        """Request a mask; raises MONAILabelClientException unless the server returns it."""
        params: dict[str, Any] = {
            "label": "organ",
            "foreground": [list(map(int, point)) for point in foreground],
            "background": [list(map(int, point)) for point in background],
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
        }
        start = time.perf_counter()
        path, result = self._client.infer(MODEL, image, params)
        ms = 1e3 * (time.perf_counter() - start)
        content = Path(path).read_bytes()
        Path(path).unlink()
        latencies = result["latencies"]
        stages = {name: s for stage in latencies["transform"].values() for name, s in stage.items()}
        return Answer(ms, _checksum(content), {**stages, "Write": latencies["write"]})


def _checksum(nrrd: bytes) -> int:
    """Return a checksum of the voxels, without the header."""
    return zlib.crc32(memoryview(nrrd)[nrrd.index(b"\n\n") + 2 :])


Viewer = Ohif | Slicer


def random_places(shape_ijk: Sequence[int], seed: int) -> Iterator[np.ndarray]:
    """Yield stored voxel indices (3,) in the middle of the body, without end."""
    generator = np.random.default_rng(seed)
    while True:
        yield (generator.uniform(0.35, 0.65, 3) * shape_ijk).astype(int)


def series(place: np.ndarray, shape_ijk: Sequence[int]) -> list[np.ndarray]:
    """Return ten clicks around a place, which is the first."""
    generator = np.random.default_rng(int(place.sum()))
    offsets = generator.uniform(-0.04, 0.04, (CLICKS, 3)) * shape_ijk
    offsets[0] = 0
    return list((place + offsets).astype(int))


def elapsed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return round(1e3 * (time.perf_counter() - start), 1)
