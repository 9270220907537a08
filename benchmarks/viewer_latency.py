"""Measure what a user waits for in the browser: /viewer/ and the stock OHIF, in one run.

python benchmarks/viewer_latency.py [--shape 512,512,300] [--clicks 8] [--only viewer|ohif]
    [--json FILE] [--markdown FILE]

A real server on a real Orthanc, Chromium with software rendering. Opening runs from the address
until all slices are loaded and a click is possible. A click's time runs from the press (in the
stock viewer: of Run) until the labelmap has the mask, and until the planes are drawn. The server's
share is that of the request; the rest is the page's. The packages of requirements-dev.txt, Orthanc
and Chromium are needed, and `make viewer` before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))
for folder in ("sample-data", "tools", "tests", "tests/browser"):
    sys.path.insert(0, str(ROOT / folder))

import numpy as np  # noqa: E402
import ohif_page  # noqa: E402
import psutil  # noqa: E402
import pydicom  # noqa: E402
import requests  # noqa: E402
import viewer_page  # noqa: E402
from nibabel.affines import apply_affine  # noqa: E402
from ohif_page import FLAGS, open_viewer  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402
from scipy.ndimage import distance_transform_edt, zoom  # noqa: E402
from viewer_page import open_prompt_viewer  # noqa: E402

import torso  # noqa: E402
from benchmarks.click_report import percentiles  # noqa: E402
from benchmarks.machine import machine  # noqa: E402
from benchmarks.report_table import table  # noqa: E402
from ct_series import write_ct_series  # noqa: E402
from lib.imaging.affine import RAS_TO_LPS  # noqa: E402
from orthanc import running_orthanc  # noqa: E402
from serving import free_port, running_server  # noqa: E402

FIELD_MM = (410.0, 410.0, 360.0)
"""FIELD_MM: the scan's extent, whatever its shape."""

LIVER = 4
"""LIVER: the label of the structure that is clicked on, in the synthetic torso."""

CONNECTIONS = 6
"""CONNECTIONS: of a browser to one host."""

ACCEPT = "multipart/related; type=application/octet-stream; transfer-syntax=*"

SLICE_BYTES_AT_LEAST = 1000
"""SLICE_BYTES_AT_LEAST: a shorter reply is no slice."""

RNG_SEED = 0
PLANE = "mpr-axial"
TIMEOUT_MS = 300_000

# WATCH: the times of the last press, of the labelmap's first change after it, and of the last plane
# that was drawn after that
WATCH = """stock => {
    performance.setResourceTimingBufferSize(10000);  // each slice is an entry
    const times = window.clickTimes = {press: 0, labelmap: 0, drawn: 0};
    const isStart = event => stock
        ? event.target.closest?.('button[title="Run PointPrompts"]')
        : event.target.closest?.('[data-viewport-uid]');
    const name = stock ? 'click' : 'pointerdown';
    document.addEventListener(name, event => {
        if (isStart(event)) Object.assign(times, {press: performance.now(), labelmap: 0, drawn: 0});
    }, true);
    const modified = cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
    cornerstone.eventTarget.addEventListener(modified, () => {
        times.labelmap ||= performance.now();
    });
    for (const {element} of services.cornerstoneViewportService.getRenderingEngine().getViewports())
        element.addEventListener('CORNERSTONE_IMAGE_RENDERED', () => {
            if (times.labelmap) times.drawn = performance.now();
        });
}"""

