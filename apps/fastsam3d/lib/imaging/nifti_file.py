"""Reading a NIfTI file: voxels by nibabel, geometry by ITK.

A NIfTI header has up to two frames, a unit of length and spacings that may contradict each other.
The viewers that are built on ITK resolve that in one way, nibabel in another, and a mask must lie
where the viewer shows the image. So ITK itself reads the geometry. It gets a copy of the header
alone, because it also looks at a file's name, which need not fit its content.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import tempfile
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import nibabel
import numpy as np
import SimpleITK as sitk
from isal import igzip, isal_zlib
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS, itk_affine
from lib.imaging.image_checks import (
    check_layout,
    check_spacing,
    check_voxel_count,
    unreadable,
)

open_gzip: Any = igzip.open  # isal's stub has no types

logger = logging.getLogger(__name__)

GZIP_MAGIC = b"\x1f\x8b"

GZIP_WBITS = 31
"""GZIP_WBITS: zlib's number for the gzip format."""

NO_GZIP = "Not a gzipped file"
"""NO_GZIP: the gzip module's message for bytes after the end of compressed data."""

CHUNK_BYTES = 2**20

MAX_EXTRA_BYTES = 2**26
"""MAX_EXTRA_BYTES: most bytes of header extensions, and most bytes behind the voxels."""

HEADER_CLASSES: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
"""HEADER_CLASSES: by a header's first number, its own length in bytes."""

DEFLATE_RATIO = 1032
"""DEFLATE_RATIO: the most bytes that one compressed byte holds (zlib.net/zlib_tech.html)."""

LONGEST_QUATERNION = 1.001
"""LONGEST_QUATERNION: a quaternion's vector may be longer than 1 by rounding, not by more."""

COMMENT = 6
"""COMMENT: the code of a header extension with plain text, which `write_scan` adds."""

MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""MM_PER_UNIT: metres and microns, by the code of a header's unit; all others are millimetres."""

UNIT_OF_SPACE = 7
"""UNIT_OF_SPACE: the bits of ``xyzt_units`` with that code; the others are the unit of time."""

GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
"""GEOMETRY_FIELDS: what a header says about the place of the voxels."""

SAME_FRAME_VOXELS = 0.1
"""SAME_FRAME_VOXELS: frames whose corners are less apart agree."""

ISAL_ERROR: Any = isal_zlib.error  # isal's stub declares an instance instead of the class

# NIFTI_ERRORS: raised by nibabel and what it calls on damaged, truncated and foreign files
NIFTI_ERRORS = (
    OSError,
    EOFError,
    zlib.error,
    ISAL_ERROR,
    ValueError,
    MemoryError,
    RuntimeError,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)


class ImageMetadata(NamedTuple):
    """What a NIfTI file keeps of the DICOM series that it was made from."""

    modality: str = ""
    warnings: tuple[str, ...] = ()


class StoredImage(NamedTuple):
    """The content of an image file.

    array: (I, J, K). affine_mm: (4, 4) stored index -> RAS mm. metadata: of its DICOM series.
    """

    array: np.ndarray
    affine_mm: np.ndarray
    metadata: ImageMetadata = ImageMetadata()


def read_nifti(path: Path, max_voxels: int | None = None) -> StoredImage:
    """Read a NIfTI file, compressed or not, whatever its name says about that.

    The array is float32 if the file has a scale. Raises InputError if the file cannot be read, is
    not a 3D scan, or claims more than `max_voxels`.
    """
    try:
        with path.open("rb") as stored:
            try:
                with _unpacked(path, stored) as file:
                    return _read(path, file, max_voxels)
            except (gzip.BadGzipFile, EOFError) as error:
                if not (isinstance(error, EOFError) or NO_GZIP in str(error)):
                    raise
                with open_gzip(_without_rubbish(stored), "rb") as file:
                    return _read(path, file, max_voxels)
    except InputError:
        raise
    except NIFTI_ERRORS as error:
        raise unreadable(path.name, error) from error


