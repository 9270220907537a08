"""The region that the network sees: placed around the clicks, cut out, and pasted back.

The ROI is a cube of size³ voxels at one isotropic spacing, in RAS+ order *along the image's own
axes*: ROI axis 0, 1, 2 runs along the stored axis that is closest to R, A, S, towards R, A, S.
That is what reorienting to RAS+ and resampling gives, which is what the published weights saw.
An oblique scan is thus not turned and its ROI has no blank corners, and ROI and image differ by
a scale and an offset along each axis only. Interpolation is therefore separable, whatever the
obliqueness, anisotropy, flips, handedness or axis order. A sheared image (gantry tilt) is handled
in the same way, with the lengths of the affine's columns as spacing.

Frames: `_ijk` is a stored voxel index, `_roi` a ROI voxel index, `_mm` RAS world millimetres.
Integers are voxel centres in both index frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from nibabel.orientations import io_orientation

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

ROUNDING = 1e-5
"""Relative error of an interpolation in float32, at most; about ten times what it is."""


@dataclass(frozen=True)
class Roi:
    """A cube of voxels on a stored image. Compares and hashes by value, so it can be part of a key.

    shape_ijk: the stored image's.
    image_affine_mm: rows of the (4, 4) matrix, stored index -> RAS mm.
    size: ROI voxels along each axis.
    spacing_mm: distance of ROI voxels, the same along each axis.
    axes: the stored axis along ROI axis 0, 1, 2.
    steps: stored voxels per ROI voxel along ROI axis 0, 1, 2; negative where the two run against
        each other.
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
        """The ROI that holds all points, as close as possible to being centred on the first.

        affine_mm: (4, 4) stored index -> RAS mm, not singular. points_ijk: (N, 3), N >= 1.
        The first point lands on the centre of ROI voxel size // 2 on each axis. The ROI is then
        moved along an axis only as far as needed for all points to have ROI indices within
        [0, size - 1]; where their extent does not fit, the spacing is first coarsened, on all axes
        alike, only as far as needed.
        """
        affine_mm = np.asarray(affine_mm, dtype=np.float64)
        points_ijk = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)
        orientation = io_orientation(affine_mm)
        axes = np.argsort(orientation[:, 0])
        signs = orientation[axes, 1]
        voxel_mm = np.linalg.norm(affine_mm[:3, :3], axis=0)[axes]

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
        """(4, 4) float64, ROI index -> RAS mm."""
        roi_to_ijk = np.zeros((4, 4))
        roi_to_ijk[self.axes, (0, 1, 2)] = self.steps
        roi_to_ijk[self.axes, 3] = self.starts
        roi_to_ijk[3, 3] = 1
        return np.array(self.image_affine_mm) @ roi_to_ijk

    @property
    def box_ijk(self) -> Box:
        """Half-open box of the stored voxels with ROI coordinates within [-0.5, size - 0.5]."""
        i, j, k = (self._bounds(axis) for axis in range(3))
        return i, j, k

    def to_roi(self, points_ijk: np.ndarray) -> np.ndarray:
        """Stored indices (N, 3) -> ROI indices (N, 3) float64."""
        points_ijk = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)
        return (points_ijk[:, self.axes] - self.starts) / self.steps

    def to_image(self, points_roi: np.ndarray) -> np.ndarray:
        """ROI indices (N, 3) -> stored indices (N, 3) float64."""
        points_roi = np.asarray(points_roi, dtype=np.float64).reshape(-1, 3)
        points_ijk = np.empty_like(points_roi)
        points_ijk[:, self.axes] = points_roi * self.steps + self.starts
        return points_ijk

    def crop(self, array_ijk: np.ndarray) -> np.ndarray:
        """The image at the ROI's voxel centres: (size, size, size) float32, ROI axis order.

        array_ijk: (I, J, K), real numbers, in any memory order. Linear interpolation; up to half a
        voxel outside of the outermost voxel centres the outermost value holds, beyond that 0.
        """
        if array_ijk.shape != self.shape_ijk:
            raise ValueError(f"the ROI lies on {self.shape_ijk} voxels, not {array_ijk.shape}")
        image_roi = array_ijk.transpose(self.axes)
        taps = [
            _linear_taps(np.arange(self.size) * step + start, length)
            for step, start, length in zip(self.steps, self.starts, image_roi.shape, strict=True)
        ]
        # A plane across the axis that is slowest in memory is read in one stretch.
        order = np.argsort([-abs(stride) for stride in image_roi.strides], kind="stable")
        cropped = _interpolate(image_roi.transpose(order), [taps[axis] for axis in order])
        return np.ascontiguousarray(cropped.transpose(np.argsort(order)))

    def paste(
        self, values_roi: np.ndarray, threshold: float = 0.0, within_ijk: Box | None = None
    ) -> np.ndarray:
        """The mask of the stored image: (I, J, K) uint8, 1 where the values exceed `threshold`.

        values_roi: (s, s, s) real numbers that divide the ROI cube into s³ cells (logits at 32³ or
        at 128³), ROI axis order. They are interpolated first and compared with the threshold last:
        trilinear upsampling to size³ (as torch's `interpolate` with align_corners=False), then
        linearly at the stored voxels' centres. Outside of `box_ijk`, and of the half-open
        `within_ijk` where given, the mask is 0. It lies in Fortran order, so that its transpose
        (k, j, i), which image writers take, is contiguous.
        """
        mask = np.zeros(self.shape_ijk, dtype=np.uint8, order="F")
        inside, box_ijk = self.paste_box(values_roi, threshold, within_ijk)
        mask[tuple(slice(*bounds) for bounds in box_ijk)] = inside
        return mask

    def paste_box(
        self, values_roi: np.ndarray, threshold: float = 0.0, within_ijk: Box | None = None
    ) -> tuple[np.ndarray, Box]:
        """`paste` without the zeros around: (i, j, k) uint8, and its half-open box, maybe empty.

        The box is about as small as the mask, as nothing is computed where all values are too low.
        """
        cells = len(values_roi)
        if values_roi.shape != (cells,) * 3:
            raise ValueError(f"the values must fill a cube, not {values_roi.shape}")
        values_kji = np.ascontiguousarray(values_roi.transpose(np.argsort(self.axes)[::-1]))
        is_high = values_kji > threshold - ROUNDING * abs(threshold)
        if not is_high.any():
            return np.zeros((0, 0, 0), dtype=np.uint8), ((0, 0), (0, 0), (0, 0))
        box_ijk = self.box_ijk if within_ijk is None else _intersect(self.box_ijk, within_ijk)
        cell_taps = _linear_taps((np.arange(self.size) + 0.5) * cells / self.size - 0.5, cells)
        box_kji, upsampling_kji, taps_kji = [], [], []
        for along, axis in enumerate((2, 1, 0)):
            start, stop = box_ijk[axis]
            high = np.flatnonzero(is_high.any(axis=tuple({0, 1, 2} - {along})))
            taps = _linear_taps(self._roi_indices(axis)[start:stop], self.size)
            reached = _reached(taps, *_reached(cell_taps, high[0], high[-1]))
            rows, taps = _trim(_select(taps, slice(reached[0], reached[1] + 1)))
            box_kji.append((start + reached[0], start + reached[1] + 1))
            upsampling_kji.append(_select(cell_taps, rows))
            taps_kji.append(taps)

        upsampled_kji = _interpolate(values_kji, upsampling_kji)
        mask_kji = np.empty([len(taps.lower) for taps in taps_kji], dtype=bool)
        planes = _interpolated_planes(upsampled_kji, taps_kji)
        for target, plane in zip(mask_kji, planes, strict=True):
            np.greater(plane, threshold, out=target)
        k, j, i = box_kji
        return mask_kji.view(np.uint8).transpose(), (i, j, k)

    def _roi_indices(self, axis: int) -> np.ndarray:
        """ROI coordinate of every stored voxel along stored axis `axis`."""
        along = self.axes.index(axis)
        return (np.arange(self.shape_ijk[axis]) - self.starts[along]) / self.steps[along]

    def _bounds(self, axis: int) -> tuple[int, int]:
        """Start and stop of the stored voxels inside the ROI along stored axis `axis`."""
        inside = np.flatnonzero(_is_inside(self._roi_indices(axis), self.size))
        return (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)


