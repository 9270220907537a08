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
import time
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
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
    CLICKS,
    Answer,
    Ohif,
    Server,
    Slicer,
    Viewer,
    elapsed_ms,
    random_places,
    running_server,
    series,
)
from benchmarks.click_load import (  # noqa: E402
    info_times,
    memory_growth,
    several_clients,
    several_processes,
)
from benchmarks.click_report import markdown, percentiles, plot  # noqa: E402
from benchmarks.machine import machine  # noqa: E402
from lib.errors import AppError  # noqa: E402

FIELD_MM = (410.0, 410.0, 360.0)
"""FIELD_MM: the scan's extent, whatever its shape."""

NOISE_HU = 12.0
SERIES = 3
"""SERIES: number of structures that are clicked on."""

RNG_SEED = 0


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
    load_ms = load_image_times(studies / "scan.nii.gz")
    with running_server(studies, folder, options.conf) as server:
        viewers: list[Viewer] = [Ohif(server.url), Slicer(server.url, folder)]
        stages = []
        for viewer in viewers:
            print(f"clicking as {viewer.name}", flush=True)
            result[viewer.name], answers = one_user(viewer, shape_ijk)
            stages += [answer for answer in answers if answer.stages]
        result |= stage_times(stages)
        print("live prompts and undo", flush=True)
        result["live"] = live_prompts(Ohif(server.url), shape_ijk)
        # other programs may have used the machine at first, or since
        load_ms += load_image_times(studies / "scan.nii.gz")
        result["load_image_ms"] = round(statistics.median(load_ms), 1)
        result["shares_of_load_image"] = shares(result)
        result["first_after_read_ahead_ms"] = read_ahead(server, viewers[0], shape_ijk)
        print("two clients, /info, memory", flush=True)
        result["two_clients"] = several_clients([Ohif(server.url), Ohif(server.url)], shape_ijk)
        result["info_ms"] = info_times(server, viewers[0], shape_ijk)
        result |= memory_growth(server, viewers[0], shape_ijk, options.clicks)
    if options.processes > 1:
        print(f"{options.processes} processes behind nginx", flush=True)
        result["processes"] = several_processes(folder, options)
    return result


def load_image_times(path: Path) -> list[float]:
    """Time MONAI's reader three times, in ms; MONAI Label's own tasks run it for each click."""
    from monai.transforms.io.array import LoadImage

    return [elapsed_ms(lambda: LoadImage(image_only=True)(path)) for _ in range(3)]


def one_user(viewer: Viewer, shape_ijk: Sequence[int]) -> tuple[dict[str, Any], list[Answer]]:
    """Return the times of one viewer alone, and its answers."""
    # each viewer has another seed, so that they click at different places
    places = random_places(shape_ijk, seed=len(viewer.name))
    cold = viewer.click(f"cold_{viewer.name}", [next(places)])
    viewer.click("scan", [next(places)])  # decodes the scan
    firsts, nexts, changes, labels = [], [], [], []
    for _ in range(SERIES):
        clicks = series(next(places), shape_ijk)
        answers = [viewer.click("scan", clicks[:count]) for count in range(1, CLICKS + 1)]
        firsts.append(answers[0])
        nexts += answers[1:]
        changes += changing(answers)
        # the first click and its ROI stay; the negative clicks are new and lie on other voxels
        negative = [click for click in clicks[3:] if (click != clicks[0]).any()]
        labels.append(viewer.click("scan", clicks[:1], negative[:2]))
    times = {
        "first_cold_ms": round(cold.ms, 1),
        "first_ms": _median(firsts),
        "next_ms": percentiles([answer.ms for answer in nexts]),
        "changing_ms": _median(changes),
        "other_label_ms": _median(labels),
    }
    return times, [cold, *firsts, *nexts]


def live_prompts(viewer: Ohif, shape_ijk: Sequence[int]) -> dict[str, Any]:
    """Return the times of replies with the mask's box, and of a request with an earlier list.

    An undo sends the clicks without the last one, which the server answered before. Both forms of
    the reply are timed.
    """
    places = random_places(shape_ijk, seed=12)
    firsts, nexts, changes, undos, box_undos = [], [], [], [], []
    for _ in range(SERIES):
        clicks = series(next(places), shape_ijk)
        answers = [viewer.click("scan", clicks[:1], output="box")]
        for count in range(2, CLICKS + 1):
            answers.append(viewer.click("scan", clicks[:count], output="box"))
            undos.append(viewer.click("scan", clicks[: count - 1]))
            box_undos.append(viewer.click("scan", clicks[: count - 1], output="box"))
        firsts.append(answers[0])
        nexts += answers[1:]
        changes += changing(answers)
    return {
        "first_box_ms": _median(firsts),
        "next_box_ms": percentiles([answer.ms for answer in nexts]),
        "changing_box_ms": _median(changes),
        "undo_ms": percentiles([answer.ms for answer in undos]),
        "undo_box_ms": percentiles([answer.ms for answer in box_undos]),
    }


def changing(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers to clicks that changed the mask; a click in a right place costs nothing.

    answers: to the first click, the first two, and so on.
    """
    return [later for earlier, later in pairwise(answers) if later.checksum != earlier.checksum]


def shares(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the medians of what a user waits for, as shares of the time of LoadImage."""
    live = result["live"]
    times_ms = {
        "next": result["ohif"]["next_ms"]["p50"],
        "changing": result["ohif"]["changing_ms"],
        "next_box": live["next_box_ms"]["p50"],
        "changing_box": live["changing_box_ms"],
        "first": result["ohif"]["first_ms"],
        "undo": live["undo_ms"]["p50"],
        "undo_box": live["undo_box_ms"]["p50"],
    }
    return {name: round(ms / result["load_image_ms"], 3) for name, ms in times_ms.items()}


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
        "place_roi": "PlaceRoisd",
        "crop": "Crop",
        "encode": "Encode",
        "decode": "Decode",
        "outline": "Outline",
        "correct": "Correct",
        "outputs": "MakeOutputsd",
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


def _median(answers: Sequence[Answer]) -> float:
    """Return the median in ms; 0 without answers."""
    return round(statistics.median([answer.ms for answer in answers] or [0.0]), 1)


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
