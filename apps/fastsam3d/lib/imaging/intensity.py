"""The intensity normalisation that serving, training and benchmarks share."""

from __future__ import annotations

import numpy as np

from lib.errors import InputError

CT_MINIMUM_HU = -200
"""CT_MINIMUM_HU: a scan with a value this low is taken for a CT."""

CT_WINDOW_HU = (-1000.0, 1000.0)
"""CT_WINDOW_HU: a CT is clamped to this range."""

FLAT = 1e-6
"""FLAT: a range below this part of the magnitude is float32 rounding, not contrast."""


def looks_like_ct(minimum: float) -> bool:
    """Return whether a volume whose smallest stored value is `minimum` is taken for a CT.

    This is a heuristic, because neither NIfTI nor NRRD stores the modality. Every CT of a patient
    shows some air, at -1000 HU. MR, PET and ultrasound store magnitudes from 0 up; undershoot of a
    resampling filter stays well above -200. A CT stored with an offset (air at 0) is taken for a
    magnitude image and is not clamped.
    """
    return minimum <= CT_MINIMUM_HU


def normalize(roi_image: np.ndarray, is_ct: bool) -> np.ndarray:
    """Return an image of any shape as float32 z-scores, as the networks were trained with.

    A CT is first clamped to [-1000, 1000] HU. Mean and sample standard deviation (n - 1) are those
    of the voxels > 0, or of all voxels if the voxels > 0 have no contrast (all air, or 0 and 1
    only). `roi_image` is not changed. Raises InputError if the whole image is one value.
    """
    image = np.asarray(roi_image, dtype=np.float32)
    if is_ct:
        image = np.clip(image, *CT_WINDOW_HU)
    mean_std = _mean_std(image[image > 0]) or _mean_std(image)
    if mean_std is None:
        value = float(image.flat[0]) if image.size else 0.0
        raise InputError(
            f"the region around the click has no contrast (every voxel is {value:g}); "
            "click on the structure itself, inside the body"
        )
    mean, std = mean_std
    return (image - np.float32(mean)) / np.float32(std)


def _mean_std(values: np.ndarray) -> tuple[float, float] | None:
    """Return mean and sample standard deviation, summed in float64; None without contrast."""
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if high - low <= FLAT * max(abs(low), abs(high)):
        return None
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64, ddof=1))
