"""What click_latency.py measured, as a table and as a picture."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("monailabel", "monai", "torch", "numpy", "nibabel", "SimpleITK", "isal", "uvicorn")
VIEWERS = {"ohif": "OHIF", "slicer": "3D Slicer"}


def machine() -> dict[str, Any]:
    """What the times depend on besides the code."""
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def markdown(result: Mapping[str, Any]) -> str:
    shape = " × ".join(map(str, result["shape"]))
    rows = [
        f"# Click latency, {shape} voxels",
        "",
        f"{result['date']}, {result['device']}, {result['processor']}, {result['cores']} cores, "
        f"{result['threads']} threads; milliseconds.",
        "",
        "| | OHIF | 3D Slicer |",
        "|---|---|---|",
    ]
    for key, text in (
        ("first_cold_ms", "first click, scan not read yet"),
        ("first_ms", "first click, scan read"),
        ("other_label_ms", "another label in the same region"),
    ):
        rows.append(f"| {text} | {' | '.join(str(result[name][key]) for name in VIEWERS)} |")
    for key, text in (("p50", "2nd to 10th click, median"), ("p95", "the same, 95th percentile")):
        values = (str(result[name]["next_ms"][key]) for name in VIEWERS)
        rows.append(f"| {text} | {' | '.join(values)} |")
    rows += ["", "| stage | median |", "|---|---|"]
    rows += [f"| {name.removesuffix('_ms')} | {ms} |" for name, ms in result["stages"].items()]
    rows += ["", "| | |", "|---|---|", *_others(result)]
    return "\n".join(rows) + "\n"


def _others(result: Mapping[str, Any]) -> list[str]:
    """Rows of a table with what is not of one viewer."""
    pairs = [
        ("MONAI's LoadImage of the file", result["load_image_ms"]),
        ("first click after the scan was opened", result["first_after_read_ahead_ms"]),
        *((f"/info, slowest, {name}", times["max"]) for name, times in result["info_ms"].items()),
        (f"memory growth, {result['clicks']} clicks, MB", result["rss_growth_mb"]),
        ("memory of the server, MB", result["rss_mb"]),
    ]
    measured = {"two clients, one process": result["two_clients"]}
    if "processes" in result:
        count = result["processes"]["count"]
        measured[f"{count} clients, {count} processes"] = result["processes"]
        pairs.append((f"memory of {count} processes, MB", result["processes"]["rss_mb"]))
    for name, each in measured.items():
        pairs.append((f"{name}: next click, median", each["next_ms"]["p50"]))
        pairs.append((f"{name}: clicks a second", each["clicks_per_second"]))
        pairs.append((f"{name}: masks as alone", "yes" if each["masks_as_alone"] else "NO"))
    return [f"| {name} | {value} |" for name, value in pairs]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """A bar for each kind of click and viewer, beside MONAI's reader."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ["first, cold", "first", "other label", "next (p50)", "next (p95)"]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for offset, (key, viewer) in enumerate(VIEWERS.items()):
        times = result[key]
        heights = [times["first_cold_ms"], times["first_ms"], times["other_label_ms"]]
        heights += [times["next_ms"]["p50"], times["next_ms"]["p95"]]
        places = [number + 0.4 * offset - 0.2 for number in range(len(names))]
        bars = axes.bar(places, heights, 0.38, label=viewer)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.axhline(result["load_image_ms"], color="grey", linestyle="--", label="MONAI LoadImage")
    axes.axhline(result["load_image_ms"] / 5, color="grey", linestyle=":", label="a fifth of it")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("ms from request to mask")
    axes.set_title(f"{' × '.join(map(str, result['shape']))} voxels, {result['device']}")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
