"""Dice of the masks that are served, after simulated clicks on the studies of a site.

The masks come from the click path of the app, with its voxel sizes, corrections and random walk. So
the numbers are those of a user, unlike those of :mod:`lib.trainers.validation`, which are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.ndimage import find_objects

from lib.errors import InputError
from lib.imaging.mask import dice
from lib.imaging.volume import Volume, read_volume
from lib.weights.files import Weights

from .clicks import next_clicks, roi_generators
from .data.studies import ExaminedStudy
from .validation import CLICKS

SERIES = 6
"""SERIES: series of clicks in a study; its structures take turns. The more series, the less chance
there is in a study's gain."""

SEARCHED_CELLS = 64
"""SEARCHED_CELLS: voxels along each side of an error among which a click is drawn; a larger error
is sampled at every second voxel, or every third, and so on."""

MaskOf = Callable[[Path, np.ndarray, np.ndarray], np.ndarray]
"""MaskOf(image, clicks_ijk, labels) returns the served mask, (I, J, K) bool.

clicks_ijk: (N, 3) stored voxels in their order. labels: (N,), 1 on the structure, 0 on background.
It raises InputError for clicks that cannot be used.
"""


class MaskSource(Protocol):
    """The click path of the app, for weights that are not served."""

    @property
    def auto_zoom(self) -> bool:
        """Whether the voxel size of a ROI is chosen for each structure."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the masks of given weights."""
        ...

    def masks(self, weights: Weights, device: str) -> MaskOf:
        """Return the function that makes the masks of some weights on a device."""
        ...

    def spacing_mm_at(
        self, volume: Volume, key: str, click_ijk: np.ndarray, roi_size: int
    ) -> float:
        """Return the voxel size that the ROI of a first click (3,) gets; key: of the volume."""
        ...


@dataclass(frozen=True)
class JudgedSeries:
    """A series of clicks to measure: its study, the first click (3,) and the structure there.

    structure: label value; None for a study without a label, whose target is the teacher's mask.
    """

    study: ExaminedStudy
    number: int
    first_ijk: np.ndarray
    structure: int | None


def make_series(study: ExaminedStudy, seed: int) -> Iterator[JudgedSeries]:
    """Yield the series of clicks in a study, which depend on the seed and its voxels alone.

    Of more structures than series a random choice is clicked, else each as often as the others.
    """
    generator = np.random.default_rng([seed, int(study.key[:12], 16)])
    structures = generator.permutation(list(study.structures)).tolist()
    for number in range(SERIES):
        structure = structures[number % len(structures)] if structures else None
        places = study.body if structure is None else study.structures[structure]
        yield JudgedSeries(study, number, places[generator.integers(len(places))], structure)


def mean_dice(
    masks: MaskOf, teacher: MaskOf | None, studies: Sequence[ExaminedStudy], seed: int
) -> list[float]:
    """Return the mean Dice of each study over its series and the numbers of clicks in CLICKS.

    teacher: makes the targets of studies without a label, from the same clicks. Raise ValueError if
    one is needed and there is none.
    """
    means = []
    for study in studies:
        values = [series_dice(masks, teacher, each, seed) for each in make_series(study, seed)]
        means.append(float(np.mean(values)))
    return means


def series_dice(
    masks: MaskOf, teacher: MaskOf | None, series: JudgedSeries, seed: int
) -> list[float]:
    """Return Dice after each number of clicks in CLICKS; users click on errors of the masks.

    A refused click leaves the mask as it was.
    """
    target_of = _target_of(series, teacher)
    name = f"{series.study.key} {series.number}"
    (generator,) = roi_generators([name], seed)
    clicks_ijk, labels = [series.first_ijk], [1]
    mask, target, values = np.zeros(()), np.zeros(()), []
    for count in range(1, max(CLICKS) + 1):
        arguments = series.study.study.image, np.stack(clicks_ijk), np.array(labels)
        target = _mask_or(target, target_of, *arguments)
        mask = _mask_or(mask, masks, *arguments)
        if mask.shape != target.shape:
            raise InputError(
                f"the image now has {mask.shape} voxels and not {target.shape}, as it was replaced"
            )
        if count in CLICKS:
            values.append(dice(mask, target))
        place_ijk, label = next_click(mask, target, generator)
        clicks_ijk.append(place_ijk)
        labels.append(label)
    return values


def _target_of(series: JudgedSeries, teacher: MaskOf | None) -> MaskOf:
    """Return a function that makes the target of some clicks."""
    if series.structure is not None and series.study.label is not None:
        label = series.study.label.unpack() == series.structure
        return lambda *_: label
    if teacher is None:
        raise ValueError("a study without a label can be judged only against a teacher")
    return teacher


def _mask_or(
    before: np.ndarray, masks: MaskOf, image: Path, clicks_ijk: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the mask of some clicks, or the one before if they are refused."""
    try:
        return masks(image, clicks_ijk, labels)
    except InputError:
        return before if before.shape else np.zeros(read_volume(image).shape_ijk, dtype=bool)


def next_click(
    mask: np.ndarray, target: np.ndarray, generator: torch.Generator
) -> tuple[np.ndarray, int]:
    """Draw the next click on the error of a mask: a stored voxel (3,), and its label.

    mask, target: (I, J, K) bool. The rule is that of training, `next_clicks`, on the voxels of the
    box around the error. Without an error the click lies on the structure.
    """
    error = mask != target
    (box,) = find_objects((error if error.any() else target | mask).astype(np.uint8)) or [None]
    box = box or tuple(slice(0, side) for side in target.shape)
    step = max(1, -(-max(part.stop - part.start for part in box) // SEARCHED_CELLS))
    cells = tuple(slice(part.start, part.stop, step) for part in box)
    if not error[cells].any():  # the error is thinner than a step
        cells, step = box, 1
    logits = torch.from_numpy(np.where(mask[cells], 4.0, -4.0).astype(np.float32))[None]
    targets = torch.from_numpy(target[cells].astype(np.float32))[None]
    place, label = next_clicks(logits, targets, [generator], cell=1)
    starts = np.array([part.start for part in box])
    return place[0, 0].numpy().astype(np.int64) * step + starts, int(label[0, 0])