def crop_labels(roi: Roi, labels_ijk: np.ndarray) -> np.ndarray:
    """The label of the stored voxel nearest to each ROI voxel: (S, S, S); 0 outside."""
    labels_roi = labels_ijk.transpose(roi.axes)
    nearest = [
        np.rint(np.arange(roi.size) * step + start).astype(int)
        for step, start in zip(roi.steps, roi.starts, strict=True)
    ]
    inside = [(n >= 0) & (n < length) for n, length in zip(nearest, labels_roi.shape, strict=True)]
    cropped = np.zeros((roi.size,) * 3, dtype=labels_ijk.dtype)
    cropped[np.ix_(*inside)] = labels_roi[
        np.ix_(*(n[is_in] for n, is_in in zip(nearest, inside, strict=True)))
    ]
    return cropped


class _Taps(NamedTuple):
    """Interpolation along one axis of n places, each from two neighbouring values.

    lower, upper: (n,) indices of the two. lower_weight, upper_weight: (n,) float32.
    """

    lower: np.ndarray
    upper: np.ndarray
    lower_weight: np.ndarray
    upper_weight: np.ndarray


def _is_inside(positions: np.ndarray, length: int) -> np.ndarray:
    """Whether positions lie within `length` voxels, which end half a voxel past their centres."""
    return (positions >= -0.5) & (positions <= length - 0.5)


