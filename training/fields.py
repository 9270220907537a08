"""Smooth random fields on the ROI's grid, the raw material of shapes, textures and bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F


def smooth_field(
    shape: Sequence[int], knots: int, generator: np.random.Generator, channels: int = 1
) -> np.ndarray:
    """Normal noise at knots³ places, interpolated linearly: (channels, *shape) float32."""
    noise = generator.standard_normal((1, channels, knots, knots, knots), dtype=np.float32)
    return resize(noise[0], shape)


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(C, i, j, k) -> (C, *shape) float32, trilinear, both cubes covering the same extent."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    return F.interpolate(tensor, size=tuple(shape), mode="trilinear", align_corners=False)[
        0
    ].numpy()


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """A positive number whose logarithm is uniform."""
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))
