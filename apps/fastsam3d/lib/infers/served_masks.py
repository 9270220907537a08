"""The masks of the click path for any weights, without a server: for trainings and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.cache import ByteCache, array_nbytes
from lib.imaging.mask import BoxMask
from lib.imaging.volume import Volume
from lib.infers.fastsam3d import Caches, FastSAM3DInfer
from lib.infers.prompts import BACKGROUND, Subtype
from lib.infers.request import MASK
from lib.infers.scale import Look, RoiScale
from lib.networks import AttentionChoice
from lib.weights.files import Weights

VOLUME_BYTES = 2**29
"""VOLUME_BYTES: memory for decoded images."""

RESULT_BYTES = 2**28
"""RESULT_BYTES: memory for embeddings, and the same for masks."""


def served_mask(task: Any, request: Mapping[str, Any]) -> BoxMask:
    """Return the mask of a request to a `FastSAM3DInfer`, as the server computes it.

    request: ``image``, a path, and what a client sends. Raises InputError.
    """
    return task({**request, MASK: True})[1][MASK]


def small_caches() -> Caches:
    """Return caches for clicks on one image after the other."""
    return Caches(
        volumes=ByteCache(VOLUME_BYTES, array_nbytes),
        embeddings=ByteCache(RESULT_BYTES, array_nbytes),
        states=ByteCache(RESULT_BYTES, array_nbytes),
        initial_masks=ByteCache(RESULT_BYTES, lambda mask: mask.values.nbytes),
    )


def spatial_prompt(subtype: Subtype, places: list[Any], structure: int) -> dict[str, Any]:
    """Return a prompt as a client sends it in the request key ``prompts``.

    places: (i, j, k) of a point, or a list of such places.
    """
    key = {"semantic_id": structure}
    return {"type": "spatial", "subtype": subtype, "prompt": places, "semantic_id_key": key}


@dataclass(frozen=True)
class ServedMasks:
    """Makes masks with the options of a server. It holds plain values, so it can be pickled.

    spacing_mm, auto_zoom, attention: as for `FastSAM3DInfer`.
    """

    spacing_mm: float = 1.5
    auto_zoom: bool = True
    attention: AttentionChoice = "stored"

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the masks of given weights."""
        return asdict(self)

    def masks(
        self, weights: Weights, device: str
    ) -> Callable[[Path, np.ndarray, np.ndarray], np.ndarray]:
        """Return a function (image, clicks_ijk (N, 3), labels (N,)) -> mask (I, J, K) bool.

        weights: what makes the masks. device: ``cpu`` or ``cuda:N``. The function raises InputError
        for clicks or images that cannot be used.
        """
        task = FastSAM3DInfer(
            weights,
            ["target"],
            small_caches(),
            spacing_mm=self.spacing_mm,
            auto_zoom=self.auto_zoom,
            attention=self.attention,
            device=device,
        )

        def mask(image: Path, clicks_ijk: np.ndarray, labels: np.ndarray) -> np.ndarray:
            structures = (1 if label else BACKGROUND for label in labels)
            prompts = [
                spatial_prompt("point", place, structure)
                for place, structure in zip(clicks_ijk.tolist(), structures, strict=True)
            ]
            return served_mask(task, {"image": str(image), "prompts": prompts}).whole(bool)

        return mask

    def spacing_mm_at(
        self, volume: Volume, key: str, click_ijk: np.ndarray, roi_size: int
    ) -> float:
        """Return the voxel size in mm of the ROI of a first click (3,); key: of the volume."""
        looks: ByteCache[Look] = ByteCache(1, nbytes=lambda _: 1)
        scale = RoiScale(roi_size, self.spacing_mm, self.auto_zoom, looks)
        return scale.spacing_mm(volume, key, click_ijk, step=0)
