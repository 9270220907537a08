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

from .common import Conv3d
from .config import FastSAM3DConfig

PROMPT_MAPS = 5
"""Channels that show the prompt: previous mask, where foreground and background clicks are, and
what is like the image there."""

KEY_CHANNELS = 8
"""Of the features by which cells are compared with those that were clicked."""

COARSER = (48, 96)
"""Channels of the refiner where cells are twice and four times as wide."""

BRIGHTEST = 6.0
"""Of a normalised image, in standard deviations: metal in CT and hot spots in PET go far beyond."""

CLICK_SIGMA = 1.0
"""Of the blob that shows a click, in cells of the low-resolution mask."""


class DetailStem(nn.Module):
    """ROI [B, 1, S, S, S] -> detail [B, D, 4g, 4g, 4g], which is ``mix`` of ``patches``."""

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        cell = config.roi_size // config.low_res_size
        channels = config.detail_channels
        self.proj = Conv3d(1, channels, kernel_size=cell, stride=cell)
        self.mix = ResidualConv3d(channels)

    def forward(self, volume: Tensor) -> Tensor:
        return self.mix(self.patches(volume))

    def patches(self, volume: Tensor) -> Tensor:
        """What the encoder hands on, [B, D, 4g, 4g, 4g]: a cell knows its own voxels only."""
        return self.proj(volume.clamp(-BRIGHTEST, BRIGHTEST))


class ResidualConv3d(nn.Module):
    """x + conv(gelu(conv(x))), [B, C, i, j, k]; it starts close to doing nothing.

    Without a norm: most of what it sees is nearly constant over the channels, far from the clicks
    and outside of the body, where a norm has gradients without bound.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = Conv3d(channels, channels, kernel_size=3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(x)))


class Coarser(nn.Module):
    """[B, C, i, j, k] -> the same: what is seen on cells twice as wide, and what lies below it.

    channels: here and on each coarser level. Its last convolution starts at zero, so that a network
    with it begins as the one without.
    """

    def __init__(self, channels: int, coarser: tuple[int, ...]) -> None:
        super().__init__()
        self.down = Conv3d(channels, coarser[0], kernel_size=2, stride=2)
        self.mix = nn.Sequential(*(ResidualConv3d(coarser[0]) for _ in range(2)))
        self.below = Coarser(coarser[0], coarser[1:]) if coarser[1:] else None
        self.up = Conv3d(coarser[0], channels, kernel_size=1)
        with torch.no_grad():
            for x in self.up.parameters():
                x.zero_()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.mix(self.down(x))
        if self.below is not None:
            seen = seen + self.below(seen)
        return F.interpolate(self.up(F.gelu(seen)), scale_factor=2, mode="trilinear")


class MaskRefiner(nn.Module):
    """What the decoder has upscaled [B, C, 4g, 4g, 4g], with the image's detail and the prompt.

    A U-Net (arXiv 1505.04597) of a few channels, so that a mask can spread from the clicks to where
    the object ends. It sees which cells are like those that were clicked.
    """

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        channels = config.out_channels // 8
        self.key = Conv3d(config.detail_channels, KEY_CHANNELS, kernel_size=1)
        self.merge = Conv3d(
            channels + config.detail_channels + PROMPT_MAPS, channels, kernel_size=1
        )
        self.coarser = Coarser(channels, COARSER)
        self.mix = ResidualConv3d(channels)

    def show(
        self, detail: Tensor, points: Tensor, labels: Tensor, mask: Tensor, roi_size: int
    ) -> Tensor:
        """The prompt as channels, [B, PROMPT_MAPS, 4g, 4g, 4g].

        points: [B, N, 3] ROI voxels; labels: [B, N]; mask: [B, 1, 4g, 4g, 4g] logits.
        """
        drawn = draw_prompt(points, labels, mask, roi_size)
        keys = self.key(detail.to(self.key.weight.dtype))
        alike = likeness(keys, sample(keys, points.to(keys.dtype), roi_size), labels)
        return torch.cat([drawn, alike.to(drawn.dtype)], dim=1)

    def forward(self, upscaled: Tensor, detail: Tensor, maps: Tensor) -> Tensor:
        merged = self.merge(torch.cat([upscaled, detail, maps], dim=1))
        # convolutions of few channels are faster so on a CPU
        merged = merged.contiguous(memory_format=torch.channels_last_3d)
        return upscaled + self.mix(merged + self.coarser(merged))


def likeness(keys: Tensor, clicked: Tensor, labels: Tensor) -> Tensor:
    """[B, 2, s, s, s]: exp(-d²) of the distance of each cell's key to the nearest one that a
    foreground click, and to the nearest one that a background click lies on; 0 where there is none.

    keys: [B or 1, K, s, s, s]; clicked: [B, N, K]; labels: [B, N].
    """
    flat = keys.flatten(2)  # [B, K, s³]
    square = flat.square().sum(dim=1, keepdim=True) + clicked.square().sum(dim=2, keepdim=True)
    alike = torch.exp(-(square - 2 * clicked @ flat).clamp(min=0))  # [B, N, s³]
    none = alike.new_zeros(len(alike), 1, alike.shape[2])
    both = [
        torch.cat([none, alike * (labels == kind)[..., None]], dim=1).amax(dim=1) for kind in (1, 0)
    ]
    return torch.stack(both, dim=1).unflatten(2, keys.shape[2:])


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
