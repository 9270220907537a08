"""Places of the ROI's cells relative to boxes, planes and paths.

Cells divide the ROI cube, :data:`~lib.infers.random_walker.CELLS` along each side. All places are
ROI voxel indices, float64; integers are voxel centres. roi_size: ROI voxels along each side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from lib.infers.random_walker import CELLS


def in_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return whether places lie in a polygon (N, 2), which may cross itself.

    The line winds around a place in it (the non-zero rule), so that overlapping ends leave no hole.
    """
    winding = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            is_left = x < x0 + (x1 - x0) * (y - y0) / (y1 - y0)
            winding += (crosses & is_left) * (1 if y1 > y0 else -1)
    return winding != 0


def path_cells(path_roi: np.ndarray, roi_size: int) -> np.ndarray:
    """Return the cells that an open path crosses, (CELLS,)*3 bool."""
    length = np.linalg.norm(np.diff(path_roi, axis=0), axis=1).sum()
    count = int(np.ceil(2 * length / cell_side(roi_size))) + 1
    places = (places_along(path_roi, np.linspace(0, 1, count)) + 0.5) / cell_side(roi_size)
    cells = np.clip(places.astype(int), 0, CELLS - 1)
    on_path = np.zeros((CELLS,) * 3, dtype=bool)
    on_path[tuple(cells.T)] = True
    return on_path


def places_along(path_roi: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the places (n, 3) at shares (n,) of a path's length."""
    steps = np.linalg.norm(np.diff(path_roi, axis=0), axis=1)
    lengths = np.concatenate([[0], np.cumsum(steps)])
    columns = [np.interp(shares * lengths[-1], lengths, column) for column in path_roi.T]
    return np.stack(columns, axis=1)


def cell_side(roi_size: int) -> float:
    """Return the side of a cell in ROI voxels."""
    return roi_size / CELLS


def cell_centres(roi_size: int) -> np.ndarray:
    """Return the ROI indices of the cells' centres along an axis, (CELLS,) float32."""
    return ((np.arange(CELLS) + 0.5) * cell_side(roi_size) - 0.5).astype(np.float32)


def distance_along(direction: np.ndarray, origin: np.ndarray, roi_size: int) -> np.ndarray:
    """Return how far each cell's centre lies from the origin along a direction of length 1."""
    i, j, k = ((cell_centres(roi_size) - origin[a]) * np.float32(direction[a]) for a in range(3))
    return np.asarray(i[:, None, None] + j[:, None] + k, dtype=np.float32)


def middle_and_half(corners_roi: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle and half the sides of a box, each at least `least`."""
    low, high = corners_roi.min(axis=0), corners_roi.max(axis=0)
    return (low + high) / 2, np.maximum((high - low) / 2, least)


def relative_lines(middle: np.ndarray, half: np.ndarray, roi_size: int) -> list[np.ndarray]:
    """Return the cells' places along each axis in a box: -1 and 1 are its sides."""
    return [
        ((cell_centres(roi_size) - middle[axis]) / half[axis]).astype(np.float32)
        for axis in range(3)
    ]


def radius_of(lines: list[np.ndarray]) -> np.ndarray:
    """Return the root of the squares of the lines' values, (CELLS,)*3."""
    i, j, k = (np.square(line) for line in lines)
    return np.asarray(np.sqrt(i[:, None, None] + j[:, None] + k))


def farthest_of(lines: list[np.ndarray]) -> np.ndarray:
    """Return the largest of the lines' values, (CELLS,)*3."""
    i, j, k = lines
    return np.maximum(np.maximum(i[:, None, None], j[:, None]), k)


def spread(line: np.ndarray, axis: int) -> np.ndarray:
    """Return the values along one axis for all cells, (CELLS,)*3."""
    shape = [1, 1, 1]
    shape[axis] = CELLS
    return np.broadcast_to(line.reshape(shape), (CELLS,) * 3)


def on_cells(values: np.ndarray) -> np.ndarray:
    """Return values (s, s, s) float32 on the cells, (CELLS,)*3, interpolated if s differs."""
    if len(values) == CELLS:
        return values
    volume = torch.from_numpy(values)[None, None]
    return F.interpolate(volume, size=(CELLS,) * 3, mode="trilinear")[0, 0].numpy()
