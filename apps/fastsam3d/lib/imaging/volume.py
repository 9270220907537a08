"""Reading a stored volume: its voxels as stored and its place in space, both checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from lib.errors import InputError
from lib.imaging.dicom_series import read_series
from lib.imaging.image_checks import GEOMETRY_CURE, check_affine, unreadable
from lib.imaging.intensity import looks_like_ct
from lib.imaging.itk_file import from_itk, read_itk
from lib.imaging.nifti_file import ImageMetadata, StoredImage, read_nifti

NIFTI = (".nii", ".nii.gz")

ITK_READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".gipl": "GiplImageIO",
    ".gipl.gz": "GiplImageIO",
    ".png": "PNGImageIO",
}
"""ITK_READERS: by extension. Readers that follow a header to other files are not among them."""

MAX_LABEL = 65535

LABEL_TOLERANCE = 0.05
"""LABEL_TOLERANCE: how far a label value may be from an integer; writers store 3 as 3.0000458."""

BLANK_SHARE = 1e-3
"""BLANK_SHARE: an image with a smaller share of voxels beside its usual value is nearly blank."""

SAMPLES = 100_000
"""SAMPLES: about how many voxels the usual value is taken from."""

COARSE_STEP = 1e-3
"""COARSE_STEP: steps between numbers of float32 that deserve a warning, as a part of the range."""

PLAUSIBLE_MM = (0.005, 50.0)
"""PLAUSIBLE_MM: lengths of voxels that need no warning; a header with another unit has others."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A stored image, decoded.

    array: (I, J, K), read-only. The stored integers, or float32 if the file stores floats or a
        scale. Fortran order: i runs fastest in memory, planes of one k are contiguous.
    affine_mm: (4, 4) float64, stored index -> RAS mm.
    is_ct: whether the values are Hounsfield units: by DICOM's Modality where it is known, else by
        the values.
    warnings: what the user should know about the image, such as values that were replaced.
    """

    array: np.ndarray
    affine_mm: np.ndarray
    is_ct: bool
    warnings: tuple[str, ...] = ()

    @property
    def shape_ijk(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


def read_volume(path: str | Path, max_voxels: int | None = None) -> Volume:
    """Read a NIfTI, NRRD, MetaImage or GIPL file, a DICOM file, or a folder with a DICOM series.

    Trailing axes of length 1 are dropped. The geometry is that of ITK, and so of 3D Slicer. NaN
    becomes 0, with a warning. max_voxels: None means what fits into memory. Raises InputError if
    the file cannot be read or is not a 3D scan: wrong dimensions, too few or too many voxels,
    complex or colour values, infinity, one constant value, or axes that are not at right angles.
    """
    path = Path(path)
    image = _read(path, max_voxels)
    array, nan_warnings = _without_nan(path.name, _native(image.array))
    minimum, maximum = _range(path.name, array)
    if minimum == maximum:
        raise InputError(
            f'image "{path.name}" is empty: every voxel is {minimum:g}; export it again'
        )
    array.setflags(write=False)
    modality = image.metadata.modality
    is_ct = modality == "CT" if modality else looks_like_ct(array, minimum)
    warnings = (
        *image.metadata.warnings,
        *nan_warnings,
        *_blank_warnings(path.name, array),
        *_size_warnings(path.name, voxel_sizes(image.affine_mm)),
        *_rounding_warnings(path.name, array.dtype, minimum, maximum),
    )
    return Volume(array, image.affine_mm, is_ct, warnings)


def read_label_map(
    path: str | Path, max_voxels: int | None = None, max_label: int = MAX_LABEL
) -> Volume:
    """Read a label map in any format of `read_volume`; its array is uint8 or uint16.

    Values that are not quite integers are rounded, and NaN is 0. A map without any label is one of
    a healthy case. Raises InputError if the file cannot be read, is not 3D, or holds fractions,
    values outside of 0 to `max_label`, or NaN and no label.
    """
    path = Path(path)
    try:
        image = _read(path, max_voxels)
        stored, nan_warnings = _without_nan(path.name, _native(image.array))
        minimum, maximum = _range(path.name, stored)
    except InputError as error:
        raise InputError(str(error).replace("image ", "label ", 1)) from error
    if minimum < -LABEL_TOLERANCE or maximum > max_label + LABEL_TOLERANCE:
        raise InputError(
            f'label "{path.name}" holds values from {minimum:g} to {maximum:g}; '
            f"save it with values from 0 to {max_label}"
        )
    if nan_warnings and minimum == maximum == 0:
        raise InputError(
            f'label "{path.name}" holds NaN and no structure; save it as integers, 0 for background'
        )
    array = np.rint(stored) if stored.dtype.kind == "f" else stored
    if stored.dtype.kind == "f" and np.abs(array - stored).max() > LABEL_TOLERANCE:
        raise InputError(f'label "{path.name}" holds fractions; save it as integers')
    array = array.astype(np.uint8 if maximum < 255.5 else np.uint16, order="F", copy=False)
    array.setflags(write=False)
    return Volume(array, image.affine_mm, False, (*image.metadata.warnings, *nan_warnings))


def grid_distance_mm(first: Volume, second: Volume) -> float:
    """Return how far the corners of two grids are apart, in mm; infinity for other shapes."""
    if first.shape_ijk != second.shape_ijk:
        return math.inf
    corners_ijk = np.array([*np.ndindex(2, 2, 2)]) * (np.array(first.shape_ijk) - 1)
    apart_mm = apply_affine(first.affine_mm - second.affine_mm, corners_ijk)
    return float(np.linalg.norm(apart_mm, axis=1).max())


def _read(path: Path, max_voxels: int | None) -> StoredImage:
    """Return the content of a file or folder; raise InputError for an affine of no use."""
    if not path.exists():
        raise InputError(
            f'image "{path.name}" does not exist; check its name and that it was not moved'
        )
    try:
        reader = _reader(path)
    except OSError as error:
        raise unreadable(path.name, error) from error
    if reader == "DICOM":
        series = read_series(path, max_voxels)
        content = from_itk(path.name, series.image)
        image = content._replace(metadata=ImageMetadata(series.modality, series.warnings))
    elif reader == "NIfTI":
        image = read_nifti(path, max_voxels)
    else:
        image = read_itk(path, reader, max_voxels)
    check_affine(path.name, image.affine_mm)
    return image


def _reader(path: Path) -> str:
    """Return "DICOM", "NIfTI" or the name of ITK's reader for a path.

    A file without a known extension, such as the target of a link in a store of content, is known
    by its first bytes.
    """
    name = path.name.lower()
    if path.is_dir() or name.endswith(".dcm"):
        return "DICOM"
    if name.endswith(NIFTI):
        return "NIfTI"
    for extension, reader in ITK_READERS.items():
        if name.endswith(extension):
            return reader
    with path.open("rb") as file:
        start = file.read(132)
    if start.startswith(b"NRRD"):
        return ITK_READERS[".nrrd"]
    if start.startswith((b"ObjectType", b"NDims")):
        return ITK_READERS[".mha"]
    if start[128:] == b"DICM":
        return "DICOM"
    return "NIfTI"


def _native(array: np.ndarray) -> np.ndarray:
    """Return an array in the machine's byte order, floats as float32."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # overflow gives infinity, which is rejected later
            array = array.astype(np.float32, copy=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _without_nan(name: str, array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an array whose NaN are 0, and the warning about them.

    Tools that mask an image write NaN outside of the mask.
    """
    if array.dtype.kind != "f" or not math.isnan(array.min()):
        return array, ()
    is_nan = np.isnan(array)
    count = int(np.count_nonzero(is_nan))
    warning = f'{count} of {array.size} voxels of image "{name}" are NaN; they are taken as 0'
    return np.where(is_nan, np.float32(0), array), (warning,)


def _range(name: str, array: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest value; raise InputError unless all are finite."""
    minimum, maximum = float(array.min()), float(array.max())
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        count = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise InputError(
            f'{count} of {array.size} voxels of image "{name}" are infinite; '
            "replace them by the background value"
        )
    return minimum, maximum


def _blank_warnings(name: str, array: np.ndarray) -> tuple[str, ...]:
    """Return the warning about an image that has one value nearly everywhere.

    A network has not learned from such images, and may mark all of one.
    """
    some = array.reshape(-1, order="A")[:: max(1, array.size // SAMPLES)]
    usual = np.percentile(some, 50, method="lower")
    if np.count_nonzero(some != usual) > 2 * BLANK_SHARE * some.size:
        return ()
    others = int(np.count_nonzero(array != usual))
    if others > BLANK_SHARE * array.size:
        return ()
    return (
        f'only {others} of {array.size} voxels of image "{name}" have another value than '
        f"{usual:g}; a mask there is hardly more than a guess",
    )


def _size_warnings(name: str, spacing_mm: np.ndarray) -> tuple[str, ...]:
    """Return the warning about voxels (3,) that are hardly of the size that the header says."""
    smallest, largest = PLAUSIBLE_MM
    if spacing_mm.min() >= smallest and spacing_mm.max() <= largest:
        return ()
    values = " × ".join(f"{value:.3g}" for value in spacing_mm)
    return (f'the voxels of image "{name}" are {values} mm; if they are not, {GEOMETRY_CURE}',)


def _rounding_warnings(
    name: str, dtype: np.dtype, minimum: float, maximum: float
) -> tuple[str, ...]:
    """Return the warning about values that float32, in which masks are computed, rounds."""
    step = float(np.spacing(np.float32(max(abs(minimum), abs(maximum)))))
    if dtype.itemsize < np.dtype(np.float32).itemsize or step <= COARSE_STEP * (maximum - minimum):
        return ()
    return (
        f'the values of image "{name}", {minimum:g} to {maximum:g}, are rounded to steps of '
        f"{step:g}; subtract an offset and export it again",
    )
