"""Labelled volumes whose licences allow training the default weights; see `manifest.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

from lib.errors import InputError
from lib.imaging.volume import read_volume

TRAINING_PARTS = ("train", "labelmaps")
"""TRAINING_PARTS: parts of the data for training; all others are for measuring or testing."""

ACCEPTED_LICENCES = ("Apache-2.0", "CC0", "CC BY 3.0", "CC BY 4.0", "BSD", "MIT")
DOUBTS = ("?", "not stated", "see ", "NC", "SA")
"""DOUBTS: a licence entry with one of these is rejected, whatever it begins with."""

MAX_STRUCTURES = 240
"""MAX_STRUCTURES: number of structures taken from an atlas, the largest ones."""

ATLAS_FILES = ("aal.nii.gz", "inia19-NeuroMaps.nii.gz")
"""ATLAS_FILES: the BSD-licensed atlases of Debian's ``mricron-data``."""

MIN_VOXELS = 64
"""MIN_VOXELS: smallest structure that can be a target, in stored voxels."""


@dataclass(frozen=True, eq=False)
class Case:
    """A label map, with or without its image.

    labels: (I, J, K) uint8, 0 for unlabelled voxels, structures numbered from 1. boxes: half-open
    box of each structure that can be a target, by its number. affine_mm: (4, 4), stored index to
    RAS mm. image: (I, J, K) or None.
    """

    name: str
    labels: np.ndarray
    boxes: dict[int, tuple[slice, slice, slice]]
    affine_mm: np.ndarray
    image: np.ndarray | None = None
    is_ct: bool = False

    @classmethod
    def from_labels(
        cls,
        name: str,
        labels: np.ndarray,
        affine_mm: np.ndarray,
        image: np.ndarray | None = None,
        is_ct: bool = False,
    ) -> Case:
        """Number the structures; raises InputError unless there are 1 to 255."""
        values = np.unique(labels)
        values = values[values != 0]
        if not 0 < len(values) < 256:
            raise InputError(f"{name} has {len(values)} structures, expected 1 to 255")
        # searchsorted maps 0 to 0 and the structures to 1, 2, … (labels are not negative)
        numbered = np.searchsorted(np.r_[0, values], labels).astype(np.uint8)
        sizes = np.bincount(numbered.ravel())
        boxes = {
            number: box
            for number, box in enumerate(find_objects(numbered), start=1)
            if sizes[number] >= MIN_VOXELS
        }
        return cls(name, numbered, boxes, np.asarray(affine_mm), image, is_ct)


def may_train(row: dict[str, str]) -> bool:
    """Return whether a row of the manifest allows training weights for publication."""
    licence = row["licence"]
    stated = licence.startswith(ACCEPTED_LICENCES) and not any(doubt in licence for doubt in DOUBTS)
    return row["part"] in TRAINING_PARTS and stated


def load_cases(folder: str | Path) -> list[Case]:
    """Return all cases for training of a folder with `manifest.csv`, in its order.

    Raises InputError if there are none.
    """
    folder = Path(folder)
    if not (folder / "manifest.csv").is_file():
        raise InputError(
            f"{folder / 'manifest.csv'} does not exist; give a folder of labelled scans with it"
        )
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if may_train(row)]
    if not rows:
        raise InputError(f"{folder / 'manifest.csv'} has no row for training")
    return [_load_case(folder, row) for row in rows]


def load_atlases(folder: str | Path) -> list[Case]:
    """Return the label maps of Debian's ``mricron-data`` (BSD), without images, if installed.

    A real image does not show the cortical areas of an atlas; only painted images do.
    """
    paths = [Path(folder, name) for name in ATLAS_FILES]
    return [_load_atlas(path) for path in paths if path.is_file()]


def _load_atlas(path: Path) -> Case:
    """Return the `MAX_STRUCTURES` largest structures of an atlas."""
    volume = read_volume(path)
    labels = volume.array.astype(np.int32)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = np.argsort(sizes)[-MAX_STRUCTURES:]
    return Case.from_labels(
        path.name, np.where(np.isin(labels, largest), labels, 0), volume.affine_mm
    )


def _load_case(folder: Path, row: dict[str, str]) -> Case:
    """Return the case of a row; a label map without an image is cropped to its structures."""
    label = read_volume(folder / row["label"])
    if not row["image"]:
        box = find_objects((label.array != 0).astype(np.uint8))[0]
        start = [part.start for part in box]
        affine_mm = label.affine_mm.copy()
        affine_mm[:3, 3] = label.affine_mm[:3] @ [*start, 1]
        return Case.from_labels(row["case"], label.array[box], affine_mm)
    image = read_volume(folder / row["image"])
    if image.shape_ijk != label.shape_ijk:
        raise InputError(f"{row['case']}: image {image.shape_ijk}, label {label.shape_ijk}")
    return Case.from_labels(row["case"], label.array, image.affine_mm, image.array, image.is_ct)
