"""Separable linear interpolation, plane by plane, computing only the part that is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Taps(NamedTuple):
    """Interpolation along one axis at n places, each between two neighbouring values.

    lower, upper: (n,) indices of the two values. lower_weight, upper_weight: (n,) float32.
    """

    lower: np.ndarray
    upper: np.ndarray
    lower_weight: np.ndarray
    upper_weight: np.ndarray


def is_inside(positions: np.ndarray, length: int) -> np.ndarray:
    """Return which positions lie within `length` voxels, which reach half a voxel past centres."""
    return (positions >= -0.5) & (positions <= length - 0.5)


def linear_taps(positions: np.ndarray, length: int) -> Taps:
    """Return the taps at positions (n,) between `length` values that lie at 0, 1, ….

    The first and last value extend half a voxel beyond their positions. Further out the result
    is 0.
    """
    clamped = np.clip(positions, 0, length - 1)
    lower = np.floor(clamped).astype(np.intp)
    upper = np.minimum(lower + 1, length - 1)
    inside = is_inside(positions, length)
    fraction = clamped - lower
    lower_weight = ((1 - fraction) * inside).astype(np.float32)
    return Taps(lower, upper, lower_weight, (fraction * inside).astype(np.float32))


def interpolate(image: np.ndarray, taps: Sequence[Taps]) -> np.ndarray:
    """Return `interpolated_planes` as one contiguous (a, b, c) float32 array."""
    result = np.empty([len(axis.lower) for axis in taps], dtype=np.float32)
    for target, plane in zip(result, interpolated_planes(image, taps), strict=True):
        target[:] = plane
    return result


def interpolated_planes(image: np.ndarray, taps: Sequence[Taps]) -> Iterator[np.ndarray]:
    """Interpolate an image along all three axes and yield the result plane by plane.

    image: (A, B, C) real numbers. taps: for a, b and c places along the three axes. Yields a planes
    (b, c) float32. Only two planes of the image are converted to float32 at a time, and of these
    only the part that the taps use.
    """
    across, down, along = taps
    rows, down = trim(down)
    columns, along = trim(along)
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


def _blend(plane: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """Interpolate a plane along one axis; the weights broadcast to the result."""
    # take is several times faster than an index; working in place saves passes over the memory
    result = plane.take(taps.lower, axis, mode="clip")
    result *= taps.lower_weight
    upper = plane.take(taps.upper, axis, mode="clip")
    upper *= taps.upper_weight
    result += upper
    return result


def select(taps: Taps, places: slice) -> Taps:
    """Return the taps at some of the places."""
    return Taps(*(part[places] for part in taps))


def places_between(taps: Taps, first: int, last: int) -> tuple[int, int]:
    """Return the first and last place whose interpolation uses any of the values first to last.

    If there is none, the last place is below the first.
    """
    places = np.flatnonzero((taps.upper >= first) & (taps.lower <= last))
    return (int(places[0]), int(places[-1])) if places.size else (0, -1)


def trim(taps: Taps) -> tuple[slice, Taps]:
    """Return the range of values that the taps use, and the taps relative to its start."""
    if not taps.lower.size:
        return slice(0, 0), taps
    start, stop = taps.lower.min(), taps.upper.max() + 1
    return slice(start, stop), taps._replace(lower=taps.lower - start, upper=taps.upper - start)
