"""The voxel size of the ROI, chosen for the structure from the image around the first click.

No single voxel size suits all structures: a ROI of 192 mm shows a hippocampus in a few cells and
does not hold a lung. A ridge regression estimates the size of the structure from the gradients of
the image in shells around the click. The network cannot estimate it: its expected Dice is about the
same at each voxel size. Where the click lies in a large region with a clear border, as in a lung,
the region itself tells that the structure is large.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lib.cache import ByteCache
from lib.errors import InputError
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.random_walker import make_guide
from lib.infers.roi_images import RoiImages

SMALLEST_MM, LARGEST_MM = 0.4, 4.0
"""SMALLEST_MM, LARGEST_MM: limits of the ROI's voxel size."""

ROI_PER_DIAMETER = 5.0
"""ROI_PER_DIAMETER: side of the ROI, in diameters of a ball of the structure's volume."""

KEEP_RATIO = 1.3
"""KEEP_RATIO: the default voxel size stays if the chosen one differs by a smaller factor."""

LARGE_MM = 2.4
"""LARGE_MM: from this choice on, the voxel size is LARGEST_MM. The regression shrinks estimates
towards the mean: only structures of 130 mm and more (lungs, livers) get this far."""

REGION_SMOOTHING, TOLERANCES = 0.8, (0.25, 0.5)
"""REGION_SMOOTHING, TOLERANCES: standard deviation in cells of the filter before a region is grown,
and how far its values may differ from that at the click, in standard deviations of the image."""

LARGE_REGION, LARGEST_REGION = 0.55, 0.95
"""LARGE_REGION, LARGEST_REGION: limits of a large region's diameter, as a share of the ROI's
side. A ball that fills the ROI has 1; what is larger has leaked into everything."""

LOOKS = 3
"""LOOKS: foreground clicks that vote on a large region. Each look takes a crop of the image."""

STABLE_GROWTH = 1.08
"""STABLE_GROWTH: a region has a clear border if the wider tolerance enlarges its diameter by no
more than this factor."""

SIZE_STEP = 1.5
"""SIZE_STEP: factor between the voxel sizes of neighbouring values of the option ``size``."""

SHELL_CELLS = np.array([1.5, 2.5, 4, 6, 9, 14, 20, 32])
"""SHELL_CELLS: outer radii of the shells around a click, in cells of the guide image."""

BRIGHTEST = 3.0
"""BRIGHTEST: limit of the guide image's absolute values, in standard deviations."""

# Ridge regression, fitted by training/fit_scale.py on 3,150 simulated first clicks on the data of
# the pretraining. Inputs: `click_features`, eight log gradients, the share of blank cells, and the
# value at the click. Output: the logarithm of diameter of the ball / side of the ROI.
MEANS = np.array(
    [-1.2930, -1.2169, -1.1806, -1.1821, -1.2518, -1.4462, -1.7578, -2.2567, 0.5804, -0.0420]
)
DEVIATIONS = np.array(
    [0.9543, 0.8385, 0.7229, 0.5966, 0.4997, 0.5273, 0.6753, 0.8633, 0.3896, 1.4838]
)
COEFFICIENTS = np.array(
    [-0.1114, -0.0793, 0.0259, -0.0048, -0.0427, 0.0270, 0.0250, 0.1052, -0.1704, 0.0234]
)
INTERCEPT = -1.7413


class Look(NamedTuple):
    """What the image around a click says.

    is_large: the click lies in a large region with a clear border. spacing_mm: voxel size for the
    estimated size of the structure.
    """

    is_large: bool
    spacing_mm: float


