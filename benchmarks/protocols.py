"""Simulated users: where they click on a known structure, and how masks are scored.

`random`: the first click is a random voxel of the structure. Each further click is a random voxel
of the error: positive where the mask misses the structure, negative where it exceeds it. This is
the evaluation of SAM-Med3D and FastSAM3D. The model gets all clicks so far.

`cvpr2025`: five clicks. Each is the deepest voxel of the largest connected error (26 neighbours;
depth is the Euclidean distance in voxels, and the image's border counts as an edge). The first
click starts from an empty mask, so it is the structure's centre. Scores are Dice and NSD (surface
Dice at 2 mm; 0 where Dice is at most 0.2) after the last click, and the areas under both curves
over the five clicks (trapezoidal rule, so 4 is perfect). Source: the challenge "CVPR 2025:
Foundation Models for Interactive 3D Biomedical Image Segmentation" and its evaluation script. Three
things differ here: there is no box prompt, each structure is segmented and scored alone, and among
equally deep voxels the first one is taken, not a random one.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.metrics.surface_dice import compute_surface_dice
from nibabel.affines import voxel_sizes
from scipy import ndimage

from lib.errors import InputError
from lib.imaging.mask import dice
from lib.imaging.volume import Volume

MIN_MM3 = 500 * 1.5**3
"""MIN_MM3: smallest volume of a structure that is measured; 500 voxels of the networks' spacing."""

NSD_TOLERANCE_MM = 2.0
HARM = 0.02
"""HARM: a correction that lowers the Dice by more has harmed the mask."""

NSD_FROM_DICE = 0.2
"""NSD_FROM_DICE: the NSD is 0 up to this Dice."""

Model = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Model(clicks_ijk, labels) returns a mask, (I, J, K) bool.

