"""What a site has to train on: its studies, where to click in each, and which are held out."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import requests
import SimpleITK as sitk
from nibabel.affines import voxel_sizes
from scipy.ndimage import binary_fill_holes, find_objects, gaussian_filter
from scipy.ndimage import label as connected_parts

from lib.errors import InputError
from lib.imaging.volume import Volume, read_volume

LABEL_TAGS = ("final", "original")
"""Of MONAI Label's datastore; the first that a study has is taken."""

PLACES = 512
"""Places of possible clicks that are kept of a structure, or of the body."""

MIN_STRUCTURE_MM3 = 100.0
"""Smaller structures (about 30 voxels of the ROI) are no targets."""

BODY_SPACING_MM = 4.0
MAX_LABEL_VALUE = 65535


@dataclass(frozen=True)
class Study:
    """An image and the label on it, if there is one: files, or a folder of DICOM slices."""

    name: str
    image: Path
    label: Path | None = None

    @property
    def is_labelled(self) -> bool:
        return self.label is not None


@dataclass(frozen=True, eq=False)
class ExaminedStudy:
    """A study that was read once and can be used, and where a user could click in it.

    key: changes with any voxel of image or label. structures: up to `PLACES` stored voxels (N, 3)
    of each label value that can be a target. body: the same of what is not air.
    """

    study: Study
    key: str
    structures: dict[int, np.ndarray]
    body: np.ndarray

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def is_labelled(self) -> bool:
        return bool(self.structures)


def find_studies(datastore: Any) -> tuple[list[Study], dict[str, str]]:
    """The studies of a MONAI Label datastore, in the order of their names.

    Also, by name, why a study was skipped: what is not kept on disk yet is fetched, which may fail.
    """
    studies, skipped = [], {}
    for name in sorted(datastore.list_images()):
        try:
            image = datastore.get_image_uri(name)
            if not image:
                raise InputError(f'image "{name}" is not in the datastore any more')
            studies.append(Study(name, Path(image), _find_label(datastore, name)))
        except (InputError, OSError, requests.RequestException) as error:
            skipped[name] = str(error)
    return studies, skipped


def _find_label(datastore: Any, name: str) -> Path | None:
    found = datastore.get_labels_by_image_id(name)
    for tag in LABEL_TAGS:
        if tag in found:
            path = datastore.get_label_uri(found[tag], tag)
            if path and Path(path).exists():
                return Path(path)
    return None


def examine(studies: Sequence[Study]) -> tuple[list[ExaminedStudy], dict[str, str]]:
    """Read every study once: those that can be used, and by name why others cannot."""
    usable, skipped = [], {}
    for study in studies:
        try:
            usable.append(examine_study(study))
        except (InputError, OSError) as error:
            skipped[study.name] = str(error)
    return usable, skipped


def examine_study(study: Study) -> ExaminedStudy:
    """Raises InputError where image or label cannot be read or do not belong together."""
    image = read_volume(study.image)
    digest = hashlib.blake2b(repr(image.affine_mm.tolist()).encode(), digest_size=32)
    digest.update(np.ascontiguousarray(image.array.T).data)
    generator = np.random.default_rng(zlib.crc32(study.name.encode()))
    structures = {}
    if study.label is not None:
        labels = read_label(study.label, image)
        digest.update(np.ascontiguousarray(labels.T).data)
        structures = _places_of_structures(labels, image, generator)
        if not structures:
            raise InputError(
                f'the label of image "{study.name}" holds no structure of at least '
                f"{MIN_STRUCTURE_MM3:g} mm³; remove it, or label more"
            )
    return ExaminedStudy(study, digest.hexdigest(), structures, _places_of_body(image, generator))