@dataclass(frozen=True)
class RoiScale:
    """The rule for the ROI's voxel size.

    roi_size: voxels along each side of the ROI. default_mm: voxel size unless another is chosen.
    auto: choose it from the image. looks: cache of what was seen. images: crops the ROIs.
    """

    roi_size: int
    default_mm: float
    auto: bool
    looks: ByteCache[Look]
    images: RoiImages = field(default_factory=RoiImages)

    def spacing_mm(
        self,
        volume: Volume,
        volume_key: Hashable,
        first_ijk: np.ndarray,
        step: int,
        foreground_ijk: np.ndarray | None = None,
    ) -> float:
        """Return the voxel size in mm, a function of image, clicks and step alone.

        first_ijk: (3,), the first click. step: one of SIZES, for the next smaller or larger answer
        to the same clicks. foreground_ijk: (N, 3), all foreground clicks in their order: the first
        LOOKS of them vote on whether the structure is a large region. None: the first click does.
        """
        spacing_mm = self.default_mm
        if self.auto:
            voters_ijk = first_ijk[None] if foreground_ijk is None else foreground_ijk[:LOOKS]
            votes = [self._is_large(volume, volume_key, click_ijk) for click_ijk in voters_ijk]
            if 2 * sum(votes) > len(votes):  # else one false vote of two would be enough
                spacing_mm = max(LARGEST_MM, self.default_mm)
            else:
                spacing_mm = self._look(volume, volume_key, first_ijk).spacing_mm
        return self.step_from(spacing_mm, step)

    @staticmethod
    def step_from(spacing_mm: float, step: int) -> float:
        """Return the voxel size that is `step` sizes above or below another one."""
        if not step:
            return spacing_mm
        # a site may have chosen a default outside of the limits: steps never turn back
        limits = min(SMALLEST_MM, spacing_mm), max(LARGEST_MM, spacing_mm)
        return float(np.clip(spacing_mm * SIZE_STEP**step, *limits))

    def _is_large(self, volume: Volume, volume_key: Hashable, click_ijk: np.ndarray) -> bool:
        return self._look(volume, volume_key, click_ijk).is_large

    def _look(self, volume: Volume, volume_key: Hashable, click_ijk: np.ndarray) -> Look:
        """Return what the image around a click says; each click is looked at once."""
        key = (volume_key, tuple(click_ijk.tolist()), self.roi_size)
        return self.looks.get_or_make(key, lambda: self._see(volume, volume_key, click_ijk))

    def _see(self, volume: Volume, volume_key: Hashable, click_ijk: np.ndarray) -> Look:
        roi = Roi.place(
            volume.shape_ijk,
            volume.affine_mm,
            click_ijk[None],
            size=self.roi_size,
            spacing_mm=self.default_mm,
        )
        try:
            roi_image = self.images.crop(volume, volume_key, roi)
        except InputError:  # no contrast: the encoder's crop raises the error with its reason
            return Look(False, self.default_mm)
        guide, place = make_guide(roi_image), (roi.to_roi(click_ijk[None])[0] + 0.5) / self.roi_size
        return Look(
            is_in_large_region(guide, place), self._spacing_for(estimate_diameter(guide, place))
        )

    def _spacing_for(self, share: float) -> float:
        """Return the voxel size for a diameter, given as a share of the ROI's side."""
        chosen = float(np.clip(ROI_PER_DIAMETER * share * self.default_mm, SMALLEST_MM, LARGEST_MM))
        if chosen >= max(LARGE_MM, self.default_mm):
            return LARGEST_MM
        ratio = chosen / self.default_mm
        return self.default_mm if 1 / KEEP_RATIO < ratio < KEEP_RATIO else chosen


def estimate_diameter(guide: np.ndarray, place: np.ndarray) -> float:
    """Estimate the size of the structure at a click from the image around it.

    guide, place: see :func:`click_features`. Returns the diameter of a ball of the structure's
    volume, as a share of the ROI's side.
    """
    inputs = (click_features(guide, place) - MEANS) / DEVIATIONS
    return float(np.exp(inputs @ COEFFICIENTS + INTERCEPT))


def is_in_large_region(guide: np.ndarray, place: np.ndarray) -> bool:
    """Return whether a click lies in a large region whose border is clear.

    The region is grown from the click with two tolerances. It is that of a structure if it hardly
    depends on the tolerance (as maximally stable extremal regions, Matas et al., BMVC 2002).

    guide, place: see :func:`click_features`.
    """
    image = np.clip(guide, -BRIGHTEST, BRIGHTEST)
    i, j, k = np.clip(place * len(image), 0, len(image) - 1).astype(int)
    # the value at the click is not smoothed, as a click may lie close to the border
    distance = np.abs(ndimage.gaussian_filter(image, REGION_SMOOTHING, truncate=2) - image[i, j, k])
    strict, wide = (_region_diameter(distance < tolerance, (i, j, k)) for tolerance in TOLERANCES)
    return LARGE_REGION <= strict <= LARGEST_REGION and wide <= STABLE_GROWTH * strict


def _region_diameter(alike: np.ndarray, cell: tuple[int, int, int]) -> float:
    """Return the diameter of a ball of a region's volume, as a share of the image's side.

    alike: (c, c, c) bool. cell: a cell of the region; if it is not alike, the result is 0.
    """
    # the opening cuts bridges of a cell
    parts, _ = ndimage.label(ndimage.binary_opening(alike))
    volume = np.count_nonzero(parts == parts[cell]) if parts[cell] else 0
    return float(np.cbrt(6 / np.pi * volume) / len(alike))


def click_features(guide: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return the inputs of the regression, (10,) float64.

    guide: (c, c, c) of :func:`make_guide`. place: (3,), the click as a share of the ROI's sides.
    """
    image = np.clip(guide, -BRIGHTEST, BRIGHTEST)
    cells = len(guide)
    i, j, k = np.clip(place * cells, 1, cells - 2).astype(int)
    smooth = ndimage.gaussian_filter(image, 0.8, truncate=2)
    gradient = np.sqrt(sum(np.square(part) for part in np.gradient(smooth)))
    line = np.arange(cells)
    squares = (line - i)[:, None, None] ** 2 + (line - j)[:, None] ** 2 + (line - k) ** 2
    shells = np.searchsorted(SHELL_CELLS**2, squares.ravel(), side="right")
    count = len(SHELL_CELLS)
    sums = np.bincount(shells, gradient.ravel(), minlength=count + 1)[:count]
    means = sums / np.maximum(np.bincount(shells, minlength=count + 1)[:count], 1)
    blank = np.mean(np.abs(guide - np.median(guide)) < 1e-3)
    at_click = image[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2].mean()
    return np.array([*np.log(means + 0.02), blank, at_click])
