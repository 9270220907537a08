"""Mask files: a mask with the geometry of its image, as a file or as the bytes of a file.

Both viewers ask for uint8 NRRD. This module makes its bytes itself, because SimpleITK writes to a
file only: the mask of a click goes from its box in memory to the socket in chunks, without a file
to write and read back, and without an array of the whole image. SimpleITK and nibabel write the
other formats, to a temporary file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import isal_zlib
from nibabel.affines import voxel_sizes

from lib.imaging.affine import RAS_TO_LPS
from lib.imaging.mask import BoxMask

EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")

GZIP_WBITS = 31
"""GZIP_WBITS: zlib's number for the gzip format."""

FASTEST = 1
"""FASTEST: the compression level. A mask of 78 MB takes 30 ms and becomes 150 KB."""


@dataclass(frozen=True)
class MaskForm:
    """The form of the mask that a request asks for.

    extension: one of EXTENSIONS. dtype: one of DTYPES. compress: None if the request leaves it
    open.
    """

    extension: str
    dtype: str = "uint8"
    compress: bool | None = None


def own_extension(path: str) -> str:
    """Return the extension of an image if a mask can have it, otherwise ``.nrrd``."""
    fitting = [extension for extension in EXTENSIONS if path.lower().endswith(extension)]
    return max(fitting, key=len, default=".nrrd")


# --- files ----------------------------------------------------------------------------------------


def write_mask(
    mask_ijk: np.ndarray, affine_mm: np.ndarray, path: str | Path, compress: bool = False
) -> None:
    """Write a mask in the format that the extension of `path` names.

    mask_ijk: (I, J, K). affine_mm: (4, 4) stored index -> RAS mm. compress: for NRRD and MetaImage
    only; OHIF reads uncompressed NRRD only.
    """
    if str(path).endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(mask_ijk, affine_mm), path)
        return
    # (k, j, i) in C order is the same memory as (i, j, k) in Fortran order: no copy for our masks
    image = sitk.GetImageFromArray(mask_ijk.transpose())
    spacing_mm = voxel_sizes(affine_mm)
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((RAS_TO_LPS @ (affine_mm[:3, :3] / spacing_mm)).flatten().tolist())
    image.SetOrigin((RAS_TO_LPS @ affine_mm[:3, 3]).tolist())
    sitk.WriteImage(image, str(path), useCompression=compress)


def write_temporary(mask: BoxMask, form: MaskForm) -> str:
    """Write a mask to a new temporary file and return its path; the caller removes the file.

    No file is left behind if writing fails.
    """
    handle, path = tempfile.mkstemp(suffix=form.extension)
    os.close(handle)
    try:
        write_mask(mask.whole(form.dtype), mask.affine_mm, path, bool(form.compress))
    except Exception:
        os.unlink(path)
        raise
    return path


# --- bytes ----------------------------------------------------------------------------------------

Chunks = Iterable[bytes | memoryview]


@dataclass(frozen=True)
class Body:
    """The bytes of a mask file: their number, and the chunks that make them up, in order."""

    length: int
    chunks: Chunks

    @classmethod
    def of(cls, content: bytes) -> Body:
        return cls(len(content), [content])

    @classmethod
    def chain(cls, bodies: Sequence[Body]) -> Body:
        """Return bodies one after the other."""
        return cls(sum(body.length for body in bodies), _chain(*(body.chunks for body in bodies)))

    def gzipped(self) -> Body:
        """Return the body compressed; all of it is in memory then."""
        compressor = isal_zlib.compressobj(FASTEST, wbits=GZIP_WBITS)
        parts = [compressor.compress(chunk) for chunk in self.chunks]
        return Body.of(b"".join(parts) + compressor.flush())


def mask_body(mask: BoxMask, form: MaskForm) -> Body:
    """Return the content of the mask's file; its chunks can be read once."""
    if (form.extension, form.dtype) == (".nrrd", "uint8"):
        voxels = Body(mask.nbytes, mask.chunks())
        voxels = voxels.gzipped() if form.compress else voxels
        header = _nrrd_header(mask, "gzip" if form.compress else "raw")
        return Body.chain([Body.of(header), voxels])
    path = write_temporary(mask, form)
    try:
        return Body.of(Path(path).read_bytes())
    finally:
        os.unlink(path)


def _nrrd_header(mask: BoxMask, encoding: str) -> bytes:
    """Return the header that ITK would write (teem.sourceforge.net/nrrd/format.html)."""
    affine_lps = RAS_TO_LPS @ mask.affine_mm[:3]
    directions = " ".join(_vector(affine_lps[:, axis]) for axis in range(3))
    lines = (
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        "type: unsigned char",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, mask.shape_ijk))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        f"encoding: {encoding}",
        f"space origin: {_vector(affine_lps[:, 3])}",
    )
    return "".join(f"{line}\n" for line in (*lines, "")).encode()


def _vector(values: np.ndarray) -> str:
    return f"({','.join(f'{value + 0.0:.17g}' for value in values)})"  # + 0.0 turns -0 into 0


def _chain(*parts: Chunks) -> Iterator[bytes | memoryview]:
    for part in parts:
        yield from part
