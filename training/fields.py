"""Smooth random fields on the ROI's grid, used for shapes, textures and bias fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F


def smooth_field(
    shape: Sequence[int], knots: int, generator: np.random.Generator, channels: int = 1
) -> np.ndarray:
    """Return linearly interpolated normal noise on knots³ points: (channels, *shape) float32."""
    noise = generator.standard_normal((1, channels, knots, knots, knots), dtype=np.float32)
    return resize(noise[0], shape)


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample (C, i, j, k) trilinearly to (C, *shape) float32; the extent stays the same."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    return F.interpolate(tensor, size=tuple(shape), mode="trilinear", align_corners=False)[
        0
    ].numpy()


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """Return a random number between low and high whose logarithm is uniform."""
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))
