"""Affines: RAS, as NIfTI and this app use it, and LPS, as ITK and DICOM use it.

The length of a voxel along each stored axis comes from `nibabel.affines.voxel_sizes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
"""RAS_TO_LPS: world coordinates from RAS to LPS, and, being its own inverse, from LPS to RAS."""


def itk_affine(image: Any) -> np.ndarray:
    """Return the affine of an ITK image: (4, 4) float64, stored index (i, j, k) -> LPS mm.

    image: a SimpleITK `Image`, or an `ImageFileReader` that has read its header, of three or more
    dimensions. Axes after the third are ignored.
    """
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    affine_mm = np.eye(4)
    affine_mm[:3, :3] = direction * image.GetSpacing()[:3]
    affine_mm[:3, 3] = image.GetOrigin()[:3]
    return affine_mm
