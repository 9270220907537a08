"""The structures of a request: each has prompts, a ROI, and in the end a mask."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes

from lib.errors import InputError
from lib.imaging.box import Box
from lib.imaging.mask import BoxMask
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.drawings import roi_rule
from lib.infers.initial_mask import structures_at
from lib.infers.mask_state import MaskState, RoiPrompt
from lib.infers.prompts import Prompt, Prompts
from lib.infers.scale import RoiScale

SHARED_RATIO = 1.5
"""SHARED_RATIO: a structure uses the ROI of an earlier one, which is encoded already, unless its
own voxel would be smaller or larger by this factor."""

SHARED_MARGIN = 0.125
"""SHARED_MARGIN: distance from the faces of a shared ROI, as a share of its side, within which no
prompt may lie."""


class RoiMask(NamedTuple):
    """A mask on a ROI; it is where the margins (c, c, c) on its cells are positive."""

    roi: Roi
    margins: np.ndarray


@dataclass(eq=False)
class RoiStructure:
    """One structure of a request on its ROI.

    number: its value in the mask. prompts: those about it and the background. start: the given mask
    of it on the ROI, if any. state: its mask on the ROI, once it is computed. mask: the one to
    paste, which may lie on a larger ROI. is_adapted: whether an adapted decoder had a part in it.
    """

    number: int
    roi: Roi
    prompts: tuple[Prompt, ...]
    start: MaskState | None
    state: MaskState | None = None
    mask: RoiMask | None = None
    is_adapted: bool = False


def structures_of(prompts: Prompts, initial: BoxMask | None) -> tuple[int, ...]:
    """Return the numbers of the structures that a request is about.

    Prompts of the background alone are about the structures of the given mask in which they lie.
    Raises InputError if there are none.
    """
    numbers = prompts.structures
    if not numbers and initial is not None:
        voxels_ijk = np.concatenate([np.rint(prompt.points_ijk) for prompt in prompts.items])
        numbers = tuple(structures_at(initial, voxels_ijk.astype(int)))
    if not numbers:
        raise InputError("all prompts mark background; mark a structure too, with semantic_id 1")
    return numbers


class RoiPlacer:
    """Places the ROI of one structure of a request after the other."""

    def __init__(self, scale: RoiScale, volume: Volume, volume_key: Hashable, step: int) -> None:
        """step: one of SIZES, for the next smaller or larger answer to the same prompts.

        `warnings` says where that answer does not exist.
        """
        self.warnings: list[str] = []
        self._scale = scale
        self._volume = volume
        self._volume_key = volume_key
        self._step = step
        self._placed: list[Roi] = []

    def place(self, prompts: Sequence[Prompt], start_box_ijk: Box | None) -> Roi:
        """Return the ROI of a structure; it holds all prompts on the structure.

        start_box_ijk: half-open box of its given mask, if there is one. Background far away does
        not change the ROI.
        """
        marked = [prompt for prompt in prompts if prompt.is_foreground] or list(prompts)
        center_ijk, own_mm = self._center_and_spacing(marked, start_box_ijk)
        spacing_mm = self._scale.step_from(own_mm, self._step)
        points_ijk = np.concatenate([center_ijk[None], *(prompt.points_ijk for prompt in marked)])
        if start_box_ijk is not None:
            points_ijk = np.concatenate([points_ijk, _corners(start_box_ijk)])
        for roi in self._placed:
            if _is_shared(roi, points_ijk, spacing_mm):
                return roi
        roi = self._roi_around(points_ijk, spacing_mm)
        self._placed.append(roi)
        nearer = self._step - int(np.sign(self._step))
        if self._step and roi == self._roi_around(
            points_ijk, self._scale.step_from(own_mm, nearer)
        ):
            self.warnings.append(
                f"size {self._step} gives the mask of size {nearer}: the voxel of the ROI stays "
                f"{roi.spacing_mm:.3g} mm; choose a size nearer to 0"
            )
        return roi

    def _roi_around(self, points_ijk: np.ndarray, spacing_mm: float) -> Roi:
        """Return the ROI that holds places (N, 3); the first one is its centre."""
        return Roi.place(
            self._volume.shape_ijk,
            self._volume.affine_mm,
            points_ijk,
            size=self._scale.roi_size,
            spacing_mm=spacing_mm,
        )

    def _center_and_spacing(
        self, marked: Sequence[Prompt], start_box_ijk: Box | None
    ) -> tuple[np.ndarray, float]:
        """Return the ROI's centre, (3,) stored index, and its voxel size in mm at size 0.

        A given mask or a drawing shows how large the structure is; points do not.
        """
        drawings = [prompt for prompt in marked if prompt.subtype != "point"]
        if start_box_ijk is not None:
            place = "bounding_box", _corners(start_box_ijk)
        elif drawings:
            place = drawings[0].subtype, drawings[0].points_ijk
        else:
            points_ijk = np.concatenate([prompt.points_ijk for prompt in marked])
            return points_ijk[0], self._scale.spacing_mm(
                self._volume, self._volume_key, points_ijk[0], 0, points_ijk
            )
        voxel_mm = voxel_sizes(self._volume.affine_mm)
        return roi_rule(*place, voxel_mm, self._scale.roi_size)


def _corners(box_ijk: Box) -> np.ndarray:
    """Return the first and last voxel (2, 3) of a half-open box."""
    return np.transpose(box_ijk) - [[0], [1]]


def _is_shared(roi: Roi, points_ijk: np.ndarray, spacing_mm: float) -> bool:
    """Return whether a ROI also suits another structure's prompts (N, 3) and voxel size."""
    ratio = roi.spacing_mm / spacing_mm
    margin = SHARED_MARGIN * roi.size
    points_roi = roi.to_roi(points_ijk)
    inside = np.all((points_roi >= margin) & (points_roi <= roi.size - 1 - margin))
    return bool(inside) and 1 / SHARED_RATIO < ratio < SHARED_RATIO


def prompts_in_roi(prompts: Sequence[Prompt], roi: Roi) -> tuple[RoiPrompt, ...]:
    """Return the prompts on a ROI, in order, without those of the background outside of it."""
    on_roi = [RoiPrompt.of(prompt, roi) for prompt in prompts]
    return tuple(prompt for prompt in on_roi if prompt.is_foreground or _touches(prompt, roi.size))


def _touches(prompt: RoiPrompt, size: int) -> bool:
    points_roi = prompt.points_roi
    low, high = points_roi.min(axis=0), points_roi.max(axis=0)
    return bool(np.all((high >= -0.5) & (low <= size - 0.5)))
