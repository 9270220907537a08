"""Read a label file and compare it with its image before it replaces anything.

Both headers are read by ITK, so that label and image are compared in one frame, the one that
3D Slicer and OHIF show.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from isal import igzip
from nibabel import FileHolder
from nibabel.affines import apply_affine, voxel_sizes

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS, itk_affine
from lib.imaging.dicom_series import read_series
from lib.imaging.itk_file import check_self_contained
from lib.imaging.mask_file import write_mask
from lib.imaging.nifti_file import NIFTI_ERRORS, read_to_end, voxels_begin_soon
from lib.imaging.volume import MAX_LABEL, read_volume

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
"""EXTENSIONS: of the label files that are stored; in lower case."""

RAW_EXTENSION = ".bin"
"""RAW_EXTENSION: of a file of voxels without a header, uint8, i runs fastest, as OHIF sends it."""

SAME_PLACE_VOXELS = 0.1
"""SAME_PLACE_VOXELS: maximum distance between the corners of a label and of its image."""

INTEGER_TOLERANCE = 0.05
"""INTEGER_TOLERANCE: distance from an integer that the scale of a header may bring about."""

MANY_VALUES = 1 << 16
"""MANY_VALUES: labels with values below this are counted by a table."""

HEADER_BYTES = 1 << 16
"""HEADER_BYTES: more than the header of any file that is accepted."""

GZIP_WBITS = 31
"""GZIP_WBITS: zlib's number for the gzip format."""

NIFTI_MAGIC = ((344, (b"n+1\0",)), (4, (b"n+2\0",)))
"""NIFTI_MAGIC: (offset, texts) of NIfTI-1 and NIfTI-2 in one file; ``ni1`` names a second file."""


@dataclass(frozen=True)
class Grid3D:
    """Where the voxels of a stored image lie.

    shape_ijk: (I, J, K). affine_lps: (4, 4) stored index -> LPS mm, as ITK reads it.
    """

    shape_ijk: tuple[int, ...]
    affine_lps: np.ndarray


@dataclass(frozen=True)
class LabelFacts:
    """What a readable label on the grid of its image holds.

    values: its values without 0, sorted. voxels: the number of voxels that are not 0.
    """

    values: tuple[int, ...]
    voxels: int


def read_grid(path: str | Path) -> Grid3D:
    """Return the grid of an image file or of a folder of DICOM slices; raises InputError."""
    if Path(path).is_dir():
        series = read_series(path).image
        return Grid3D(series.GetSize(), itk_affine(series))
    try:
        reader = _read_header(path)
    except RuntimeError:  # what ITK does not open, our own reader may, or say why not
        volume = read_volume(path)
        affine_lps = volume.affine_mm.copy()
        affine_lps[:3] = RAS_TO_LPS @ affine_lps[:3]
        return Grid3D(volume.shape_ijk, affine_lps)
    return Grid3D(_shape(reader), itk_affine(reader))


def check_label(label: str | Path, image: str | Path) -> LabelFacts:
    """Read a label file completely and return what it holds.

    label: a file with one of EXTENSIONS. Raises InputError if it is damaged, refers to another
    file, holds something else than one integer a voxel, or lies on another grid than the image.
    """
    check_header(label)
    grid = read_grid(image)
    try:
        header = _read_header(label)
        _check_grid(Grid3D(_shape(header), itk_affine(header)), grid)
        if header.GetNumberOfComponents() != 1:
            raise InputError("the label holds several numbers a voxel; save one label map")
        return _facts(_read_voxels(label))
    except (RuntimeError, *NIFTI_ERRORS) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "the label cannot be read: it is damaged, cut off, or not in the format that its "
            "extension names; save it again. The label that was there is unchanged"
        ) from error


@contextmanager
def as_image_file(label: str | Path, image: str | Path, folder: str | Path) -> Iterator[Path]:
    """Yield a label file as a file with one of EXTENSIONS.

    Raw voxels (RAW_EXTENSION) become a ``.nii.gz`` in ``folder`` with the geometry of the image,
    which is removed at the end. Raises InputError if their number is not that of the image.
    """
    if not str(label).lower().endswith(RAW_EXTENSION):
        yield Path(label)
        return
    grid = read_grid(image)
    count, expected = os.path.getsize(label), int(np.prod(grid.shape_ijk))
    if count != expected:
        raise InputError(
            f"the label has {count} voxels, not those of its image ({expected}); save it on the "
            "grid of the image"
        )
    affine_mm = grid.affine_lps.copy()
    affine_mm[:3] = RAS_TO_LPS @ affine_mm[:3]
    made = Path(folder, f"{Path(label).stem}.nii.gz")
    try:
        values = np.fromfile(label, dtype=np.uint8).reshape(grid.shape_ijk, order="F")
        write_mask(values, affine_mm, made)
        yield made
    finally:
        made.unlink(missing_ok=True)


