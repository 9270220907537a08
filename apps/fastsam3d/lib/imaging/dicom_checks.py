"""Checks of the slices of a DICOM series: they form one even, upright stack, or the reason why not.

The caller puts the name of the series before each message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from lib.errors import InputError
from lib.imaging.dicom_frames import number, numbers, value
from lib.imaging.dicom_warnings import is_inverted, series_warnings

TAGS = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)
"""TAGS: what every slice must store for its voxels to have a position."""

DECODABLE = {
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.2",  # explicit big endian
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE
}
"""DECODABLE: transfer syntaxes that SimpleITK decodes."""

SAME_PLACE_MM = 0.01
"""SAME_PLACE_MM: slices closer than this are at the same position."""

LARGEST_STEP = 1.5
"""LARGEST_STEP: a longer step between slices, in median steps, is a gap."""

LARGEST_SHIFT = 0.25
"""LARGEST_SHIFT: how far a slice may lie from its position in an even stack, in median steps."""

LARGEST_TILT = 0.5
"""LARGEST_TILT: how far any slice may be shifted sideways from the first one, in pixels."""


GROUP_TAGS = (
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "DiffusionBValue",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "ImageType",
    "FrameType",
    "ConvolutionKernel",
    "AcquisitionTime",
    "ContentTime",
)
"""GROUP_TAGS: what tells several volumes of one series apart, in the order in which it is tried."""

MOST_GROUPS = 6
"""MOST_GROUPS: how many volumes a message lists."""


def check_headers(headers: Sequence[Dataset]) -> tuple[str, ...]:
    """Check the tags of all slices, and return warnings about them.

    Raises InputError unless each slice has a position and voxels that can be decoded, and all have
    the same series, size, spacing and orientation.
    """
    for check in (_check_tags, _check_transfer_syntax, _check_one_stack, _check_axes):
        check(headers)
    return series_warnings(headers)


def check_stack(headers: Sequence[Dataset], positions_mm: np.ndarray, normal: np.ndarray) -> None:
    """Raise InputError unless sorted slices are evenly spaced and not shifted sideways.

    positions_mm: (N, 3) LPS, sorted along the normal (3,).
    """
    depths_mm = positions_mm @ normal
    _check_depths(headers, depths_mm)
    pixel_mm = float(numbers(headers[0], "PixelSpacing", 2).min())
    _check_upright(positions_mm, depths_mm, normal, pixel_mm)


def orientation(header: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors (3,) in LPS along a row and down the rows."""
    cosines = numbers(header, "ImageOrientationPatient", 6)
    return cosines[:3], cosines[3:]


def transfer_syntax(header: Dataset) -> UID | None:
    """Return the transfer syntax; None for frames without a file header."""
    meta: Any = getattr(header, "file_meta", None)
    return meta.get("TransferSyntaxUID") if meta is not None else None


def is_decodable(header: Dataset) -> bool:
    """Return whether the voxels of a slice are stored in a way that can be decoded here."""
    syntax = transfer_syntax(header)
    return syntax is None or syntax in DECODABLE


# --- checks of the tags ---------------------------------------------------------------------------


def _check_tags(headers: Sequence[Dataset]) -> None:
    for tag in TAGS:
        invalid = sum(value(header, tag) in (None, "", []) for header in headers)
        if invalid:
            raise InputError(
                f"lacks a valid {tag} in {invalid} of {len(headers)} slices; "
                "export it again with its geometry and UIDs"
            )
    for header in headers:
        if number(header, "SamplesPerPixel", 1) != 1:
            raise InputError("holds colour images; send the scan in shades of grey")
        stored, high = number(header, "BitsStored", 16), number(header, "HighBit", 0)
        if high >= stored:
            raise InputError(
                f"has a HighBit of {high:g} for {stored:g} BitsStored, which programs read "
                "differently; export it again"
            )
        number(header, "RescaleIntercept", 0)
        if number(header, "RescaleSlope", 1) == 0:
            raise InputError("has a RescaleSlope of 0, which makes all voxels one value; repair it")


def _check_transfer_syntax(headers: Sequence[Dataset]) -> None:
    for header in headers:
        syntax = transfer_syntax(header)
        if syntax is not None and not is_decodable(header):
            raise InputError(
                f"is stored as {syntax.name} ({syntax}), which cannot be decoded here; "
                "store it as Explicit VR Little Endian"
            )


