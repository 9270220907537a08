"""Dice after simulated clicks: `python -m training.evaluate --data DIR --weights FILE --json FILE`.

The protocol: the first click is a random voxel of the structure, each next one a random voxel of
the error, positive in a missed and negative in a wrongly added part. The ROI is placed from the
clicks so far, as the server does, and Dice is taken on the image's own grid. Clicks depend on the
prediction, but their random numbers only on seed, case and structure.
"""

from __future__ import annotations

import argparse
import csv
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib.intensity import normalize
from lib.networks import FastSAM3D, load_checkpoint
from lib.roi import Roi
from lib.volume import Volume, read_volume

CLICKS = (1, 3, 5, 10)
MIN_VOLUME_MM3 = 500 * 1.5**3
"""Smaller structures are left out: 500 voxels at the spacing that the network sees."""

Model = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Clicks (N, 3) as stored indices and their labels (N,), 1 or 0 -> mask (I, J, K) bool."""


@dataclass(frozen=True)
class Score:
    """Dice of one structure of one case after each number of `CLICKS`."""

    source: str
    case: str
    structure: int
    dice: tuple[float, ...]


class NetworkModel:
    """A network on one volume. Replays all clicks where the ROI moves, as the server does."""

    def __init__(self, network: FastSAM3D, volume: Volume) -> None:
        self.network = network
        self.volume = volume
        self._roi: Roi | None = None

    @torch.inference_mode()
    def __call__(self, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        volume = self.volume
        size = self.network.config.roi_size
        roi = Roi.place(volume.shape_ijk, volume.affine_mm, clicks_ijk, size=size)
        if roi != self._roi:
            image = normalize(roi.crop(volume.array), volume.is_ct)
            self._roi, self._seen = roi, 0
            self._embedding = self.network.encode(torch.from_numpy(image)[None, None])
            self._low_res = torch.zeros(1, 1, *(self.network.config.low_res_size,) * 3)
        points = torch.from_numpy(roi.to_roi(clicks_ijk)).float()[None]
        kinds = torch.from_numpy(labels)[None]
        for count in range(self._seen + 1, len(labels) + 1):
            self._low_res, _ = self.network.decode(
                self._embedding, points[:, :count], kinds[:, :count], self._low_res
            )
        self._seen = len(labels)
        return roi.paste(self._low_res[0, 0].numpy()).astype(bool)


class BallModel:
    """A ball around each click, filled for a positive and emptied for a negative one, in order."""

    def __init__(self, volume: Volume, radius_mm: float) -> None:
        self.volume = volume
        self.radius_mm = radius_mm

    def __call__(self, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.volume.shape_ijk, dtype=bool)
        voxel_mm = np.linalg.norm(self.volume.affine_mm[:3, :3], axis=0)
        grid = np.ogrid[tuple(slice(length) for length in mask.shape)]
        for click, label in zip(clicks_ijk, labels, strict=True):
            offsets = zip(grid, click, voxel_mm, strict=True)
            squared_mm = sum(((axis - place) * mm) ** 2 for axis, place, mm in offsets)
            mask[squared_mm <= self.radius_mm**2] = bool(label)
        return mask


def click_series(
    model: Model, target: np.ndarray, generator: np.random.Generator
) -> tuple[float, ...]:
    """Dice after each of `CLICKS` simulated clicks; target: (I, J, K) bool, not empty."""
    clicks = [draw_voxel(target, generator)]
    labels = [1]
    dice = []
    for count in range(1, max(CLICKS) + 1):
        prediction = model(np.array(clicks), np.array(labels))
        if count in CLICKS:
            both = np.count_nonzero(prediction & target)
            dice.append(2 * both / (np.count_nonzero(prediction) + np.count_nonzero(target)))
        error = prediction != target
        click = draw_voxel(error if error.any() else target, generator)
        clicks.append(click)
        labels.append(int(target[tuple(click)]))
    return tuple(dice)


def draw_voxel(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The index (3,) of a random voxel of a mask that is not empty."""
    places = np.flatnonzero(mask)
    return np.array(np.unravel_index(places[generator.integers(len(places))], mask.shape))


def evaluate(
    make_models: Callable[[Volume], dict[str, Model]], rows: Sequence[dict[str, str]], folder: Path
) -> dict[str, list[Score]]:
    """The scores of each model on every structure of the cases that `rows` of a manifest name."""
    scores: dict[str, list[Score]] = defaultdict(list)
    for row in tqdm(rows, unit="case", mininterval=5):
        volume, labels = read_volume(folder / row["image"]), read_volume(folder / row["label"])
        for structure in structures(labels):
            for name, model in make_models(volume).items():
                generator = np.random.default_rng([zlib.crc32(row["case"].encode()), structure])
                dice = click_series(model, labels.array == structure, generator)
                scores[name].append(Score(row["source"], row["case"], structure, dice))
    return scores


def structures(labels: Volume) -> Iterator[int]:
    """Labels of at least `MIN_VOLUME_MM3`."""
    voxel_mm3 = abs(np.linalg.det(labels.affine_mm[:3, :3]))
    values, counts = np.unique(labels.array, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value and count * voxel_mm3 >= MIN_VOLUME_MM3:
            yield int(value)


def summarise(scores: Sequence[Score]) -> dict[str, dict]:
    """Mean Dice per source, and the mean over the sources, after each of `CLICKS`."""
    by_source: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        by_source[score.source].append(score)
    sources = {
        source: {"structures": len(found), **_named(np.mean([s.dice for s in found], axis=0))}
        for source, found in by_source.items()
    }
    macro = np.mean([[row[str(count)] for count in CLICKS] for row in sources.values()], axis=0)
    return {"macro": _named(macro), "sources": sources}


def _named(dice: np.ndarray) -> dict[str, float]:
    return {str(count): round(float(x), 4) for count, x in zip(CLICKS, dice, strict=True)}


def select_rows(folder: Path, part: str, per_source: int) -> list[dict[str, str]]:
    """The first rows of each source of a part of the manifest with an image file and structures."""
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    taken: dict[str, int] = defaultdict(int)
    chosen = []
    for row in rows:
        is_usable = (folder / row["image"]).is_file() and row["voxels_at_1p5mm"] != "{}"
        if is_usable and taken[row["source"]] < per_source:
            taken[row["source"]] += 1
            chosen.append(row)
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--part", default="eval", help="part of the manifest to measure on")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--per-source", type=int, default=10, help="most cases of each source")
    parser.add_argument("--radius-mm", type=float, default=10.0, help="of the ball baseline")
    options = parser.parse_args(arguments)

    network = load_checkpoint(options.weights)

    def make_models(volume: Volume) -> dict[str, Model]:
        ball = BallModel(volume, options.radius_mm)
        return {"fastsam3d": NetworkModel(network, volume), "ball": ball}

    rows = select_rows(options.data, options.part, options.per_source)
    scores = evaluate(make_models, rows, options.data)
    report = {
        "clicks": CLICKS,
        "cases": len(rows),
        "models": {name: summarise(found) for name, found in scores.items()},
        "pairs": {name: [asdict(score) for score in found] for name, found in scores.items()},
    }
    options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps(report["models"], indent=1))


if __name__ == "__main__":
    main()
