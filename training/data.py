"""Training samples: a ROI normalised as in serving, and structures in it with their first clicks.

Sample n is a pure function of (seed, n) in every process, so that a resumed training gets the same
samples without a stored state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from scipy.ndimage import maximum_filter
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lib.errors import InputError
from lib.imaging.intensity import normalize
from lib.imaging.roi import Roi, crop_labels
from lib.trainers.data.roi_pool import POOLING

from . import synthesis
from .cell_pairs import cells_of, draw_pairs
from .fields import bend, log_uniform
from .scenes import clutter_scene, lesion
from .sources import Case

MIN_TARGET_VOXELS = 96
"""MIN_TARGET_VOXELS: smallest structure in a ROI that can be a target."""

THICKEST_SLICE_MM = 12.0
"""THICKEST_SLICE_MM: largest thickness of the simulated slices."""

LESION = 255
"""LESION: number of the added lesion in a label map."""


@dataclass(frozen=True)
class SampleOptions:
    """The distribution of the samples.

    roi_size: voxels along each side of the ROI. spacings_mm: range of the ROI's voxel size.
    shares: range of the structure's extent relative to the ROI's; a share is drawn for each
    sample, and the voxel size follows from it within `spacings_mm`. targets: structures per ROI.
    cell: ROI voxels along a cell that has a key. scenes: number of different label maps of shapes.

    The rest are probabilities for each sample. scene: the label map is made of shapes. synthetic:
    the image is painted from a label map. bend: a label map of a case and its image are turned and
    deformed. lesion: a blob is added and is the first target. merge: the first target is joined
    with structures that touch it. field_of_view: the image ends inside the ROI.
    """

    roi_size: int = 128
    spacings_mm: tuple[float, float] = (0.4, 4.0)
    shares: tuple[float, float] = (0.1, 1.0)
    targets: int = 4
    cell: int = 4
    scenes: int = 64
    scene: float = 0.25
    synthetic: float = 0.45
    bend: float = 0.5
    lesion: float = 0.15
    merge: float = 0.12
    field_of_view: float = 0.25


class ClickSamples(Dataset):
    """Samples 0, 1, …, without end.

    A sample is a dictionary. image: (1, S, S, S) float32. targets: (T, c, c, c), the share of each
    cell of `POOLING`³ voxels that belongs to the target, with c = S / POOLING. clicks_roi: (T, 3).
    anchors, others, is_same: pairs of cells, see :func:`training.cell_pairs.draw_pairs`.
    """

    def __init__(self, cases: Sequence[Case], options: SampleOptions, seed: int) -> None:
        self.cases = cases
        self.options = options
        self.seed = seed
        structures = np.sqrt([len(case.boxes) for case in cases])
        is_label_map = np.array([case.image is None for case in cases])
        self._real = np.where(is_label_map, 0, structures)
        self._any = np.where(is_label_map, structures.mean() / 2, structures)
        self._scene = lru_cache(maxsize=options.scenes)(self._make_scene)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([self.seed, 0, number])
        image, labels, target = self.draw_normalised(generator)
        return to_tensors(image, labels, target, self.options, generator)

    def draw_normalised(
        self, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return a normalised ROI with enough of its first target: see :meth:`draw_roi`."""
        while True:
            image, is_ct, labels, target = self.draw_roi(generator)
            if np.count_nonzero(np.isin(labels, target)) < MIN_TARGET_VOXELS:
                continue
            try:
                return normalize(image, is_ct), labels, target
            except InputError:  # no contrast
                continue

    def draw_roi(
        self, generator: np.random.Generator
    ) -> tuple[np.ndarray, bool, np.ndarray, list[int]]:
        """Return a ROI before its normalisation.

        The result is the image (S, S, S) float32, whether it is a CT, the labels (S, S, S) uint8,
        and the numbers of the first target. The target contains the ROI's centre unless the image
        ends before the centre.
        """
        options = self.options
        is_scene = generator.random() < options.scene or not self._any.any()
        is_synthetic = is_scene or generator.random() < options.synthetic or not self._real.any()
        if is_scene:
            case = self._scene(int(generator.integers(options.scenes)))
        else:
            weights = self._any if is_synthetic else self._real
            case = self.cases[generator.choice(len(self.cases), p=weights / weights.sum())]
        number = int(generator.choice(list(case.boxes)))
        roi = place(case, number, options, generator)
        labels = crop_labels(roi, case.labels)
        image = None if case.image is None else roi.crop(case.image)
        if not is_scene and generator.random() < options.bend:
            labels, image = bend(labels, image, generator)
        image, is_ct = make_image(case, roi, labels, image, is_synthetic, generator)

        target = merged(labels, number, options.merge, generator)
        if generator.random() < options.lesion:
            level = lesion(options.roi_size, generator)
            image = synthesis.add_lesion(image, level, generator)
            labels = np.where(level < 1, np.uint8(LESION), labels)
            target = [LESION]
        outside = field_of_view(roi, options, generator)
        image[outside], labels[outside] = 0, 0
        return image, is_ct, labels, target

    def _make_scene(self, number: int) -> Case:
        generator = np.random.default_rng([self.seed, 1, number])
        size = self.options.roi_size
        labels = clutter_scene(size, generator)
        return Case.from_labels(f"scene {number}", labels, np.diag([1.5, 1.5, 1.5, 1.0]))