def read_label(path: Path, image: Volume) -> np.ndarray:
    """The label map (I, J, K), integers from 0, on the grid of its image.

    Raises InputError where it cannot be read, lies on another grid, or holds other values.
    """
    label = read_volume(path)
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in image.shape_ijk), 1]]).T
    apart_mm = np.abs((label.affine_mm - image.affine_mm) @ corners).max()
    if label.shape_ijk != image.shape_ijk or apart_mm > _spacing_mm(image).min() / 2:
        raise InputError(
            f'label "{path.name}" has {label.shape_ijk} voxels on another grid than its image '
            f"with {image.shape_ijk}; save it on the grid of the image"
        )
    array = label.array
    if array.dtype.kind == "f":
        array = np.rint(array)
        if not np.array_equal(array, label.array):
            raise InputError(f'label "{path.name}" holds fractions; save it as integers')
    if array.min() < 0 or array.max() > MAX_LABEL_VALUE:
        raise InputError(
            f'label "{path.name}" holds values from {array.min():g} to {array.max():g}; '
            f"save it with values from 0 to {MAX_LABEL_VALUE}"
        )
    return array.astype(np.uint8 if array.max() < 256 else np.uint16, copy=False)


def _places_of_structures(
    labels: np.ndarray, image: Volume, generator: np.random.Generator
) -> dict[int, np.ndarray]:
    least = max(1.0, MIN_STRUCTURE_MM3 / np.prod(_spacing_mm(image)))
    places = {}
    for value, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        found = np.flatnonzero(labels[box] == value)
        if len(found) >= least:
            inside = _some_places(found, labels[box].shape, generator)
            places[value] = inside + [part.start for part in box]
    return places


def _places_of_body(image: Volume, generator: np.random.Generator) -> np.ndarray:
    """Voxels of what is bright against the air around it, holes filled, in one piece."""
    strides = [max(1, round(BODY_SPACING_MM / mm)) for mm in _spacing_mm(image)]
    coarse = image.array[tuple(slice(None, None, step) for step in strides)].astype(np.float32)
    coarse = gaussian_filter(coarse, sigma=1)
    is_air = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(coarse)))
    parts, _ = connected_parts(is_air == 0)
    largest = np.argmax(np.bincount(parts.ravel())[1:]) + 1
    body = binary_fill_holes(parts == largest)
    return _some_places(np.flatnonzero(body), body.shape, generator) * strides


def _some_places(
    found: np.ndarray, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """At most `PLACES` of the flat indices, as (N, 3)."""
    if len(found) > PLACES:
        found = generator.choice(found, PLACES, replace=False)
    return np.stack(np.unravel_index(found, shape), axis=1)


def _spacing_mm(image: Volume) -> np.ndarray:
    return voxel_sizes(image.affine_mm)


class Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def is_labelled(self) -> bool: ...


AnyStudy = TypeVar("AnyStudy", bound=Named)


class Split(NamedTuple):
    """by_roi: there is one study only, which is in both parts; only the ROIs differ."""

    train: list
    held_out: list
    by_roi: bool


def split(studies: Sequence[AnyStudy], val_split: float, seed: int) -> Split:
    """Set about `val_split` of the studies aside, of labelled and of unlabelled ones alike.

    A study is wholly on one side, and each side has at least one. Which side depends on the seed
    and the names alone, not on their order. Raises InputError where there is no study.
    """
    if not studies:
        raise InputError("there are no studies to train on; add images to the datastore")
    if not 0 < val_split < 1:
        raise InputError(f"val_split is {val_split:g}; give a share between 0 and 1")
    if len(studies) == 1:
        return Split(list(studies), list(studies), by_roi=True)

    held_out: list[AnyStudy] = []
    groups = [[x for x in studies if x.is_labelled == kind] for kind in (True, False)]
    for group in groups:
        ranked = sorted(group, key=lambda x: hashlib.sha256(f"{seed} {x.name}".encode()).digest())
        count = round(val_split * len(ranked))
        held_out += ranked[: min(max(count, 1), len(ranked) - 1)] if ranked else []
    if not held_out:  # one study of each kind: the label is worth more in training
        held_out = groups[1][:1]
    kept = {x.name for x in held_out}
    return Split([x for x in studies if x.name not in kept], held_out, by_roi=False)
