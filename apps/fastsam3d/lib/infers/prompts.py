"""What a user said about the structures in an image: points, paths and boxes, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lib.imaging.box import Box

Subtype = Literal["point", "scribble", "lasso", "bounding_box"]

BACKGROUND = 0
"""BACKGROUND: the structure's number of a prompt that says where no structure is."""

MAX_STRUCTURE = 255
"""MAX_STRUCTURE: the largest number of a structure; masks are uint8."""

PATH_STEP = 0.5
"""PATH_STEP: longest step, in voxels, along a scribble whose voxels are marked."""

Place = tuple[float, ...]


@dataclass(frozen=True)
class Prompt:
    """One prompt. It compares and hashes by value.

    subtype: ``point``: one place. ``scribble``: an open path. ``lasso``: a closed path in a plane.
    ``bounding_box``: two corners. places_ijk: its places, stored voxel indices inside the image.
    structure: number of the structure that it marks, from 1; or BACKGROUND.
    """

    subtype: Subtype
    places_ijk: tuple[Place, ...]
    structure: int = 1

    @property
    def is_foreground(self) -> bool:
        return self.structure != BACKGROUND

    @property
    def points_ijk(self) -> np.ndarray:
        """The places, (N, 3) float64 stored indices."""
        return np.array(self.places_ijk, dtype=np.float64)

    @property
    def voxels_ijk(self) -> np.ndarray:
        """The voxels that the user marked themselves, (N, 3) int; none for a lasso or a box."""
        if self.subtype == "point":
            return np.rint(self.points_ijk).astype(np.intp)
        if self.subtype == "scribble":
            return np.unique(
                np.rint(along_path(self.points_ijk, PATH_STEP)).astype(np.intp), axis=0
            )
        return np.empty((0, 3), dtype=np.intp)


@dataclass(frozen=True)
class Prompts:
    """All prompts of a request.

    items: in the order in which they are replayed. within_ijk: half-open box of stored voxels that
    the mask is limited to, if any. warnings: messages for the user.
    """

    items: tuple[Prompt, ...]
    within_ijk: Box | None = None
    warnings: tuple[str, ...] = ()

    @property
    def structures(self) -> tuple[int, ...]:
        """The numbers of the structures that have a prompt, in the order of their first ones."""
        return tuple(dict.fromkeys(prompt.structure for prompt in self.items if prompt.structure))

    def about(self, structure: int) -> tuple[Prompt, ...]:
        """Return the prompts of a structure and of the background, in order."""
        return tuple(prompt for prompt in self.items if prompt.structure in (structure, BACKGROUND))

    def within(self, voxels_ijk: np.ndarray) -> np.ndarray:
        """Return the stored voxels (N, 3) that lie in the box that the mask is limited to."""
        if self.within_ijk is None:
            return voxels_ijk
        starts, stops = np.transpose(self.within_ijk)
        return voxels_ijk[np.all((voxels_ijk >= starts) & (voxels_ijk < stops), axis=1)]


def along_path(points: np.ndarray, step: float) -> np.ndarray:
    """Return places (M, 3) along a path of points (N, 3), at most `step` apart, ends included."""
    if len(points) == 1:
        return points
    pieces = [points[:1]]
    for start, end in zip(points[:-1], points[1:], strict=True):
        count = max(1, int(np.ceil(np.linalg.norm(end - start) / step)))
        pieces.append(start + (end - start) * np.arange(1, count + 1)[:, None] / count)
    return np.concatenate(pieces)
