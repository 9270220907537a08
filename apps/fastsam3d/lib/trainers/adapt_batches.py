"""The batches of an adaptation: ROIs on labels and beside them, as embeddings in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor

from lib.networks import FastSAM3D, ImageLikeness, image_features

from .adapt_options import AdaptOptions
from .data.painted_rois import paint_roi
from .data.roi_pool import POOLING, ZOOM, RoiOptions, RoiPool, SpacingAt
from .data.studies import PLACES, ExaminedStudy
from .stages import Batch, step_seed

PAINTED = 32
"""PAINTED: arbitrary ROIs, with which those of the studies are compared."""

ENOUGH_ROIS = 128
"""ENOUGH_ROIS: with more studies than half of this, a study has fewer than two ROIs on its labels:
each one takes half a second, and no update is due to see it."""


def pool_sizes(options: AdaptOptions, studies: int) -> tuple[int, int]:
    """Return how many ROIs on labels, and beside them, an adaptation to so many studies has."""
    least = max(studies, min(2 * studies, ENOUGH_ROIS))
    return max(options.rois, least), max(options.rois // 2, least)


class EmbeddedBatches:
    """Batches as `RoiPool` makes them, with the embedding of a frozen encoder, not the image.

    Each ROI is made and encoded when it is first used. A ROI of 128³ voxels takes 2.6 MB. Batches
    depend on the seed of the options, the group and the update alone.

    network: its encoder; it must be on the device. groups: of studies; a batch is of one group, and
    the last group holds all studies. spacing_mm_at: chooses the voxel size, as in serving.
    """

    def __init__(
        self,
        network: FastSAM3D,
        groups: Sequence[Sequence[ExaminedStudy]],
        options: AdaptOptions,
        spacing_mm_at: SpacingAt,
    ) -> None:
        self._network = network
        self._device = next(network.parameters()).device
        self._options = options
        config = network.config
        self._size = config.roi_size
        self._on_labels, self._beside = (
            RoiPool(
                studies,
                count,
                config,
                RoiOptions(zoom=ZOOM),
                options.seed,
                spacing_mm_at=spacing_mm_at,
            )
            for studies, count in zip(
                (groups[-1], [beside_label(study) for study in groups[-1]]),
                pool_sizes(options, len(groups[-1])),
                strict=True,
            )
        )
        self._names = [{study.name for study in group} for group in groups]
        self._items: dict[tuple[bool, int], dict[str, Any]] = {}
        self._arbitrary: Tensor | None = None

    def _numbers_of(self, pool: RoiPool, group: int) -> list[int]:
        """Return the numbers of the ROIs of a group's studies."""
        names = self._names[group]
        return [number for number in range(len(pool)) if pool.study(number).name in names]

    def labelled(self, group: int, update: int) -> Batch:
        """Return the ROIs on labels of an update; a group's ROIs take turns in random order."""
        return self._batch(self._on_labels, group, update, self._options.train_batch_size)

    def beside(self, group: int, update: int) -> Batch:
        """Return the ROIs of an update around places beside the labelled structures."""
        return self._batch(self._beside, group, update, self._options.beside)

    def _batch(self, pool: RoiPool, group: int, update: int, size: int) -> Batch:
        numbers = self._numbers_of(pool, group)
        chosen = []
        for place in range(update * size, (update + 1) * size):
            lap, index = divmod(place, len(numbers))
            generator = torch.Generator().manual_seed(step_seed(self._options.seed + group, lap))
            order = torch.randperm(len(numbers), generator=generator)
            chosen.append(numbers[int(order[index])])
        items = [self._item(pool, number) for number in chosen]
        return {
            "embedding": torch.stack([item["embedding"] for item in items]).float(),
            "target": torch.stack([item["share"] for item in items]).float() / POOLING**3,
            "has_label": torch.stack([item["has_label"] for item in items]),
            "click_roi": torch.stack([item["click_roi"] for item in items]),
            "key": [item["key"] for item in items],
        }

    def likeness(self, group: int) -> ImageLikeness:
        """Return which ROIs look like those on the labels of a group."""
        pool = self._on_labels
        numbers = self._numbers_of(pool, group)
        known = [self._item(pool, number)["embedding"] for number in numbers]
        if self._arbitrary is None:
            seeds = [step_seed(self._options.seed, number) for number in range(PAINTED)]
            painted = [self._encoded(paint_roi(self._size, seed)) for seed in seeds]
            self._arbitrary = self._features(painted)
        studies = [pool.study(number).name for number in numbers]
        return ImageLikeness.fit(self._features(known), studies, self._arbitrary)

    def _features(self, embeddings: Sequence[Tensor]) -> Tensor:
        config = self._network.config
        return torch.cat([image_features(embedding[None], config) for embedding in embeddings])

    def _item(self, pool: RoiPool, number: int) -> dict[str, Any]:
        place = pool is self._on_labels, number
        if place not in self._items:
            item = pool[number]
            self._items[place] = {
                "embedding": self._encoded(item["image"]),
                "share": (item["target"] * POOLING**3).to(torch.uint8),
                "has_label": item["has_label"],
                "click_roi": item["click_roi"],
                "key": item["key"],
            }
        return self._items[place]

    @torch.no_grad()
    def _encoded(self, image: Tensor) -> Tensor:
        """Return the embedding of a ROI (1, S, S, S), in half precision, on the CPU."""
        return self._network.encode(image[None].to(self._device))[0].half().cpu()


def beside_label(study: ExaminedStudy) -> ExaminedStudy:
    """Return a study without its label, whose body is what lies beside the labelled structures.

    That is the box around each structure, twice as wide along each axis, without all structures;
    the whole body where a label covers all of that.
    """
    assert study.label is not None
    label = study.label.unpack()
    places = []
    for box in find_objects(label):
        if box is not None:
            wide = tuple(_twice_as_wide(part) for part in box)
            outside = np.argwhere(label[wide] == 0) + [part.start for part in wide]
            places.append(outside[:: 1 + len(outside) // PLACES])
    beside = np.concatenate(places) if sum(map(len, places)) else study.body
    return replace(study, label=None, structures={}, body=beside)


def _twice_as_wide(part: slice) -> slice:
    half = max(1, (part.stop - part.start) // 2)
    return slice(max(0, part.start - half), part.stop + half)
