"""One mask of all structures: those that were computed, those that were there, and the marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.imaging.box import EMPTY_BOX, Box, box_slices, hull, hull_of_boxes, intersect
from lib.imaging.mask import BoxMask
from lib.imaging.volume import Volume
from lib.infers.prompts import Prompt, Prompts
from lib.infers.structures import RoiStructure


@dataclass(frozen=True)
class MarkedMask:
    """The mask of a reply.

    mask: structures' numbers. found: the structures of which the network marked each part. covered:
    those of them whose every voxel, but for the marks, belongs to another structure. hidden: number
    of marked voxels that belong to protected structures.
    """

    mask: BoxMask
    found: frozenset[int]
    covered: frozenset[int]
    hidden: int


def compose(
    structures: Sequence[RoiStructure],
    prompts: Prompts,
    volume: Volume,
    initial: BoxMask | None,
    overwrite: bool,
) -> MarkedMask:
    """Return the mask of all structures on the grid of the image.

    Where two structures meet, each voxel gets the one whose value is further above its threshold.
    Structures of `initial` that have no prompt stay; they yield to others only with `overwrite`.
    The voxels that the user marked get the structure they were marked with, the latest mark last.
    """
    pasted = [_paste(structure, prompts.within_ijk) for structure in structures]
    voxels_ijk = _marked_voxels(prompts)
    box_ijk = initial.box_ijk if initial else EMPTY_BOX
    for _, own_box_ijk in pasted:
        box_ijk = hull_of_boxes(box_ijk, own_box_ijk)
    box_ijk = hull(box_ijk, voxels_ijk)
    found = {structure.number for structure in structures}
    canvas = _Canvas(box_ijk, initial, sorted(found), overwrite)
    for structure, (values, own_box_ijk) in zip(structures, pasted, strict=True):
        canvas.add(structure, values, own_box_ijk)
        if not values.any():
            found.discard(structure.number)
    covered = frozenset(number for number in found if not (canvas.values == number).any())
    hidden = canvas.mark(prompts)
    mask = BoxMask(canvas.values, box_ijk, volume.shape_ijk, volume.affine_mm)
    return MarkedMask(mask, frozenset(found), covered, hidden)


def _paste(structure: RoiStructure, within_ijk: Box | None) -> tuple[np.ndarray, Box]:
    assert structure.mask is not None
    return structure.mask.roi.paste_box(structure.mask.margins, 0.0, within_ijk)


def _marked_voxels(prompts: Prompts) -> np.ndarray:
    """Return the voxels (N, 3) that the user marked, inside the box that limits the mask."""
    voxels_ijk = np.concatenate([prompt.voxels_ijk for prompt in prompts.items])
    return prompts.within(voxels_ijk)


class _Canvas:
    """The voxels of a box, on which structures are placed one after the other."""

    def __init__(
        self, box_ijk: Box, initial: BoxMask | None, numbers: Sequence[int], overwrite: bool
    ) -> None:
        """numbers: the structures that are placed; their voxels in `initial` are taken off."""
        self._box_ijk = box_ijk
        self._placed: list[RoiStructure] = []
        shape = [stop - start for start, stop in box_ijk]
        self.values = np.zeros(shape, dtype=np.uint8, order="F")
        if initial is not None and initial.values.size:
            self.values[box_slices(initial.box_ijk, box_ijk)] = initial.values
        self._initial = self.values.copy(order="F")
        for number in numbers:  # np.isin and boolean indices are ten times slower
            np.copyto(self.values, 0, where=self.values == number)
        self._is_protected = None if overwrite else self.values != 0

    def add(self, structure: RoiStructure, mask: np.ndarray, box_ijk: Box) -> None:
        """Place a structure. mask: (i, j, k) uint8 in its half-open box of stored voxels."""
        if structure.start is not None:
            mask, box_ijk = self._on_given(structure, mask, box_ijk)
        if not mask.size:
            return
        slices = box_slices(box_ijk, self._box_ijk)
        wanted = mask.astype(bool)
        if self._is_protected is not None:
            wanted &= ~self._is_protected[slices]
        for other in self._placed:
            if other.number == structure.number:  # another part of it
                continue
            wanted &= ~self._loses(structure, other, box_ijk, wanted)
        np.copyto(self.values[slices], structure.number, where=wanted)
        self._placed.append(structure)

    def mark(self, prompts: Prompts) -> int:
        """Give marked voxels their structure; return how many are protected and stay."""
        starts = [start for start, _ in self._box_ijk]
        hidden = 0
        for prompt in prompts.items:
            if prompt.subtype == "bounding_box" and not prompt.is_foreground:
                self._clear(prompt)
            voxels = prompts.within(prompt.voxels_ijk) - starts
            if self._is_protected is not None:
                is_hidden = self._is_protected[tuple(voxels.T)]
                hidden += int(np.count_nonzero(is_hidden))
                voxels = voxels[~is_hidden]
            self.values[tuple(voxels.T)] = prompt.structure
        return hidden

    def _clear(self, prompt: Prompt) -> None:
        """Take off the voxels inside of a box around background, but for protected ones."""
        low, high = np.sort(np.rint(prompt.points_ijk).astype(int), axis=0)
        bounds = zip(low.tolist(), high.tolist(), strict=True)
        i, j, k = ((first, last + 1) for first, last in bounds)
        inner = intersect((i, j, k), self._box_ijk)
        if all(start < stop for start, stop in inner):
            slices = box_slices(inner, self._box_ijk)
            free = True if self._is_protected is None else ~self._is_protected[slices]
            np.copyto(self.values[slices], 0, where=free)

    def _on_given(
        self, structure: RoiStructure, mask: np.ndarray, box_ijk: Box
    ) -> tuple[np.ndarray, Box]:
        """Return a structure's given mask with the changes that the prompts made on its ROI.

        Where nothing changed, the given voxels stay as they are, also outside of the ROI.
        """
        given = structure.start
        assert given is not None
        whole = self._initial == structure.number
        after = self._in_box(mask, box_ijk)
        before = self._in_box(*structure.roi.paste_box(given.margins, 0.0))
        # not an exclusive or: a voxel of the given mask may lie outside of its coarser cells
        whole |= after & ~before
        whole &= after | ~before
        return whole.view(np.uint8), self._box_ijk

    def _in_box(self, mask: np.ndarray, box_ijk: Box) -> np.ndarray:
        """Return a mask (i, j, k) uint8 in a half-open box as bool in the box of the canvas."""
        result = np.zeros(self.values.shape, dtype=bool, order="F")
        inner = intersect(box_ijk, self._box_ijk)
        if mask.size and all(start < stop for start, stop in inner):
            result[box_slices(inner, self._box_ijk)] = mask[box_slices(inner, box_ijk)]
        return result

    def _loses(
        self, structure: RoiStructure, other: RoiStructure, box_ijk: Box, wanted: np.ndarray
    ) -> np.ndarray:
        """Return where a structure's wanted voxels (i, j, k) stay with another one."""
        taken = wanted & (self.values[box_slices(box_ijk, self._box_ijk)] == other.number)
        if not taken.any():
            return taken
        own, theirs = (
            each.mask.roi.sample_box(each.mask.margins, box_ijk)
            for each in (structure, other)
            if each.mask is not None
        )
        return taken & (own <= theirs)