clicks_ijk: (N, 3) stored indices. labels: (N,), 1 positive, 0 negative. A model raises InputError
for clicks that it refuses; the previous mask then remains.
"""


@dataclass(frozen=True)
class Scan:
    """A scan's file and its decoded volume."""

    path: Path
    volume: Volume

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel sizes along I, J, K."""
        return tuple(voxel_sizes(self.volume.affine_mm).tolist())


@dataclass(frozen=True)
class Protocol:
    """The rule of a simulated user's clicks.

    name: random or cvpr2025. counts: click counts after which the mask is scored, ascending. seed:
    of the random clicks.
    """

    name: str
    counts: tuple[int, ...]
    seed: int = 0

    @property
    def has_surfaces(self) -> bool:
        """True if NSD is measured as well."""
        return self.name == "cvpr2025"

    def click(self, error: np.ndarray, key: Sequence[int]) -> tuple[int, ...]:
        """Return the voxel that the user clicks.

        error: (I, J, K) bool, not empty. key: hash of case and structure, and the click's number;
        with `seed` it determines the random numbers.
        """
        if self.has_surfaces:
            return deepest_voxel(largest_part(error))
        return random_voxel(error, np.random.default_rng([self.seed, *key]))


def make_protocol(name: str, counts: Sequence[int], seed: int = 0) -> Protocol:
    """Return the protocol; raises InputError for an unknown name or invalid click counts."""
    if name not in ("random", "cvpr2025"):
        raise InputError(f"there is no protocol {name!r}; choose random or cvpr2025")
    if name == "cvpr2025":
        return Protocol(name, (1, 2, 3, 4, 5), seed)
    if not counts or min(counts) < 1 or max(counts) > 100:
        raise InputError(f"clicks {list(counts)} cannot be made; give numbers from 1 to 100")
    return Protocol(name, tuple(sorted(set(counts))), seed)


@dataclass(frozen=True, eq=False)
class Series:
    """The result of clicking on one structure.

    dice, nsd: after each of the counts; nsd is empty unless measured. clicks_ijk (N, 3), labels
    (N,): all clicks. mask: the last mask, (I, J, K) bool. seconds: the model's time for each
    prompt. harm: share of the corrections that lowered the Dice by more than HARM; 0 without
    corrections. refused: number of prompts for which the model raised InputError.
    """

    dice: tuple[float, ...]
    nsd: tuple[float, ...]
    clicks_ijk: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    seconds: tuple[float, ...]
    harm: float = 0.0
    refused: int = 0


def click_series(
    model: Model,
    target: np.ndarray,
    protocol: Protocol,
    key: str,
    spacing_mm: Sequence[float],
    *,
    has_drawing: bool = False,
    replayed: Series | None = None,
) -> Series:
    """Click on a structure up to the last of the counts; stop early if the mask is perfect.

    target: (I, J, K) bool, not empty. key: names case and structure; it seeds the clicks.
    spacing_mm: voxel sizes along I, J, K. has_drawing: the model's own drawing is the first prompt,
    so that the first call has no click. replayed: make the clicks of this series, which were drawn
    on the errors of another model.
    """
    mask = np.zeros_like(target)
    clicks: list[tuple[int, ...]] = []
    labels: list[int] = []
    dices, nsd, seconds = [], [], []
    refused = 0
    for count in range(1, protocol.counts[-1] + 1):
        error = mask != target
        is_drawing = has_drawing and count == 1
        if is_drawing:
            place = None
        elif replayed is not None:
            made = len(clicks)
            place = tuple(replayed.clicks_ijk[made]) if made < len(replayed.clicks_ijk) else None
        else:
            number = (zlib.crc32(key.encode()), count)
            place = protocol.click(error, number) if error.any() else None
        if place is not None:
            clicks.append(place)
            labels.append(int(target[place]))
        if place is not None or is_drawing:
            start = time.perf_counter()
            try:
                mask = model(np.array(clicks).reshape(-1, 3), np.array(labels))
            except InputError:
                refused += 1
            seconds.append(time.perf_counter() - start)
        dices.append(dice(mask, target))
        if count in protocol.counts and protocol.has_surfaces:
            nsd.append(surface_dice(mask, target, spacing_mm, dices[-1]))
    return Series(
        tuple(dices[count - 1] for count in protocol.counts),
        tuple(nsd),
        np.array(clicks).reshape(-1, 3),
        np.array(labels),
        mask,
        tuple(seconds),
        share_of_harm(dices[: len(seconds)]),
        refused,
    )


def share_of_harm(dices: Sequence[float]) -> float:
    """Return the share of the corrections that lowered the Dice by more than HARM.

    dices: after each prompt. Return 0 if there are no corrections.
    """
    return float(np.mean(np.diff(dices) < -HARM)) if len(dices) > 1 else 0.0


def random_voxel(mask: np.ndarray, generator: np.random.Generator) -> tuple[int, ...]:
    """Return the index of a random True voxel."""
    places = np.flatnonzero(mask)
    voxel = np.unravel_index(places[generator.integers(len(places))], mask.shape)
    return tuple(int(index) for index in voxel)


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask (26 neighbours; 8 in a 2D slice)."""
    parts, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def deepest_voxel(mask: np.ndarray) -> tuple[int, ...]:
    """Return the True voxel furthest from the outside; the first in index order if several are."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1))[(slice(1, -1),) * mask.ndim]
    within = np.unravel_index(depth.argmax(), depth.shape)
    return tuple(int(index) + part.start for index, part in zip(within, box, strict=True))


def surface_dice(
    mask: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], mask_dice: float
) -> float:
    """Return the share of both surfaces within `NSD_TOLERANCE_MM` of each other (MONAI's NSD).

    Return 0 if `mask_dice` is at most `NSD_FROM_DICE`.
    """
    if mask_dice <= NSD_FROM_DICE:
        return 0.0
    box = ndimage.find_objects((mask | target).astype(np.uint8))[0]
    mask_box, target_box = (
        torch.from_numpy(np.pad(array[box], 1))[None, None].float() for array in (mask, target)
    )
    value = compute_surface_dice(
        mask_box, target_box, [NSD_TOLERANCE_MM], include_background=True, spacing=list(spacing_mm)
    )
    return float(value[0, 0])


def area(values: Sequence[float]) -> float:
    """Return the area under a curve with one value per click (trapezoidal rule)."""
    return float(np.trapezoid(values)) if hasattr(np, "trapezoid") else float(np.trapz(values))
