"""Simulated drawings on a known structure: boxes, a lasso and a scribble, as a person makes them.

All places are stored voxel indices (i, j, k), float64; integers are voxel centres, and the places
lie in the image. A drawing is a function of the structure and of the generator alone.

`box`: the box around the structure, each of its six sides moved on its own. `box_in_plane`: the
same in one slice. `lasso`: the outline of the largest part in that slice, as POINTS points, each
moved on its own. `scribble`: a path in that part, about half as long as the part, which keeps away
from the outline. The slice is the one with the largest area of the structure (the first of
several), across the stored axis with the largest voxel, or k if several are that large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import skimage.graph
import skimage.measure
from scipy import ndimage

from .protocols import largest_part

_measure: Any = skimage.measure  # it has no type annotations
_graph: Any = skimage.graph

SIDE_ERROR = 0.05
"""SIDE_ERROR: a side of a box moves by up to this part of the structure's extent, either way."""

POINTS = 20
"""POINTS: corners of a lasso."""

POINT_ERROR = 0.03
"""POINT_ERROR: standard deviation of a lasso's points along each axis, as part of the extent."""

SCRIBBLE_LENGTH = 0.5
"""SCRIBBLE_LENGTH: distance between the ends of a scribble, as part of the extent."""

BORDER = 0.49
"""BORDER: a drawing ends this part of a voxel beyond the centres of the outermost voxels."""


def box(
    target: np.ndarray, spacing_mm: Sequence[float], generator: np.random.Generator
) -> np.ndarray:
    """Return two opposite corners of a box in space, (2, 3).

    target: (I, J, K) bool, not empty. spacing_mm: voxel sizes; a box does not depend on them.
    """
    return _moved_box(target, generator)


def box_in_plane(
    target: np.ndarray, spacing_mm: Sequence[float], generator: np.random.Generator
) -> np.ndarray:
    """Return two opposite corners of a box in a slice, (2, 3); they share one coordinate.

    target: (I, J, K) bool, not empty. spacing_mm: voxel sizes along I, J, K.
    """
    axis, index, mask = largest_slice(target, spacing_mm)
    return np.insert(_moved_box(mask, generator), axis, index, axis=1)


def lasso(
    target: np.ndarray, spacing_mm: Sequence[float], generator: np.random.Generator
) -> np.ndarray:
    """Return the corners of a closed path in a slice, (POINTS, 3); the first is not repeated.

    target: (I, J, K) bool, not empty. spacing_mm: voxel sizes along I, J, K.
    """
    axis, index, mask = largest_slice(target, spacing_mm)
    voxel_mm = np.delete(np.asarray(spacing_mm, dtype=float), axis)
    part = largest_part(mask)
    contours = _measure.find_contours(np.pad(part, 1).astype(float), 0.5)
    outline = max(contours, key=len) - 1
    steps = np.linalg.norm(np.diff(outline, axis=0) * voxel_mm, axis=1)
    along = np.concatenate([[0], np.cumsum(steps)])
    places = np.linspace(0, along[-1], POINTS, endpoint=False)
    points = np.stack([np.interp(places, along, column) for column in outline.T], axis=1)
    error_mm = POINT_ERROR * _extent_mm(part, voxel_mm) * generator.standard_normal(points.shape)
    inside = _in_image(points + error_mm / voxel_mm, mask.shape)
    return np.insert(inside, axis, index, axis=1)


def scribble(
    target: np.ndarray, spacing_mm: Sequence[float], generator: np.random.Generator
) -> np.ndarray:
    """Return the points of an open path in a slice, (N, 3), N >= 1, all in the structure.

    target: (I, J, K) bool, not empty. spacing_mm: voxel sizes along I, J, K. The path starts at a
    random voxel, which is likelier the deeper it lies, and is the cheapest one where a step costs
    the inverse of the depth.
    """
    axis, index, mask = largest_slice(target, spacing_mm)
    voxel_mm = np.delete(np.asarray(spacing_mm, dtype=float), axis)
    part = largest_part(mask)
    depth = ndimage.distance_transform_edt(np.pad(part, 1), sampling=voxel_mm)[1:-1, 1:-1]
    voxels, depths = np.argwhere(part), depth[part]
    start = voxels[generator.choice(len(voxels), p=depths / depths.sum())]
    distance_mm = np.linalg.norm((voxels - start) * voxel_mm, axis=1)
    length_mm = SCRIBBLE_LENGTH * _extent_mm(part, voxel_mm)
    # the deep voxels at about the right distance; where there are none, the furthest one
    likely = depths * (np.abs(distance_mm - length_mm) < 0.2 * length_mm)
    if likely.any():
        end = voxels[generator.choice(len(voxels), p=likely / likely.sum())]
    else:
        end = voxels[np.abs(distance_mm - length_mm).argmin()]
    cost = np.where(part, 1 / np.maximum(depth, 1e-6), -1)  # negative: not to be crossed
    path, _ = _graph.route_through_array(cost, start, end, geometric=True)
    return np.insert(np.array(path, dtype=np.float64), axis, index, axis=1)


DRAWINGS: Mapping[str, Callable[[np.ndarray, Sequence[float], np.random.Generator], np.ndarray]] = {
    "box": box,
    "box_in_plane": box_in_plane,
    "lasso": lasso,
    "scribble": scribble,
}
"""DRAWINGS: the simulated drawings by name."""


def largest_slice(target: np.ndarray, spacing_mm: Sequence[float]) -> tuple[int, int, np.ndarray]:
    """Return axis, index and mask (2D, bool) of the slice that a person would draw in."""
    largest = max(spacing_mm)
    axis = 2 - int(np.argmax([size > 0.99 * largest for size in spacing_mm[::-1]]))
    areas = np.count_nonzero(target, axis=tuple({0, 1, 2} - {axis}))
    index = int(areas.argmax())
    return axis, index, target.take(index, axis=axis)


def _moved_box(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the corners (2, n) of the box around a mask of n axes, each side moved."""
    places = np.argwhere(mask)
    low, high = places.min(axis=0) - 0.5, places.max(axis=0) + 0.5
    error = generator.uniform(-SIDE_ERROR, SIDE_ERROR, (2, mask.ndim)) * (high - low)
    return _in_image(np.stack([low, high]) + error, mask.shape)


def _extent_mm(part: np.ndarray, voxel_mm: np.ndarray) -> float:
    """Return the longer side of the box around a part, in mm."""
    places = np.argwhere(part)
    return float(((np.ptp(places, axis=0) + 1) * voxel_mm).max())


def _in_image(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the points, moved to the image where they lie outside."""
    return np.clip(points, -BORDER, np.array(shape) - 1 + BORDER)
