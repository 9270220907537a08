"""Image detail beside the embedding, so that a mask can follow edges that 16³ patches do not hold.

Not part of the published networks. The image at the resolution of the low-resolution mask goes to
three places: a click learns what the image is like where it lies, and a mask is refined by a few
convolutions that see the image, the previous mask and where the clicks are. The two-dimensional
networks that came after SAM do alike (SAM 2, arXiv 2408.00714, section 4: skip connections past the
memory attention; RITM, arXiv 2102.06583: previous mask and discs of clicks as channels).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FastSAM3DConfig

PROMPT_MAPS = 3
"""Channels that show the prompt: previous mask, foreground clicks, background clicks."""

BRIGHTEST = 6.0
"""Of a normalised image, in standard deviations: metal in CT and hot spots in PET go far beyond."""

CLICK_SIGMA = 1.0
"""Of the blob that shows a click, in cells of the low-resolution mask."""


class DetailStem(nn.Module):
    """ROI [B, 1, S, S, S] -> detail [B, D, 4g, 4g, 4g]."""

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        cell = config.roi_size // config.low_res_size
        channels = config.detail_channels
        self.proj = nn.Conv3d(1, channels, kernel_size=cell, stride=cell)
        self.mix = ResidualConv3d(channels)

    def forward(self, volume: Tensor) -> Tensor:
        return self.mix(self.proj(volume.clamp(-BRIGHTEST, BRIGHTEST)))


class ResidualConv3d(nn.Module):
    """x + conv(gelu(conv(x))), [B, C, i, j, k]; it starts close to doing nothing.

    Without a norm: most of what it sees is nearly constant over the channels, far from the clicks
    and outside of the body, where a norm has gradients without bound.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(x)))


class MaskRefiner(nn.Module):
    """What the decoder has upscaled [B, C, 4g, 4g, 4g], with the image's detail and the prompt."""

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        channels = config.out_channels // 8
        self.merge = nn.Conv3d(
            channels + config.detail_channels + PROMPT_MAPS, channels, kernel_size=1
        )
        self.mix = ResidualConv3d(channels)

    def forward(self, upscaled: Tensor, detail: Tensor, maps: Tensor) -> Tensor:
        merged = self.merge(torch.cat([upscaled, detail, maps], dim=1))
        return upscaled + self.mix(merged)


def fold(detail: Tensor, grid_size: int) -> Tensor:
    """[B, D, 4g, 4g, 4g] -> [B, 64 D, g, g, g], so that it can be part of the embedding."""
    side = detail.shape[-1] // grid_size
    for axis in (2, 4, 6):
        detail = detail.unflatten(axis, (grid_size, side))
    return detail.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def unfold(folded: Tensor, side: int) -> Tensor:
    """The inverse of :func:`fold`; side: 4, cells of the low-resolution mask along a token."""
    detail = folded.unflatten(1, (-1, side, side, side))  # [B, D, a, b, c, i, j, k]
    return detail.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def sample(detail: Tensor, points: Tensor, roi_size: int) -> Tensor:
    """Detail at clicks: [B or 1, D, s, s, s] and [B, N, 3] (i, j, k) ROI voxels -> [B, N, D]."""
    place = (points + 0.5) * (2 / roi_size) - 1
    grid = place.flip(-1)[:, :, None, None]  # grid_sample wants (k, j, i)
    detail = detail.expand(len(points), -1, -1, -1, -1)
    found = F.grid_sample(detail, grid, padding_mode="border", align_corners=False)
    return found[..., 0, 0].transpose(1, 2)


def draw_prompt(points: Tensor, labels: Tensor, mask: Tensor, roi_size: int) -> Tensor:
    """[B, 3, s, s, s]: the previous mask in (-1, 1), and a blob at each click, by its kind.

    points: [B, N, 3] ROI voxels; labels: [B, N]; mask: [B, 1, s, s, s] logits.
    """
    size = mask.shape[-1]
    cells = (points + 0.5) * (size / roi_size) - 0.5  # [B, N, 3]
    line = torch.arange(size, device=points.device, dtype=mask.dtype)
    waves = torch.exp(-((line - cells[..., None]) ** 2) / (2 * CLICK_SIGMA**2))  # [B, N, 3, s]
    maps = [torch.tanh(mask[:, 0] / 4)]
    for kind in (1, 0):
        i, j, k = (waves * (labels == kind)[..., None, None]).unbind(dim=2)
        maps.append(torch.einsum("bni,bnj,bnk->bijk", i, j, k).clamp(max=1))
    return torch.stack(maps, dim=1)
