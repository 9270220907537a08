"""The cube that a network sees (ROI): placed around the clicks, cropped, and pasted back.

The ROI is a cube of size³ voxels at one isotropic spacing, in RAS+ order *along the image's own
axes*: ROI axis 0, 1, 2 runs along the stored axis that is closest to R, A, S, towards R, A, S.
This equals reorienting to RAS+ and resampling, which is how the published weights were trained.
An oblique scan is not rotated, so its ROI has no blank corners. ROI and image differ by a scale and
an offset along each axis only, so interpolation is separable, whatever the obliqueness, anisotropy,
flips, handedness or axis order. A sheared image (gantry tilt) is handled in the same way, with the
lengths of the affine's columns as spacing.

Crop and paste are our own code instead of a library's because every click waits for them, and
general resamplers use neither the separability nor the planes without foreground. Measured on a
scan of 512 × 512 × 300 voxels: crop 58 ms, against 71 ms in SimpleITK plus 372 ms to copy the array
into it, and 755 ms in scipy; paste 45 to 80 ms, against 512 ms (SimpleITK) and 767 ms (scipy).

Frames: `_ijk` is a stored voxel index, `_roi` a ROI voxel index, `_mm` RAS world millimetres.
Integers are voxel centres in both index frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation

from lib.imaging.box import EMPTY_BOX, Box, box_slices, intersect
from lib.imaging.interpolation import (
    interpolate,
    interpolated_planes,
    is_inside,
    linear_taps,
    places_between,
    select,
    trim,
)

ROUNDING = 1e-5
"""ROUNDING: bound of the relative error of a float32 interpolation, ten times what occurs."""


@dataclass(frozen=True)
class Roi:
    """A cube of voxels on a stored image. It compares and hashes by value, for use in cache keys.

    shape_ijk: the shape (I, J, K) of the stored image.
    image_affine_mm: rows of its (4, 4) affine, stored index -> RAS mm.
    size: ROI voxels along each axis.
    spacing_mm: distance between ROI voxels, the same along each axis.
    axes: the stored axis along ROI axis 0, 1, 2.
    steps: stored voxels per ROI voxel along ROI axis 0, 1, 2; negative if the two axes run in
        opposite directions.
    starts: stored index of ROI index 0 along ROI axis 0, 1, 2.
    """

    shape_ijk: tuple[int, ...]
    image_affine_mm: tuple[tuple[float, ...], ...]
    size: int
    spacing_mm: float
    axes: tuple[int, ...]
    steps: tuple[float, ...]
    starts: tuple[float, ...]

    @classmethod
    def place(
        cls,
        shape_ijk: Sequence[int],
        affine_mm: np.ndarray,
        points_ijk: np.ndarray,
        *,
        size: int = 128,
        spacing_mm: float = 1.5,
    ) -> Roi:
        """Return the ROI that holds all points and is centred on the first one if possible.

        affine_mm: (4, 4) stored index -> RAS mm, not singular. points_ijk: (N, 3), N >= 1.
        The first point lies at ROI index size // 2 on each axis. The ROI is then moved along each
        axis by the least distance that brings all points to ROI indices within [0, size - 1]. If
        their extent does not fit, the spacing is first increased, by the same least factor on all
        axes.
        """
        affine_mm = np.asarray(affine_mm, dtype=np.float64)
        points_ijk = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)
        orientation = io_orientation(affine_mm)
        axes = np.argsort(orientation[:, 0])
        signs = orientation[axes, 1]
        voxel_mm = voxel_sizes(affine_mm)[axes]

        first = points_ijk[0, axes]
        offsets_mm = (points_ijk[:, axes] - first) * signs * voxel_mm
        extent_mm = np.ptp(offsets_mm, axis=0).max()
        spacing_mm = max(float(spacing_mm), float(extent_mm) / (size - 1))

        centred = size // 2 + offsets_mm / spacing_mm
        too_low = np.maximum(0, -centred.min(axis=0))
        too_high = np.maximum(0, centred.max(axis=0) - (size - 1))
        steps = signs * spacing_mm / voxel_mm
        starts = first - (size // 2 + too_low - too_high) * steps
        return cls(
            shape_ijk=tuple(int(length) for length in shape_ijk),
            image_affine_mm=tuple(tuple(row) for row in affine_mm.tolist()),
            size=size,
            spacing_mm=spacing_mm,
            axes=tuple(axes.tolist()),
            steps=tuple(steps.tolist()),
            starts=tuple(starts.tolist()),
        )

    @property
    def affine_mm(self) -> np.ndarray:
        """The affine of the ROI, (4, 4) float64, ROI index -> RAS mm."""
        roi_to_ijk = np.zeros((4, 4))
        roi_to_ijk[self.axes, (0, 1, 2)] = self.steps
        roi_to_ijk[self.axes, 3] = self.starts
        roi_to_ijk[3, 3] = 1
        return np.array(self.image_affine_mm) @ roi_to_ijk

    @property
    def box_ijk(self) -> Box:
        """The half-open box of stored voxels with ROI coordinates within [-0.5, size - 0.5]."""
        i, j, k = (self._bounds(axis) for axis in range(3))
        return i, j, k

    def to_roi(self, points_ijk: np.ndarray) -> np.ndarray:
        """Return the ROI indices (N, 3), float64, of stored indices (N, 3)."""
        points_ijk = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)
        return (points_ijk[:, self.axes] - self.starts) / self.steps

    def to_image(self, points_roi: np.ndarray) -> np.ndarray:
        """Return the stored indices (N, 3), float64, of ROI indices (N, 3)."""
        points_roi = np.asarray(points_roi, dtype=np.float64).reshape(-1, 3)
        points_ijk = np.empty_like(points_roi)
        points_ijk[:, self.axes] = points_roi * self.steps + self.starts
        return points_ijk

    def crop(self, array_ijk: np.ndarray) -> np.ndarray:
        """Return the image at the ROI's voxel centres, (size,)*3 float32 in ROI axis order.

        array_ijk: (I, J, K) real numbers in any memory order. Interpolation is linear. The
        outermost values extend half a voxel beyond their centres; further out the result is 0.
        Raises ValueError if the array has another shape than the image.
        """
        if array_ijk.shape != self.shape_ijk:
            raise ValueError(f"the ROI lies on {self.shape_ijk} voxels, not {array_ijk.shape}")
        image_roi = array_ijk.transpose(self.axes)
        taps = [
            linear_taps(np.arange(self.size) * step + start, length)
            for step, start, length in zip(self.steps, self.starts, image_roi.shape, strict=True)
        ]
        # planes across the slowest axis in memory are contiguous
        order = np.argsort([-abs(stride) for stride in image_roi.strides], kind="stable")
        cropped = interpolate(image_roi.transpose(order), [taps[axis] for axis in order])
        return np.ascontiguousarray(cropped.transpose(np.argsort(order)))

    def paste(
        self, values_roi: np.ndarray, threshold: float = 0.0, within_ijk: Box | None = None
    ) -> np.ndarray:
        """Return the mask of the stored image, (I, J, K) uint8: 1 where the values > `threshold`.

        values_roi: (s, s, s) real numbers on the s³ cells that divide the ROI cube (logits at 32³
        or 128³), in ROI axis order. They are interpolated first and compared with the threshold
        last: trilinear upsampling to size³ (torch's `interpolate` with align_corners=False), then
        linear interpolation at the stored voxel centres. The mask is 0 outside of `box_ijk` and of
        the half-open `within_ijk`, if given. It is in Fortran order, so that its transpose
        (k, j, i), which image writers take, is contiguous. Raises ValueError if the values are not
        a cube.
        """
        mask = np.zeros(self.shape_ijk, dtype=np.uint8, order="F")
        inside, box_ijk = self.paste_box(values_roi, threshold, within_ijk)
        mask[box_slices(box_ijk)] = inside
        return mask

    def paste_box(
        self, values_roi: np.ndarray, threshold: float = 0.0, within_ijk: Box | None = None
    ) -> tuple[np.ndarray, Box]:
        """Return the mask of `paste` inside a half-open box, (i, j, k) uint8, and the box.

        The box is little larger than the foreground: planes whose values are all too low are not
        computed. It may be empty.
        """
        cells = len(values_roi)
        if values_roi.shape != (cells,) * 3:
            raise ValueError(f"the values must fill a cube, not {values_roi.shape}")
        values_kji = np.ascontiguousarray(values_roi.transpose(np.argsort(self.axes)[::-1]))
        is_high = values_kji > threshold - ROUNDING * abs(threshold)
        if not is_high.any():
            return np.zeros((0, 0, 0), dtype=np.uint8), EMPTY_BOX
        box_ijk = self.box_ijk if within_ijk is None else intersect(self.box_ijk, within_ijk)
        cell_taps = linear_taps((np.arange(self.size) + 0.5) * cells / self.size - 0.5, cells)
        box_kji, upsampling_kji, taps_kji = [], [], []
        for along, axis in enumerate((2, 1, 0)):
            start, stop = box_ijk[axis]
            high = np.flatnonzero(is_high.any(axis=tuple({0, 1, 2} - {along})))
            taps = linear_taps(self._roi_indices(axis)[start:stop], self.size)
            first, last = places_between(taps, *places_between(cell_taps, high[0], high[-1]))
            rows, taps = trim(select(taps, slice(first, last + 1)))
            box_kji.append((start + first, start + last + 1))
            upsampling_kji.append(select(cell_taps, rows))
            taps_kji.append(taps)

        upsampled_kji = interpolate(values_kji, upsampling_kji)
        mask_kji = np.empty([len(taps.lower) for taps in taps_kji], dtype=bool)
        planes = interpolated_planes(upsampled_kji, taps_kji)
        for target, plane in zip(mask_kji, planes, strict=True):
            np.greater(plane, threshold, out=target)
        k, j, i = box_kji
        return mask_kji.view(np.uint8).transpose(), (i, j, k)

    def sample_box(self, values_roi: np.ndarray, box_ijk: Box) -> np.ndarray:
        """Return the values that `paste` compares with its threshold, (i, j, k) float32 of a box.

        values_roi: as for `paste`. box_ijk: half-open box of stored voxels; those outside of the
        ROI get 0.
        """
        cells = len(values_roi)
        cell_taps = linear_taps((np.arange(self.size) + 0.5) * cells / self.size - 0.5, cells)
        values_kji = values_roi.transpose(np.argsort(self.axes)[::-1])
        upsampled_kji = interpolate(np.ascontiguousarray(values_kji), [cell_taps] * 3)
        taps_kji = [
            linear_taps(self._roi_indices(axis)[slice(*box_ijk[axis])], self.size)
            for axis in (2, 1, 0)
        ]
        return interpolate(upsampled_kji, taps_kji).transpose()

    def _roi_indices(self, axis: int) -> np.ndarray:
        """Return the ROI coordinate of every stored voxel along a stored axis."""
        along = self.axes.index(axis)
        return (np.arange(self.shape_ijk[axis]) - self.starts[along]) / self.steps[along]

    def _bounds(self, axis: int) -> tuple[int, int]:
        """Return start and stop of the stored voxels inside the ROI along a stored axis."""
        inside = np.flatnonzero(is_inside(self._roi_indices(axis), self.size))
        return (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)


def crop_labels(roi: Roi, labels_ijk: np.ndarray, box_ijk: Box | None = None) -> np.ndarray:
    """Return the label of the stored voxel nearest to each ROI voxel, (S, S, S); 0 outside.

    labels_ijk: (I, J, K) label values of the stored image, or those in a half-open box of it.
    """
    labels_roi = labels_ijk.transpose(roi.axes)
    offsets = [box_ijk[axis][0] if box_ijk else 0 for axis in roi.axes]
    nearest = [
        np.rint(np.arange(roi.size) * step + start).astype(int) - offset
        for step, start, offset in zip(roi.steps, roi.starts, offsets, strict=True)
    ]
    inside = [(n >= 0) & (n < length) for n, length in zip(nearest, labels_roi.shape, strict=True)]
    cropped = np.zeros((roi.size,) * 3, dtype=labels_ijk.dtype)
    cropped[np.ix_(*inside)] = labels_roi[
        np.ix_(*(n[is_in] for n, is_in in zip(nearest, inside, strict=True)))
    ]
    return cropped
