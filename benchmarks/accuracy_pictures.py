"""Pictures of a report: Dice against clicks, and the structures with the lowest Dice.

`python -m benchmarks.accuracy_pictures --reports FILE... --prompts FILE.png` draws the curves of
each first prompt from reports that `accuracy.py --prompts ... --json FILE` wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from nibabel.orientations import io_orientation

from .bench import Bench
from .datasets import BenchmarkCase, ignored_voxels, read_case, targets, with_one_volume
from .display import SOFT_TISSUE_HU, VIEWS
from .protocols import MIN_MM3, Scan, Series

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (the backend comes first)

MARGIN_MM = 25
DPI = 90


def draw_all(
    report: Mapping[str, Any], bench: Bench, cases: Sequence[BenchmarkCase], folder: Path
) -> list[Path]:
    """Write `curve.png` and `failures-MODEL.png`; return their paths.

    Failures are drawn for the app's models, or for the first model if none is the app's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [draw_curve(report, folder / "curve.png")]
    for name in report["weights"] or list(report["models"])[:1]:
        path = folder / f"failures-{name}.png"
        paths.append(draw_failures(name, report["failures"][name], bench, cases, path))
    return paths


def draw_curve(report: Mapping[str, Any], path: Path) -> Path:
    """Plot Dice against clicks: the mean over the sources with its interval, then each source."""
    models, counts = report["models"], report["clicks"]
    sources = list(next(iter(models.values()))["sources"])
    rows = -(-(len(sources) + 1) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(10, 3 * rows), sharey=True, squeeze=False)
    for axis, source in zip(axes.flat, [None, *sources], strict=False):
        for name, summary in models.items():
            row = summary["macro"] if source is None else summary["sources"][source]
            (line,) = axis.plot(
                counts, [row[str(n)] for n in counts], "o-", label=name, markersize=3
            )
            if source is None:
                bands = np.array([summary["interval"][str(n)] for n in counts]).T
                axis.fill_between(counts, *bands, color=line.get_color(), alpha=0.15)
        axis.set_title(source or "mean of the sources", size=9)
        axis.set_xticks(counts)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(sources) + 1 :]:
        axis.axis("off")
    axes[0, 0].set_ylabel("Dice")
    axes[-1, 0].set_xlabel("clicks")
    axes[0, 0].legend(fontsize=7)
    return _save(figure, path)


