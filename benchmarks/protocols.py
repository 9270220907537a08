"""Simulated users: where they click on an object that they know, and how masks are scored.

`random`: the first click is a random voxel of the object, each next one a random voxel of the
error, positive where the object was missed and negative where too much was added (the evaluation
of SAM-Med3D and FastSAM3D). The model is given all clicks so far.

`cvpr2025`: five clicks, each in the deepest voxel of the largest connected error (26 neighbours,
depth as Euclidean distance in voxels, with the image's border as an edge); the first one, on an
empty mask, in the middle of the object. Dice and NSD (surface Dice at 2 mm; 0 where Dice is at most
0.2) after the last click, and their areas under the curve over the five clicks (trapezoids, so 4 is
perfect). After the challenge "CVPR 2025: Foundation Models for Interactive 3D Biomedical Image
Segmentation" and its evaluation script, but without the box, with each structure segmented and
scored on its own, and with the first of equally deep voxels instead of a random one.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage

from lib.errors import InputError

MIN_MM3 = 500 * 1.5**3
"""Smaller structures are left out: 500 voxels at the spacing that the networks see."""

NSD_TOLERANCE_MM = 2.0
NSD_FROM_DICE = 0.2

Model = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Clicks (N, 3) as stored indices, their labels (N,), 1 or 0 -> mask (I, J, K) bool.

Raises InputError where it refuses the clicks; the mask then stays what it was.
"""


@dataclass(frozen=True)
class Protocol:
    """How a user clicks. counts: numbers of clicks after which the mask is scored, ascending."""

    name: str
    counts: tuple[int, ...]
    seed: int = 0

    @property
    def has_surfaces(self) -> bool:
        return self.name == "cvpr2025"

    def click(self, error: np.ndarray, key: Sequence[int]) -> tuple[int, ...]:
        """The voxel of an error, (I, J, K) bool and not empty, that is clicked.

        key: case, structure and number of the click; all that the random numbers depend on.
        """
        if self.has_surfaces:
            return deepest_voxel(largest_part(error))
        return random_voxel(error, np.random.default_rng([self.seed, *key]))


def make_protocol(name: str, counts: Sequence[int], seed: int = 0) -> Protocol:
    """Raises InputError for a protocol or numbers of clicks that do not exist."""
    if name not in ("random", "cvpr2025"):
        raise InputError(f"there is no protocol {name!r}; choose random or cvpr2025")
    if name == "cvpr2025":
        return Protocol(name, (1, 2, 3, 4, 5), seed)
    if not counts or min(counts) < 1 or max(counts) > 100:
        raise InputError(f"clicks {list(counts)} cannot be made; give numbers from 1 to 100")
    return Protocol(name, tuple(sorted(set(counts))), seed)


@dataclass(frozen=True, eq=False)
class Series:
    """What came of one object. dice, nsd: after each of the counts; nsd is empty unless measured.

    clicks_ijk, labels: all clicks. mask: the last one. seconds: of the model, for each click.
    refused: clicks that the model answered with an error.
    """

    dice: tuple[float, ...]
    nsd: tuple[float, ...]
    clicks_ijk: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    seconds: tuple[float, ...]
    refused: int = 0


def click_series(
    model: Model, target: np.ndarray, protocol: Protocol, key: str, spacing_mm: Sequence[float]
) -> Series:
    """Click on an object until all counts are reached, or nothing is wrong any more.

    target: (I, J, K) bool, not empty. key: of case and structure. spacing_mm: along I, J, K.
    """
    mask = np.zeros_like(target)
    clicks: list[tuple[int, ...]] = []
    labels: list[int] = []
    dice, nsd, seconds = [], [], []
    refused = 0
    for count in range(1, protocol.counts[-1] + 1):
        error = mask != target
        if error.any():
            clicks.append(protocol.click(error, (zlib.crc32(key.encode()), count)))
            labels.append(int(target[clicks[-1]]))
            start = time.perf_counter()
            try:
                mask = model(np.array(clicks), np.array(labels))
            except InputError:
                refused += 1
            seconds.append(time.perf_counter() - start)
        if count in protocol.counts:
            dice.append(dice_of(mask, target))
            if protocol.has_surfaces:
                nsd.append(surface_dice(mask, target, spacing_mm, dice[-1]))
    return Series(
        tuple(dice), tuple(nsd), np.array(clicks), np.array(labels), mask, tuple(seconds), refused
    )


def random_voxel(mask: np.ndarray, generator: np.random.Generator) -> tuple[int, ...]:
    places = np.flatnonzero(mask)
    chosen = np.unravel_index(places[generator.integers(len(places))], mask.shape)
    return tuple(int(index) for index in chosen)


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest of a mask's connected parts (26 neighbours, 8 in a slice)."""
    parts, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def deepest_voxel(mask: np.ndarray) -> tuple[int, ...]:
    """The voxel furthest from outside; the first in index order of several."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1))[(slice(1, -1),) * mask.ndim]
    within = np.unravel_index(depth.argmax(), depth.shape)
    return tuple(int(index) + part.start for index, part in zip(within, box, strict=True))


def dice_of(mask: np.ndarray, target: np.ndarray) -> float:
    both = np.count_nonzero(mask & target)
    return 2 * both / (np.count_nonzero(mask) + np.count_nonzero(target))


def surface_dice(
    mask: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], dice: float
) -> float:
    """The share of both surfaces that lies within `NSD_TOLERANCE_MM` of the other (MONAI's)."""
    if dice <= NSD_FROM_DICE:
        return 0.0
    box = ndimage.find_objects((mask | target).astype(np.uint8))[0]
    pair = [torch.from_numpy(np.pad(m[box], 1))[None, None].float() for m in (mask, target)]
    value = compute_surface_dice(
        *pair, [NSD_TOLERANCE_MM], include_background=True, spacing=list(spacing_mm)
    )
    return float(value[0, 0])


def area(values: Sequence[float]) -> float:
    """Under the curve of values one click apart, by trapezoids."""
    return float(np.trapezoid(values)) if hasattr(np, "trapezoid") else float(np.trapz(values))
