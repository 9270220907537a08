"""The batches of an adaptation: ROIs with labels and painted ones, as embeddings in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib.networks import FastSAM3D

from .adapt_options import AdaptOptions
from .data.painted_rois import paint_roi
from .data.roi_pool import POOLING, ZOOM, RoiOptions, RoiPool, SpacingAt
from .data.studies import ExaminedStudy
from .stages import Batch, step_seed

PAINTED = 32
"""PAINTED: different painted ROIs; each update has one."""


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
        self._pool = RoiPool(
            groups[-1],
            max(options.rois, 2 * len(groups[-1])),
            config,
            RoiOptions(zoom=ZOOM),
            options.seed,
            spacing_mm_at=spacing_mm_at,
        )
        self._numbers = [self._numbers_of(group) for group in groups]
        self._items: dict[int, dict[str, Any]] = {}
        self._painted: dict[int, tuple[Tensor, Tensor]] = {}

    def _numbers_of(self, group: Sequence[ExaminedStudy]) -> list[int]:
        names = {study.name for study in group}
        pool = self._pool
        return [number for number in range(len(pool)) if pool.study(number).name in names]

    def labelled(self, group: int, update: int) -> Batch:
        """Return the labelled ROIs of an update; a group's ROIs take turns in random order."""
        numbers, size = self._numbers[group], self._options.train_batch_size
        chosen = []
        for place in range(update * size, (update + 1) * size):
            lap, index = divmod(place, len(numbers))
            generator = torch.Generator().manual_seed(step_seed(self._options.seed + group, lap))
            order = torch.randperm(len(numbers), generator=generator)
            chosen.append(numbers[int(order[index])])
        items = [self._item(number) for number in chosen]
        return {
            "embedding": torch.stack([item["embedding"] for item in items]).float(),
            "target": torch.stack([item["share"] for item in items]).float() / POOLING**3,
            "has_label": torch.ones(len(items), dtype=torch.bool),
            "click_roi": torch.stack([item["click_roi"] for item in items]),
            "key": [item["key"] for item in items],
        }

    def painted(self, update: int) -> Batch:
        """Return a painted ROI without a label."""
        number = update % PAINTED
        if number not in self._painted:
            image, click_roi = paint_roi(self._size, step_seed(self._options.seed, number))
            self._painted[number] = self._encoded(image), click_roi
        embedding, click_roi = self._painted[number]
        cells = -(-self._size // POOLING)
        return {
            "embedding": embedding[None].float(),
            "target": torch.zeros(1, cells, cells, cells),
            "has_label": torch.zeros(1, dtype=torch.bool),
            "click_roi": click_roi[None],
            "key": [f"painted {number}"],
        }

    def _item(self, number: int) -> dict[str, Any]:
        if number not in self._items:
            item = self._pool[number]
            self._items[number] = {
                "embedding": self._encoded(item["image"]),
                "share": (item["target"] * POOLING**3).to(torch.uint8),
                "click_roi": item["click_roi"],
                "key": item["key"],
            }
        return self._items[number]

    @torch.no_grad()
    def _encoded(self, image: Tensor) -> Tensor:
        """Return the embedding of a ROI (1, S, S, S), in half precision, on the CPU."""
        return self._network.encode(image[None].to(self._device))[0].half().cpu()
