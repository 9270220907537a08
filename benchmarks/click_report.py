"""The numbers of click_latency.py as Markdown tables and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .report_table import table

VIEWERS = {"ohif": "OHIF", "slicer": "3D Slicer"}


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, rounded to 0.1 ms."""
    p50, p95 = np.percentile(times_ms, [50, 95]).round(1).tolist()
    return {"p50": p50, "p95": p95}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown: viewers, stages, and everything else."""
    clicks: list[tuple[str, Callable[[Mapping[str, Any]], float]]] = [
        ("first click, scan not read yet", lambda times: times["first_cold_ms"]),
        ("first click, scan read", lambda times: times["first_ms"]),
        ("another label in the same region", lambda times: times["other_label_ms"]),
        ("2nd to 10th click, median", lambda times: times["next_ms"]["p50"]),
        ("2nd to 10th click, 95th percentile", lambda times: times["next_ms"]["p95"]),
        ("those of them that change the mask, median", lambda times: times["changing_ms"]),
    ]
    stages = [(name.removesuffix("_ms"), ms) for name, ms in result["stages"].items()]
    lines = [
        f"# Click latency, {' × '.join(map(str, result['shape']))} voxels",
        "",
        f"{result['date']}, {result['device']}, {result['processor']}, {result['cores']} cores, "
        f"{result['threads']} threads; milliseconds.",
        "",
        *table(
            ["", *VIEWERS.values()],
            [[text, *(time(result[viewer]) for viewer in VIEWERS)] for text, time in clicks],
        ),
        "",
        *table(["stage", "median"], stages),
        "",
        *table(["", ""], _other_rows(result)),
    ]
    return "\n".join(lines) + "\n"


def _other_rows(result: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the rows of the numbers that belong to no single viewer."""
    live = result["live"]
    rows = [
        ("MONAI's LoadImage of the file", result["load_image_ms"]),
        ("first click, reply with the mask's box", live["first_box_ms"]),
        ("2nd to 10th click, reply with the mask's box, median", live["next_box_ms"]["p50"]),
        ("those of them that change the mask, median", live["changing_box_ms"]),
        ("undo, OHIF, median", live["undo_ms"]["p50"]),
        ("undo, reply with the mask's box, median", live["undo_box_ms"]["p50"]),
        *(
            (f"share of LoadImage: {name.replace('_', ', ')}", share)
            for name, share in result["shares_of_load_image"].items()
        ),
        ("first click, 5 s after the scan was opened", result["first_after_read_ahead_ms"]),
        *((f"/info, slowest, {name}", times["max"]) for name, times in result["info_ms"].items()),
        (f"memory growth, {result['clicks']} clicks, MB", result["rss_growth_mb"]),
        ("memory of the server, MB", result["rss_mb"]),
    ]
    measured = {"two clients, one process": result["two_clients"]}
    if "processes" in result:
        count = result["processes"]["count"]
        measured[f"{count} clients, {count} processes"] = result["processes"]
        rows.append((f"memory of {count} processes, MB", result["processes"]["rss_mb"]))
    for name, each in measured.items():
        rows.append((f"{name}: next click, median", each["next_ms"]["p50"]))
        rows.append((f"{name}: clicks per second", each["clicks_per_second"]))
        rows.append((f"{name}: same masks as alone", "yes" if each["masks_as_alone"] else "NO"))
    return rows


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw a bar for each kind of click and viewer, and lines for MONAI's reader."""
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
