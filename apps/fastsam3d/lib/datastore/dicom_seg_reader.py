"""Read DICOM-SEG objects, also those of other programs, as label maps on the grid of their image.

Our own code, because pydicom-seg, which MONAI Label brings along, reads binary segments only and on
a grid of their own, and numbers them 1, 2, … whatever values they had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine
from pydicom.dataset import Dataset

from lib.errors import InputError
from lib.imaging.affine import itk_affine
from lib.imaging.dicom_frames import FRAME_TAGS, numbers, value

VALUE_GROUP, VALUE_CREATOR, VALUE_ELEMENT = 0x0063, "FastSAM3D", 0x01
"""VALUE_GROUP, VALUE_CREATOR, VALUE_ELEMENT: the private tag with the label value of a segment.

Segment numbers run 1, 2, … without gaps, so they cannot hold it.
"""

SAME_GRID_VOXELS = 0.1
"""SAME_GRID_VOXELS: how far a frame may lie from the voxels of its image."""

MAX_VALUE = 65535


def read_segmentation(instances: Sequence[Dataset], image: sitk.Image) -> np.ndarray:
    """Return the label map (I, J, K), uint8 or uint16, of the newest DICOM-SEG of a series.

    image: the image that it segments. Raises InputError for a DICOM-SEG that is no label map: its
    segments overlap, are fractional, or lie elsewhere than the voxels of the image.
    """
    if not instances:
        raise InputError("the DICOM server sent no DICOM-SEG")
    dataset = max(instances, key=_age)
    kind = str(value(dataset, "SegmentationType") or "")
    pixels = _pixels(dataset)
    if kind == "FRACTIONAL":
        most = int(value(dataset, "MaximumFractionalValue") or 0)
        if not np.isin(pixels, (0, most)).all():
            raise InputError("the DICOM-SEG is fractional; store it as a binary one")
    elif kind not in ("BINARY", "LABELMAP"):
        raise InputError(f"the DICOM-SEG is of the type {kind or '?'}; store it as a binary one")
    values = label_values(dataset)
    labels = np.zeros(image.GetSize(), np.uint16)
    lps_to_ijk = np.linalg.inv(itk_affine(image))
    for plane, groups in zip(pixels, _frames(dataset, len(pixels)), strict=True):
        if kind == "LABELMAP":
            stored = _mapped(plane, values)
        else:
            stored = np.where(plane > 0, values[_segment_number(groups)], 0)
        _add(labels, stored.astype(np.uint16), _place(dataset, groups, lps_to_ijk))
    return labels.astype(np.uint8 if labels.max() < 256 else np.uint16, order="F")


def label_values(dataset: Dataset) -> dict[int, int]:
    """Return segment number -> label value; they are the same in what other programs wrote."""
    segments = [
        segment
        for segment in value(dataset, "SegmentSequence") or []
        if segment.SegmentNumber > 0  # a label map may describe its background as 0
    ]
    values = {int(segment.SegmentNumber): _stored_value(segment) for segment in segments}
    is_ours = all(values.values()) and len(set(values.values())) == len(values)
    return values if is_ours else {number: number for number in values}  # type: ignore[return-value]


def _stored_value(segment: Dataset) -> int | None:
    try:
        block = segment.private_block(VALUE_GROUP, VALUE_CREATOR)
        stored = int(block[VALUE_ELEMENT].value)
    except (KeyError, ValueError, TypeError):
        return None
    return stored if 0 < stored <= MAX_VALUE else None


def _age(dataset: Dataset) -> tuple[str, str, int]:
    """Return what sorts the objects of a series by their age."""
    date, time = (str(value(dataset, f"Content{part}") or "") for part in ("Date", "Time"))
    return date, time, int(value(dataset, "InstanceNumber") or 0)


def _pixels(dataset: Dataset) -> np.ndarray:
    """Return the pixels (frame, row, column)."""
    try:
        pixels: np.ndarray = dataset.pixel_array
    except Exception as error:  # what pydicom's decoders raise
        raise InputError("the voxels of the DICOM-SEG cannot be decoded") from error
    return pixels.reshape(-1, int(dataset.Rows), int(dataset.Columns))


def _frames(dataset: Dataset, count: int) -> Iterator[list[Dataset]]:
    """Yield the functional groups of each frame: its own, and those of all frames."""
    own = value(dataset, "PerFrameFunctionalGroupsSequence") or []
    shared = value(dataset, "SharedFunctionalGroupsSequence") or []
    if len(own) != count:
        raise InputError(f"the DICOM-SEG has {count} frames, but describes {len(own)}")
    for groups in own:
        yield [groups, *shared]


def _group(groups: Sequence[Dataset], name: str) -> Any:
    for each in groups:
        items = value(each, name)
        if items:
            return items[0]
    raise InputError(f"the frames of the DICOM-SEG have no {name}")


def _segment_number(groups: Sequence[Dataset]) -> int:
    return int(_group(groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _mapped(plane: np.ndarray, values: dict[int, int]) -> np.ndarray:
    """Return the label values of a plane of segment numbers."""
    table = np.zeros(int(plane.max()) + 1, np.uint16)
    for number, label in values.items():
        if number < len(table):
            table[number] = label
    return table[plane]


def _place(dataset: Dataset, groups: Sequence[Dataset], lps_to_ijk: np.ndarray) -> np.ndarray:
    """Return the voxel (3,) of a frame's first pixel.

    Raises InputError unless the pixels of the frame are voxels of the image.
    """
    names = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence")
    spacing_mm, cosines, position_mm = (
        numbers(_group(groups, name), FRAME_TAGS[name][0], count)
        for name, count in zip(names, (2, 6, 3), strict=True)
    )
    last_i, last_j = int(dataset.Columns) - 1, int(dataset.Rows) - 1
    corners_mm = position_mm + np.array(
        [[0, 0, 0], last_i * spacing_mm[1] * cosines[:3], last_j * spacing_mm[0] * cosines[3:]]
    )
    corners_ijk = apply_affine(lps_to_ijk, corners_mm)
    first_ijk = np.rint(corners_ijk[0])
    expected = first_ijk + [[0, 0, 0], [last_i, 0, 0], [0, last_j, 0]]
    if np.abs(corners_ijk - expected).max() > SAME_GRID_VOXELS:
        raise InputError("the DICOM-SEG lies on another grid than its series")
    return first_ijk.astype(int)


def _add(labels: np.ndarray, plane: np.ndarray, place_ijk: np.ndarray) -> None:
    """Add the labels (row, column) of a frame to a label map, at the voxel of its first pixel."""
    i, j, k = place_ijk.tolist()
    drawn_ij = plane.transpose()
    inside = min(i, j, k) >= 0 and k < labels.shape[2]
    target = labels[i : i + drawn_ij.shape[0], j : j + drawn_ij.shape[1], k] if inside else None
    if target is None or target.shape != drawn_ij.shape:
        if drawn_ij.any():
            raise InputError("the DICOM-SEG reaches beyond its series")
        return
    if ((target > 0) & (drawn_ij > 0) & (target != drawn_ij)).any():
        raise InputError("the segments of the DICOM-SEG overlap, which a label map cannot hold")
    np.maximum(target, drawn_ij, out=target)
