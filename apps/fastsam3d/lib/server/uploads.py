"""Files that clients upload: which ones are taken, and under which name they are kept.

NIfTI and NRRD files in one piece, and DICOM files for a session. Archives are not unpacked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from fastapi import UploadFile

from lib.datastore.label_files import EXTENSIONS, check_header, read_grid
from lib.errors import InputError
from lib.imaging.image_checks import check_voxel_count
from lib.server.names import check_name

DICOM_START = 128
"""DICOM_START: bytes before the letters DICM in a DICOM file (part 10 of the standard)."""


def split_name(file_name: str) -> tuple[str, str]:
    """Split a file name into its stem and one of EXTENSIONS; raises InputError.

    Only the end counts: the stem of ``P.001.nii.gz`` is ``P.001``.
    """
    for extension in EXTENSIONS:
        if file_name.lower().endswith(extension):
            return file_name[: -len(extension)], extension
    raise InputError(f"the file is {file_name[-80:]!r}; send one of {', '.join(EXTENSIONS)}")


@contextmanager
def received(file: UploadFile, extension: str) -> Iterator[Path]:
    """Yield a private copy of an uploaded file; it is gone afterwards."""
    with TemporaryDirectory(prefix="upload-") as folder:
        path = Path(folder, f"upload{extension}")
        _copy(file, path)
        yield path


def check_image(path: Path) -> None:
    """Raise InputError unless the header of an image can be read, names no other file, and fits.

    An image with more voxels than `check_voxel_count` allows is not kept.
    """
    check_header(path)
    check_voxel_count(path.name, read_grid(path).shape_ijk)


def is_same_scan(path: Path, other: Path) -> bool:
    """Return whether two files hold the same voxels at the same place, in whatever format."""
    try:
        first, second = sitk.ReadImage(str(path)), sitk.ReadImage(str(other))
    except RuntimeError:
        return False
    same_grid = first.GetSize() == second.GetSize() and np.allclose(
        [*first.GetOrigin(), *first.GetSpacing(), *first.GetDirection()],
        [*second.GetOrigin(), *second.GetSpacing(), *second.GetDirection()],
        atol=1e-4,
    )
    return same_grid and bool(
        np.array_equal(sitk.GetArrayViewFromImage(first), sitk.GetArrayViewFromImage(second))
    )


@contextmanager
def received_session(files: Sequence[UploadFile]) -> Iterator[Path]:
    """Yield the path of an uploaded volume: one image file, or a folder of DICOM files.

    Raises InputError for other files. A file among DICOM files that is none is kept as an empty
    one, so that the reader of the series names it.
    """
    with TemporaryDirectory(prefix="upload-") as temporary:
        folder = Path(temporary, "series")
        folder.mkdir()
        paths = [folder / _session_name(file, number) for number, file in enumerate(files)]
        if len(set(paths)) < len(paths):
            raise InputError("two of the files have the same name; send each file once")
        if len(paths) == 1 and paths[0].name.lower().endswith(EXTENSIONS):
            _copy(files[0], paths[0])
            check_image(paths[0])
            yield paths[0]
            return
        if any(path.name.lower().endswith(EXTENSIONS) for path in paths):
            raise InputError("several files must be the slices of one DICOM series")
        strays = [path for file, path in zip(files, paths, strict=True) if not _is_dicom(file)]
        if len(strays) == len(paths):
            raise InputError(
                f"{strays[0].name!r} is no DICOM file and has none of the extensions "
                f"{', '.join(EXTENSIONS)}; archives are not unpacked"
            )
        for file, path in zip(files, paths, strict=True):
            if path in strays:
                path.touch()
            else:
                _copy(file, path)
        yield paths[0] if len(paths) == 1 else folder


def _session_name(file: UploadFile, number: int) -> str:
    name = Path(file.filename or "").name or f"{number:06d}.dcm"
    return check_name(name, "the name of a file")


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as copy:
        shutil.copyfileobj(file.file, copy)
    if not path.stat().st_size:
        raise InputError("the file is empty; send it again")


def _is_dicom(file: UploadFile) -> bool:
    start = file.file.read(DICOM_START + 4)
    file.file.seek(0)
    return start[DICOM_START:] == b"DICM"
