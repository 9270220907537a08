"""The intensity normalisation that serving, training and benchmarks share."""

from __future__ import annotations

import numpy as np

from lib.errors import InputError

CT_MINIMUM_HU = -200
"""CT_MINIMUM_HU: a scan with a value this low, beside its padding, is taken for a CT."""

AIR_HU = (-1100, -900)
"""AIR_HU: values that outline the patient in a CT if a tool replaced the air by one value."""

FAT_HU = -50
"""FAT_HU: a CT of a patient without any air still has values this low; an MR has none."""

CT_WINDOW_HU = (-1000.0, 1000.0)
"""CT_WINDOW_HU: a CT is clamped to this range."""

FLAT = 1e-6
"""FLAT: a range below this part of the magnitude is float32 rounding, not contrast."""


def looks_like_ct(array: np.ndarray, minimum: float) -> bool:
    """Return whether an image of any shape, whose smallest value is `minimum`, is taken for a CT.

    This is a heuristic for files that do not store the modality, as NIfTI and NRRD. Every CT of a
    patient shows some air, at -1000 HU. MR, PET and ultrasound store magnitudes from 0 up;
    undershoot of a resampling filter stays well above -200. The smallest value alone may be padding
    around an image of any modality, so it counts only if it is that of air and values of fat are
    there too. A CT stored with an offset (air at 0) is taken for a magnitude image and is not
    clamped.
    """
    if minimum > CT_MINIMUM_HU:
        return False
    if _has_between(array, minimum, CT_MINIMUM_HU):
        return True
    return AIR_HU[0] <= minimum <= AIR_HU[1] and _has_between(array, minimum, FAT_HU)


def _has_between(array: np.ndarray, above: float, up_to: float) -> bool:
    """Return whether any value is larger than `above` and at most `up_to`.

    It goes through the planes of the last axis, so that a CT is known from its first planes.
    """
    planes = np.moveaxis(array, -1, 0)
    return any(bool(((plane > above) & (plane <= up_to)).any()) for plane in planes)


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
