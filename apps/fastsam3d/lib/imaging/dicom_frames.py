"""The slices of a DICOM folder, one header each, whether stored one a file or many in one file.

An enhanced multi-frame object stores what differs between its slices in functional groups (DICOM
PS3.3 C.7.6.16). Here each of its frames gets the tags of a single slice, so that all checks are the
same for both kinds.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from lib.errors import InputError
from lib.imaging.image_checks import default_voxel_limit, is_hidden

IMAGE_TAGS = ("Rows", "Columns")
"""IMAGE_TAGS: what every image stores; a report, a structure set or rubbish has neither."""

COMMON_TAGS = (
    "SOPInstanceUID",
    "SOPClassUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsStored",
    "HighBit",
)
"""COMMON_TAGS: what a multi-frame object stores once for all of its frames."""

FRAME_TAGS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameContentSequence": ("StackID", "TemporalPositionIndex", "FrameAcquisitionNumber"),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRDiffusionSequence": ("DiffusionBValue",),
    "CardiacSynchronizationSequence": ("NominalPercentageOfCardiacPhase",),
    "MRImageFrameTypeSequence": ("FrameType",),
    "CTImageFrameTypeSequence": ("FrameType",),
}
"""FRAME_TAGS: what each frame stores, in a functional group of its own or one for all frames."""

PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""PLAIN: transfer syntaxes whose voxels are as long as the header says."""

TAG_BYTES = (12, 8)
"""TAG_BYTES: of tag and length before the voxels; the second without the type (implicit VR)."""

META_GROUP = 2
"""META_GROUP: group of the tags before the data set, which are never deflated (PS3.10)."""

INFLATED_BYTES = 2
"""INFLATED_BYTES: bytes that a deflated file may have for each voxel that fits into memory."""

CHUNK_BYTES = 2**20

UNREADABLE = (
    BytesLengthException,
    InvalidDicomError,
    EOFError,
    MemoryError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    struct.error,
    zlib.error,
)
"""UNREADABLE: what pydicom raises for files that are no DICOM, or damaged."""

SEVERAL_IN_ONE = (
    "has several slices in one file without the position of each; convert it to one file per slice"
)


@dataclass(frozen=True)
class DicomFrame:
    """A slice.

    number: its number in the file ``path``; None if it is the only one. missing_bytes: how many
    bytes of voxels its file lacks.
    """

    path: Path
    header: Dataset
    number: int | None = None
    missing_bytes: int = 0


def read_frames(source: Path) -> tuple[list[DicomFrame], tuple[str, ...]]:
    """Return all slices of a folder or file in the order of the file names, and files left out.

    Those are the names of files that hold no image, though their names promise one. Raises
    InputError if there is no image at all.
    """
    frames: list[DicomFrame] = []
    left_out = []
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        if not path.is_file() or is_hidden(path):
            continue
        header, rest_bytes = _read_header(path)
        if header is not None and "DirectoryRecordSequence" in header:
            continue  # a DICOMDIR, the table of contents of a disc
        if header is None or not any(value(header, tag) for tag in IMAGE_TAGS):
            if header is not None or path.suffix.lower() in (".dcm", ""):
                left_out.append(path.name)
            continue
        missing = _missing_bytes(header, rest_bytes)
        frames.extend(replace(frame, missing_bytes=missing) for frame in _frames(path, header))
    if not frames:
        kind = "folder" if source.is_dir() else "file"
        raise InputError(f'{kind} "{source.name}" holds no DICOM images; give one with a series')
    return frames, tuple(left_out)


def value(header: Dataset, tag: str) -> Any:
    """Return the value of a tag; None if it is missing or not a value of the tag's type."""
    try:
        return header.get(tag)
    except UNREADABLE:
        return None


def number(header: Dataset, tag: str, default: float) -> float:
    """Return the one number of a tag, or the default if the tag is missing or empty.

    Raises InputError if the tag holds something else.
    """
    if tag not in header:
        return float(default)
    stored = value(header, tag)
    if stored in (None, "") and header.get_item(tag).value in (None, "", b""):
        return float(default)
    try:
        result = float(stored)
    except (TypeError, ValueError):
        result = float("nan")
    if not np.isfinite(result):
        raise InputError(
            f"has a {tag} that is not one number: {_shown(header, tag)}; export the series again"
        )
    return result


