"""Reading a NRRD, MetaImage or GIPL file by ITK, after a look at its text.

The headers of NRRD and MetaImage may name other files that hold the voxels. Such a header would
make the server read any of its files, so the text is checked before a reader sees it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS, itk_affine
from lib.imaging.image_checks import check_layout, check_voxel_count, unreadable
from lib.imaging.nifti_file import ImageMetadata, StoredImage

HEADER_BYTES = 2**20
"""HEADER_BYTES: how far into a file its text is searched; headers are much shorter."""

NRRD_DATA_FILE = re.compile(rb"(?:^|[\r\n])\s*data\s*file\s*:(?!=)", re.IGNORECASE)
"""NRRD_DATA_FILE: the field by which a NRRD header points to other files.

It follows teem.sourceforge.net/nrrd/format.html; ``:=`` would be a comment of the user.
"""

NRRD_UNITS = re.compile(rb"(?:^|[\r\n])\s*(?:space )?units\s*:(?!=)([^\r\n]*)", re.IGNORECASE)
"""NRRD_UNITS: the fields of NRRD for the units of lengths, each in quotes."""

QUOTED = re.compile(rb'"([^"]*)"')

MILLIMETRES = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres")
"""MILLIMETRES: units that need no warning."""

META_DATA_FILE = re.compile(rb"ElementDataFile\s*[=:]\s*([^\s]*)", re.IGNORECASE)
"""META_DATA_FILE: the field of MetaImage for the place of the voxels; LOCAL is the same file."""


def read_itk(path: Path, reader_name: str, max_voxels: int | None = None) -> StoredImage:
    """Read an image file in its stored type by the named reader of ITK.

    reader_name: such as "NrrdImageIO". Raises InputError if the header points to another file, or
    if the file cannot be read, is not a 3D scan, or claims more than `max_voxels`.
    """
    try:
        check_self_contained(path)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(reader_name)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        check_voxel_count(path.name, reader.GetSize(), max_voxels)
        image = reader.Execute()
    except InputError:
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        raise unreadable(path.name, error) from error
    metadata = ImageMetadata(warnings=_unit_warnings(path))
    return from_itk(path.name, image)._replace(metadata=metadata)


def _unit_warnings(path: Path) -> tuple[str, ...]:
    """Return the warning about lengths that a NRRD header gives in another unit than mm."""
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    if not text.startswith(b"NRRD"):
        return ()
    fields = NRRD_UNITS.findall(text.split(b"\n\n")[0].split(b"\r\n\r\n")[0])
    units = [unit.decode("ascii", "replace") for field in fields for unit in QUOTED.findall(field)]
    others = sorted({unit for unit in units if unit.strip().lower() not in MILLIMETRES})
    if not others:
        return ()
    return (
        f'the header of image "{path.name}" gives lengths in {", ".join(others)[:40]}; they are '
        "taken as mm, as 3D Slicer does",
    )


def check_self_contained(path: Path) -> None:
    """Raise InputError if the header of a NRRD or MetaImage file points to other files."""
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    is_nrrd = text.startswith(b"NRRD")
    points_elsewhere = is_nrrd and NRRD_DATA_FILE.search(text) is not None
    if not is_nrrd:
        places = META_DATA_FILE.findall(text)
        points_elsewhere = any(place.strip().upper() != b"LOCAL" for place in places)
    if points_elsewhere:
        raise InputError(
            f'image "{path.name}" is a header whose voxels are in another file; '
            "save it as one file, such as .nrrd, .mha or .nii.gz"
        )
    has_end = re.search(rb"\n\r?\n", text) if is_nrrd else True
    if not has_end:
        raise InputError(f'image "{path.name}" is a NRRD header without an end; export it again')


def from_itk(name: str, image: Any) -> StoredImage:
    """Return the content of a SimpleITK image; raise InputError unless it is a 3D scan."""
    is_complex = "complex" in image.GetPixelIDTypeAsString()
    is_scalar = image.GetNumberOfComponentsPerPixel() == 1 and not is_complex
    shape_ijk = check_layout(name, image.GetSize(), is_scalar)
    affine_mm = itk_affine(image)
    affine_mm[:3] = RAS_TO_LPS @ affine_mm[:3]
    array: np.ndarray = sitk.GetArrayFromImage(image).transpose().reshape(shape_ijk, order="F")
    return StoredImage(array, affine_mm)
