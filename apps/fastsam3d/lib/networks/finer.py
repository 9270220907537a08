"""Masks on cells half as wide as those of the low-resolution mask, around what may be the object.

Not part of the published networks, whose masks have cells of 6 mm: a structure of 4 ml has some 20
of them. Patches half as wide would give such masks too, with eight times as many tokens to encode
and to decode at every click. Here the network answers as ever, and a small U-Net that sees the
image on finer cells, the answer and the clicks refines it where the answer is not a clear no. It
costs what the object's box is worth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FastSAM3DConfig
from .detail import (
    BRIGHTEST,
    KEY_CHANNELS,
    PROMPT_MAPS,
    Coarser,
    Conv3d,
    ResidualConv3d,
    draw_prompt,
    likeness,
    sample,
)

FINER = 2
"""Finer cells along the side of a cell of the low-resolution mask."""

ALIGNED = 2
"""A box begins and ends at multiples of so many low-resolution cells: the U-Net halves twice."""

LIKELY = 0.03
"""The box holds all cells that are likelier, and a margin of MARGIN low-resolution cells."""

MARGIN = 2

BOX_CELLS = 16
"""Low-resolution cells along the side of a box in training, and at least when served: 96 of 192 mm.
In a smaller box the U-Net would see less around the object than it has learnt to expect."""


class Box(NamedTuple):
    """Low-resolution cells, half-open, along each axis of the ROI."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def of(self, cells: Tensor, per_cell: int) -> Tensor:
        """The box of [B, C, i, j, k] that has `per_cell` cells along a low-resolution one."""
        i, j, k = (
            slice(a * per_cell, b * per_cell) for a, b in zip(self.start, self.stop, strict=True)
        )
        return cells[:, :, i, j, k]


class FinerMask(nn.Module):
    """What lies in boxes of equal size -> logits on their finer cells. It starts as an
    interpolation.
    """

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        channels = config.finer_channels
        side = config.roi_size // (FINER * config.low_res_size)
        self.image_proj = Conv3d(1, channels, kernel_size=side, stride=side)
        self.detail_proj = Conv3d(config.detail_channels, channels, kernel_size=1)
        self.key = Conv3d(channels, KEY_CHANNELS, kernel_size=1)
        self.merge = Conv3d(channels + PROMPT_MAPS, channels, kernel_size=1)
        self.coarser = Coarser(channels, (2 * channels, 4 * channels))
        self.mix = ResidualConv3d(channels)
        self.out = Conv3d(channels, 1, kernel_size=1)
        with torch.no_grad():
            for x in self.out.parameters():
                x.zero_()

    def see(self, image: Tensor, detail: Tensor) -> Tensor:
        """Image [B, 1, …] and detail [B, D, i, j, k] -> [B, C, 2i, 2j, 2k]."""
        context = F.interpolate(self.detail_proj(detail), scale_factor=FINER, mode="trilinear")
        return self.image_proj(image.clamp(-BRIGHTEST, BRIGHTEST)) + context

    def forward(
        self, low_res: Tensor, image: Tensor, detail: Tensor, points: Tensor, labels: Tensor
    ) -> Tensor:
        """low_res: [B, 1, i, j, k] logits; image: [B, 1, …], its voxels; detail: [B, D, i, j, k].

        points: [B, N, 3] voxels of the box's image, clicks outside of it too; labels: [B, N].
        -> [B, 1, 2i, 2j, 2k] logits.
        """
        logits = F.interpolate(low_res, scale_factor=FINER, mode="trilinear")
        seen = self.see(image, detail)
        extent = torch.tensor(image.shape[2:], device=image.device)
        drawn = draw_prompt(points, labels, logits, extent)
        inside = ((points >= 0) & (points < extent)).all(dim=-1)
        keys = self.key(seen).float()  # bfloat16 would move a click
        clicked = sample(keys, points, extent)
        alike = likeness(keys, clicked, torch.where(inside, labels, -1))
        maps = torch.cat([drawn, alike], dim=1)
        merged = self.merge(torch.cat([seen, maps.to(seen.dtype)], dim=1))
        merged = merged.contiguous(memory_format=torch.channels_last_3d)
        found = self.mix(merged + self.coarser(merged))
        return logits + self.out(F.gelu(found))


def box_around(low_res: Tensor) -> Box | None:
    """All cells of logits (s, s, s) that may belong to the object; None where none does."""
    places = torch.nonzero(low_res.sigmoid() > LIKELY)
    if not len(places):
        return None
    size = low_res.shape[-1]
    least = min(BOX_CELLS, size)
    low, high = places.amin(dim=0) - MARGIN, places.amax(dim=0) + 1 + MARGIN
    short = (least - (high - low)).clamp(min=0)
    low = ((low - short // 2) // ALIGNED * ALIGNED).clamp(0, size - least)
    high = -((high + short // 2) // -ALIGNED) * ALIGNED
    high = torch.maximum(high, low + least).clamp(max=size)
    start, stop = low.tolist(), high.tolist()
    return Box(tuple(start), tuple(stop))
