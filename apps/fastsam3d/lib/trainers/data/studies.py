"""The studies of a site, and where to click in each."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes
from scipy.ndimage import binary_fill_holes, find_objects, gaussian_filter
from scipy.ndimage import label as connected_parts

from lib.errors import InputError
from lib.imaging.image_checks import is_hidden
from lib.imaging.volume import Volume, grid_distance_mm, read_label_map, read_volume

logger = logging.getLogger(__name__)

LABEL_TAGS = ("final", "original")
"""LABEL_TAGS: tags of MONAI Label's datastore; the first tag that a study has is used."""

PLACES = 512
"""PLACES: stored voxels that are kept as possible clicks, per structure or of the body."""

MIN_STRUCTURE_MM3 = 100.0
"""MIN_STRUCTURE_MM3: smallest volume of a target, about 30 voxels of the ROI."""

BODY_SPACING_MM = 4.0
"""BODY_SPACING_MM: voxel size at which the body is found."""


class Datastore(Protocol):
    """The part of MONAI Label's datastore that training uses."""

    def list_images(self) -> list[str]: ...

    def get_image_uri(self, image_id: str) -> str: ...

    def get_image_info(self, image_id: str) -> dict[str, Any]: ...

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]: ...

    def get_label_uri(self, label_id: str, label_tag: str) -> str: ...


@dataclass(frozen=True)
class Study:
    """An image (a file, or a folder of DICOM slices) and its label, if there is one.

    patient_id: DICOM's PatientID; empty where it is not known.
    """

    name: str
    image: Path
    label: Path | None = None
    patient_id: str = ""

    @property
    def patient(self) -> str:
        """Who was imaged. Without a PatientID each study counts as a patient of its own."""
        return f"patient {self.patient_id}" if self.patient_id else self.name

    @property
    def is_labelled(self) -> bool:
        return self.label is not None


@dataclass(frozen=True)
class PackedLabel:
    """A label map, compressed in memory: its file may be replaced or removed during a training."""

    content: bytes
    shape_ijk: tuple[int, ...]
    dtype: str

    @classmethod
    def pack(cls, labels: np.ndarray) -> PackedLabel:
        """Compress a label map (I, J, K)."""
        return cls(zlib.compress(labels.tobytes("F"), level=1), labels.shape, labels.dtype.str)

    def unpack(self) -> np.ndarray:
        """Return the label map (I, J, K)."""
        flat = np.frombuffer(zlib.decompress(self.content), self.dtype)
        return flat.reshape(self.shape_ijk, order="F")


@dataclass(frozen=True, eq=False)
class ExaminedStudy:
    """A study that was read once, and the voxels where a user could click.

    key: hash of the voxels of image and label. image_key: of those of the image alone, with their
    place in the world. label: None if no structure is large enough. structures: label value -> up
    to `PLACES` stored voxels (N, 3), for each structure that is large enough. body: up to `PLACES`
    stored voxels (N, 3) of the body, without the air around it.
    """

    study: Study
    key: str
    image_key: str
    label: PackedLabel | None
    structures: dict[int, np.ndarray]
    body: np.ndarray

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def patient(self) -> str:
        return self.study.patient

    @property
    def is_labelled(self) -> bool:
        return bool(self.structures)


def find_studies(datastore: Datastore) -> tuple[list[Study], dict[str, str]]:
    """Return the studies of a datastore, sorted by name, and the skipped ones: name -> reason.

    A DICOMweb datastore downloads images that it has not cached, which may fail. Hidden files, such
    as those that macOS leaves beside others, are no studies and no labels.
    """
    studies, skipped = [], _fetch_labels(datastore)
    for name in sorted(name for name in datastore.list_images() if not is_hidden(name)):
        try:
            image = datastore.get_image_uri(name)
            if not image:
                raise InputError(f'image "{name}" is not in the datastore any more')
            label = _find_label(datastore, name)
            studies.append(Study(name, Path(image), label, _patient_id(datastore, name)))
        except Exception as error:  # one study never ends a training
            skipped[name] = _reason(name, error)
    return studies, skipped


def _fetch_labels(datastore: Datastore) -> dict[str, str]:
    """Fetch labels that only a DICOM server has; return those that cannot be used, with reasons."""
    fetch = getattr(datastore, "fetch_labels", None)  # a folder of files has none to fetch
    if fetch is None:
        return {}
    try:
        return dict(fetch())
    except Exception as error:
        return {"labels of the DICOM server": _reason("labels", error)}


def _find_label(datastore: Datastore, name: str) -> Path | None:
    labels = datastore.get_labels_by_image_id(name)
    for tag in LABEL_TAGS:
        if tag in labels:
            path = datastore.get_label_uri(labels[tag], tag)
            if path and Path(path).exists() and not is_hidden(path):
                return Path(path)
    return None


def list_studies(datastore: Datastore) -> list[Study]:
    """Return the studies of a datastore: names, patients, and whether they have a label.

    Nothing is read.
    """
    names = sorted(name for name in datastore.list_images() if not is_hidden(name))
    return [
        Study(
            name,
            Path(name),
            Path(name) if _has_label(datastore, name) else None,
            _patient_id(datastore, name),
        )
        for name in names
    ]


def _patient_id(datastore: Datastore, name: str) -> str:
    """Return the PatientID, which a datastore of a DICOM server knows; empty without one."""
    patient_id = (datastore.get_image_info(name) or {}).get("PatientID")
    return "" if patient_id is None else str(patient_id).strip()


