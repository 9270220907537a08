"""Convert label files to DICOM-SEG objects."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from monailabel.datastore.utils.convert import nifti_to_dicom_seg
from nibabel.affines import apply_affine

from lib.errors import InputError
from lib.imaging.affine import itk_affine

SAME_GRID_VOXELS = 0.1
"""SAME_GRID_VOXELS: maximum distance between the corners of a label and those of its image."""


def write_segmentation(image: str, label: str, label_info: Sequence[Mapping[str, Any]]) -> str:
    """Write a label file as a temporary DICOM-SEG and return its path; the caller removes it.

    image: the NIfTI file of a series; its slices lie in the folder of the same name. label_info: as
    for `describe_segments`. Raises InputError if the label is empty or on another grid, or if dcmqi
    is missing or fails.
    """
    values = _check_label(label, image)
    if not shutil.which("itkimage2segimage"):
        raise InputError("itkimage2segimage is missing; install dcmqi and try again")
    folder = image.removesuffix(".nii.gz")
    segmentation: str = nifti_to_dicom_seg(folder, label, describe_segments(values, label_info))
    if not os.path.exists(segmentation):
        raise InputError("itkimage2segimage failed to make a DICOM-SEG of the label; see the log")
    return segmentation


def describe_segments(
    values: Sequence[int], label_info: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the segment descriptions that MONAI Label's DICOM-SEG writer takes, one a value.

    label_info: [{"name": …, "idx": value}, …] as Slicer sends it. If an ``idx`` is missing or a
    value has no entry, the entries belong to the values 1, 2, … in order.
    """
    by_value = {info.get("idx"): info for info in label_info}
    if not set(values) <= set(by_value):
        by_value = dict(enumerate(label_info, start=1))
    return [_describe_segment(value, by_value.get(value, {})) for value in values]


def _describe_segment(value: int, info: Mapping[str, Any]) -> dict[str, Any]:
    name = str(info.get("name") or f"label {value}")
    # Codes that are right for any structure; MONAI Label's default is the spleen.
    category = ("123037004", "Anatomical Structure")
    tissue = ("85756007", "Tissue")
    category_code, type_code = (
        {"CodeValue": code, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}
        for code, meaning in (category, tissue)
    )
    attribute = {
        "labelID": value,
        "SegmentLabel": name,
        "SegmentDescription": name,
        "SegmentAlgorithmType": "SEMIAUTOMATIC",
        "SegmentAlgorithmName": "FastSAM3D",
        "SegmentedPropertyCategoryCodeSequence": category_code,
        "SegmentedPropertyTypeCodeSequence": type_code,
        "recommendedDisplayRGBValue": [int(c) for c in info.get("color", (255, 0, 0))][:3],
    }
    return {"name": name, "model_name": "FastSAM3D", "segmentAttribute": attribute}


def _check_label(label: str, image: str) -> list[int]:
    """Return the values in a label file.

    Raises InputError if it is empty or on another grid than the image.
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
    values = [int(value) for value in np.unique(sitk.GetArrayViewFromImage(mask)) if value]
    if not values:
        raise InputError("the label is empty; draw or click on something first")
    return values