def write_scan(scan: sitk.Image, path: Path, metadata: ImageMetadata) -> None:
    """Write an image as compressed NIfTI with what `read_nifti` returns as its metadata."""
    content = json.dumps({"modality": metadata.modality, "warnings": metadata.warnings})
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder, "scan.nii")
        sitk.WriteImage(scan, str(plain))
        image: Any = nibabel.load(plain)
        image.header.extensions.append(Nifti1Extension(COMMENT, content.encode()))
        nibabel.save(image, path)


def _unpacked(path: Path, stored: Any) -> Any:
    """Return the file to read uncompressed bytes from; raise InputError for a compressed .nii."""
    is_packed = stored.read(2) == GZIP_MAGIC
    stored.seek(0)
    if is_packed and path.name.lower().endswith(".nii"):
        raise InputError(
            f'image "{path.name}" is compressed, which its name does not say; '
            f"rename it to {path.name}.gz"
        )
    return open_gzip(stored, "rb") if is_packed else stored


def _read(path: Path, file: Any, max_voxels: int | None) -> StoredImage:
    header = _read_header(file)
    is_scalar = header.get_data_dtype().kind in "iuf"
    shape_ijk = check_layout(path.name, header.get_data_shape(), is_scalar)
    check_voxel_count(path.name, shape_ijk, max_voxels)
    _check_length(path, header)
    affine_mm = _affine_mm(path.name, header)
    # read, not mapped: if the file changes later, the cached volume must not change
    stored = ArrayProxy(file, header, mmap=False)
    is_scaled = (stored.slope, stored.inter) != (1, 0)
    array = np.asarray(stored, np.float32) if is_scaled else stored.get_unscaled()
    read_to_end(file)
    return StoredImage(array.reshape(shape_ijk, order="F"), affine_mm, _metadata(header))