def place(case: Case, number: int, options: SampleOptions, generator: np.random.Generator) -> Roi:
    """Return a ROI around a random voxel of a structure of a turned, mirrored and scaled image.

    The ROI's voxel may be much smaller than the image's, as for small structures in serving.
    """
    box = case.boxes[number]
    inside = np.argwhere(case.labels[box] == number)
    click_ijk = inside[generator.integers(len(inside))] + [part.start for part in box]

    orientation = io_orientation(case.affine_mm)
    axes, signs = orientation[:, 0].astype(int), orientation[:, 1]
    if generator.random() < 0.5:
        axes, signs = generator.permutation(3), generator.choice([-1, 1], 3)
    elif generator.random() < 0.5:
        signs = np.where(axes == 0, -signs, signs)  # left and right change sides

    scale = np.exp(generator.normal(0, 0.15) + generator.normal(0, 0.08, 3))
    voxel_mm = voxel_sizes(case.affine_mm) * scale
    extent_mm = max((part.stop - part.start) * mm for part, mm in zip(box, voxel_mm, strict=True))
    share = log_uniform(generator, *options.shares)
    affine_mm = np.zeros((4, 4))
    affine_mm[axes, range(3)] = signs * voxel_mm
    affine_mm[3, 3] = 1
    return Roi.place(
        case.labels.shape,
        affine_mm,
        click_ijk[None],
        size=options.roi_size,
        spacing_mm=float(np.clip(extent_mm / (share * options.roi_size), *options.spacings_mm)),
    )


def make_image(
    case: Case,
    roi: Roi,
    labels: np.ndarray,
    image: Any,
    is_synthetic: bool,
    generator: np.random.Generator,
) -> tuple[np.ndarray, bool]:
    """Return the degraded image (S, S, S) of a ROI, and whether to normalise it as a CT.

    image: (S, S, S) of the case, on the ROI's grid; None without one, for a synthetic image.
    """
    if is_synthetic:
        painted = labels if image is None else synthesis.split_ground(labels, image, generator)
        image, is_ct = synthesis.paint(painted, generator), generator.random() < 0.25
        if is_ct:
            image = image * log_uniform(generator, 200, 1800) - generator.uniform(0, 800)
            image[labels == 0] -= generator.choice([0, 1000])
        image = synthesis.coarsen(image, [1 / abs(step) for step in roi.steps])
    elif case.is_ct and generator.random() < 0.5:
        is_ct = True
        image = image * generator.uniform(0.9, 1.1) + generator.normal(0, 20)
    else:
        is_ct = False
        image = synthesis.recolour(image, case.is_ct, generator)
    thickest = float(np.clip(THICKEST_SLICE_MM / roi.spacing_mm, 2, roi.size / 4))
    image = synthesis.degrade(image, generator, thickest)
    return (image if is_ct else np.maximum(image, 0)), is_ct


def field_of_view(roi: Roi, options: SampleOptions, generator: np.random.Generator) -> np.ndarray:
    """Return a mask (S, S, S) bool that is True outside of the image.

    With the probability `field_of_view` the image is first cropped around the ROI's centre. Some
    data sets contain crops around an organ, which leave most of the ROI empty.
    """
    index = np.arange(roi.size)
    is_cropped = generator.random() < options.field_of_view
    planes = []
    for axis, step, start in zip(roi.axes, roi.steps, roi.starts, strict=True):
        position = index * step + start
        inside = (position >= -0.5) & (position <= roi.shape_ijk[axis] - 0.5)
        if is_cropped:
            below, above = generator.uniform(0.1, 0.5, 2) * roi.size
            inside &= (index >= roi.size // 2 - below) & (index <= roi.size // 2 + above)
        planes.append(inside)
    i, j, k = planes
    return ~(i[:, None, None] & j[:, None] & k)


def merged(
    labels: np.ndarray, number: int, probability: float, generator: np.random.Generator
) -> list[int]:
    """Return the numbers of a target: `number`, and in some samples others that touch it."""
    if generator.random() >= probability:
        return [number]
    coarse = labels[::2, ::2, ::2]
    near = maximum_filter(coarse == number, size=3) & (coarse != number) & (coarse != 0)
    touching = np.unique(coarse[near])
    count = int(generator.integers(1, 4))
    return [number, *generator.permutation(touching)[:count].tolist()]


def to_tensors(
    image: np.ndarray,
    labels: np.ndarray,
    target: list[int],
    options: SampleOptions,
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    """Return the sample; the first click is the centre, others lie anywhere in their target."""
    sizes = np.bincount(labels.ravel(), minlength=256)
    sizes[0] = 0
    others = [n for n in np.flatnonzero(sizes >= MIN_TARGET_VOXELS) if n not in target]
    others = generator.permutation(others).astype(int).tolist()
    masks = [np.isin(labels, target)]
    clicks_roi = [np.full(3, options.roi_size // 2)]
    while len(masks) < options.targets:
        numbers = [others.pop()] if others else target
        mask = np.isin(labels, numbers)
        place = generator.choice(np.flatnonzero(mask))
        masks.append(mask)
        clicks_roi.append(np.array(np.unravel_index(place, mask.shape)))
    targets = torch.from_numpy(np.stack(masks)).float()
    return {
        "image": torch.from_numpy(image)[None],
        "targets": F.avg_pool3d(targets[:, None], POOLING)[:, 0],
        "clicks_roi": torch.from_numpy(np.stack(clicks_roi)).float(),
        **draw_pairs(cells_of(labels, options.cell), generator),
    }
