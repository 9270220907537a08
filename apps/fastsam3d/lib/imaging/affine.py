"""Affines: RAS, as NIfTI and this app use it, and LPS, as ITK and DICOM use it.

The length of a voxel along each stored axis comes from `nibabel.affines.voxel_sizes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    # training reads NIfTI where SimpleITK is not installed
    import SimpleITK as sitk

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
"""RAS_TO_LPS: world coordinates from RAS to LPS, and, being its own inverse, from LPS to RAS."""


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Return the affine of an ITK image of three or more dimensions.

    The result is (4, 4) float64, stored index (i, j, k) -> LPS mm. Axes after the third are left
    out.
    """
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    affine_mm = np.eye(4)
    affine_mm[:3, :3] = direction * image.GetSpacing()[:3]
    affine_mm[:3, 3] = image.GetOrigin()[:3]
    return affine_mm
