"""Measure servers on one address: clicks a second and waiting time by processes and users.

    .venv/bin/python -m benchmarks.servers [--processes 1,2,4] [--users 1,4,8,16] [--seconds 20]

The servers share a folder of studies, labels and journals, as on a site, behind nginx with the
rules of deploy/nginx.conf: a client stays with its server, and the next one gets its clicks if that
is gone. `--restart N` kills one server under N users and starts it again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil

from .click_clients import APP, free_port

SHAPE_IJK = (256, 224, 120)
SPACING_MM = (1.4, 1.4, 2.5)
IMAGE = "scan"
START_SECONDS = 300

NGINX = """daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; events {{}}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream servers {{ hash $http_x_user consistent; {servers} }}
  server {{
    listen 127.0.0.1:{port}; client_max_body_size 0;
    location / {{
      proxy_pass http://servers; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Host $http_host; proxy_connect_timeout 3s;
      proxy_next_upstream error timeout non_idempotent;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Row:
    """One measurement. p50_ms, p95_ms: waiting time of a click. refused: HTTP 503, asked again."""

    processes: int
    users: int
    clicks: int
    lost: int
    refused: int
    clicks_per_s: float
    p50_ms: float
    p95_ms: float
    memory_mb: int
    killed: bool = False


class Servers:
    """Servers on one folder, and nginx before them. url: host and port of nginx."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(count)]
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.proxy: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all, and wait until they answer."""
        folder = self.folder
        self.processes += [self._start(port) for port in self.ports]
        for port, process in zip(self.ports, self.processes, strict=True):
            wait_until_up(port, process, folder / f"server-{port}.log")
        lines = " ".join(
            f"server 127.0.0.1:{port} max_fails=1 fail_timeout=5s;" for port in self.ports
        )
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, servers=lines, port=self.port))
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise SystemExit("nginx is missing; on Debian and Ubuntu: apt install nginx-light")
        self.proxy = subprocess.Popen([program, "-e", f"{folder}/nginx.log", "-c", str(config)])
        wait_until_up(self.port, self.proxy, folder / "nginx.log")

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        cores = psutil.cpu_count(logical=False) or 1
        env = {
            **os.environ,
            "OMP_NUM_THREADS": str(max(1, cores // len(self.ports))),
            "MONAI_LABEL_SESSION_PATH": str(self.folder / "sessions"),
        }
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP)]
        command += ["--studies", str(self.folder / "studies"), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--conf", "requests_per_minute", "0"]
        with (self.folder / f"server-{port}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)

    def kill_and_restart(self) -> None:
        """Kill the first server, and start it again after three seconds."""
        self.processes[0].kill()
        self.processes[0].wait()
        time.sleep(3)
        self.processes[0] = self._start(self.ports[0])

    def memory_mb(self) -> int:
        """Return the resident memory of all servers."""
        running = [process for process in self.processes if process.poll() is None]
        return sum(psutil.Process(each.pid).memory_info().rss for each in running) // 2**20

    def stop(self) -> None:
        started = [process for process in (self.proxy, *self.processes) if process]
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=60)


@contextmanager
def running(count: int) -> Iterator[Servers]:
    """Start servers on a new folder with one scan; stop them after the block."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "studies").mkdir()
        scan = np.random.default_rng(0).normal(0, 80, SHAPE_IJK).astype(np.int16)
        scan[60:190, 50:170, 20:100] += 150
        affine_mm = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
        nib.save(nib.Nifti1Image(scan, affine_mm), folder / "studies" / f"{IMAGE}.nii.gz")
        servers = Servers(folder, count)
        try:
            servers.start()
            yield servers
        finally:
            servers.stop()


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; raises SystemExit with the end of its log if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.3)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    raise SystemExit("\n".join([f"the server on port {port} did not start; {log}:", *lines[-20:]]))


class User(threading.Thread):
    """A user who clicks again as soon as the mask is there: series of five clicks."""

    def __init__(self, port: int, number: int, until: float) -> None:
        super().__init__()
        self.port, self.number, self.until = port, number, until
        self.ms: list[float] = []
        self.lost = self.refused = 0

    def run(self) -> None:
        random = np.random.default_rng(self.number)
        clicks: list[list[int]] = []
        while time.monotonic() < self.until:
            if len(clicks) % 5 == 0:
                clicks = []
            clicks = [*clicks, random.integers((70, 60, 30), (180, 160, 90)).tolist()]
            start = time.perf_counter()
            status = self._click(clicks)
            while status == 503:
                self.refused += 1
                time.sleep(1)
                status = self._click(clicks)
            self.ms.append(1e3 * (time.perf_counter() - start))
            self.lost += status != 200

    def _click(self, clicks: Sequence[list[int]]) -> int:
        """Return the HTTP status; 0 if the connection broke."""
        body = json.dumps({"foreground": clicks, "result_extension": ".nrrd"})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            headers = {
                "Content-Type": "application/x-www-form-urlencoded",
                "X-User": str(self.number),
            }
            path = f"/infer/fastsam3d?image={IMAGE}&output=image"
            connection.request("POST", path, f"params={body}", headers)
            reply = connection.getresponse()
            reply.read()
            return reply.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


def measure(servers: Servers, users: int, seconds: float, kill: bool = False) -> Row:
    """Let users click for a time; kill a server in its first third if asked."""
    until = time.monotonic() + seconds
    crowd = [User(servers.port, number, until) for number in range(users)]
    start = time.monotonic()
    for user in crowd:
        user.start()
    if kill:
        time.sleep(seconds / 3)
        servers.kill_and_restart()
    for user in crowd:
        user.join()
    ms = np.array([value for user in crowd for value in user.ms])
    return Row(
        len(servers.ports),
        users,
        len(ms),
        sum(user.lost for user in crowd),
        sum(user.refused for user in crowd),
        round(len(ms) / (time.monotonic() - start), 2),
        round(float(np.percentile(ms, 50)), 0),
        round(float(np.percentile(ms, 95)), 0),
        servers.memory_mb(),
        kill,
    )


def journal_lines(servers: Servers) -> int:
    """Return the interactions in the journal of the scan."""
    path = servers.folder / "studies" / "labels" / ".journal" / f"{IMAGE}.jsonl"
    return len(path.read_bytes().splitlines())


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    rows: list[dict[str, Any]] = []
    print("| processes | users | clicks | lost | clicks/s | p50 ms | p95 ms | memory MB |")
    print("|---|---|---|---|---|---|---|---|")
    for count in options.processes:
        with running(count) as servers:
            measure(servers, count * 2, 5)  # every server reads the scan
            loads = [(users, False) for users in options.users]
            if options.restart and count > 1:
                loads.append((options.restart, True))
            for users, kill in loads:
                row = measure(servers, users, options.seconds, kill)
                rows.append({**asdict(row), "journal": journal_lines(servers)})
                print(
                    f"| {count} | {users}{', one killed' if kill else ''} | {row.clicks} "
                    f"| {row.lost} | {row.clicks_per_s} | {row.p50_ms:.0f} | {row.p95_ms:.0f} "
                    f"| {row.memory_mb} |",
                    flush=True,
                )
    print(json.dumps({"load": os.getloadavg(), "rows": rows}))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=numbers, default=[1, 2, 4])
    parser.add_argument("--users", type=numbers, default=[1, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--restart", type=int, default=0, help="users while a server is killed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
