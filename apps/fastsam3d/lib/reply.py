"""Writing a mask to a file with its image's geometry, in the formats that clients ask for."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


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


def own_extension(path: str) -> str:
    """The extension of an image, where it is one that masks can have; ``.nrrd`` else."""
    fits = [extension for extension in EXTENSIONS if path.lower().endswith(extension)]
    return max(fits, key=len, default=".nrrd")
