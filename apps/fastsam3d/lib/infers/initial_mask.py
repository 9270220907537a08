"""The mask that an interaction starts from: a file of structures on the grid of the image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from lib.errors import InputError
from lib.imaging.box import EMPTY_BOX, Box, box_slices, contains, intersect
from lib.imaging.mask import BoxMask
from lib.imaging.roi import Roi, crop_labels
from lib.imaging.volume import Volume, grid_distance_mm, read_label_map
from lib.infers.mask_state import MaskState
from lib.infers.prompts import MAX_STRUCTURE, Prompt
from lib.infers.random_walker import CELLS

SURE_LOGIT = 6.0
"""SURE_LOGIT: logit of a cell that a given mask covers as a whole."""

LEAST_NEAR_MM = 10.0
"""LEAST_NEAR_MM: a prompt is near a given mask if they are closer than this, or than the radius of
a ball of the mask's volume."""


def read_initial(path: str | Path, image: Volume, name: str = "initial_mask") -> BoxMask:
    """Read a mask of structures; raises InputError if it does not lie on the grid of the image.

    The values are the numbers of the structures, from 0 to MAX_STRUCTURE. A mask of background only
    has none. The result covers the box of all structures. name: of the mask in messages.
    """
    path = Path(path)
    try:
        mask = read_label_map(path, max_label=MAX_STRUCTURE)
    except InputError as error:
        raise InputError(str(error).replace(f'label "{path.name}"', name)) from error
    distance_mm = grid_distance_mm(mask, image)
    if distance_mm > voxel_sizes(image.affine_mm).min() / 2:
        difference = f"it lies up to {distance_mm:.3g} mm away from it"
        if mask.shape_ijk != image.shape_ijk:
            difference = f"it has {mask.shape_ijk} voxels, the image {image.shape_ijk}"
        raise InputError(
            f"{name} is on another grid than the image: {difference}; "
            "send it on the grid of the image"
        )
    return boxed(mask.array.astype(np.uint8, copy=False), image)


def boxed(values: np.ndarray, image: Volume) -> BoxMask:
    """Return structures (I, J, K) uint8 on the grid of an image as a mask in its smallest box."""
    found = ndimage.find_objects((values > 0).view(np.uint8))
    box_ijk = box_of(found[0]) if found else EMPTY_BOX
    inside = np.asfortranarray(values[box_slices(box_ijk)])
    return BoxMask(inside, box_ijk, image.shape_ijk, image.affine_mm)


def box_of(slices: tuple[slice, ...]) -> Box:
    """Return the half-open box of an index of `scipy.ndimage.find_objects`."""
    i, j, k = ((int(part.start), int(part.stop)) for part in slices)
    return i, j, k


def file_digest(path: str | Path) -> str:
    """Return a key for the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def structures_at(initial: BoxMask, voxels_ijk: np.ndarray) -> list[int]:
    """Return the numbers of the structures that voxels (N, 3) lie in, without repeats, in order."""
    starts = [start for start, _ in initial.box_ijk]
    inside = [voxel for voxel in voxels_ijk.tolist() if contains(initial.box_ijk, *voxel)]
    numbers = (int(initial.values[tuple(np.subtract(voxel, starts))]) for voxel in inside)
    return list(dict.fromkeys(number for number in numbers if number))


def structure_box(initial: BoxMask, structure: int) -> Box | None:
    """Return the half-open box of stored voxels of a structure; None if it has no voxel."""
    is_here = initial.values == structure
    if not is_here.any():
        return None
    inner = box_of(ndimage.find_objects(is_here.view(np.uint8))[0])
    i, j, k = (
        (start + low, start + high)
        for (start, _), (low, high) in zip(initial.box_ijk, inner, strict=True)
    )
    return i, j, k


def split_by_distance(
    prompts: Sequence[Prompt], initial: BoxMask, structure: int
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return the prompts that change the given mask of a structure, and those on another part.

    A prompt on the structure far from the given mask marks a part that the mask does not hold, for
    example the second kidney. That part also gets all prompts on the background. Without such a
    prompt, all of them change the given mask.
    """
    is_here = initial.values == structure
    voxel_mm = voxel_sizes(initial.affine_mm)
    volume_mm3 = np.count_nonzero(is_here) * voxel_mm.prod()
    near_mm = max(LEAST_NEAR_MM, float((3 / (4 * np.pi) * volume_mm3) ** (1 / 3)))
    near = {
        prompt
        for prompt in prompts
        if _is_near(prompt.points_ijk, is_here, initial.box_ijk, voxel_mm, near_mm)
    }
    far = tuple(each for each in prompts if each not in near or not each.is_foreground)
    if not any(prompt.is_foreground for prompt in far):
        return tuple(prompts), ()
    return tuple(prompt for prompt in prompts if prompt in near), far


def _is_near(
    points_ijk: np.ndarray, mask: np.ndarray, box_ijk: Box, voxel_mm: np.ndarray, near_mm: float
) -> bool:
    """Return whether a mask (i, j, k) in a half-open box lies near the box around places (N, 3)."""
    low_ijk, high_ijk = points_ijk.min(axis=0), points_ijk.max(axis=0)
    reach_ijk = near_mm / voxel_mm
    firsts = np.ceil(low_ijk - reach_ijk).astype(int).tolist()
    lasts = np.floor(high_ijk + reach_ijk).astype(int).tolist()
    i, j, k = ((first, last + 1) for first, last in zip(firsts, lasts, strict=True))
    inner = intersect((i, j, k), box_ijk)
    if any(start >= stop for start, stop in inner):
        return False
    squares = []
    for axis, (start, stop) in enumerate(inner):
        along = np.arange(start, stop)
        away = np.maximum(np.maximum(low_ijk[axis] - along, along - high_ijk[axis]), 0)
        squares.append(np.square(away * voxel_mm[axis]))
    i, j, k = squares
    is_close = i[:, None, None] + j[:, None] + k <= near_mm**2
    return bool((mask[box_slices(inner, box_ijk)] & is_close).any())


def start_of(
    initial: BoxMask | None, structure: int, roi: Roi, low_res_size: int
) -> MaskState | None:
    """Return the given mask of a structure on a ROI; None if it has no voxel.

    low_res_size: cells of the network's masks along an axis.
    """
    if initial is None or not (initial.values == structure).any():
        return None
    mask_roi = crop_labels(roi, initial.values, initial.box_ijk) == structure
    share, low_res = (pooled(mask_roi, cells) for cells in (CELLS, low_res_size))
    return MaskState(_logits(low_res), _logits(share), 0.0, is_given=True)


def pooled(mask_roi: np.ndarray, cells: int) -> np.ndarray:
    """Return the share of true voxels in each of (cells,)*3 cells of a mask (S, S, S), float32."""
    step = len(mask_roi) // cells
    return mask_roi.reshape(cells, step, cells, step, cells, step).mean(
        axis=(1, 3, 5), dtype=np.float32
    )


def _logits(share: np.ndarray) -> np.ndarray:
    """Return logits of shares, at most SURE_LOGIT from 0."""
    least = 1 / (1 + np.exp(SURE_LOGIT))
    share = np.clip(share, least, 1 - least)
    return np.log(share / (1 - share)).astype(np.float32)
