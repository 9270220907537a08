"""Several clients at once: every mask as if alone, the memory flat, the time of a click stated."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import requests

from chaos.common import SHAPE_IJK, Outcome, click, mask_hash, write_scan
from serving import BALL_WEIGHTS, RunningServer, running_server

CLIENTS = 8
IMAGES = ("head", "chest", "knee")
POINTS = 6
"""POINTS: clicks on each image; each client sends them in an order of its own."""

WARM_UP_SECONDS = 10.0
"""WARM_UP_SECONDS: at most so long, the memory may still grow by caches and threads."""

MEMORY_MB = 50.0
"""MEMORY_MB: change of the memory that counts as flat."""

PROBE = """
import http.client, json, sys, time
seconds, end = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    start = time.perf_counter()
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    seconds.append(time.perf_counter() - start)
    connection.close()
    time.sleep(0.05)
print(json.dumps(seconds))
"""
"""PROBE: a program that asks for /healthz, in a process without the threads of the clients."""


def run(number: int, seed: int, folder: Path) -> Outcome:
    """Let the clients click for ``number`` seconds."""
    (folder / "studies").mkdir(parents=True)
    for index, image in enumerate(IMAGES):
        write_scan(folder / "studies" / f"{image}.nii.gz", index)
    arguments = (*BALL_WEIGHTS, "--conf", "requests_per_minute", "0")
    with running_server(folder / "studies", folder / "server.log", *arguments) as server:
        return Clients(server, seed).click_for(number)


class Clients:
    """The clients of a server; alone: the hash of the mask of each click, sent alone."""

    def __init__(self, server: RunningServer, seed: int) -> None:
        self.server, self.seed = server, seed
        generator = np.random.default_rng(seed)
        points = generator.integers(4, np.array(SHAPE_IJK) - 4, (len(IMAGES), POINTS, 3))
        self.clicks = [
            (image, tuple(map(int, point)))
            for image, of_image in zip(IMAGES, points, strict=True)
            for point in of_image
        ]
        self.alone = {each: mask_hash(click(server.url, *each)) for each in self.clicks}
        self.outcome = Outcome()
        self.seconds: list[float] = []
        self.health: list[float] = []
        self.end = 0.0

    def click_for(self, seconds: float) -> Outcome:
        """Click with all clients, and watch the memory and ``/healthz``."""
        started = time.monotonic()
        self.end = started + seconds
        threads = [threading.Thread(target=self._click, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        process, memory = psutil.Process(self.server.pid), []
        port = self.server.url.rpartition(":")[2]
        probe = subprocess.Popen(
            [sys.executable, "-c", PROBE, port, str(seconds)], stdout=subprocess.PIPE
        )
        while time.monotonic() < self.end:
            if time.monotonic() - started > min(WARM_UP_SECONDS, seconds / 2):
                memory.append(process.memory_info().rss / 2**20)
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        self.health = json.loads(probe.communicate(timeout=60)[0])
        self._report(memory)
        return self.outcome

    def _click(self, number: int) -> None:
        dice = random.Random(self.seed * CLIENTS + number)
        while time.monotonic() < self.end:
            image, point = dice.choice(self.clicks)
            before = time.perf_counter()
            try:
                reply = click(self.server.url, image, point)
                is_same = mask_hash(reply) == self.alone[image, point]
                self.outcome.check(is_same, f"another mask of {image} at {point} than alone")
            except (AssertionError, requests.RequestException) as error:
                self.outcome.fail(f"{image} at {point}: {error}")
            self.seconds.append(time.perf_counter() - before)

    def _report(self, memory: list[float]) -> None:
        change = float(np.mean(memory[-10:]) - np.mean(memory[:10]))
        sentence = f"the memory changed by {change:.0f} MB"
        self.outcome.check(abs(change) <= MEMORY_MB, sentence)
        p50, p95 = (float(np.quantile(self.seconds, q)) for q in (0.5, 0.95))
        self.outcome.facts = {
            "clicks": len(self.seconds),
            "p50_ms": round(1000 * p50),
            "p95_ms": round(1000 * p95),
            "health_p50_ms": round(1000 * float(np.median(self.health))),
            "health_p95_ms": round(1000 * float(np.quantile(self.health, 0.95))),
            "health_max_ms": round(1000 * max(self.health)),
            "memory_mb": round(memory[-1]),
            "memory_change_mb": round(change, 1),
        }