def read_to_end(file: Any) -> None:
    """Read what follows the last voxel: truncated or damaged gzip shows only at its end.

    Raises ImageFileError if that is more than MAX_EXTRA_BYTES.
    """
    for _ in range(MAX_EXTRA_BYTES // CHUNK_BYTES):
        if not file.read(CHUNK_BYTES):
            return
    raise ImageFileError("more data than the header says")


def voxels_begin_soon(start: bytes) -> bool:
    """Return whether a NIfTI file has no more than MAX_EXTRA_BYTES between header and voxels.

    start: its first bytes, uncompressed. ITK takes memory for what the header claims there.
    """
    header_class = _header_class(start)
    if header_class is None:
        return False
    if len(start) < header_class.template_dtype.itemsize:
        return True  # nothing follows
    header = header_class(start[: header_class.template_dtype.itemsize], check=False)
    return bool(float(header["vox_offset"]) - header_class.single_vox_offset <= MAX_EXTRA_BYTES)


def _header_class(start: bytes) -> Any:
    """Return the header class for the first four bytes of a header, in either byte order."""
    lengths = int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")
    return next((HEADER_CLASSES[length] for length in lengths if length in HEADER_CLASSES), None)


def _read_header(file: Any) -> Any:
    """Return the header of a file that holds header and voxels, its spacings as stored."""
    start = file.read(max(HEADER_CLASSES))
    file.seek(0)
    header_class = _header_class(start)
    if header_class is None:
        raise ImageFileError("no NIfTI header")
    length = header_class.template_dtype.itemsize
    header = header_class(start[:length], check=False)
    if header["magic"].item() != header_class.single_magic:
        raise ImageFileError("no NIfTI file of header and voxels in one")
    # ITK takes an offset of 0 for 348
    extra_bytes = float(header["vox_offset"]) - header_class.single_vox_offset
    if not 0 <= extra_bytes <= MAX_EXTRA_BYTES:
        raise HeaderDataError("the voxels begin inside the header, or too far behind it")
    header = header_class.from_fileobj(file, check=False)  # with its extensions
    header.copy().check_fix()  # raises an error for what makes the voxels unreadable
    return header


def _check_length(path: Path, header: Any) -> None:
    """Raise EOFError if a file is too short for its voxels, before memory is taken for them."""
    with path.open("rb") as file:
        ratio = DEFLATE_RATIO if file.read(2) == GZIP_MAGIC else 1
    count = math.prod(int(length) for length in header.get_data_shape())
    needed = header.get_data_offset() + count * header.get_data_dtype().itemsize
    if needed > path.stat().st_size * ratio:
        raise EOFError(f"{needed} bytes are missing")


def _without_rubbish(stored: BinaryIO) -> BytesIO:
    """Return compressed data without the bytes after its end, which gzip itself ignores too.

    Raises EOFError if the data is truncated.
    """
    stored.seek(0)
    content = stored.read()
    rest = content
    while rest.startswith(GZIP_MAGIC):
        member = isal_zlib.decompressobj(wbits=GZIP_WBITS)
        while not member.eof and rest:
            member.decompress(rest, CHUNK_BYTES)
            rest = member.unused_data if member.eof else member.unconsumed_tail
        if not member.eof:
            raise EOFError("the compressed data is truncated")
    return BytesIO(content[: len(content) - len(rest)])


def _affine_mm(name: str, header: Any) -> np.ndarray:
    """Return the affine (4, 4), stored index -> RAS mm, as ITK reads it.

    Raises InputError for spacings that ITK would replace by 1 mm, and RuntimeError for axes that
    are not at right angles in any of the header's frames.
    """
    check_spacing(name, np.asarray(header["pixdim"][1:4], np.float64))
    vector = np.array([header[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    uses_qform = header["qform_code"] > 0 and header["sform_code"] != 1
    if uses_qform and not np.linalg.norm(vector) < LONGEST_QUATERNION:
        raise HeaderDataError("the quaternion is no rotation")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "header.nii")
        copy.write_bytes(_header_alone(header))
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NiftiImageIO")
        reader.SetFileName(str(copy))
        reader.ReadImageInformation()
        affine_mm = itk_affine(reader)
    affine_mm[:3] = RAS_TO_LPS @ affine_mm[:3]
    _log_other_frames(name, header, affine_mm)
    return affine_mm


def _header_alone(header: Any) -> bytes:
    """Return the bytes of a NIfTI-1 header without extensions; ITK does not read NIfTI-2."""
    alone = nibabel.Nifti1Header(check=False)
    for field in GEOMETRY_FIELDS:
        alone[field] = header[field]
    alone["dim"] = np.minimum(header["dim"], np.iinfo(np.int16).max)  # any length will do
    alone.set_data_dtype(np.uint8)
    alone["vox_offset"] = alone.single_vox_offset
    return bytes(alone.binaryblock) + bytes(4)


def _log_other_frames(name: str, header: Any, affine_mm: np.ndarray) -> None:
    """Log if another frame of a header puts a voxel elsewhere, by more than a tenth of a voxel."""
    last_ijk = [int(length) - 1 for length in header.get_data_shape()[:3]]
    corners = np.array([[0, 0, 0, 1], [*last_ijk, 1]]).T
    unit_mm = MM_PER_UNIT.get(int(header["xyzt_units"]) & UNIT_OF_SPACE, 1.0)
    for frame in ("qform", "sform"):
        try:
            other = getattr(header, f"get_{frame}")(coded=True)[0]
        except (HeaderDataError, ValueError):
            continue
        if other is None:
            continue
        apart_mm = np.abs((unit_mm * other[:3] - affine_mm[:3]) @ corners).max()
        if not apart_mm < SAME_FRAME_VOXELS * voxel_sizes(affine_mm).min():
            _log_once(
                f'image "{name}": its {frame} puts it {apart_mm:.1f} mm from where ITK, and so '
                "3D Slicer, shows it; masks follow ITK"
            )


@lru_cache(maxsize=1024)
def _log_once(message: str) -> None:
    logger.warning(message)


def _metadata(header: Any) -> ImageMetadata:
    """Return what `write_scan` stored; nothing for files of others."""
    for extension in header.extensions:
        if extension.get_code() == COMMENT:
            try:
                content = json.loads(extension.get_content())
                return ImageMetadata(str(content["modality"]), tuple(map(str, content["warnings"])))
            except (ValueError, TypeError, KeyError):
                continue
    return ImageMetadata()
