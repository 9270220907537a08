"""Holes in a series: a file that is no image lies where a slice should be.

Without the slice all others would be pushed together, and masks would lie somewhere else. So the
hole stays in the stack, filled with the mean of its neighbours, and a warning says so. A slice that
is missing without such a file is no hole: the series may be incomplete, and is refused.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 0.1
"""TOLERANCE: how far a step over a hole may differ from two steps, in median steps."""


def positions_with_holes(
    positions_mm: np.ndarray, normal: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of a stack with its holes, and the indices of the holes in it.

    positions_mm: (N, 3) LPS, sorted along the normal (3,). most: holes that there may be. If there
    are more, or one is wider than a slice, the positions come back as they are.
    """
    none = np.empty(0, np.intp)
    if most == 0 or len(positions_mm) < 3:
        return positions_mm, none
    steps_mm = np.diff(positions_mm @ normal)
    before = np.flatnonzero(np.abs(steps_mm / np.median(steps_mm) - 2) < TOLERANCE)
    if not 0 < len(before) <= most:
        return positions_mm, none
    between_mm = (positions_mm[before] + positions_mm[before + 1]) / 2
    filled_mm = np.insert(positions_mm, before + 1, between_mm, axis=0)
    return filled_mm, before + 1 + np.arange(len(before))


def fill_holes(voxels: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Return voxels (k, j, i) with the mean of both neighbours in each hole."""
    if not len(holes):
        return voxels
    filled = np.insert(voxels, holes - np.arange(len(holes)), 0, axis=0)
    for k in holes:
        mean = (filled[k - 1].astype(np.float64) + filled[k + 1]) / 2
        filled[k] = mean if voxels.dtype.kind == "f" else np.rint(mean)
    return filled


def warning_of(holes: np.ndarray) -> tuple[str, ...]:
    """Return a warning about the holes, or none."""
    if not len(holes):
        return ()
    numbers = ", ".join(str(k + 1) for k in holes)
    return (f"slice {numbers} of the stack is missing; the mean of its neighbours is there",)
