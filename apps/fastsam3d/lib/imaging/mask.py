"""A mask on the grid of a stored image that takes only the memory of its box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from nibabel.affines import from_matvec

from lib.imaging.box import Box, box_slices, hull

CHUNK_BYTES = 2**18
"""CHUNK_BYTES: about what a socket takes at once and a processor's cache holds."""


@dataclass(frozen=True, eq=False)
class BoxMask:
    """A mask that is 0 outside of `box_ijk`, so that a click touches few voxels of a large scan.

    values: (i, j, k) uint8, the mask inside the box.
    box_ijk: half-open box of stored voxels.
    shape_ijk: the shape (I, J, K) of the stored image.
    affine_mm: (4, 4) stored index -> RAS mm.
    """

    values: np.ndarray
    box_ijk: Box
    shape_ijk: tuple[int, ...]
    affine_mm: np.ndarray

    @property
    def nbytes(self) -> int:
        """The size of the whole mask at one byte a voxel."""
        return int(np.prod(self.shape_ijk))

    def including(self, voxels_ijk: np.ndarray) -> BoxMask:
        """Return the same mask with a box that also holds the voxels (N, 3) of the image."""
        box_ijk = hull(self.box_ijk, voxels_ijk)
        if box_ijk == self.box_ijk:
            return self
        values = np.zeros([stop - start for start, stop in box_ijk], dtype=np.uint8, order="F")
        if self.values.size:
            values[box_slices(self.box_ijk, box_ijk)] = self.values
        return replace(self, values=values, box_ijk=box_ijk)

    def covering(self, box_ijk: Box) -> BoxMask:
        """Return the same mask with a box that also holds another half-open box."""
        starts, stops = np.transpose(box_ijk)
        return self.including(np.stack([starts, stops - 1])) if np.all(starts < stops) else self

    @property
    def box_affine_mm(self) -> np.ndarray:
        """The affine of ``values``: (4, 4), index in the box -> RAS mm."""
        offset_ijk = [start for start, _ in self.box_ijk]
        return self.affine_mm @ from_matvec(np.eye(3), offset_ijk)

    def whole(self, dtype: npt.DTypeLike = np.uint8) -> np.ndarray:
        """Return the mask of the whole image, (I, J, K) in Fortran order as in a file."""
        mask = np.zeros(self.shape_ijk, dtype=dtype, order="F")
        mask[box_slices(self.box_ijk)] = self.values
        return mask

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes of `whole()` in file order, in chunks of at most CHUNK_BYTES or a plane.

        Only the planes of the box are made, a few at a time. All others share one block of zeros.
        """
        length_i, length_j, _ = self.shape_ijk
        (i0, i1), (j0, j1), (k0, k1) = self.box_ijk
        plane_bytes = length_i * length_j
        yield from _zeros(k0 * plane_bytes)
        planes = max(1, CHUNK_BYTES // plane_bytes)
        for first in range(k0, k1, planes):
            last = min(first + planes, k1)
            slab_kji = np.zeros((last - first, length_j, length_i), dtype=np.uint8)
            slab_kji[:, j0:j1, i0:i1] = self.values[:, :, first - k0 : last - k0].transpose()
            yield slab_kji.data.cast("B")
        yield from _zeros(self.nbytes - k1 * plane_bytes)


def _zeros(count: int) -> Iterator[memoryview]:
    block = memoryview(bytes(min(count, CHUNK_BYTES)))
    for start in range(0, count, CHUNK_BYTES):
        yield block[: min(CHUNK_BYTES, count - start)]


def dice(mask: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice coefficient of two boolean masks of one shape; 1 if both are empty."""
    total = np.count_nonzero(mask) + np.count_nonzero(other)
    return 2 * np.count_nonzero(mask & other) / total if total else 1.0