def _linear_taps(positions: np.ndarray, length: int) -> _Taps:
    """Linear interpolation of `length` values, given at 0, 1, …, at the positions (n,).

    Within half a voxel outside of the first and last value these hold; further out all is 0.
    """
    clamped = np.clip(positions, 0, length - 1)
    lower = np.floor(clamped).astype(np.intp)
    upper = np.minimum(lower + 1, length - 1)
    inside = _is_inside(positions, length)
    fraction = clamped - lower
    lower_weight = ((1 - fraction) * inside).astype(np.float32)
    return _Taps(lower, upper, lower_weight, (fraction * inside).astype(np.float32))


def _interpolate(image: np.ndarray, taps: Sequence[_Taps]) -> np.ndarray:
    """`_interpolated_planes` as one contiguous (a, b, c) float32 array."""
    result = np.empty([len(axis.lower) for axis in taps], dtype=np.float32)
    for target, plane in zip(result, _interpolated_planes(image, taps), strict=True):
        target[:] = plane
    return result


def _interpolated_planes(image: np.ndarray, taps: Sequence[_Taps]) -> Iterator[np.ndarray]:
    """Interpolate along all three axes, and yield the result plane by plane.

    image: (A, B, C) real numbers. taps: of a, b and c places. Yields a planes (b, c) float32. Two
    planes of the image are converted to float32 at a time, and only the part that the taps reach.
    """
    across, down, along = taps
    rows, down = _trim(down)
    columns, along = _trim(along)
    down = down._replace(
        lower_weight=down.lower_weight[:, None], upper_weight=down.upper_weight[:, None]
    )
    for lower, upper, lower_weight, upper_weight in zip(*across, strict=True):
        plane = image[lower, rows, columns].astype(np.float32)
        plane *= lower_weight
        above = image[upper, rows, columns].astype(np.float32)
        above *= upper_weight
        plane += above
        yield _blend(_blend(plane, along, axis=1), down, axis=0)


def _blend(plane: np.ndarray, taps: _Taps, axis: int) -> np.ndarray:
    """The plane interpolated along one axis; the weights broadcast to the result."""
    # take is several times faster than an index, and in place saves passes over the memory
    result = plane.take(taps.lower, axis, mode="clip")
    result *= taps.lower_weight
    upper = plane.take(taps.upper, axis, mode="clip")
    upper *= taps.upper_weight
    result += upper
    return result


def _select(taps: _Taps, places: slice) -> _Taps:
    return _Taps(*(part[places] for part in taps))


def _reached(taps: _Taps, first: int, last: int) -> tuple[int, int]:
    """First and last place whose interpolation touches the values `first` to `last`.

    Where there is none, last is below first.
    """
    places = np.flatnonzero((taps.upper >= first) & (taps.lower <= last))
    return (int(places[0]), int(places[-1])) if places.size else (0, -1)


def _trim(taps: _Taps) -> tuple[slice, _Taps]:
    """The stretch of the axis that the taps reach, and the taps on that stretch."""
    if not taps.lower.size:
        return slice(0, 0), taps
    start, stop = taps.lower.min(), taps.upper.max() + 1
    return slice(start, stop), taps._replace(lower=taps.lower - start, upper=taps.upper - start)


def _intersect(box_ijk: Box, other_ijk: Box) -> Box:
    """The common part of two half-open boxes; where there is none, stop is not above start."""
    i, j, k = (
        (max(box[0], other[0]), min(box[1], other[1]))
        for box, other in zip(box_ijk, other_ijk, strict=True)
    )
    return i, j, k
