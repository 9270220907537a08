"""Drawings on the ROI: what a box, a lasso or a scribble says about each of its cells.

The networks know points and a previous mask only. A drawing knows more: how large the structure is,
and where it is and is not. `describe` turns the prompt into a `Drawing`: terms of a regression for
the probability of each cell, places for the intensity model (:mod:`lib.infers.drawing_prior`), and
cells that the drawing decides. Lengths in the terms are relative to the drawing, so that they mean
the same at each scale.

All places are ROI voxel indices (N, 3), float64; a ROI is isotropic, so a drawing may lie in any
oblique plane. Cells divide the ROI cube, :data:`~lib.infers.random_walker.CELLS` along each side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lib.infers.random_walker import CELLS
from lib.infers.roi_cells import (
    cell_side,
    distance_along,
    farthest_of,
    in_polygon,
    middle_and_half,
    path_cells,
    places_along,
    radius_of,
    relative_lines,
    spread,
)
from lib.infers.scale import LARGEST_MM, SMALLEST_MM

FLAT = 0.02
"""FLAT: a box lies in a plane if its shortest side is below this part of its longest one."""

ROI_PER_EXTENT = {"box": 2.2, "flat_box": 2.2, "lasso": 2.2, "scribble": 5.0}
"""ROI_PER_EXTENT: side of the ROI, in longest sides of the box around the drawing.