# LAST_CLICK: the times in ms, once the planes are drawn and nothing was drawn for a second
LAST_CLICK = """() => {
    const {press, labelmap, drawn} = window.clickTimes;
    if (!press || !drawn || performance.now() - drawn < 1000) return null;
    const requests = performance.getEntriesByType('resource')
        .filter(entry => entry.name.includes('/infer/') && entry.startTime >= press - 1);
    const server = requests.reduce((sum, entry) => sum + entry.duration, 0);
    return {labelmap: labelmap - press, drawn: drawn - press, server};
}"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    ohif_page.TIMEOUT_MS = viewer_page.TIMEOUT_MS = TIMEOUT_MS
    with tempfile.TemporaryDirectory(prefix="viewer-latency-") as temporary:
        result = measure(Path(temporary), options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(result))
    print(json.dumps(result, indent=2))
    return 0


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers as they are written to JSON."""
    result: dict[str, Any] = {"date": str(date.today()), "shape": list(options.shape), **machine()}
    print("making the series", flush=True)
    study_uid, series_uid, places_lps = make_series(folder / "dicom", options.shape, options.clicks)
    with running_orthanc(folder / "orthanc", free_port()) as pacs:
        pacs.upload(folder / "dicom")
        with running_server(pacs.dicomweb_url, folder / "server.log") as server:
            # both viewers find the series on the server, whoever comes first
            params = {"foreground": [places_lps[0]], "coordinates": "lps_mm"}
            server.mask("fastsam3d", series_uid, params)
            roots = {"pacs": pacs.dicomweb_url.rstrip("/"), "server": f"{server.url}/dicom-web"}
            roots["stock_route"] = f"{server.url}/proxy/dicom/wado"
            result["slices_ms"] = {
                name: fetch_slices(root, study_uid, series_uid) for name, root in roots.items()
            }
            for name in options.only:
                print(f"opening {name}", flush=True)
                result[name] = measure_viewer(name, server.url, study_uid, places_lps)
    return result


def fetch_slices(root: str, study_uid: str, series_uid: str) -> int:
    """Fetch all slices of a series as a browser does, CONNECTIONS at a time; return the ms."""
    series = f"{root}/studies/{study_uid}/series/{series_uid}"
    headers = requests.get(f"{series}/metadata", timeout=300).json()
    uids = [header["00080018"]["Value"][0] for header in headers]
    session = requests.Session()
    session.headers["accept"] = ACCEPT
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS))

    def fetch(uid: str) -> int:
        return len(session.get(f"{series}/instances/{uid}/frames/1", timeout=300).content)

    started = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        sizes = list(pool.map(fetch, uids))
    elapsed_ms = (time.perf_counter() - started) * 1000
    if min(sizes) < SLICE_BYTES_AT_LEAST:
        raise RuntimeError(f"a slice has {min(sizes)} bytes at {root}")
    return round(elapsed_ms)


