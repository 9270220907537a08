"""Painted ROIs: arbitrary images, with which an adaptation compares those of the labels.

They show regions of random shapes, intensities and textures, as in SynthSeg (arXiv 2107.09559), so
that no scan of another kind is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

COARSE = 64
"""COARSE: cells along each side on which the regions are painted."""

FEWEST_BLOBS, MOST_BLOBS = 4, 13
"""FEWEST_BLOBS, MOST_BLOBS: cells of the random field along a side, whose contours are regions."""

FEWEST_CUTS, MOST_CUTS, CUT_SPREAD = 3, 8, 0.35
"""FEWEST_CUTS, MOST_CUTS, CUT_SPREAD: number and standard deviation of the field's contours."""

TEXTURE, NOISE = 0.3, 0.25
"""TEXTURE, NOISE: largest standard deviations of texture and noise, beside intensities of 1."""

GROUND = 0.2
"""GROUND: share of the darkest voxels, which are not counted in the z-score."""


def paint_roi(size: int, seed: int) -> Tensor:
    """Return a normalised ROI image (1, size, size, size), float32."""
    generator = torch.Generator().manual_seed(seed)

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    field = _smooth_field(whole(FEWEST_BLOBS, MOST_BLOBS), generator)
    count = whole(FEWEST_CUTS, MOST_CUTS)
    cuts = torch.sort(torch.randn(count, generator=generator) * CUT_SPREAD).values
    region = torch.bucketize(field, cuts)
    image = torch.randn(count + 1, generator=generator)[region]
    image = image + TEXTURE * uniform() * _smooth_field(COARSE // 3, generator)
    if uniform() < 0.5:  # air, or what a scan does not show
        image = torch.where(region == whole(0, count), image.min() - 2 * uniform(), image)
    image = F.interpolate(image, size=(size,) * 3, mode="trilinear")[0, 0]
    image = image + NOISE * uniform() * torch.randn(image.shape, generator=generator)
    step = max(1, size // 32)
    shown = image > image[::step, ::step, ::step].quantile(GROUND)
    image = (image - image[shown].mean()) / image[shown].std().clamp(min=1e-3)
    return image[None]


def _smooth_field(cells: int, generator: torch.Generator) -> Tensor:
    """Return a random field (1, 1, COARSE, COARSE, COARSE), interpolated between some cells."""
    field = torch.randn(1, 1, cells, cells, cells, generator=generator)
    return F.interpolate(field, size=(COARSE,) * 3, mode="trilinear")
