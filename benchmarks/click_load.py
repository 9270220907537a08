"""The server of the click benchmark under load: several clients, other requests, many clicks."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .click_clients import (
    CLICKS,
    Answer,
    Ohif,
    Server,
    Viewer,
    elapsed_ms,
    random_places,
    running_servers,
    series,
)
from .click_report import percentiles


def several_clients(viewers: Sequence[Viewer], shape_ijk: Sequence[int]) -> dict[str, Any]:
    """Let all viewers click ten times at once; compare their masks with those of each alone."""
    places = [next(random_places(shape_ijk, seed=10 + number)) for number in range(len(viewers))]

    def click(viewer: Viewer, place: np.ndarray) -> list[Answer]:
        clicks = series(place, shape_ijk)
        return [viewer.click("scan", clicks[:count]) for count in range(1, CLICKS + 1)]

    with ThreadPoolExecutor(len(viewers)) as pool:
        start = time.perf_counter()
        together = list(pool.map(click, viewers, places))
        seconds = time.perf_counter() - start
    alone = [click(viewer, place) for viewer, place in zip(viewers, places, strict=True)]
    pairs = zip(sum(together, []), sum(alone, []), strict=True)
    return {
        "clients": len(viewers),
        "next_ms": percentiles([answer.ms for answers in together for answer in answers[1:]]),
        "clicks_per_second": round(len(viewers) * CLICKS / seconds, 2),
        "masks_as_alone": all(one.checksum == other.checksum for one, other in pairs),
    }


def info_times(server: Server, viewer: Viewer, shape_ijk: Sequence[int]) -> dict[str, Any]:
    """Time GET /info/ in ms: on an idle server, during clicks, and while a scan is decoded."""
    places = random_places(shape_ijk, seed=3)

    def clicks() -> None:
        for _ in range(CLICKS):  # each has a new ROI: cropped, encoded, decoded
            viewer.click("scan", [next(places)])

    with polling(server) as idle:
        time.sleep(1)
    with polling(server) as clicking:
        clicks()
    with polling(server) as decoding:
        viewer.click("cold_info", [next(places)])
    times = {"idle": idle, "clicking": clicking, "decoding": decoding}
    return {name: {"max": max(ms), "p50": statistics.median(ms)} for name, ms in times.items()}


@contextmanager
def polling(server: Server) -> Iterator[list[float]]:
    """Request /info/ repeatedly; yield the list that collects the times in ms."""
    times: list[float] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            times.append(round(elapsed_ms(lambda: server.get("/info/")), 1))
            done.wait(0.02)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield times
    finally:
        done.set()
        thread.join()


def memory_growth(
    server: Server, viewer: Viewer, shape_ijk: Sequence[int], count: int
) -> dict[str, Any]:
    """Return the server's RSS and its growth over `count` clicks, ten at each place."""
    places = random_places(shape_ijk, seed=4)
    before = server.rss_mb()
    done = 0
    while done < count:
        clicks = series(next(places), shape_ijk)
        for length in range(1, min(CLICKS, count - done) + 1):
            viewer.click("scan", clicks[:length])
            done += 1
    after = server.rss_mb()
    return {"rss_mb": round(after, 1), "rss_growth_mb": round(after - before, 1), "clicks": done}


def several_processes(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure as many clients as processes at once, each with a process of its own."""
    studies = folder / "studies"
    with running_servers(options.processes, studies, folder, options.conf) as server:
        place = next(random_places(options.shape, seed=5))
        viewers: dict[str, Viewer] = {}
        for number in range(2, 250):  # local addresses; nginx chooses the process by address
            viewer = Ohif(server.url, f"127.0.0.{number}")
            viewer.click("scan", [place])
            viewers.setdefault(viewer.backend, viewer)
            if len(viewers) == options.processes:
                break
        measured = several_clients(list(viewers.values()), options.shape)
        rss_mb = round(server.rss_mb(), 1)
    return {"count": options.processes, **measured, "rss_mb": rss_mb}