def make_series(
    folder: Path, shape_ijk: Sequence[int], count: int
) -> tuple[str, str, list[list[float]]]:
    """Write the torso as a DICOM series; return its study's and its own UID, and places, LPS mm.

    The places lie in the liver.
    """
    coarse_ijk = tuple(max(length // 4, 8) for length in shape_ijk)
    affine_mm = torso.centred_affine(coarse_ijk, np.divide(FIELD_MM, coarse_ijk), "LPS")
    hu, labels = torso.sample(coarse_ijk, affine_mm, seed=RNG_SEED, supersample=1)
    deep = np.argwhere(distance_transform_edt(labels == LIVER) > 3)
    places_lps = spread(apply_affine(affine_mm, deep) @ RAS_TO_LPS, count)
    fine = zoom(hu.astype(np.float32), np.divide(shape_ijk, coarse_ijk), order=1)
    affine_mm = torso.centred_affine(fine.shape, np.divide(FIELD_MM, fine.shape), "LPS")
    paths = write_ct_series(
        np.rint(fine).astype(np.int16), affine_mm, folder, seed=RNG_SEED, description="torso"
    )
    header = pydicom.dcmread(paths[0], stop_before_pixels=True)
    return str(header.StudyInstanceUID), str(header.SeriesInstanceUID), places_lps.tolist()


def spread(places: np.ndarray, count: int) -> np.ndarray:
    """Return places (count, 3) far from each other: the stock viewer would move a click nearby."""
    chosen = [places[0]]
    while len(chosen) < count:
        distances = np.linalg.norm(places[:, None] - np.array(chosen), axis=2).min(axis=1)
        chosen.append(places[distances.argmax()])
    return np.array(chosen)


def measure_viewer(
    name: str, url: str, study_uid: str, places_lps: Sequence[list[float]]
) -> dict[str, Any]:
    """Open the study in a browser of its own and click; return the times in ms."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        started, cpu_s = time.perf_counter(), processor_seconds()
        with _opened(name, browser, url, study_uid) as viewer:
            opening_ms = (time.perf_counter() - started) * 1000
            opening_cpu_s = processor_seconds() - cpu_s
            viewer.page.evaluate(WATCH, name == "ohif")
            clicks = [_click(name, viewer, place) for place in places_lps]
        browser.close()
    first, later = clicks[0], clicks[1:]
    return {
        "opening_ms": round(opening_ms),
        "opening_cpu_s": round(opening_cpu_s, 1),
        "first_click_ms": round(first["labelmap"]),
        "labelmap_ms": percentiles([click["labelmap"] for click in later]),
        "drawn_ms": percentiles([click["drawn"] for click in later]),
        "server_ms": percentiles([click["server"] for click in later]),
        "page_ms": percentiles([click["labelmap"] - click["server"] for click in later]),
    }


def processor_seconds() -> float:
    """Return the processor time of all programs that this one has started, in seconds.

    Other programs on the machine change it little, while they change the time that a user waits.
    """
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _opened(name: str, browser: Browser, url: str, study_uid: str) -> AbstractContextManager[Any]:
    open_one = open_prompt_viewer if name == "viewer" else open_viewer
    opened: AbstractContextManager[Any] = open_one(browser, url, study_uid)
    return opened


def _click(name: str, viewer: Any, place_lps: list[float]) -> dict[str, float]:
    """Click on a place and return the times in ms: labelmap, drawn, server."""
    if name == "viewer":
        viewer.show(place_lps)
        viewer.page.wait_for_timeout(1500)  # until the planes are drawn
        viewer.page.mouse.click(*viewer.page_position(PLANE, place_lps))
    else:
        if not viewer.page.evaluate("window.clickTimes.press"):
            viewer.choose("organ")
        viewer.click(PLANE, place_lps)
        viewer.page.wait_for_timeout(1500)
        viewer.page.locator('button[title="Run PointPrompts"]').click()
    return _times(viewer.page)


def _times(page: Page) -> dict[str, float]:
    times: dict[str, float] = page.wait_for_function(LAST_CLICK, timeout=TIMEOUT_MS).json_value()
    page.evaluate("Object.assign(window.clickTimes, {labelmap: 0, drawn: 0})")
    return times


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a Markdown table, a column for each viewer."""
    names = [name for name in ("ohif", "viewer") if name in result]
    titles = {"ohif": "stock OHIF", "viewer": "/viewer/"}
    rows: list[list[Any]] = [
        ["opening", *(result[name]["opening_ms"] for name in names)],
        [
            "opening, processor time of browser, server and Orthanc",
            *(round(1000 * result[name]["opening_cpu_s"]) for name in names),
        ],
        ["first click to labelmap", *(result[name]["first_click_ms"] for name in names)],
    ]
    for key, text in (
        ("labelmap_ms", "click to labelmap"),
        ("drawn_ms", "click to drawn planes"),
        ("server_ms", "server's share"),
        ("page_ms", "page's share"),
    ):
        for share, word in (("p50", "median"), ("p95", "95th percentile")):
            rows.append([f"{text}, {word}", *(result[name][key][share] for name in names)])
    lines = [
        f"# Viewers, {' × '.join(map(str, result['shape']))} voxels",
        "",
        f"{result['date']}, {result['processor']}, {result['cores']} cores, software rendering; "
        "milliseconds.",
        "",
        *table(["", *(titles[name] for name in names)], rows),
    ]
    slices = result.get("slices_ms", {})
    if slices:
        lines += [
            "",
            f"All slices without a page, {CONNECTIONS} at a time: {slices['pacs']} ms from "
            f"Orthanc, {slices['server']} ms from the server for /viewer/, "
            f"{slices['stock_route']} ms through the server for the stock OHIF.",
        ]
    return "\n".join(lines) + "\n"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=_shape, default=(512, 512, 300), help="of the scan")
    parser.add_argument("--clicks", type=int, default=8, help="in each viewer (%(default)s)")
    parser.add_argument("--only", choices=("viewer", "ohif"), help="one viewer alone")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    options = parser.parse_args(arguments)
    options.only = (options.only,) if options.only else ("viewer", "ohif")
    return options


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
