"""Measure the time from a click to its mask: a real server, real HTTP, both viewers.

python benchmarks/click_latency.py [--shape 512,512,300] [--clicks 500] [--processes 2]
    [--json FILE] [--markdown FILE] [--plot FILE] [--conf weights FILE ...]

The scan is the synthetic torso with added noise, int16 in a .nii.gz. A viewer's time runs from its
request until it has the whole mask. The packages of requirements-dev.txt are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "sample-data"))

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
from scipy.ndimage import zoom  # noqa: E402

import torso  # noqa: E402
from benchmarks.click_clients import (  # noqa: E402
    Answer,
    Ohif,
    Server,
    Slicer,
    running_server,
    running_servers,
)
from benchmarks.click_report import markdown, percentiles, plot  # noqa: E402
from benchmarks.machine import machine  # noqa: E402
from lib.errors import AppError  # noqa: E402

FIELD_MM = (410.0, 410.0, 360.0)
"""FIELD_MM: the scan's extent, whatever its shape."""

NOISE_HU = 12.0
SERIES = 3
"""SERIES: number of structures that are clicked on."""

CLICKS = 10
"""CLICKS: number of clicks on each structure."""

RNG_SEED = 0

Viewer = Ohif | Slicer


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        result = run(options)
    except AppError as error:
        sys.exit(f"click_latency: {error}")
    print(json.dumps(result, indent=2))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the requested files, and return the numbers."""
    with tempfile.TemporaryDirectory(prefix="click-latency-") as temporary:
        folder = Path(temporary)
        print("making the scan", flush=True)
        make_scans(folder / "studies", options.shape)
        result = measure(folder, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(result))
    if options.plot:
        plot(result, options.plot)
    return result


def make_scans(studies: Path, shape_ijk: Sequence[int]) -> None:
    """Write one scan under several names, so that the server can read each one cold."""
    studies.mkdir()
    coarse_ijk = tuple(max(length // 3, 8) for length in shape_ijk)
    affine_mm = torso.centred_affine(coarse_ijk, np.divide(FIELD_MM, coarse_ijk), "LPS")
    hu = torso.sample(coarse_ijk, affine_mm, seed=RNG_SEED)[0].astype(np.float32)
    hu = zoom(hu, np.divide(shape_ijk, coarse_ijk), order=1)
    hu += np.random.default_rng(RNG_SEED).standard_normal(hu.shape, dtype=np.float32) * NOISE_HU
    affine_mm = torso.centred_affine(hu.shape, np.divide(FIELD_MM, hu.shape), "LPS")
    first = studies / "scan.nii.gz"
    image = nib.Nifti1Image(np.clip(np.rint(hu), -1024, 3000).astype(np.int16), affine_mm)
    nib.save(image, first)
    for name in ("cold_ohif", "cold_slicer", "cold_info", "ahead"):
        os.link(first, studies / f"{name}.nii.gz")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers as they are written to JSON."""
    studies, shape_ijk = folder / "studies", options.shape
    result: dict[str, Any] = {"date": str(date.today()), "shape": list(shape_ijk), **machine()}
    print("timing LoadImage", flush=True)
    result["load_image_ms"] = load_image_ms(studies / "scan.nii.gz")
    with running_server(studies, folder, options.conf) as server:
        viewers: list[Viewer] = [Ohif(server.url), Slicer(server.url, folder)]
        stages = []
        for viewer in viewers:
            print(f"clicking as {viewer.name}", flush=True)
            result[viewer.name], answers = one_user(viewer, shape_ijk)
            stages += [answer for answer in answers if answer.stages]
        result |= stage_times(stages)
        result["first_after_read_ahead_ms"] = read_ahead(server, viewers[0], shape_ijk)
        print("two clients, /info, memory", flush=True)
        result["two_clients"] = several_clients([Ohif(server.url), Ohif(server.url)], shape_ijk)
        result["info_ms"] = info_times(server, viewers[0], shape_ijk)
        result |= memory_growth(server, viewers[0], shape_ijk, options.clicks)
    if options.processes > 1:
        print(f"{options.processes} processes behind nginx", flush=True)
        result["processes"] = several_processes(folder, options)
    return result