def _check_one_stack(headers: Sequence[Dataset]) -> None:
    """Check that series, size, spacing and orientation are the same for all."""
    uids = {str(header.SeriesInstanceUID) for header in headers}
    if len(uids) > 1:
        raise InputError(
            f"mixes {len(uids)} values of SeriesInstanceUID; give a folder with one series"
        )
    modalities = {str(value(header, "Modality") or "") for header in headers} - {""}
    if len(modalities) > 1:
        raise InputError(
            f"mixes slices of the Modality {', '.join(sorted(modalities))}; split it into one "
            "series for each"
        )
    inverted = sum(is_inverted([header]) for header in headers)
    if 0 < inverted < len(headers):
        raise InputError(
            f"stores {inverted} of {len(headers)} slices as MONOCHROME1 (low is bright) and the "
            "others not; export them alike"
        )
    sizes = {(int(header.Columns), int(header.Rows)) for header in headers}
    if len(sizes) > 1:
        shown = ", ".join(f"{columns} × {rows}" for columns, rows in sorted(sizes))
        raise InputError(f"mixes slices of {shown} pixels; split it into one series per size")
    for tag, count in (("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
        values = np.array([numbers(header, tag, count) for header in headers])
        if not np.allclose(values, values[0], rtol=1e-3, atol=1e-3):
            raise InputError(f"mixes slices of different {tag}; split it into one series for each")


def _check_axes(headers: Sequence[Dataset]) -> None:
    row, column = orientation(headers[0])
    lengths = np.array([row @ row, column @ column])
    if not np.allclose(lengths, 1, atol=1e-3) or abs(row @ column) > 1e-3:
        raise InputError(
            f"has ImageOrientationPatient {[*row, *column]}, which is not two unit vectors at a "
            "right angle; repair it or export the series again"
        )
    spacing_mm = numbers(headers[0], "PixelSpacing", 2)
    if np.any(spacing_mm <= 0):
        raise InputError(f"has PixelSpacing {spacing_mm.tolist()} mm; export the series again")


# --- checks of the stack --------------------------------------------------------------------------


def _check_depths(headers: Sequence[Dataset], depths_mm: np.ndarray) -> None:
    """Raise InputError unless the sorted positions along the normal (N,) are evenly spaced."""
    if len(depths_mm) < 2:
        raise InputError("has only one slice; a 3D scan needs the whole stack")
    steps_mm = np.diff(depths_mm)
    same = int(np.argmin(steps_mm))
    if steps_mm[same] < SAME_PLACE_MM:
        raise InputError(
            f"has {np.count_nonzero(steps_mm < SAME_PLACE_MM)} of {len(depths_mm)} slices at the "
            f"position of another one, such as {depths_mm[same]:.2f} mm along the normal; "
            f"{_describe_groups(headers, depths_mm)}"
        )
    usual_mm = float(np.median(steps_mm))
    gap = int(np.argmax(steps_mm))
    if steps_mm[gap] > LARGEST_STEP * usual_mm:
        raise InputError(
            f"lacks slices: those at {depths_mm[gap]:.2f} and {depths_mm[gap + 1]:.2f} mm along "
            f"the normal are {steps_mm[gap]:.2f} mm apart, the others {usual_mm:.2f} mm; send the "
            "missing slices, or resample the series to even steps"
        )
    even_mm = np.linspace(depths_mm[0], depths_mm[-1], len(depths_mm))
    worst = int(np.argmax(np.abs(depths_mm - even_mm)))
    if abs(depths_mm[worst] - even_mm[worst]) > LARGEST_SHIFT * usual_mm:
        raise InputError(
            f"has uneven steps between slices, {steps_mm.min():.2f} to {steps_mm.max():.2f} mm; "
            f"the slice at {depths_mm[worst]:.2f} mm deviates most; resample it to even steps"
        )


def _check_upright(
    positions_mm: np.ndarray, depths_mm: np.ndarray, normal: np.ndarray, pixel_mm: float
) -> None:
    """Raise InputError if the slices are shifted sideways, as by a tilted gantry.

    positions_mm: (N, 3) LPS, sorted. depths_mm: (N,) along the normal (3,). pixel_mm: pixel size.
    """
    sideways_mm = positions_mm - positions_mm[0] - np.outer(depths_mm - depths_mm[0], normal)
    shifts_mm = np.linalg.norm(sideways_mm, axis=1)
    worst = int(np.argmax(shifts_mm))
    if shifts_mm[worst] > LARGEST_TILT * pixel_mm:
        angle = np.degrees(np.arctan2(shifts_mm[worst], depths_mm[worst] - depths_mm[0]))
        raise InputError(
            f"is tilted by {angle:.1f}° (GantryDetectorTilt): its slices are shifted sideways by "
            f"up to {shifts_mm[worst]:.1f} mm; resample it to an upright grid"
        )


def _describe_groups(headers: Sequence[Dataset], depths_mm: np.ndarray) -> str:
    """Return which volumes share a series, and the cure."""
    for tag in GROUP_TAGS:
        texts = [str(value(header, tag)) for header in headers]
        counts = Counter(texts)
        places = {
            (text, round(depth / SAME_PLACE_MM))
            for text, depth in zip(texts, depths_mm, strict=True)
        }
        if 1 < len(counts) < len(headers) and len(places) == len(headers):
            shown = ", ".join(f"{text} ({n} slices)" for text, n in [*counts.items()][:MOST_GROUPS])
            more = ", …" if len(counts) > MOST_GROUPS else ""
            return (
                f"it holds {len(counts)} volumes, told apart by {tag}: {shown}{more}; viewers show "
                "all of them as one stack of slices; store each as a series of its own"
            )
    return "split it into one series for each phase, echo or time"