def numbers(header: Dataset, tag: str, count: int) -> np.ndarray:
    """Return the numbers of a tag (count,), float64; raise InputError if it holds others."""
    try:
        values = np.array(value(header, tag), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array([])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputError(f"has a {tag} that is not {count} numbers; export the series again")
    return values


def shortened(names: list[str], most: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _read_header(path: Path) -> tuple[Dataset | None, int]:
    """Return the header of a DICOM file and the number of bytes that follow it, the voxels.

    The header is None if the file is no DICOM.
    """
    # MONAI Label fetches frames one by one and stores them without the DICOM preamble
    force = path.suffix.lower() == ".dcm"
    try:
        with path.open("rb") as file:
            _check_inflated_length(path.name, file)
            header = pydicom.dcmread(file, stop_before_pixels=True, force=force)
            return header, path.stat().st_size - file.tell()
    except InputError:
        raise
    except UNREADABLE:
        return None, 0


def _check_inflated_length(name: str, file: BinaryIO) -> None:
    """Raise InputError if a deflated DICOM file does not fit into memory; rewind the file.

    pydicom inflates such a file as a whole, whatever it needs of it.
    """
    read_preamble(file, force=True)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != META_GROUP,
    )
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        limit, count = INFLATED_BYTES * default_voxel_limit(), 0
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        while (packed := file.read(CHUNK_BYTES)) and count <= limit:
            while packed and count <= limit:
                count += len(inflater.decompress(packed, CHUNK_BYTES))
                packed = inflater.unconsumed_tail
        if count > limit:
            raise InputError(f"has more than {limit:,} bytes in {name}, which do not fit; crop it")
    file.seek(0)


def _missing_bytes(header: Dataset, rest_bytes: int) -> int:
    """Return how many bytes of voxels a file lacks; ITK takes what it finds for them.

    Voxels of another transfer syntax than PLAIN have no fixed length; their decoder notices.
    """
    meta: Any = getattr(header, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if syntax not in PLAIN:
        return 0
    tags = (("Rows", 0), ("Columns", 0), ("SamplesPerPixel", 1), ("NumberOfFrames", 1))
    bits = [number(header, tag, default) for tag, default in (*tags, ("BitsAllocated", 16))]
    voxel_bytes = rest_bytes - TAG_BYTES[syntax == ImplicitVRLittleEndian]
    return max(int(np.prod(bits)) // 8 - voxel_bytes, 0)


def _frames(path: Path, header: Dataset) -> Iterator[DicomFrame]:
    """Yield the slices of a file."""
    count = number(header, "NumberOfFrames", 1)
    if not count.is_integer() or count < 1:
        raise InputError(f"has a NumberOfFrames of {count:g} in {path.name}; export it again")
    groups = value(header, "PerFrameFunctionalGroupsSequence")
    if not groups:
        if count > 1:
            raise InputError(SEVERAL_IN_ONE)
        yield DicomFrame(path, header)
        return
    if len(groups) != count:
        raise InputError(
            f"has {count:g} frames in {path.name}, but describes {len(groups)}; export it again"
        )
    shared = value(header, "SharedFunctionalGroupsSequence") or [Dataset()]
    for index, group in enumerate(groups):
        yield DicomFrame(path, _frame_header(header, group, shared[0]), index)


def _frame_header(header: Dataset, group: Dataset, shared: Dataset) -> Dataset:
    """Return the tags of one frame as those of a single slice."""
    flat = Dataset()
    flat.file_meta = header.file_meta
    _copy(header, COMMON_TAGS, flat)
    for name, tags in FRAME_TAGS.items():
        items = value(group, name) or value(shared, name) or [Dataset()]
        _copy(items[0], tags, flat)
    return flat


def _copy(source: Dataset, tags: tuple[str, ...], target: Dataset) -> None:
    for tag in tags:
        if tag in source:
            target[source.get_item(tag).tag] = source.get_item(tag)


def _shown(header: Dataset, tag: str) -> str:
    """Return the stored text of a tag, shortened."""
    try:
        return repr(header.get_item(tag).value)[:40]
    except Exception:
        return "?"
