"""What can be had without a network: classical segmentations from the same clicks.

Their parameters were chosen by the mean Dice over 1, 3, 5 and 10 clicks on the train part of the
data (`benchmarks/tune_baselines.py`), never on what is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage
from skimage.segmentation import random_walker

from lib.errors import InputError
from lib.imaging.intensity import normalize
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume

Box = tuple[slice, ...]


def voxel_mm(volume: Volume) -> np.ndarray:
    """The lengths (3,) of a voxel along the stored axes."""
    return voxel_sizes(volume.affine_mm)


def ball(volume: Volume, centre_ijk: np.ndarray, radius_mm: float) -> tuple[Box, np.ndarray]:
    """The part of the image around a click and, within it, what is at most `radius_mm` away."""
    reach = radius_mm / voxel_mm(volume)
    starts = np.maximum(np.ceil(centre_ijk - reach), 0).astype(int)
    stops = np.minimum(np.floor(centre_ijk + reach) + 1, volume.shape_ijk).astype(int)
    box = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    axes = np.ogrid[box]
    squared = sum(
        ((axis - place) * mm) ** 2
        for axis, place, mm in zip(axes, centre_ijk, voxel_mm(volume), strict=True)
    )
    return box, np.asarray(squared <= radius_mm**2)


@dataclass
class Ball:
    """A ball around each click, filled for a positive and emptied for a negative one, in order."""

    volume: Volume
    radius_mm: float = 10.0

    def __call__(self, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.volume.shape_ijk, dtype=bool)
        for click, label in zip(clicks_ijk, labels, strict=True):
            box, inside = ball(self.volume, click, self.radius_mm)
            mask[box][inside] = bool(label)
        return mask


@dataclass
class RegionGrowing:
    """Connected threshold: what hangs together with the click and is about as bright.

    From each click grow the voxels within `spread` standard deviations of the mean, both taken
    over `sample_mm` around it, no further than `radius_mm`; in the image smoothed by `sigma_mm`.
    Regions of positive clicks are added and those of negative ones removed, in order; the latter
    grow no further than `negative_mm`.
    """

    volume: Volume
    spread: float = 2.0
    sample_mm: float = 3.0
    radius_mm: float = 30.0
    negative_mm: float = 7.5
    sigma_mm: float = 2.0
    _grown: dict[tuple, tuple[Box, np.ndarray]] = field(default_factory=dict)

    def __call__(self, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.volume.shape_ijk, dtype=bool)
        for click, label in zip(clicks_ijk, labels, strict=True):
            key = (*click.tolist(), int(label))
            if key not in self._grown:
                self._grown[key] = self._grow(click, bool(label))
            box, region = self._grown[key]
            mask[box][region] = bool(label)
        return mask

    def _grow(self, click: np.ndarray, is_positive: bool) -> tuple[Box, np.ndarray]:
        radius_mm = self.radius_mm if is_positive else self.negative_mm
        box, inside = ball(self.volume, click, radius_mm)
        sigma = self.sigma_mm / voxel_mm(self.volume)
        image = ndimage.gaussian_filter(self.volume.array[box].astype(np.float32), sigma)
        here = tuple(int(c) - part.start for c, part in zip(click, box, strict=True))
        mean, std = self._sample(image, box, click)
        alike = inside & (np.abs(image - mean) <= self.spread * std)
        alike[here] = True
        regions, _ = ndimage.label(alike)
        return box, regions == regions[here]

    def _sample(self, image: np.ndarray, box: Box, click: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation near the click, over its 27 neighbours at least."""
        radius_mm = max(self.sample_mm, float(np.sqrt(3) * voxel_mm(self.volume).min()))
        near_box, near = ball(self.volume, click, radius_mm)
        shift = tuple(
            slice(max(n.start - b.start, 0), n.stop - b.start)
            for n, b in zip(near_box, box, strict=True)
        )
        values = image[shift][near[tuple(slice(0, n) for n in image[shift].shape)]]
        return float(values.mean()), max(float(values.std()), 0.01 * float(image.std()), 1e-6)


@dataclass
class RandomWalker:
    """Random walks to the clicks: positive ones against negative ones and the border of a cube.

    The cube has `size` voxels of `spacing_mm` around the clicks, coarser where they lie apart; a
    click is a seed of `seed_mm`. beta: how much an edge in the image hinders a walk (Grady 2006).
    """

    volume: Volume
    size: int = 40
    spacing_mm: float = 3.5
    beta: float = 130.0
    seed_mm: float = 4.0

    def __call__(self, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        volume = self.volume
        roi = Roi.place(
            volume.shape_ijk,
            volume.affine_mm,
            clicks_ijk,
            size=self.size,
            spacing_mm=self.spacing_mm,
        )
        try:
            image = normalize(roi.crop(volume.array), volume.is_ct)
        except InputError:  # no contrast: only the seeds are known
            image = np.zeros((self.size,) * 3, dtype=np.float32)
        seeds = self._seeds(roi, clicks_ijk, labels)
        shares = random_walker(
            image, seeds, beta=self.beta, mode="cg_j", tol=1e-3, prob_tol=0.1, return_full_prob=True
        )
        return roi.paste(shares[0] - 0.5).astype(bool)

    def _seeds(self, roi: Roi, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """1 object, 2 background, 0 for the walker to find out: (size, size, size)."""
        seeds = np.full((self.size,) * 3, 2, dtype=np.int32)
        seeds[1:-1, 1:-1, 1:-1] = 0
        grid = np.indices(seeds.shape).reshape(3, -1).T
        for place, label in zip(roi.to_roi(clicks_ijk), labels, strict=True):
            near = np.linalg.norm(grid - place, axis=1) * roi.spacing_mm <= self.seed_mm
            near[np.linalg.norm(grid - place, axis=1).argmin()] = True
            seeds.reshape(-1)[near] = 1 if label else 2
        return seeds
