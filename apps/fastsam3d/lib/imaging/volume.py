"""Reading a stored volume: its voxels as stored and its place in space, both checked."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS, itk_affine
from lib.imaging.intensity import looks_like_ct

MIN_VOXELS = 4
"""MIN_VOXELS: least number of voxels along each axis; one slice, say, cannot be segmented in 3D."""

FLATTEST_AXES = 1e-3
"""FLATTEST_AXES: least volume that the three unit axes of an affine span (orthogonal axes: 1)."""

GEOMETRY_CURE = "repair the geometry in its header or export it again"

ISAL_ERROR: Any = isal_zlib.error  # isal's stub declares an instance instead of the class

# NIFTI_ERRORS: raised by nibabel and what it calls on damaged, truncated and foreign files
NIFTI_ERRORS = (
    OSError,
    EOFError,
    zlib.error,
    ISAL_ERROR,
    ValueError,
    MemoryError,
    ImageFileError,
    HeaderDataError,
)


@dataclass(frozen=True, eq=False)
class Volume:
    """A stored image, decoded.

    array: (I, J, K), read-only. The stored integers, or float32 if the file stores floats or a
        scale. Fortran order: i runs fastest in memory, planes of one k are contiguous.
    affine_mm: (4, 4) float64, stored index -> RAS mm.
    is_ct: whether the values look like Hounsfield units.
    """

    array: np.ndarray
    affine_mm: np.ndarray
    is_ct: bool

    @property
    def shape_ijk(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file, another file that SimpleITK reads, or a folder with a DICOM series.

    Trailing axes of length 1 are dropped. Raises InputError if the file cannot be read or is not a
    3D scan: wrong dimensions, too few voxels, complex or colour values, NaN or infinity, one
    constant value, or a singular affine.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f'image "{path.name}" does not exist; check its name and that it was not moved'
        )
    is_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
    array, affine_mm = _read_nifti(path) if is_nifti else _read_sitk(path)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # overflow gives infinity, which is rejected below
            array = array.astype(np.float32, copy=False)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    _check_affine(path.name, affine_mm)
    minimum = _check_values(path.name, array)
    array.setflags(write=False)
    return Volume(array, affine_mm, looks_like_ct(minimum))


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the array (I, J, K), float32 if the file has a scale, and the affine to RAS mm."""
    open_file: Any = igzip.open if path.name.lower().endswith(".gz") else open
    try:
        image_class: Any = type(nibabel.load(path))  # Nifti1Image or Nifti2Image
        with open_file(path, "rb") as file:
            header = image_class.header_class.from_fileobj(file, check=False)
            if header["sform_code"] <= 0:  # nibabel would replace a spacing of 0 by 1 mm
                _check_spacing(path.name, header["pixdim"][1:4])
            file.seek(0)
            # read, not mapped: if the file changes later, the cached volume must not change
            image = image_class.from_file_map({"image": FileHolder(fileobj=file)}, mmap=False)
            stored = image.dataobj
            shape_ijk = _check_layout(path.name, stored.shape, stored.dtype.kind in "iuf")
            is_scaled = (stored.slope, stored.inter) != (1, 0)
            array = np.asarray(stored, np.float32) if is_scaled else stored.get_unscaled()
            # nibabel stops at the last voxel, but truncated or damaged gzip shows only at its end
            while file.read(1 << 20):
                pass
    except InputError:
        raise
    except NIFTI_ERRORS as error:
        raise _unreadable(path.name, error) from error
    return array.reshape(shape_ijk, order="F"), np.asarray(image.affine, dtype=np.float64)


