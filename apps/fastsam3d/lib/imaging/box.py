"""Half-open boxes of voxels: ((i0, i1), (j0, j1), (k0, k1)); the stops are not part of a box."""

from __future__ import annotations

import numpy as np

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

EMPTY_BOX: Box = ((0, 0), (0, 0), (0, 0))


def box_slices(box_ijk: Box, outer_ijk: Box | None = None) -> tuple[slice, ...]:
    """Return the index of a box in an array of the whole image, or of an outer box if given."""
    offsets = [start for start, _ in outer_ijk] if outer_ijk else [0, 0, 0]
    return tuple(
        slice(start - offset, stop - offset)
        for (start, stop), offset in zip(box_ijk, offsets, strict=True)
    )


def contains(box_ijk: Box, i: int, j: int, k: int) -> bool:
    """Return whether a voxel lies in a box."""
    bounds = zip((i, j, k), box_ijk, strict=True)
    return all(start <= index < stop for index, (start, stop) in bounds)


def intersect(box_ijk: Box, other_ijk: Box) -> Box:
    """Return the common part of two boxes; if there is none, a stop is not above its start."""
    i, j, k = (
        (max(box[0], other[0]), min(box[1], other[1]))
        for box, other in zip(box_ijk, other_ijk, strict=True)
    )
    return i, j, k


def hull(box_ijk: Box, voxels_ijk: np.ndarray) -> Box:
    """Return the smallest box around a box, which may be empty, and voxels (N, 3)."""
    starts, stops = np.transpose(box_ijk)
    corners = voxels_ijk
    if np.all(starts < stops):
        corners = np.concatenate([voxels_ijk, np.stack([starts, stops - 1])])
    if not len(corners):
        return EMPTY_BOX
    low, high = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    i, j, k = ((first, last + 1) for first, last in zip(low, high, strict=True))
    return i, j, k


def hull_of_boxes(box_ijk: Box, other_ijk: Box) -> Box:
    """Return the smallest box around two boxes, which may be empty."""
    starts, stops = np.transpose(other_ijk)
    return hull(box_ijk, np.stack([starts, stops - 1])) if np.all(starts < stops) else box_ijk
