"""Masks that reach the face of their ROI: they go on in a coarser ROI around it.

The finer ROI keeps its sharp edges; the coarser one gives what lies beyond. Both are functions of
image, weights, prompts and options alone, so the joined mask is one as well.

Call sequence, after the walk in a ROI:

1. `reaches_face` tells whether the mask goes on. If not, it is complete.
2. `coarser_mm` gives the voxel size of the next ROI; None if there is none.
3. Decode the same clicks in that ROI and walk there.
4. `fits_inside` tells whether the coarser mask is of a size that the finer ROI can judge. If so,
   `join` both; if not, use the coarser mask alone.
"""

from __future__ import annotations

import numpy as np

from lib.imaging.interpolation import interpolate, linear_taps
from lib.imaging.roi import Roi
from lib.infers.scale import LARGEST_MM

COARSER = 2.0
"""COARSER: factor from a ROI's voxel size to that of the next one."""

FACE_CELLS = 6
"""FACE_CELLS: a mask goes on if it covers at least this many cells of a face, of 64 x 64."""

LARGEST_SHARE = 0.75
"""LARGEST_SHARE: a mask is too large for a ROI if it covers more of two of the ROI's sides."""

BAND = 8.0
"""BAND: width in ROI voxels inside of the finer ROI's faces, where its values fade out."""


def coarser_roi(roi: Roi) -> Roi | None:
    """Return the ROI around another one with the next coarser voxel; None if there is none."""
    spacing_mm = coarser_mm(roi)
    if spacing_mm is None:
        return None
    middle_roi = np.full((1, 3), (roi.size - 1) / 2)
    return Roi.place(
        roi.shape_ijk,
        np.array(roi.image_affine_mm),
        roi.to_image(middle_roi),
        size=roi.size,
        spacing_mm=spacing_mm,
    )


def reaches_face(values: np.ndarray, threshold: float, roi: Roi) -> bool:
    """Return whether a mask ends at a face of the ROI beyond which the scan goes on.

    values: (c, c, c) on the cells of the ROI. The mask is where they are above the threshold.
    """
    inside = values > threshold
    needed = FACE_CELLS * (len(values) / 64) ** 2
    return any(
        np.count_nonzero(inside.take(end, axis)) >= needed
        for axis in range(3)
        for end in (0, -1)
        if _goes_on(roi, axis, end)
    )


def _goes_on(roi: Roi, axis: int, end: int) -> bool:
    """Return whether there are stored voxels beyond a face. end: 0 or -1, as an index."""
    outside = -0.5 if end == 0 else roi.size - 0.5
    position = outside * roi.steps[axis] + roi.starts[axis]
    towards = -roi.steps[axis] if end == 0 else roi.steps[axis]
    last = roi.shape_ijk[roi.axes[axis]] - 1
    return bool(position < last if towards > 0 else position > 0)


def coarser_mm(roi: Roi) -> float | None:
    """Return the voxel size in mm of the next coarser ROI; None if this one is the coarsest."""
    if roi.spacing_mm >= LARGEST_MM:
        return None
    return min(COARSER * roi.spacing_mm, LARGEST_MM)


def fits_inside(values: np.ndarray, threshold: float, coarse: Roi, fine: Roi) -> bool:
    """Return whether a mask on the coarser ROI is large along one axis of the finer ROI at most.

    A spine or an aorta leaves the finer ROI through two faces, but shows its whole width there. A
    lung fills it, so that the network sees no border.

    values: (c, c, c) on the cells of the coarser ROI.
    """
    inside = values > threshold
    cell_mm = coarse.size * coarse.spacing_mm / len(values)
    side_mm = fine.size * fine.spacing_mm
    sides_mm = [
        np.ptp(np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))) * cell_mm
        for axis in range(3)
        if inside.any()
    ]
    return bool(sum(length_mm > LARGEST_SHARE * side_mm for length_mm in sides_mm) <= 1)


def join(
    fine_values: np.ndarray,
    fine_threshold: float,
    fine: Roi,
    coarse_values: np.ndarray,
    coarse_threshold: float,
    coarse: Roi,
) -> tuple[np.ndarray, float]:
    """Return the values of both ROIs on the cells of the coarser one, and their threshold.

    fine_values, coarse_values: (c, c, c) on the cells of their ROIs. Returns (s, s, s) float32, a
    value for each voxel of the coarser ROI, and 0. Inside of the finer ROI its values count; within
    BAND of its faces they fade into those of the coarser ROI, so that no edge is cut there. Both
    ROIs must lie on the same image.
    """
    beyond = _resample(coarse_values - coarse_threshold, coarse, coarse)
    within = _resample(fine_values - fine_threshold, fine, coarse)
    fading = [_fade(fine, coarse, axis) for axis in range(3)]
    share = fading[0][:, None, None] * fading[1][:, None] * fading[2]
    beyond += share * (within - beyond)
    return beyond, 0.0


def _resample(values: np.ndarray, source: Roi, target: Roi) -> np.ndarray:
    """Return values (c, c, c) on the cells of a ROI at the voxels of another, (s, s, s) float32."""
    cells = len(values)
    taps = [
        linear_taps((_places(source, target, axis) + 0.5) * cells / source.size - 0.5, cells)
        for axis in range(3)
    ]
    return interpolate(values.astype(np.float32), taps)


def _places(source: Roi, target: Roi, axis: int) -> np.ndarray:
    """Return the index in the source ROI of each voxel of the target ROI along an axis."""
    stored = np.arange(target.size) * target.steps[axis] + target.starts[axis]
    return (stored - source.starts[axis]) / source.steps[axis]


def _fade(fine: Roi, coarse: Roi, axis: int) -> np.ndarray:
    """Return the finer ROI's share at each voxel of the coarser one along an axis, (s,) float32.

    At a face where the scan ends the finer ROI counts up to the face.
    """
    places = _places(fine, coarse, axis)
    share = np.ones(coarse.size)
    if _goes_on(fine, axis, 0):
        share = np.minimum(share, (places + 0.5) / BAND)
    if _goes_on(fine, axis, -1):
        share = np.minimum(share, (fine.size - 0.5 - places) / BAND)
    is_inside = (places >= -0.5) & (places <= fine.size - 0.5)
    return (np.clip(share, 0, 1) * is_inside).astype(np.float32)
