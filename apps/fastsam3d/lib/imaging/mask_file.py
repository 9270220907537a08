"""Mask files: a mask with its image's geometry, as bytes in memory or as a file.

What both viewers ask for, uint8 NRRD, goes from memory to the socket, without a file between. For
the other forms a writer makes a file first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import isal_zlib

from lib.imaging.mask import BoxMask

EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])

GZIP = 31  # zlib's number for the format
FASTEST = 1  # a mask of 78 MB takes 30 ms, and is 150 KB then


@dataclass(frozen=True)
class MaskForm:
    """What a request wants of the mask; compress: None where it does not say."""

    extension: str
    dtype: str = "uint8"
    compress: bool | None = None

    @classmethod
    def of(cls, params: Mapping[str, Any], image: str) -> MaskForm:
        """params: of a request, checked. image: the path, whose extension is the default."""
        return cls(
            params.get("result_extension") or own_extension(image),
            params.get("result_dtype") or "uint8",
            params.get("result_compress"),
        )


def own_extension(path: str) -> str:
    """The extension of an image, where it is one that masks can have; ``.nrrd`` else."""
    fits = [extension for extension in EXTENSIONS if path.lower().endswith(extension)]
    return max(fits, key=len, default=".nrrd")


# --- files ----------------------------------------------------------------------------------------


def write_mask(
    mask_ijk: np.ndarray, affine_mm: np.ndarray, path: str | Path, compress: bool = False
) -> None:
    """Write a mask (I, J, K) with the affine (4, 4), stored index -> RAS mm, as ``path`` says.

    compress: for NRRD and MetaImage; OHIF reads uncompressed NRRD only.
    """
    if str(path).endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(mask_ijk, affine_mm), path)
        return
    # (k, j, i) in C order is the same memory as (i, j, k) in Fortran order: no copy for our masks
    image = sitk.GetImageFromArray(mask_ijk.transpose())
    spacing_mm = np.linalg.norm(affine_mm[:3, :3], axis=0)
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((RAS_TO_LPS @ (affine_mm[:3, :3] / spacing_mm)).flatten().tolist())
    image.SetOrigin((RAS_TO_LPS @ affine_mm[:3, 3]).tolist())
    sitk.WriteImage(image, str(path), useCompression=compress)


def write_temporary(mask: BoxMask, form: MaskForm) -> str:
    """The path of a new file; nothing is left of one that cannot be written."""
    handle, path = tempfile.mkstemp(suffix=form.extension)
    os.close(handle)
    try:
        write_mask(mask.whole(form.dtype), mask.affine_mm, path, bool(form.compress))
    except Exception:
        os.unlink(path)
        raise
    return path


# --- bytes ----------------------------------------------------------------------------------------

Stretches = Iterable[bytes | memoryview]


@dataclass(frozen=True)
class Body:
    """Bytes to send: their number, and the stretches that they come in."""

    length: int
    stretches: Stretches

    @classmethod
    def of(cls, content: bytes) -> Body:
        return cls(len(content), [content])

    def between(self, before: bytes, after: bytes = b"") -> Body:
        length = len(before) + self.length + len(after)
        return Body(length, _chain([before], self.stretches, [after]))

    def gzipped(self) -> Body:
        compressor = isal_zlib.compressobj(FASTEST, wbits=GZIP)
        parts = [compressor.compress(stretch) for stretch in self.stretches]
        return Body.of(b"".join(parts) + compressor.flush())


def mask_body(mask: BoxMask, form: MaskForm) -> Body:
    """The content of the mask's file."""
    if (form.extension, form.dtype) == (".nrrd", "uint8"):
        voxels = Body(mask.nbytes, mask.stretches())
        voxels = voxels.gzipped() if form.compress else voxels
        return voxels.between(_nrrd_header(mask, "gzip" if form.compress else "raw"))
    path = write_temporary(mask, form)
    try:
        return Body.of(Path(path).read_bytes())
    finally:
        os.unlink(path)


def _nrrd_header(mask: BoxMask, encoding: str) -> bytes:
    """As ITK writes it (teem.sourceforge.net/nrrd/format.html)."""
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
    return f"({','.join(f'{value + 0.0:.17g}' for value in values)})"  # + 0.0: no -0


def _chain(*parts: Stretches) -> Iterator[bytes | memoryview]:
    for part in parts:
        yield from part
