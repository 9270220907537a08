"""Start the real server in a process of its own and send requests to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests
import SimpleITK as sitk

APP = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"
CLICK_BALL = Path(__file__).resolve().parent / "data" / "click_ball.safetensors"
"""CLICK_BALL: weights that draw a ball of 20 mm at each click (`data/make_click_ball.py`)."""

# The second model takes the same small weights: the default ones add seconds to each start.
BALL_WEIGHTS = (
    *("--conf", "weights", str(CLICK_BALL)),
    *("--conf", "teacher_weights", str(CLICK_BALL)),
    *("--conf", "zoom", "fixed"),  # the ball is as large as it should be at 1.5 mm only
)

START_SECONDS = 300
"""START_SECONDS: limit for a machine that runs other jobs; an idle one needs about 10 s."""


class RunningServer:
    """A running server.

    url: without a final slash. studies: its folder, or the address of its DICOM server. log: the
    file that its output goes to. folder: its working directory, which holds the log. pid: of its
    process.
    """

    def __init__(self, url: str, studies: Path | str, log: Path, pid: int = 0) -> None:
        self.url = url
        self.pid = pid
        self.studies = studies
        self.log = log
        self.folder = log.parent

    def infer(
        self, model: str, image: str, params: dict | str, output: str = "image", **query: str
    ) -> requests.Response:
        """Send an infer request; params: the request's JSON, or a text to send as it is."""
        body = params if isinstance(params, str) else json.dumps(params)
        query = {"image": image, "output": output, **query}
        return requests.post(
            f"{self.url}/infer/{model}", params=query, data={"params": body}, timeout=120
        )

    def mask(self, model: str, image: str, params: dict) -> sitk.Image:
        """Return the mask of a request that must succeed."""
        reply = self.infer(model, image, {"result_extension": ".nrrd", **params})
        assert reply.status_code == 200, reply.text
        with tempfile.NamedTemporaryFile(suffix=".nrrd") as file:
            file.write(reply.content)
            file.flush()
            return sitk.ReadImage(file.name)

    def info(self) -> dict:
        return requests.get(f"{self.url}/info/", timeout=30).json()

    def images(self) -> set[str]:
        """Return the IDs of all images."""
        reply = requests.get(f"{self.url}/datastore/?output=all", timeout=60)
        return set(reply.json()["objects"])

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for_log(self, text: str, seconds: float = 60) -> None:
        """Wait until the log contains a text; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while text not in self.log_text():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the log has no {text!r}:\n{self.log_text()[-3000:]}")
            time.sleep(0.1)

    def add_study(self, path: Path, name: str) -> None:
        """Put a copy of an image file into the folder of studies, and wait until it is listed.

        MONAI Label watches the folder and would read a file that is still being written, so the
        copy is made elsewhere on the same disk and then renamed.
        """
        extension = "".join(path.suffixes)
        copy = self.folder / f"copy-of-{path.name}"
        shutil.copy(path, copy)
        copy.rename(Path(self.studies) / f"{name}{extension}")
        deadline = time.monotonic() + START_SECONDS
        while name not in self.images():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not listed")
            time.sleep(0.1)


@contextmanager
def running_server(
    studies: Path | str,
    log: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[RunningServer]:
    """Start ``monailabel start_server``, yield it once it answers, then stop it.

    arguments: further ones of the command. env: additions to the environment. port: a free one by
    default. Raises RuntimeError with the end of the log if the server does not start.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=log.parent,
        )
    server = RunningServer(f"http://127.0.0.1:{port}", studies, log, process.pid)
    try:
        _wait_until_up(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()  # it would slow down all later tests
            raise


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _wait_until_up(server: RunningServer, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            server.info()
            return
        except (requests.ConnectionError, requests.Timeout):
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{server.log_text()[-3000:]}")
