"""Convert label files to DICOM-SEG objects."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from monailabel.datastore.utils.convert import nifti_to_dicom_seg
from nibabel.affines import apply_affine

from lib.datastore.dicom_seg_reader import VALUE_CREATOR, VALUE_ELEMENT, VALUE_GROUP
from lib.errors import InputError
from lib.imaging.affine import itk_affine

UTF_8 = "ISO_IR 192"

LONGEST_LABEL, LONGEST_DESCRIPTION = 64, 1024
"""LONGEST_LABEL, LONGEST_DESCRIPTION: characters that DICOM allows (PS3.5 6.2, LO and ST)."""

SAME_GRID_VOXELS = 0.1
"""SAME_GRID_VOXELS: maximum distance between the corners of a label and those of its image."""


def write_segmentation(image: str, label: str, label_info: Sequence[Any]) -> str:
    """Write a label file as a temporary DICOM-SEG and return its path; the caller removes it.

    image: the NIfTI file of a series; its slices lie in the folder of the same name. label_info: as
    for `describe_segments`. Segments are numbered 1, 2, …; a private tag keeps their label values.
    Raises InputError if the label is empty or on another grid, or if dcmqi is missing or fails.
    """
    mask, values = _check_label(label, image)
    if not shutil.which("itkimage2segimage"):
        raise InputError("itkimage2segimage is missing; install dcmqi and try again")
    folder = image.removesuffix(".nii.gz")
    described = describe_segments(values, label_info)
    segments = [each.for_dcmqi(number) for number, each in enumerate(described, start=1)]
    with tempfile.TemporaryDirectory() as temporary:
        numbered = os.path.join(temporary, "label.nii.gz")
        sitk.WriteImage(mask, numbered)
        segmentation: str = nifti_to_dicom_seg(folder, numbered, segments)
    if not os.path.exists(segmentation):
        raise InputError("itkimage2segimage failed to make a DICOM-SEG of the label; see the log")
    dataset = pydicom.dcmread(segmentation)
    _name_segments(dataset, described)
    _mark_same_places(dataset)
    dataset.save_as(segmentation)
    return segmentation


@dataclass(frozen=True)
class Segment:
    """A structure in a label map: its value, its name and its colour."""

    value: int
    name: str
    colour: tuple[int, ...] = (255, 0, 0)

    def for_dcmqi(self, number: int) -> dict[str, Any]:
        """Return the description of a segment that MONAI Label's DICOM-SEG writer takes.

        The name is a placeholder: dcmqi refuses or spoils names that are long or not ASCII.
        """
        # Codes that are right for any structure; MONAI Label's default is the spleen.
        category = ("123037004", "Anatomical Structure")
        tissue = ("85756007", "Tissue")
        category_code, type_code = (
            {"CodeValue": code, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}
            for code, meaning in (category, tissue)
        )
        placeholder = f"segment {number}"
        attribute = {
            "labelID": number,
            "SegmentLabel": placeholder,
            "SegmentDescription": placeholder,
            "SegmentAlgorithmType": "SEMIAUTOMATIC",
            "SegmentAlgorithmName": "FastSAM3D",
            "SegmentedPropertyCategoryCodeSequence": category_code,
            "SegmentedPropertyTypeCodeSequence": type_code,
            "recommendedDisplayRGBValue": list(self.colour),
        }
        return {"name": placeholder, "model_name": "FastSAM3D", "segmentAttribute": attribute}


def describe_segments(values: Sequence[int], label_info: Sequence[Any]) -> list[Segment]:
    """Return the segments of a label map with these values.

    label_info: [{"name": …, "idx": value}, …] as Slicer sends it. If an ``idx`` is missing or a
    value has no entry, the entries belong to the values 1, 2, … in order. Other content counts as
    missing.
    """
    infos = [info for info in label_info if isinstance(info, Mapping)]
    by_value = {info.get("idx"): info for info in infos if isinstance(info.get("idx"), int)}
    if not set(values) <= set(by_value):
        by_value = dict(enumerate(infos, start=1))
    return [_segment(value, by_value.get(value, {})) for value in values]


def _segment(value: int, info: Mapping[str, Any]) -> Segment:
    name = str(info.get("name") or f"label {value}")
    try:
        colour = tuple(min(max(int(c), 0), 255) for c in info.get("color", ()))[:3]
    except (TypeError, ValueError, OverflowError):
        colour = ()
    return Segment(value, name, colour) if len(colour) == 3 else Segment(value, name)


def _name_segments(dataset: pydicom.Dataset, segments: Sequence[Segment]) -> None:
    """Write names and label values into a DICOM-SEG whose segments are in the order of values."""
    dataset.SpecificCharacterSet = UTF_8
    if len(dataset.SegmentSequence) != len(segments):
        raise InputError(
            f"itkimage2segimage made {len(dataset.SegmentSequence)} of {len(segments)} segments"
        )
    for stored, segment in zip(dataset.SegmentSequence, segments, strict=True):
        stored.SegmentLabel = _shortened(segment.name)
        stored.SegmentDescription = segment.name[:LONGEST_DESCRIPTION]
        block = stored.private_block(VALUE_GROUP, VALUE_CREATOR, create=True)
        block.add_new(VALUE_ELEMENT, "UL", segment.value)


def _mark_same_places(dataset: pydicom.Dataset) -> None:
    """State that a pixel of a frame lies where the same pixel of its source slice lies.

    dcmqi leaves that out, and highdicom then refuses to index frames by their source slices. It
    holds because the label has the grid of the series. The attribute: PS3.3 C.7.6.16.2.6.
    """
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence", ()):
            for source in derivation.get("SourceImageSequence", ()):
                source.SpatialLocationsPreserved = "YES"


def _shortened(name: str) -> str:
    """Return a name as a segment's label: without what DICOM gives a meaning, and short enough."""
    name = "".join(" " if not c.isprintable() else "/" if c == "\\" else c for c in name).strip()
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def _check_label(label: str, image: str) -> tuple[sitk.Image, list[int]]:
    """Return a label map whose values are numbers 1, 2, …, and the values that they stand for.

    dcmqi takes values up to 32767 only. Raises InputError if the label is empty or on another grid
    than the image.
    """
    mask, grid = sitk.ReadImage(label), sitk.ImageFileReader()
    grid.SetFileName(image)
    grid.ReadImageInformation()
    if mask.GetSize() != grid.GetSize() or mask.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"the label has {' × '.join(map(str, mask.GetSize()))} voxels, its image "
            f"{' × '.join(map(str, grid.GetSize()))}; save one label map on the grid of the image"
        )
    corners_ijk = np.array([*np.ndindex(2, 2, 2)]) * (np.array(mask.GetSize()) - 1)
    shifts_mm = apply_affine(itk_affine(mask) - itk_affine(grid), corners_ijk)
    if np.linalg.norm(shifts_mm, axis=1).max() > SAME_GRID_VOXELS * min(grid.GetSpacing()):
        raise InputError("the label lies elsewhere than its image; save it on its grid")
    stored = sitk.GetArrayFromImage(mask)
    values = np.unique(np.rint(stored).astype(np.int64))  # a scale may have put them a little off
    values = values[values != 0]
    if not len(values):
        raise InputError("the label is empty; draw or click on something first")
    numbers = np.searchsorted(values, np.rint(stored)) + 1
    numbered = sitk.GetImageFromArray(np.where(np.rint(stored) == 0, 0, numbers).astype(np.uint16))
    numbered.CopyInformation(mask)
    return numbered, values.tolist()
