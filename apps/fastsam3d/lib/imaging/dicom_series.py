"""Reading a DICOM series: every slice lies where its header says, or the series is rejected.

The checks are our own because no library does them. ITK's series reader trusts the order of the
files, the geometry of the first slices and the rescaling of the first one, so a tilted gantry,
missing slices, a second orientation or another intercept silently move voxels or change them.
highdicom checks the geometry only in versions that want pydicom 3, while MONAI Label needs pydicom
2. SimpleITK still decodes the pixels.
"""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import UID

from lib.errors import InputError
from lib.imaging.dicom_checks import (
    SAME_PLACE_MM,
    check_headers,
    check_stack,
    orientation,
    transfer_syntax,
)
from lib.imaging.dicom_frames import (
    UNREADABLE,
    DicomFrame,
    number,
    numbers,
    read_frames,
    shortened,
    value,
)
from lib.imaging.dicom_holes import fill_holes, positions_with_holes, warning_of
from lib.imaging.dicom_warnings import has_lookup_table, is_inverted, lacks_scale
from lib.imaging.image_checks import check_voxel_count

logger = logging.getLogger(__name__)

PLAIN_MULTI_FRAME = UID("1.2.840.10008.5.1.4.1.1.7.3")
"""PLAIN_MULTI_FRAME: multi-frame grayscale word secondary capture, which ITK does not rescale."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The position of a stack of slices in the patient: LPS mm, axes (i, j, k)."""

    origin_mm: np.ndarray  # (3,), the centre of voxel (0, 0, 0)
    axes: np.ndarray  # (3, 3), column a is the unit vector along index a
    spacing_mm: np.ndarray  # (3,)


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A series as an image: i along a row, j down the rows, k along the normal.

    modality: DICOM's Modality, "OT" (other) if the values are not on its scale, or "" if that is
    unknown. warnings: what the user should know about the series.
    """

    image: sitk.Image
    modality: str
    warnings: tuple[str, ...]


def read_series(source: str | Path, max_voxels: int | None = None) -> DicomSeries:
    """Read the series in a folder, or the one in a file.

    Files that are no images and copies of slices are left out, with a warning. Where such a file
    takes the place of a slice, the mean of its neighbours fills the hole. Raises InputError
    unless the rest are slices of one series that form one even, upright stack, each with the tags
    in TAGS and pixels that can be decoded, and not more than `max_voxels`.
    """
    source = Path(source)
    try:
        return _read(source, max_voxels)
    except InputError as error:
        if str(error).startswith(("folder", "file", "image")):  # these name the source already
            raise
        raise InputError(f'DICOM series "{source.name}" {error}') from error
    except UNREADABLE as error:
        logger.exception("the headers of a DICOM series cannot be used")
        raise InputError(
            f'DICOM series "{source.name}" has a header that contradicts the standard '
            f"({type(error).__name__}); export it again"
        ) from error


def _read(source: Path, max_voxels: int | None) -> DicomSeries:
    frames, names = read_frames(source)
    left_out = f"left out of the series, as no DICOM image: {shortened(list(names))}"
    try:
        series = _make(source, frames, len(names), max_voxels)
    except InputError as error:
        raise InputError("; ".join([str(error), left_out] if names else [str(error)])) from error
    return replace(series, warnings=(left_out, *series.warnings)) if names else series


def _make(
    source: Path, frames: Sequence[DicomFrame], most_holes: int, max_voxels: int | None
) -> DicomSeries:
    """Return the image of slices. most_holes: number of slices that may be missing."""
    headers = [frame.header for frame in frames]
    warnings = check_headers(headers)
    for frame in frames:
        if frame.missing_bytes:
            raise InputError(
                f"lacks {frame.missing_bytes} bytes of voxels in {frame.path.name}; send it again"
            )
    shape = (int(headers[0].Columns), int(headers[0].Rows), len(frames))
    check_voxel_count(source.name, shape, max_voxels)
    frames, copies = _without_copies(frames)
    order, grid, holes = arrange([frame.header for frame in frames], most_holes)
    voxels = fill_holes(_decode([frames[index] for index in order]), holes)
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin(grid.origin_mm.tolist())
    image.SetDirection(grid.axes.flatten().tolist())
    image.SetSpacing(grid.spacing_mm.tolist())
    return DicomSeries(image, _modality(headers), warnings + copies + warning_of(holes))


def _modality(headers: Sequence[Dataset]) -> str:
    if is_inverted(headers) or has_lookup_table(headers):
        return "OT"
    return "" if lacks_scale(headers) else str(value(headers[0], "Modality") or "")


def arrange(headers: Sequence[Dataset], most_holes: int) -> tuple[np.ndarray, Grid, np.ndarray]:
    """Return the order (N,) of checked slices along their normal, their grid, and its holes.

    Raises InputError if slices are missing, share a position, are unevenly spaced or shifted
    sideways. The caller puts the name of the series before the message.
    """
    row, column = orientation(headers[0])
    # at right angles even if the header rounds, because a NIfTI file cannot hold other axes
    normal = np.cross(row, column) / np.linalg.norm(np.cross(row, column))
    row = row / np.linalg.norm(row)
    column = np.cross(normal, row)
    positions_mm = np.array([numbers(header, "ImagePositionPatient", 3) for header in headers])
    order = np.argsort(positions_mm @ normal, kind="stable")
    positions_mm, holes = positions_with_holes(positions_mm[order], normal, most_holes)
    neighbours = np.insert(order, holes - np.arange(len(holes)), order[0])  # a header for each
    check_stack([headers[index] for index in neighbours], positions_mm, normal)
    row_mm, column_mm = numbers(headers[0], "PixelSpacing", 2)  # between rows, between columns
    step_mm = (positions_mm[-1] - positions_mm[0]) @ normal / (len(positions_mm) - 1)
    axes = np.stack([row, column, normal], axis=1)
    return order, Grid(positions_mm[0], axes, np.array([column_mm, row_mm, step_mm])), holes


def _without_copies(frames: Sequence[DicomFrame]) -> tuple[list[DicomFrame], tuple[str, ...]]:
    """Return the slices without exact copies of other slices, and a warning about the copies."""
    by_place: defaultdict[tuple[int, ...], list[DicomFrame]] = defaultdict(list)
    for frame in frames:
        position_mm = numbers(frame.header, "ImagePositionPatient", 3)
        by_place[tuple(np.rint(position_mm / SAME_PLACE_MM).astype(int))].append(frame)
    copies = [copy for group in by_place.values() for copy in _copies(group)]
    kept = [frame for frame in frames if frame not in copies]
    if not copies:
        return kept, ()
    names = [frame.path.name for frame in copies]
    return kept, (f"left out of the series, as exact copies: slices {shortened(names)}",)


def _copies(group: Sequence[DicomFrame]) -> Iterator[DicomFrame]:
    """Yield the slices of one place that have the same voxels as an earlier one there."""
    if len(group) == 1 or any(frame.number is not None for frame in group):
        return
    seen = set()
    for frame in group:
        stored = pydicom.dcmread(frame.path, force=True)
        scale = (number(stored, "RescaleSlope", 1), number(stored, "RescaleIntercept", 0))
        content = (scale, stored.get("PixelData"))
        if content in seen:
            yield frame
        seen.add(content)


# --- voxels ---------------------------------------------------------------------------------------


def _decode(frames: Sequence[DicomFrame]) -> np.ndarray:
    """Return the voxels (k, j, i) of sorted slices, each rescaled by its own tags.

    The type holds the values of all slices: integers if all of them are, else float32.
    """
    stacks: dict[Path, np.ndarray] = {}
    voxels: np.ndarray | None = None
    for k, frame in enumerate(frames):
        plane = _decode_frame(frame, stacks)
        if voxels is None:
            voxels = np.empty((len(frames), *plane.shape), plane.dtype)
        if voxels.shape[1:] != plane.shape:
            raise InputError(f"has voxels that contradict the header in {frame.path.name}")
        voxels = voxels.astype(_common_type(voxels.dtype, plane.dtype), copy=False)
        voxels[k] = plane
    if voxels is None:
        raise InputError("has no slices")
    return voxels


def _decode_frame(frame: DicomFrame, stacks: dict[Path, np.ndarray]) -> np.ndarray:
    """Return a slice (j, i), rescaled. stacks: the voxels of multi-frame files read so far."""
    if frame.number is None:
        plane = _decode_file(frame, frame.path)
        if plane.ndim != 3 or len(plane) != 1:
            raise InputError(f"has voxels that contradict the header in {frame.path.name}")
        return _single(plane[0])
    if frame.path not in stacks:
        stacks[frame.path] = _decode_multi_frame(frame)
    stored = stacks[frame.path][frame.number]
    slope, intercept = (
        number(frame.header, "RescaleSlope", 1),
        number(frame.header, "RescaleIntercept", 0),
    )
    if slope.is_integer() and intercept.is_integer():
        values = stored.astype(np.int64) * int(slope) + int(intercept)
        fits = np.abs(values).max() <= np.iinfo(np.int32).max
        return values.astype(np.int32) if fits else values
    return (stored * slope + intercept).astype(np.float32)


def _decode_multi_frame(frame: DicomFrame) -> np.ndarray:
    """Return the stored values (frame, j, i) of a multi-frame file, not rescaled.

    ITK would rescale all frames as the first one. So it gets a copy without functional groups.
    """
    stored = pydicom.dcmread(frame.path)
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if sequence in stored:
            del stored[sequence]
    stored.SOPClassUID = stored.file_meta.MediaStorageSOPClassUID = PLAIN_MULTI_FRAME
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "frames.dcm")
        stored.save_as(copy)
        voxels = _decode_file(frame, copy)
    return voxels


def _decode_file(frame: DicomFrame, path: Path) -> np.ndarray:
    try:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        decoded: np.ndarray = sitk.GetArrayFromImage(reader.Execute())
        return decoded
    except RuntimeError as error:
        syntax = transfer_syntax(frame.header)
        name = syntax.name if syntax is not None else "an unknown transfer syntax"
        raise InputError(
            f"cannot be decoded: its pixels, stored as {name}, are damaged or contradict the "
            "header; export it again as Explicit VR Little Endian"
        ) from error


def _single(plane: np.ndarray) -> np.ndarray:
    return plane.astype(np.float32) if plane.dtype.kind == "f" else plane


def _common_type(first: np.dtype, second: np.dtype) -> np.dtype:
    """Return the type that holds the values of both; float32 if any is a float."""
    if first.kind == "f" or second.kind == "f":
        return np.dtype(np.float32)
    return np.result_type(first, second)