def _read_sitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the array (I, J, K) in its stored type and the affine to RAS mm."""
    # imported here, because training reads NIfTI where SimpleITK is not installed
    import SimpleITK as sitk

    from lib.imaging.dicom_series import read_series

    try:
        image = read_series(path) if path.is_dir() else sitk.ReadImage(str(path))
    except (RuntimeError, MemoryError) as error:
        raise _unreadable(path.name, error) from error
    is_complex = "complex" in image.GetPixelIDTypeAsString()
    is_scalar = image.GetNumberOfComponentsPerPixel() == 1 and not is_complex
    shape_ijk = _check_layout(path.name, image.GetSize(), is_scalar)
    affine_mm = itk_affine(image)
    affine_mm[:3] = RAS_TO_LPS @ affine_mm[:3]
    array_ijk = sitk.GetArrayFromImage(image).transpose().reshape(shape_ijk, order="F")
    return array_ijk, affine_mm


def _unreadable(name: str, error: Exception) -> InputError:
    """Return the error for the user; the reader's own message may name folders of the server."""
    if isinstance(error, MemoryError):
        return InputError(
            f'image "{name}" does not fit into the memory of the server; crop or resample it'
        )
    if isinstance(error, PermissionError):
        return InputError(f'image "{name}" may not be read by the server; change its permissions')
    if "Zero-valued spacing" in str(error):  # ITK's message
        return InputError(f'image "{name}" has a voxel spacing of 0 mm; {GEOMETRY_CURE}')
    return InputError(
        f'image "{name}" cannot be read: it is damaged, truncated, or not in the format that '
        "its extension names; copy or export it again"
    )


def _check_layout(name: str, shape: Sequence[int], is_scalar: bool) -> tuple[int, ...]:
    """Return the shape without trailing 1s; raise InputError unless it is a 3D scan of scalars."""
    if not is_scalar:
        raise InputError(
            f'image "{name}" holds complex, colour or vector voxels; '
            "export it with one real number per voxel"
        )
    shape_ijk = tuple(shape)
    while len(shape_ijk) > 3 and shape_ijk[-1] == 1:
        shape_ijk = shape_ijk[:-1]
    voxels = " × ".join(str(length) for length in shape_ijk)
    if len(shape_ijk) != 3:
        cure = (
            "export one volume of it"
            if len(shape_ijk) > 3
            else "give the whole scan, not one slice"
        )
        raise InputError(
            f'image "{name}" has {len(shape_ijk)} dimensions ({voxels}), not 3; {cure}'
        )
    if min(shape_ijk) < MIN_VOXELS:
        raise InputError(
            f'image "{name}" has only {voxels} voxels; '
            f"a 3D scan needs at least {MIN_VOXELS} along each axis"
        )
    return shape_ijk


def _check_affine(name: str, affine_mm: np.ndarray) -> None:
    """Raise InputError unless the affine is finite and invertible."""
    if not np.isfinite(affine_mm).all():
        raise InputError(f'the affine of image "{name}" holds NaN or infinity; {GEOMETRY_CURE}')
    spacing_mm = voxel_sizes(affine_mm)
    _check_spacing(name, spacing_mm)
    if abs(np.linalg.det(affine_mm[:3, :3] / spacing_mm)) < FLATTEST_AXES:
        raise InputError(
            f'the affine of image "{name}" is singular: its axes lie in one plane; {GEOMETRY_CURE}'
        )


def _check_spacing(name: str, spacing_mm: np.ndarray) -> None:
    if not np.all(spacing_mm):
        values = " × ".join(f"{value:g}" for value in spacing_mm)
        raise InputError(f'image "{name}" has a voxel spacing of {values} mm; {GEOMETRY_CURE}')


def _check_values(name: str, array: np.ndarray) -> float:
    """Return the smallest value; raise InputError unless all are finite and not all the same."""
    minimum, maximum = float(array.min()), float(array.max())  # NaN if any value is NaN
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        count = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise InputError(
            f'{count} of {array.size} voxels of image "{name}" are NaN or infinite; '
            "replace them by the background value"
        )
    if minimum == maximum:
        raise InputError(f'image "{name}" is empty: every voxel is {minimum:g}; export it again')
    return minimum
