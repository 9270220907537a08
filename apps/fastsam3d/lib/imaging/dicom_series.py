"""Reading a DICOM series: every slice lies where its header says, or the series is rejected.

The checks are our own because no library does them. ITK's series reader trusts the order of the
files and the geometry of the first slices, so a tilted gantry, missing slices or a second
orientation silently move voxels. highdicom checks the geometry only in versions that want pydicom
3, while MONAI Label needs pydicom 2. SimpleITK still decodes the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from lib.errors import InputError

TAGS = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
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


@dataclass(frozen=True, eq=False)
class Grid:
    """The position of a stack of slices in the patient: LPS mm, axes (i, j, k)."""

    origin_mm: np.ndarray  # (3,), the centre of voxel (0, 0, 0)
    axes: np.ndarray  # (3, 3), column a is the unit vector along index a
    spacing_mm: np.ndarray  # (3,)


def read_series(folder: str | Path) -> sitk.Image:
    """Read the series in a folder as an image: i along a row, j down the rows, k along the normal.

    Files that are not DICOM are skipped. Raises InputError unless the folder holds one series of
    single slices that form one even, upright stack, each with the tags in TAGS and pixels that can
    be decoded.
    """
    folder = Path(folder)
    slices = _read_headers(folder)
    try:
        for check in CHECKS:
            check([header for _, header in slices])
        order, grid = arrange([header for _, header in slices])
        image = _decode([slices[index] for index in order])
    except InputError as error:
        raise InputError(f'DICOM series "{folder.name}" {error}') from error
    image.SetOrigin(grid.origin_mm.tolist())
    image.SetDirection(grid.axes.flatten().tolist())
    image.SetSpacing(grid.spacing_mm.tolist())
    return image


def arrange(headers: Sequence[Dataset]) -> tuple[np.ndarray, Grid]:
    """Return the order (N,) of checked slices along their normal, and their grid.

    Raises InputError if slices are missing, share a position, are unevenly spaced or shifted
    sideways. The caller puts the name of the series before the message.
    """
    row, column = _orientation(headers[0])
    normal = np.cross(row, column)
    positions_mm = np.array([_numbers(header, "ImagePositionPatient", 3) for header in headers])
    depths_mm = positions_mm @ normal
    order = np.argsort(depths_mm)
    positions_mm, depths_mm = positions_mm[order], depths_mm[order]
    _check_depths(depths_mm)
    row_mm, column_mm = _numbers(headers[0], "PixelSpacing", 2)  # between rows, between columns
    _check_upright(positions_mm, depths_mm, normal, min(row_mm, column_mm))
    step_mm = (depths_mm[-1] - depths_mm[0]) / (len(depths_mm) - 1)
    axes = np.stack([row, column, normal], axis=1)
    return order, Grid(positions_mm[0], axes, np.array([column_mm, row_mm, step_mm]))


def _read_headers(folder: Path) -> list[tuple[Path, Dataset]]:
    """Return path and header of every DICOM image in a folder, in the order of the file names."""
    slices: list[tuple[Path, Dataset]] = []
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        try:
            # MONAI Label fetches frames one by one and stores them without the DICOM preamble
            header = pydicom.dcmread(path, stop_before_pixels=True, force=path.suffix == ".dcm")
        except InvalidDicomError:
            continue
        if "DirectoryRecordSequence" not in header:  # a DICOMDIR, the table of contents of a disc
            slices.append((path, header))
    if not slices:
        raise InputError(f'folder "{folder.name}" holds no DICOM images; give one with a series')
    return slices


# --- checks of the headers: the caller puts the name of the series before each message ------------


def _check_frames(headers: Sequence[Dataset]) -> None:
    if any(int(header.get("NumberOfFrames") or 1) > 1 for header in headers):
        raise InputError("has several slices in one file; convert it to one file per slice")


def _check_tags(headers: Sequence[Dataset]) -> None:
    for tag in TAGS:
        invalid = sum(_value(header, tag) in (None, "", []) for header in headers)
        if invalid:
            raise InputError(
                f"lacks a valid {tag} in {invalid} of {len(headers)} slices; "
                "export it again with its geometry and UIDs"
            )


def _check_transfer_syntax(headers: Sequence[Dataset]) -> None:
    for header in headers:
        syntax = _transfer_syntax(header)
        if syntax is not None and syntax not in DECODABLE:
            raise InputError(
                f"is stored as {syntax.name} ({syntax}), which cannot be decoded here; "
                "store it as Explicit VR Little Endian"
            )


def _check_one_stack(headers: Sequence[Dataset]) -> None:
    """Check that series, frame of reference, size, spacing and orientation are the same for all."""
    for tag in ("SeriesInstanceUID", "FrameOfReferenceUID"):
        uids = {str(header[tag].value) for header in headers}
        if len(uids) > 1:
            raise InputError(f"mixes {len(uids)} values of {tag}; give a folder with one series")
    sizes = {(int(header.Columns), int(header.Rows)) for header in headers}
    if len(sizes) > 1:
        shown = ", ".join(f"{columns} × {rows}" for columns, rows in sorted(sizes))
        raise InputError(f"mixes slices of {shown} pixels; split it into one series per size")
    for tag, count in (("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
        values = np.array([_numbers(header, tag, count) for header in headers])
        if not np.allclose(values, values[0], rtol=1e-3, atol=1e-3):
            raise InputError(f"mixes slices of different {tag}; split it into one series for each")


def _check_axes(headers: Sequence[Dataset]) -> None:
    row, column = _orientation(headers[0])
    lengths = np.array([row @ row, column @ column])
    if not np.allclose(lengths, 1, atol=1e-3) or abs(row @ column) > 1e-3:
        raise InputError(
            f"has ImageOrientationPatient {[*row, *column]}, which is not two unit vectors at a "
            "right angle; repair it or export the series again"
        )
    spacing_mm = _numbers(headers[0], "PixelSpacing", 2)
    if np.any(spacing_mm <= 0):
        raise InputError(f"has PixelSpacing {spacing_mm.tolist()} mm; export the series again")


CHECKS: tuple[Callable[[Sequence[Dataset]], None], ...] = (
    _check_frames,
    _check_tags,
    _check_transfer_syntax,
    _check_one_stack,
    _check_axes,
)


def _check_depths(depths_mm: np.ndarray) -> None:
    """Raise InputError unless the sorted positions along the normal (N,) are evenly spaced."""
    if len(depths_mm) < 2:
        raise InputError("has only one slice; a 3D scan needs the whole stack")
    steps_mm = np.diff(depths_mm)
    same = int(np.argmin(steps_mm))
    if steps_mm[same] < SAME_PLACE_MM:
        raise InputError(
            f"has {np.count_nonzero(steps_mm < SAME_PLACE_MM)} of {len(depths_mm)} slices at the "
            f"position of another one, such as {depths_mm[same]:.2f} mm along the normal; split it "
            "into one series for each phase, echo or time, and remove copies"
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


def _orientation(header: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors (3,) in LPS along a row and down the rows."""
    cosines = _numbers(header, "ImageOrientationPatient", 6)
    return cosines[:3], cosines[3:]