def load_image_ms(path: Path) -> float:
    """Time MONAI's reader, which MONAI Label's own tasks run for each click."""
    from monai.transforms.io.array import LoadImage

    return statistics.median(_ms(lambda: LoadImage(image_only=True)(path)) for _ in range(3))


def one_user(viewer: Viewer, shape_ijk: Sequence[int]) -> tuple[dict[str, Any], list[Answer]]:
    """Return the times of one viewer alone, and its answers."""
    # each viewer has another seed, so that they click at different places
    places = random_places(shape_ijk, seed=len(viewer.name))
    cold = viewer.click(f"cold_{viewer.name}", [next(places)])
    viewer.click("scan", [next(places)])  # decodes the scan
    firsts, nexts, labels = [], [], []
    for _ in range(SERIES):
        clicks = series(next(places), shape_ijk)
        firsts.append(viewer.click("scan", clicks[:1]))
        nexts += [viewer.click("scan", clicks[:count]) for count in range(2, CLICKS + 1)]
        # the first click and its ROI stay; the negative clicks are new and lie on other voxels
        negative = [click for click in clicks[3:] if (click != clicks[0]).any()]
        labels.append(viewer.click("scan", clicks[:1], negative[:2]))
    times = {
        "first_cold_ms": round(cold.ms, 1),
        "first_ms": _median(firsts),
        "next_ms": percentiles([answer.ms for answer in nexts]),
        "other_label_ms": _median(labels),
    }
    return times, [cold, *firsts, *nexts]


def stage_times(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return each stage's median time in ms, over the answers in which it ran."""
    spent: dict[str, list[float]] = {}
    for answer in answers:
        for stage, seconds in answer.stages.items():
            if seconds > 1e-4:
                spent.setdefault(stage, []).append(1e3 * seconds)
        rest = answer.ms - 1e3 * sum(answer.stages.values())
        spent.setdefault("http", []).append(rest)

    def median(stage: str) -> float:
        return round(statistics.median(spent.get(stage, [0.0])), 1)

    names = {
        "decode_file": "LoadVolumed",
        "crop": "Crop",
        "encode": "Encode",
        "decode": "Decode",
        "outline": "Outline",
    }
    names |= {"paste": "PasteStructuresd", "write": "Write", "http": "http", "wait": "Wait"}
    stages = {f"{name}_ms": median(stage) for name, stage in names.items()}
    stages["decode_file_ms"] = round(max(spent.get("LoadVolumed", [0.0])), 1)
    return {
        "stages": stages,
        "encode_ms": stages["encode_ms"],
        "decode_ms": stages["decode_ms"],
    }


def read_ahead(server: Server, viewer: Viewer, shape_ijk: Sequence[int]) -> float:
    """Time the first click of a user who opened the scan 5 s before."""
    server.get("/datastore/image/info?image=ahead")
    time.sleep(5)
    return round(viewer.click("ahead", [next(random_places(shape_ijk, seed=2))]).ms, 1)


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
            times.append(round(_ms(lambda: server.get("/info/")), 1))
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


def _median(answers: Sequence[Answer]) -> float:
    return round(statistics.median(answer.ms for answer in answers), 1)


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return round(1e3 * (time.perf_counter() - start), 1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--shape", type=_shape, default=(512, 512, 300), help="I,J,K (%(default)s)")
    parser.add_argument(
        "--clicks", type=int, default=500, help="clicks of the memory measurement (%(default)s)"
    )
    parser.add_argument("--processes", type=int, default=1, help="server processes behind nginx")
    parser.add_argument("--json", type=Path, help="file of the numbers")
    parser.add_argument("--markdown", type=Path, help="file of the tables")
    parser.add_argument("--plot", type=Path, help="file of the picture, PNG")
    parser.add_argument("--conf", nargs="*", default=[], help="options of the app: name value …")
    options = parser.parse_args(arguments)
    if len(options.conf) % 2:
        parser.error(f"--conf {' '.join(options.conf)}: expected pairs of name and value")
    return options


def _shape(text: str) -> tuple[int, int, int]:
    i, j, k = (int(length) for length in text.split(","))
    return i, j, k


if __name__ == "__main__":
    sys.exit(main())