def has_voxels(label: str | Path) -> bool:
    """Return whether a stored label marks anything; a file that cannot be read counts as full."""
    try:
        return bool(_read_voxels(label).any())
    except (RuntimeError, *NIFTI_ERRORS):
        return True


def check_header(path: str | Path) -> None:
    """Raise InputError unless the first bytes fit the extension and refer to no other file.

    The header of NRRD and NIfTI can name a second file with the voxels; a reader would open any
    file of the server. The text is checked before a reader sees the file.
    """
    if str(path).lower().endswith(".nrrd"):
        with open(path, "rb") as file:
            is_nrrd = file.read(4) == b"NRRD"
        if not is_nrrd:
            raise InputError("the file is no NRRD file; export it again")
        check_self_contained(Path(path))
        return
    start = _first_bytes(path)
    is_nifti = any(start[offset : offset + 4] in texts for offset, texts in NIFTI_MAGIC)
    if not is_nifti and not _is_analyze(start):
        raise InputError("the file is no NIfTI file in one piece; export it again as .nii.gz")
    if not voxels_begin_soon(start):
        raise InputError("the NIfTI header puts the voxels too far behind it; export it again")


def _is_analyze(start: bytes) -> bool:
    """Return whether a header has the length of NIfTI-1 without a magic text, as ANALYZE has."""
    return start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and not start[344:348].strip(b"\0")


def _first_bytes(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        start = file.read(HEADER_BYTES)
    if not start.startswith(b"\x1f\x8b"):
        return start
    try:  # what follows may be cut off; the reader notices that
        return zlib.decompressobj(GZIP_WBITS).decompress(start, HEADER_BYTES)
    except zlib.error:
        return b""


def _read_header(path: str | Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _read_voxels(path: str | Path) -> np.ndarray:
    """Return the voxels of a label file, with the scale of the header applied.

    nibabel reads NIfTI: ITK fills what is cut off with zeros, and turns NaN into 0.
    """
    name = str(path).lower()
    if not name.endswith((".nii", ".nii.gz")):
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    image_class: Any = type(nibabel.load(path))  # Nifti1Image or Nifti2Image
    open_file: Any = igzip.open if _is_gzip(path) else open
    with open_file(path, "rb") as file:
        image = image_class.from_file_map({"image": FileHolder(fileobj=file)}, mmap=False)
        voxels = np.asarray(image.dataobj)
        read_to_end(file)
    return voxels


def _is_gzip(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _shape(header: sitk.ImageFileReader) -> tuple[int, ...]:
    """Return the shape without trailing 1s after the third axis."""
    shape = tuple(header.GetSize())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _check_grid(label: Grid3D, image: Grid3D) -> None:
    if label.shape_ijk != image.shape_ijk:
        sizes = (" × ".join(map(str, grid.shape_ijk)) for grid in (label, image))
        raise InputError(
            "the label has {} voxels, its image {}; save one label map on the grid of the "
            "image".format(*sizes)
        )
    corners_ijk = np.array([*np.ndindex(2, 2, 2)]) * (np.array(label.shape_ijk) - 1)
    shifts_mm = apply_affine(label.affine_lps - image.affine_lps, corners_ijk)
    farthest_mm = np.linalg.norm(shifts_mm, axis=1).max()
    if farthest_mm > SAME_PLACE_VOXELS * voxel_sizes(image.affine_lps).min():
        raise InputError(
            f"the label lies elsewhere than its image, by up to {farthest_mm:.3g} mm; save it on "
            "the grid of the image"
        )


def _facts(voxels: np.ndarray) -> LabelFacts:
    """Return what a label holds; raises InputError unless it is integers from 0 to MAX_LABEL."""
    found = _distinct(voxels)
    if not np.isfinite(found).all():
        raise InputError("the label holds NaN or infinity; save integers")
    rounded = np.rint(found)
    if np.abs(found - rounded).max() > INTEGER_TOLERANCE or rounded.min() < 0:
        raise InputError(
            f"the label holds values from {found.min():g} to {found.max():g} that are no numbers "
            "of segments; save integers of 0 and more"
        )
    if rounded.max() > MAX_LABEL:
        raise InputError(
            f"the label holds the value {rounded.max():g}; save values from 0 to {MAX_LABEL}"
        )
    values = tuple(sorted({int(value) for value in rounded if value}))
    return LabelFacts(values, int(np.count_nonzero(voxels > INTEGER_TOLERANCE)))


def _distinct(voxels: np.ndarray) -> np.ndarray:
    """Return the distinct values, sorted; for small integers without sorting the voxels."""
    is_small = voxels.dtype.kind in "iu" and voxels.min() >= 0 and voxels.max() < MANY_VALUES
    if not is_small:
        return np.unique(voxels)
    is_used = np.zeros(MANY_VALUES, dtype=bool)
    is_used[voxels] = True
    return np.flatnonzero(is_used)
