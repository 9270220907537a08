"""Image detail beside the embedding, with which masks follow edges that 16³ patches do not show.

The published networks do not have it. The image at the resolution of the low-resolution mask is
used twice: a click's embedding gets the detail at the click, and a few convolutions refine the
upscaled image, given the detail, the previous mask and the clicks. Two-dimensional networks that
followed SAM do the same (SAM 2, arXiv 2408.00714, section 4: skip connections past the memory
attention; RITM, arXiv 2102.06583: previous mask and discs of clicks as channels).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cell_keys import CellKeys
from .common import Conv3d, ResidualConv3d
from .config import FastSAM3DConfig

PROMPT_MAPS = 5
"""PROMPT_MAPS: channels of :meth:`MaskRefiner.prompt_maps`: the previous mask, the foreground and
the background clicks, and the likeness of each cell to either kind of click. Cell keys add their
likeness, two more."""

KEY_CHANNELS = 8
"""KEY_CHANNELS: features by which cells are compared with clicked cells."""

BRIGHTEST = 6.0
"""BRIGHTEST: limit of the normalised image in standard deviations. Metal in CT and hot spots in PET
lie far above it."""

CLICK_SIGMA = 1.0
"""CLICK_SIGMA: width of the Gaussian that shows a click, in cells of the low-resolution mask."""


class DetailStem(nn.Module):
    """Image detail [B, D, 4g, 4g, 4g] of a ROI [B, 1, S, S, S]: ``mix`` of ``patches``."""

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        cell = config.roi_size // config.low_res_size
        channels = config.detail_channels
        self.proj = Conv3d(1, channels, kernel_size=cell, stride=cell)
        self.mix = ResidualConv3d(channels)

    def forward(self, volume: Tensor) -> Tensor:
        return self.mix(self.patches(volume))

    def patches(self, volume: Tensor) -> Tensor:
        """Return [B, D, 4g, 4g, 4g], in which each cell depends on its own voxels only."""
        return self.proj(volume.clamp(-BRIGHTEST, BRIGHTEST))


class Coarser(nn.Module):
    """The coarser levels of the U-Net: maps [B, C, i, j, k] to the same shape through wider cells.

    channels: of the input. coarser: channels of this level and of the levels below it. The last
    convolution starts at zero, so that a network with it begins like the network without it.
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
        features = self.mix(self.down(x))
        if self.below is not None:
            features = features + self.below(features)
        return F.interpolate(self.up(F.gelu(features)), scale_factor=2, mode="trilinear")


class MaskRefiner(nn.Module):
    """Refine the decoder's upscaled image [B, C, 4g, 4g, 4g] with image detail and prompt.

    A U-Net (arXiv 1505.04597) of a few channels, through which a mask spreads from the clicks to
    the end of the object. Its input includes the likeness of each cell to the clicked cells.
    """

    def __init__(self, config: FastSAM3DConfig) -> None:
        super().__init__()
        channels = config.out_channels // 8
        self.key = Conv3d(config.detail_channels, KEY_CHANNELS, kernel_size=1)
        self.cell_keys = CellKeys(config) if config.key_channels else None
        of_keys = config.key_channels + 2 if config.key_channels else 0
        self.merge = Conv3d(
            channels + config.detail_channels + PROMPT_MAPS + of_keys, channels, kernel_size=1
        )
        self.coarser = Coarser(channels, config.refiner_channels)
        self.mix = ResidualConv3d(channels)

    def keys_of(self, embedding: Tensor, detail: Tensor) -> Tensor | None:
        """Return the cells' keys of an image, [B, K, 4g, 4g, 4g], None without keys."""
        if self.cell_keys is None:
            return None
        return self.cell_keys(embedding, detail.to(embedding.dtype))

    def prompt_maps(
        self,
        detail: Tensor,
        keys: Tensor | None,
        points: Tensor,
        labels: Tensor,
        mask: Tensor,
        roi_size: int,
    ) -> Tensor:
        """Return the prompt as channels, [B, PROMPT_MAPS or 2 more with keys, 4g, 4g, 4g].

        detail: [B or 1, D, 4g, 4g, 4g]; keys: [B or 1, K, 4g, 4g, 4g] or None;
        points: [B, N, 3] (i, j, k) ROI voxels; labels: [B, N]; mask: [B, 1, 4g, 4g, 4g] logits of
        the previous step.
        """
        maps = [draw_prompt(points, labels, mask, roi_size)]
        for compared in (self.key(detail.to(self.key.weight.dtype)), keys):
            if compared is not None:
                clicked = sample(compared, points.to(compared.dtype), roi_size)
                maps.append(likeness(compared, clicked, labels).to(maps[0].dtype))
        return torch.cat(maps, dim=1)

    def forward(
        self, upscaled: Tensor, detail: Tensor, keys: Tensor | None, maps: Tensor
    ) -> Tensor:
        shown = [upscaled, detail, maps] if keys is None else [upscaled, detail, maps, keys]
        merged = self.merge(torch.cat(shown, dim=1))
        # on a CPU, convolutions of few channels are faster in this memory format
        merged = merged.contiguous(memory_format=torch.channels_last_3d)
        return upscaled + self.mix(merged + self.coarser(merged))


def likeness(keys: Tensor, clicked: Tensor, labels: Tensor) -> Tensor:
    """Return exp(-d²) for the distance d of each cell's key to the nearest clicked key.

    keys: [B or 1, K, s, s, s]; clicked: [B, N, K] keys at the clicks; labels: [B, N]. The result
    [B, 2, s, s, s] is for foreground and for background clicks; 0 without clicks of that kind.
    """
    # bfloat16 loses the difference of two large squares
    with torch.autocast(keys.device.type, enabled=False):
        number_type = torch.promote_types(keys.dtype, torch.float32)
        flat, clicked = (x.to(number_type) for x in (keys.flatten(2), clicked))
        square = flat.square().sum(dim=1, keepdim=True) + clicked.square().sum(dim=2, keepdim=True)
        alike = torch.exp(-(square - 2 * clicked @ flat).clamp(min=0))  # [B, N, s³]
    none = alike.new_zeros(len(alike), 1, alike.shape[2])
    both = [
        torch.cat([none, alike * (labels == kind)[..., None]], dim=1).amax(dim=1) for kind in (1, 0)
    ]
    return torch.stack(both, dim=1).unflatten(2, keys.shape[2:])


def sample(detail: Tensor, points: Tensor, roi_size: int) -> Tensor:
    """Interpolate detail [B or 1, D, s, s, s] at (i, j, k) ROI voxels [B, N, 3]: [B, N, D]."""
    place = (points + 0.5) * (2 / roi_size) - 1
    grid = place.flip(-1)[:, :, None, None]  # grid_sample expects (k, j, i)
    detail = detail.expand(len(points), -1, -1, -1, -1)
    samples = F.grid_sample(detail, grid, padding_mode="border", align_corners=False)
    return samples[..., 0, 0].transpose(1, 2)


def draw_prompt(points: Tensor, labels: Tensor, mask: Tensor, roi_size: int) -> Tensor:
    """Return the previous mask in (-1, 1) and Gaussians at the foreground and background clicks.

    points: [B, N, 3] (i, j, k) ROI voxels; labels: [B, N]; mask: [B, 1, s, s, s] logits. The
    result is [B, 3, s, s, s].
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
