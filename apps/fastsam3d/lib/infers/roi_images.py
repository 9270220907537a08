"""The image that the network sees, cropped once for the choice of the scale and for the encoder."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from lib.cache import ByteCache, array_nbytes
from lib.imaging.intensity import normalize
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume

MAX_BYTES = 2**24
"""MAX_BYTES: of the ROI images that are kept: two of 128³ voxels."""


class RoiImages:
    """Crops ROIs, and keeps the newest ones."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._images: ByteCache[np.ndarray] = ByteCache(max_bytes, array_nbytes)

    def crop(self, volume: Volume, volume_key: Hashable, roi: Roi) -> np.ndarray:
        """Return the normalised image of a ROI, (S, S, S) float32, which must not be changed.

        volume_key: identifies the volume. Raises InputError for a ROI without contrast.
        """
        return self._images.get_or_make(
            (volume_key, roi), lambda: normalize(roi.crop(volume.array), volume.is_ct)
        )
