"""Smooth random fields on the ROI's grid, used for shapes, textures and bias fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

MEAN_TURN = 10.0
"""MEAN_TURN: standard deviation of the turn around each axis, in degrees."""


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


def bend(
    labels: np.ndarray, image: np.ndarray | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn and deform a label map (S, S, S), and its image with it; the central voxel stays.

    Beyond the edge lie label 0 and the image's outermost voxels.
    """
    size = len(labels)
    angles = generator.normal(0, MEAN_TURN, 3)
    turn = Rotation.from_rotvec(angles, degrees=True).as_matrix().astype(np.float32)
    knots = int(generator.integers(4, 10))
    places = smooth_field(labels.shape, knots, generator, channels=3)
    places *= np.float32(generator.uniform(0, 0.25) * size / knots)
    middle = size // 2
    places += middle - places[:, middle, middle, middle][:, None, None, None]
    line = np.arange(size, dtype=np.float32) - middle
    for axis in range(3):
        along = line.reshape([-1 if n == axis else 1 for n in range(3)])
        places += turn[:, axis][:, None, None, None] * along
    # grid_sample expects (k, j, i), from -1 to 1
    grid = torch.from_numpy(places).flip(0).movedim(0, -1)[None] * (2 / (size - 1)) - 1

    def sampled(values: np.ndarray, mode: str, padding: str) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
        result = F.grid_sample(tensor, grid, mode, padding_mode=padding, align_corners=True)
        return result[0, 0].numpy()

    bent = None if image is None else sampled(image, "bilinear", "border")
    return sampled(labels, "nearest", "zeros").astype(labels.dtype), bent


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """Return a random number between low and high whose logarithm is uniform."""
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))