def _has_label(datastore: Datastore, name: str) -> bool:
    return any(tag in LABEL_TAGS for tag in datastore.get_labels_by_image_id(name))


def examine(studies: Sequence[Study]) -> tuple[list[ExaminedStudy], dict[str, str]]:
    """Read every study once; return the usable ones, and what was left out: name -> reason.

    A study whose label cannot be used takes part without it. Of copies of one image only the first
    takes part, a labelled one if there is one: otherwise one could train and another one judge.
    """
    usable, skipped = [], {}
    for study in studies:
        try:
            usable.append(examine_study(study))
        except Exception as error:  # one study never ends a training
            skipped[study.name] = _reason(study.name, error)
            without_label = replace(study, label=None)
            with suppress(Exception):
                if study.is_labelled:
                    usable.append(examine_study(without_label))
                    skipped[study.name] = f"its label is not used: {skipped[study.name]}"
    usable, copies = _without_copies(usable)
    return usable, skipped | copies


def _without_copies(
    studies: Sequence[ExaminedStudy],
) -> tuple[list[ExaminedStudy], dict[str, str]]:
    """Return the studies without copies of an image, and the copies: name -> reason."""
    originals: dict[str, ExaminedStudy] = {}
    for study in sorted(studies, key=lambda x: not x.is_labelled):  # stable: labelled ones first
        originals.setdefault(study.image_key, study)
    copies = {}
    for study in studies:
        original = originals[study.image_key]
        if study is not original:
            copies[study.name] = f'it is the same scan as "{original.name}"; keep all labels there'
    return [study for study in studies if study.name not in copies], copies


def _reason(name: str, error: Exception) -> str:
    """Return why a study cannot be used; log an error that nothing explains to a user."""
    if isinstance(error, InputError | OSError):  # those of requests are among the latter
        return str(error)
    logger.error("study %s cannot be used", name, exc_info=error)
    return f"it cannot be read ({type(error).__name__}: {error}); see the log"


def examine_study(study: Study) -> ExaminedStudy:
    """Read a study; raise InputError if image or label are unusable or do not fit together.

    An empty label, as of a healthy case, makes it a study without a label.
    """
    image = read_volume(study.image)
    for warning in image.warnings:
        logger.warning("%s: %s", study.name, warning)
    digest = hashlib.blake2b(repr(image.affine_mm.tolist()).encode(), digest_size=32)
    digest.update(np.ascontiguousarray(image.array.T).data)
    generator = np.random.default_rng(zlib.crc32(study.name.encode()))
    image_key = digest.hexdigest()
    structures, packed = {}, None
    if study.label is not None:
        labels = read_label(study.label, image)
        digest.update(np.ascontiguousarray(labels.T).data)
        structures = _places_of_structures(labels, image, generator)
        if not structures and labels.any():
            raise InputError(
                f'the label of image "{study.name}" holds no structure of at least '
                f"{MIN_STRUCTURE_MM3:g} mm³; remove it, or label more"
            )
        packed = PackedLabel.pack(labels) if structures else None
    body = _places_of_body(image, generator)
    return ExaminedStudy(study, digest.hexdigest(), image_key, packed, structures, body)


def read_label(path: Path, image: Volume) -> np.ndarray:
    """Read a label map (I, J, K), uint8 or uint16, on the grid of its image; it may be empty.

    Raise InputError if it cannot be read, lies on another grid, or holds values that are no labels.
    """
    label = read_label_map(path)
    if grid_distance_mm(label, image) > _spacing_mm(image).min() / 2:
        raise InputError(
            f'label "{path.name}" has {label.shape_ijk} voxels on another grid than its image '
            f"with {image.shape_ijk}; save it on the grid of the image"
        )
    return label.array


def _places_of_structures(
    labels: np.ndarray, image: Volume, generator: np.random.Generator
) -> dict[int, np.ndarray]:
    """Return label value -> stored voxels (N, 3), for structures that are large enough."""
    min_voxels = max(1.0, MIN_STRUCTURE_MM3 / np.prod(_spacing_mm(image)))
    places = {}
    for value, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        indices = np.flatnonzero(labels[box] == value)
        if len(indices) >= min_voxels:
            inside = _some_places(indices, labels[box].shape, generator)
            places[value] = inside + [part.start for part in box]
    return places


def _places_of_body(image: Volume, generator: np.random.Generator) -> np.ndarray:
    """Return stored voxels (N, 3) of the body.

    The body is the largest connected part brighter than the air (Otsu's threshold), holes filled.
    """
    strides = [max(1, round(BODY_SPACING_MM / mm)) for mm in _spacing_mm(image)]
    coarse = image.array[tuple(slice(None, None, step) for step in strides)].astype(np.float32)
    coarse = gaussian_filter(coarse, sigma=1)
    is_air = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(coarse)))
    parts, count = connected_parts(is_air == 0)
    if not count:
        raise InputError("the image shows nothing that stands out from its background")
    largest = np.argmax(np.bincount(parts.ravel())[1:]) + 1
    body = binary_fill_holes(parts == largest)
    return _some_places(np.flatnonzero(body), body.shape, generator) * strides


def _some_places(
    indices: np.ndarray, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """Draw at most `PLACES` of the flat indices; return them as (N, 3)."""
    if len(indices) > PLACES:
        indices = generator.choice(indices, PLACES, replace=False)
    return np.stack(np.unravel_index(indices, shape), axis=1)


def _spacing_mm(image: Volume) -> np.ndarray:
    return voxel_sizes(image.affine_mm)
