"""The one intensity normalisation, shared by serving, training and benchmarks."""

from __future__ import annotations

import numpy as np

from lib.errors import InputError

CT_MINIMUM_HU = -200
CT_WINDOW_HU = (-1000.0, 1000.0)
FLAT = 1e-6
"""Spread relative to magnitude below which float32 values are one value plus rounding."""


def looks_like_ct(minimum: float) -> bool:
    """Whether a volume whose smallest stored value is `minimum` is taken for a CT.

    A heuristic, because neither NIfTI nor NRRD says the modality. The Hounsfield units of a CT
    reach -1000 in air, which every scan of a patient shows some of, while MR, PET and ultrasound
    are magnitudes from 0 up, and what resampling undershoots below 0 stays small beside -200. A CT
    stored with an offset (air at 0) is taken for a magnitude image and is not clamped.
    """
    return minimum <= CT_MINIMUM_HU


def normalize(roi_image: np.ndarray, is_ct: bool) -> np.ndarray:
    """`roi_image`, any shape, as float32 with the statistics the weights were trained with.

    A CT is clamped to [-1000, 1000] HU first. Then mean and sample standard deviation (n - 1) are
    taken over the voxels > 0, or over all voxels where those hold no contrast (all air, or 0 and 1
    only). `roi_image` is left as it is. Raises InputError where the whole image is one value.
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
    """Mean and sample standard deviation, summed in float64; None where all values are one."""
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if high - low <= FLAT * max(abs(low), abs(high)):
        return None
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64, ddof=1))