A scribble is about half as long as its structure.
"""

REACH = 3.0
"""REACH: the structure ends within this many radii (plane drawings) or extents (scribble)."""

POLYGON_CELLS = 96
"""POLYGON_CELLS: cells along the longer side of a lasso where its depth is computed."""

PLANE_CELLS = 0.6
"""PLANE_CELLS: cells whose centre is nearer to a plane lie in it."""

SURE_DEPTH = 0.12
"""SURE_DEPTH: a lasso decides the cells of its plane that are further from its line, in radii."""

SURE_OUTSIDE = 1.15
"""SURE_OUTSIDE: a box in a plane decides the cells of its plane beyond this many half sides."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """What a drawing says about the ROI's cells. Arrays are (CELLS,)*3 in ROI axis order.

    kind: box, flat_box, lasso or scribble. terms: float32 terms of the regression, see
    `drawing_prior.COEFFICIENTS`. near: bool, where the structure may be. inside, outside: float32
    weights of the cells whose intensities are those of the structure and of its surroundings.
    fixed: float32, 1 or 0 where the drawing decides, NaN elsewhere. clicks_roi: (N, 3) places in
    the structure, for a network that knows points.
    """

    kind: str
    terms: tuple[np.ndarray, ...]
    near: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    fixed: np.ndarray
    clicks_roi: np.ndarray


def kind_of(subtype: str, path: np.ndarray) -> str:
    """Return box, flat_box, lasso or scribble for a prompt.

    subtype: bounding_box, lasso or scribble. path: (N, 3) in an isotropic frame (ROI indices, mm).
    Raises ValueError for another subtype.
    """
    if subtype == "bounding_box":
        sides = np.ptp(path, axis=0)
        return "flat_box" if sides.min() < FLAT * sides.max() else "box"
    if subtype not in ("lasso", "scribble"):
        raise ValueError(f"a drawing is a bounding_box, lasso or scribble, not {subtype!r}")
    return subtype


def roi_rule(
    subtype: str, path_ijk: np.ndarray, voxel_mm: np.ndarray, roi_size: int
) -> tuple[np.ndarray, float]:
    """Return the ROI's centre, (3,) stored index, and its voxel size in mm, for a drawing.

    path_ijk: (N, 3) stored indices. voxel_mm: (3,) voxel sizes along I, J, K. roi_size: ROI voxels
    along each side. If a drawing is longer than the largest ROI, `Roi.place` with its points
    makes the ROI larger.
    """
    low, high = path_ijk.min(axis=0), path_ijk.max(axis=0)
    extent_mm = float(((high - low) * voxel_mm).max())
    factor = ROI_PER_EXTENT[kind_of(subtype, path_ijk * voxel_mm)]
    spacing_mm = float(np.clip(factor * extent_mm / roi_size, SMALLEST_MM, LARGEST_MM))
    return (low + high) / 2, spacing_mm


def describe(subtype: str, path_roi: np.ndarray, roi_size: int) -> Drawing:
    """Return what a drawing says.

    subtype: bounding_box (two corners), lasso (closed path, N >= 3) or scribble (open path).
    path_roi: (N, 3) ROI voxel indices. roi_size: ROI voxels along each side.
    """
    path_roi = np.asarray(path_roi, dtype=np.float64)
    kind = kind_of(subtype, path_roi)
    return _KINDS[kind](path_roi, roi_size)


def region(subtype: str, path_roi: np.ndarray, roi_size: int) -> np.ndarray:
    """Return the cells that a drawing encloses or crosses, (CELLS,)*3 bool.

    A box in space holds its cells, a box in a plane and a lasso those of their plane, a scribble
    those on its line. As background these cells are not of the structure. Arguments: `describe`.
    """
    path_roi = np.asarray(path_roi, dtype=np.float64)
    kind = kind_of(subtype, path_roi)
    if kind == "scribble":
        return path_cells(path_roi, roi_size)
    if kind == "lasso":
        across, depth, _ = _lasso_fields(path_roi, roi_size)
        return np.asarray((np.abs(across) < PLANE_CELLS * cell_side(roi_size)) & (depth > 0))
    middle, half = middle_and_half(path_roi, PLANE_CELLS * cell_side(roi_size))
    i, j, k = (np.abs(line) <= 1 for line in relative_lines(middle, half, roi_size))
    return i[:, None, None] & j[:, None] & k


def _box(corners_roi: np.ndarray, roi_size: int) -> Drawing:
    middle, half = middle_and_half(corners_roi, 1.0)
    lines = [np.abs(line) for line in relative_lines(middle, half, roi_size)]
    radius, farthest = radius_of(lines), farthest_of(lines)
    near = farthest <= 1.15
    inside = _sigmoid(2 - 3.5 * radius) * (farthest <= 1)
    shell = (farthest > 1.05) & (farthest < 1.6)
    outside = shell + (1 - inside) * (farthest <= 1)
    terms = (radius, farthest)
    return Drawing("box", terms, near, inside, outside, _undecided(), middle[None])


def _flat_box(corners_roi: np.ndarray, roi_size: int) -> Drawing:
    sides = np.ptp(corners_roi, axis=0)
    normal = int(sides.argmin())
    middle, half = middle_and_half(corners_roi, 1.0)
    flat = np.delete(half, normal)
    half[normal] = np.sqrt(flat.prod())  # a structure is as thick as it is wide, on the average
    lines = [np.abs(line) for line in relative_lines(middle, half, roi_size)]
    height = lines[normal]
    flat_lines = [np.zeros(CELLS, np.float32) if a == normal else lines[a] for a in range(3)]
    radius, farthest, height = (
        radius_of(flat_lines),
        farthest_of(flat_lines),
        spread(height, normal),
    )
    in_plane = height * half[normal] < PLANE_CELLS * cell_side(roi_size)
    thick = height * half[normal] < max(cell_side(roi_size), 0.1 * half[normal])
    inside = thick * _sigmoid(2.3 - 4 * radius)
    ring = (farthest > 1.05) & (farthest < 1.8)
    outside = thick * (ring + (farthest <= 1) * (1 - inside))
    terms = _plane_terms(radius, height, farthest)
    near = (farthest < 1.5) & (height < REACH)
    fixed = _undecided()
    fixed[in_plane & (farthest > SURE_OUTSIDE)] = 0
    return Drawing("flat_box", terms, near, inside, outside, fixed, middle[None])


def _lasso(path_roi: np.ndarray, roi_size: int) -> Drawing:
    across, depth, area = _lasso_fields(path_roi, roi_size)
    radius = np.sqrt(area / np.pi)  # of a disk of the same area
    deepest = max(float(depth.max()), 1e-6)
    edge, height = 1 - depth / deepest, np.abs(across) / radius
    in_plane = np.abs(across) < PLANE_CELLS * cell_side(roi_size)
    thick = np.abs(across) < max(cell_side(roi_size), 0.1 * radius)
    inside = (thick & (edge < 1)).astype(np.float32)
    outside = (thick & (edge > 1.1) & (edge < 2.5)).astype(np.float32)
    near = (edge < 2) & (height < REACH)
    fixed = _undecided()
    fixed[in_plane & (depth < -SURE_DEPTH * radius)] = 0
    fixed[in_plane & (depth > SURE_DEPTH * radius)] = 1
    terms = _plane_terms(edge, height)
    deepest_cell = np.unravel_index(np.argmax(np.where(in_plane, depth, -np.inf)), depth.shape)
    click = (np.array(deepest_cell) + 0.5) * cell_side(roi_size) - 0.5
    return Drawing("lasso", terms, near, inside, outside, fixed, click[None])


def _scribble(path_roi: np.ndarray, roi_size: int) -> Drawing:
    on_path = path_cells(path_roi, roi_size)
    extent = max(float(np.ptp(path_roi, axis=0).max()), 2 * cell_side(roi_size))
    distance = ndimage.distance_transform_edt(~on_path) * (cell_side(roi_size) / extent)
    distance = np.minimum(distance.astype(np.float32), REACH)
    inside = np.exp(-np.square(distance / 0.15))
    outside = (distance > 1).astype(np.float32)
    fixed = _undecided()
    fixed[on_path] = 1
    terms = (distance, np.sqrt(distance))
    clicks = places_along(path_roi, np.array([0, 0.5, 1]))
    return Drawing("scribble", terms, distance < REACH, inside, outside, fixed, clicks)


_KINDS: dict[str, Callable[[np.ndarray, int], Drawing]] = {
    "box": _box,
    "flat_box": _flat_box,
    "lasso": _lasso,
    "scribble": _scribble,
}


def _plane_terms(edge: np.ndarray, height: np.ndarray, *others: np.ndarray) -> tuple:
    """Return the terms of a drawing in a plane.

    edge: place in the plane, 0 in the middle and 1 at the line. height: distance from the plane, in
    radii of a disk of the same area. The root of their squares is 1 where a ball would end.
    """
    edge, height = (np.clip(field, 0, REACH).astype(np.float32) for field in (edge, height))
    ball = np.sqrt(edge**2 + height**2)
    return (edge, height, ball, edge * height, *others)


def _lasso_fields(path_roi: np.ndarray, roi_size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return each cell's distance from the lasso's plane, its depth in the lasso, and the area.

    The depth is the distance from the line, negative outside, of the cell's projection.
    """
    middle = path_roi.mean(axis=0)
    first, second, normal = np.linalg.svd(path_roi - middle, full_matrices=False)[2]
    corners = (path_roi - middle) @ np.stack([first, second], axis=1)
    low, high = corners.min(axis=0), corners.max(axis=0)
    step = float((high - low).max()) / POLYGON_CELLS
    start = low - POLYGON_CELLS / 2 * step  # half of the longer side around it
    counts = np.ceil((high - low) / step).astype(int) + POLYGON_CELLS + 1
    x, y = (start[axis] + step * np.arange(counts[axis]) for axis in range(2))
    is_inside = in_polygon(x[:, None], y[None], corners)
    signed = ndimage.distance_transform_edt(is_inside) - ndimage.distance_transform_edt(~is_inside)
    places = distance_along(first, middle, roi_size), distance_along(second, middle, roi_size)
    indices = [(place - start[axis]) / step for axis, place in enumerate(places)]
    depth = ndimage.map_coordinates(
        (signed * step).astype(np.float32), indices, order=1, mode="nearest"
    )
    area = float(np.count_nonzero(is_inside)) * step**2
    return distance_along(normal, middle, roi_size), depth, max(area, step**2)


def _undecided() -> np.ndarray:
    return np.full((CELLS,) * 3, np.nan, dtype=np.float32)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))