def draw_prompts(models: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Plot Dice against prompts: a panel for each model, a line for each first prompt.

    models: summaries of reports, by "model" for points or "model, kind" for another first prompt.
    """
    kinds_of: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, summary in models.items():
        model, _, kind = name.partition(", ")
        kinds_of.setdefault(model, {})[kind or "point"] = summary
    figure, axes = plt.subplots(
        1, len(kinds_of), figsize=(5 * len(kinds_of), 4), sharey=True, squeeze=False
    )
    for axis, (model, kinds) in zip(axes.flat, kinds_of.items(), strict=True):
        for kind, summary in kinds.items():
            keys = [key for key in summary["macro"] if key.isdigit()]  # not the harm
            counts = [int(key) for key in keys]
            dices = [summary["macro"][key] for key in keys]
            (line,) = axis.plot(counts, dices, "o-", label=kind, markersize=3)
            bands = np.array([summary["interval"][key] for key in keys]).T
            axis.fill_between(counts, *bands, color=line.get_color(), alpha=0.12)
        axis.set_title(model, size=9)
        axis.set_xticks(counts)
        axis.set_xlabel("prompts: the first one, then points")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("Dice, mean of the sources")
    axes[0, -1].legend(fontsize=7)
    return _save(figure, path)


def draw_failures(
    name: str,
    failures: Sequence[Mapping[str, Any]],
    bench: Bench,
    cases: Sequence[BenchmarkCase],
    path: Path,
) -> Path:
    """Repeat the clicks of each failure and draw them.

    The mask is filled, the true border dashed, and clicks in the plane are crosses.
    """
    by_name = {(case.source, case.name): case for case in cases}
    rows = len(failures)
    figure, axes = plt.subplots(rows, 3, figsize=(9, 3 * rows), squeeze=False)
    for row, failure in zip(axes, failures, strict=True):
        case = by_name[failure["source"], failure["case"]]
        with with_one_volume(case) as readable:
            volume, labels = read_case(readable)
            scan = Scan(readable.image, volume, ignored_voxels(case, labels))
            target = dict(targets(case, labels, MIN_MM3))[failure["structure"]]
            key = f"{case.name}/{failure['structure']}"
            series = bench.click(name, scan, key, target)
        title = f"{case.name}, {failure['structure']}: Dice {series.dice[-1]:.2f}"
        draw_row(row, scan, target, series, title)
    return _save(figure, path)


def draw_row(row: np.ndarray, scan: Scan, target: np.ndarray, series: Series, title: str) -> None:
    """Draw the planes through the target's largest sections in radiological orientation."""
    turn = _Turn(scan.volume.affine_mm, scan.volume.shape_ijk)
    image, target, mask = (turn.array(a) for a in (scan.volume.array, target, series.mask))
    clicks, spacing_mm = turn.points(series.clicks_ijk), np.array(scan.spacing_mm)[turn.axes]
    centre = [np.count_nonzero(target, axis=plane).argmax() for plane in ((1, 2), (0, 2), (0, 1))]
    box = _surroundings(target | mask, spacing_mm)
    low, high = _window(scan)
    for axis, (view, (across, up)) in zip(row, VIEWS.items(), strict=True):
        through = ({0, 1, 2} - {across, up}).pop()
        cut: list[Any] = list(box)
        cut[through] = centre[through]
        plane = tuple(cut)
        edges = [edge - 0.5 for n in (across, up) for edge in (box[n].start, box[n].stop)]
        placed = {"origin": "lower", "extent": edges}
        axis.imshow(image[plane].T, cmap="gray", vmin=low, vmax=high, **placed)
        if mask[plane].any():
            filled = {"levels": [0.5, 1], "colors": ["tab:orange"], "alpha": 0.5}
            axis.contourf(mask[plane].T, **filled, **placed)
        if target[plane].any():
            axis.contour(target[plane].T, levels=[0.5], colors="w", linestyles="--", **placed)
        for click, label in zip(clicks, series.labels, strict=True):
            if click[through] == centre[through]:
                axis.plot(click[across], click[up], "+", color="lime" if label else "red")
        axis.set_aspect(spacing_mm[up] / spacing_mm[across])
        axis.axis("off")
        axis.set_title(title if view == "axial" else view, size=8)


class _Turn:
    """Reorders stored axes so that they run towards the patient's left, front and head."""

    def __init__(self, affine_mm: np.ndarray, shape_ijk: Sequence[int]) -> None:
        orientation = io_orientation(affine_mm)
        self.axes = np.argsort(orientation[:, 0])
        self.is_flipped = orientation[self.axes, 1] * [-1, 1, 1] < 0
        self.lengths = np.array(shape_ijk)[self.axes]

    def array(self, array_ijk: np.ndarray) -> np.ndarray:
        return np.flip(array_ijk.transpose(self.axes), tuple(np.flatnonzero(self.is_flipped)))

    def points(self, points_ijk: np.ndarray) -> np.ndarray:
        points = points_ijk[:, self.axes]
        return np.where(self.is_flipped, self.lengths - 1 - points, points)


def _surroundings(mask: np.ndarray, spacing_mm: np.ndarray) -> tuple[slice, ...]:
    """Return the mask's bounding box with a margin of `MARGIN_MM`, within the image."""
    margin = np.ceil(MARGIN_MM / spacing_mm).astype(int)
    places = np.argwhere(mask)
    starts = np.maximum(places.min(axis=0) - margin, 0).tolist()
    stops = np.minimum(places.max(axis=0) + margin + 1, mask.shape).tolist()
    return tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))


def _window(scan: Scan) -> tuple[float, float]:
    """Return the intensities that are displayed as black and as white."""
    if scan.volume.is_ct:
        return SOFT_TISSUE_HU
    low, high = np.percentile(scan.volume.array, [1, 99.5])
    return float(low), float(high)


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the curves of each first prompt.")
    parser.add_argument("--reports", type=Path, nargs="+", required=True, help="of accuracy.py")
    parser.add_argument("--prompts", type=Path, required=True, help="file of the picture, PNG")
    options = parser.parse_args(arguments)
    models: dict[str, Any] = {}
    for report in options.reports:
        models |= json.loads(report.read_text(encoding="utf-8"))["models"]
    draw_prompts(models, options.prompts)


if __name__ == "__main__":
    main()