def _value(header: Dataset, tag: str) -> Any:
    """Return the value of a tag; None if it is missing or not a value of the tag's type."""
    try:
        return header.get(tag)
    except ValueError:
        return None


def _numbers(header: Dataset, tag: str, count: int) -> np.ndarray:
    numbers = np.array(_value(header, tag), dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"has a {tag} that is not {count} numbers; export the series again")
    return numbers


def _transfer_syntax(header: Dataset) -> UID | None:
    """Return the transfer syntax; None for frames without a file header."""
    meta: Any = getattr(header, "file_meta", None)
    return meta.get("TransferSyntaxUID") if meta is not None else None


def _decode(slices: Sequence[tuple[Path, Dataset]]) -> sitk.Image:
    """Return the voxels of sorted slices, with the rescale slope and intercept applied."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path, _ in slices])
    scales = {float(header.get("RescaleSlope") or 1) for _, header in slices}
    if len(scales) > 1 or not all(scale.is_integer() for scale in scales):
        reader.SetOutputPixelType(sitk.sitkFloat32)  # else the first slice sets the type of all
    try:
        return reader.Execute()
    except RuntimeError as error:
        syntax = _transfer_syntax(slices[0][1])
        name = syntax.name if syntax is not None else "an unknown transfer syntax"
        raise InputError(
            f"cannot be decoded: its pixels, stored as {name}, are damaged or contradict the "
            "header; export it again as Explicit VR Little Endian"
        ) from error
