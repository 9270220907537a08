"""A mask on a stored image's grid that takes the memory of its box only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

STRETCH_BYTES = 2**18
"""About what a socket takes at once, and what stays in a processor's cache on the way to it."""


@dataclass(frozen=True, eq=False)
class BoxMask:
    """0 outside of ``box_ijk``, so that a click on a large scan touches few of its voxels.

    values: (i, j, k) uint8, the mask inside of the box.
    box_ijk: half-open, in stored voxels. shape_ijk: of the stored image.
    affine_mm: (4, 4) stored index -> RAS mm.
    """

    values: np.ndarray
    box_ijk: Box
    shape_ijk: tuple[int, ...]
    affine_mm: np.ndarray

    @property
    def nbytes(self) -> int:
        """Of the whole mask at one byte a voxel."""
        return int(np.prod(self.shape_ijk))

    def including(self, voxels_ijk: np.ndarray) -> BoxMask:
        """The same mask with a box that holds the voxels (N, 3) too, which must be in the image."""
        box_ijk = _hull(self.box_ijk, voxels_ijk)
        if box_ijk == self.box_ijk:
            return self
        values = np.zeros([stop - start for start, stop in box_ijk], dtype=np.uint8, order="F")
        if self.values.size:
            values[_slices(self.box_ijk, box_ijk)] = self.values
        return replace(self, values=values, box_ijk=box_ijk)

    def set_voxel(self, i: int, j: int, k: int, value: int) -> None:
        """The voxel must be inside of the box."""
        starts = (start for start, _ in self.box_ijk)
        inside = tuple(index - start for index, start in zip((i, j, k), starts, strict=True))
        self.values[inside] = value

    def whole(self, dtype: npt.DTypeLike = np.uint8) -> np.ndarray:
        """(I, J, K) in Fortran order: i runs fastest, as in a file."""
        mask = np.zeros(self.shape_ijk, dtype=dtype, order="F")
        mask[_slices(self.box_ijk)] = self.values
        return mask

    def stretches(self) -> Iterator[memoryview]:
        """The bytes of ``whole()`` in the order of a file, a stretch at a time.

        What is 0 anyway comes from one block of zeros; the other planes are made one by one.
        """
        length_i, length_j, _ = self.shape_ijk
        (i0, i1), (j0, j1), (k0, k1) = self.box_ijk
        plane_bytes = length_i * length_j
        yield from _zeros(k0 * plane_bytes)
        planes = max(1, STRETCH_BYTES // plane_bytes)
        for first in range(k0, k1, planes):
            last = min(first + planes, k1)
            slab_kji = np.zeros((last - first, length_j, length_i), dtype=np.uint8)
            slab_kji[:, j0:j1, i0:i1] = self.values[:, :, first - k0 : last - k0].transpose()
            yield slab_kji.data.cast("B")
        yield from _zeros(self.nbytes - k1 * plane_bytes)


def _hull(box_ijk: Box, voxels_ijk: np.ndarray) -> Box:
    """The smallest half-open box around a box, which may be empty, and voxels (N, 3)."""
    starts, stops = np.transpose(box_ijk)
    points = [voxels_ijk] if np.any(starts >= stops) else [voxels_ijk, [starts, stops - 1]]
    corners = np.concatenate(points)
    if not len(corners):
        return (0, 0), (0, 0), (0, 0)
    low, high = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    i, j, k = ((first, last + 1) for first, last in zip(low, high, strict=True))
    return i, j, k


def _slices(box_ijk: Box, outer_ijk: Box | None = None) -> tuple[slice, ...]:
    """Of a box in an array of the whole image, or of an outer box."""
    offsets = [start for start, _ in outer_ijk] if outer_ijk else [0, 0, 0]
    return tuple(
        slice(start - offset, stop - offset)
        for (start, stop), offset in zip(box_ijk, offsets, strict=True)
    )


def _zeros(count: int) -> Iterator[memoryview]:
    block = memoryview(bytes(min(count, STRETCH_BYTES)))
    for start in range(0, count, STRETCH_BYTES):
        yield block[: min(STRETCH_BYTES, count - start)]
