"""Synthetic images of label maps by domain randomisation, and simulated acquisition.

As in SynthSeg (arXiv 2107.09559), intensities, textures, artefacts and resolution vary far more
than in real images, so that the network learns shape and contrast at the click. All images are
(S, S, S) float32 on the ROI's grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from .fields import log_uniform, resize, smooth_field


def paint(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return an image >= 0 of a label map (S, S, S) uint8.

    Each structure has its own mean and texture. Label 0 is black in half of the images.
    """
    count = int(labels.max()) + 1
    means = generator.uniform(0.05, 1, count).astype(np.float32)
    if generator.random() < 0.5:
        means[0] = 0
    spread = generator.uniform(0, 0.12, count).astype(np.float32)
    grain = smooth_field(labels.shape, int(generator.integers(16, 64)), generator)[0]
    if generator.random() < 0.5:
        grain += generator.standard_normal(labels.shape, dtype=np.float32)
    image = means[labels] + spread[labels] * grain
    return np.maximum(gaussian_filter(image, generator.uniform(0.3, 1.2), truncate=3), 0)


def split_ground(
    labels: np.ndarray, image: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Divide unlabelled voxels into classes of similar intensity, numbered after the labels.

    A data set labels a few organs only. If the rest of the body were painted in one tone, the
    labelled organs would be obvious.
    """
    ground = image[labels == 0]
    if not ground.size:
        return labels
    levels = np.quantile(ground[::97], np.sort(generator.uniform(0.05, 0.95, 4)))
    first = min(int(labels.max()) + 1, 250)
    return np.where(labels == 0, first + np.digitize(image, levels), labels).astype(np.uint8)


def recolour(image: np.ndarray, is_ct: bool, generator: np.random.Generator) -> np.ndarray:
    """Return a real image with another contrast, >= 0.

    It is windowed and gamma-corrected; some are remapped or inverted.
    """
    if is_ct:
        centre, width = generator.uniform(-100, 150), log_uniform(generator, 200, 1600)
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = 0.0, float(np.quantile(image[::3, ::3, ::3], 0.995)) or 1.0
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1.5)
    result = scaled ** log_uniform(generator, 0.6, 1.7)
    if generator.random() < 0.3:
        values = np.cumsum(generator.normal(0.15, 0.3, 9))
        values -= values.min()
        result = np.interp(result, np.linspace(0, 1.5, 9), values)
    elif generator.random() < 0.2:
        result = np.where(result > 0.02, np.maximum(1.1 - result, 0), 0)
    return np.ascontiguousarray(result, dtype=np.float32)


def add_lesion(image: np.ndarray, level: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the image with a blob (level < 1) that is brighter or darker, with a soft edge."""
    inside = image[level < 1]
    contrast = float(image.std()) + 1e-3
    value = float(np.median(inside)) + generator.choice([-1, 1]) * contrast * generator.uniform(
        0.5, 2
    )
    softness = log_uniform(generator, 0.03, 0.4)
    weight = np.clip((1 - level) / softness + 0.5, 0, 1) * np.float32(generator.uniform(0.6, 1))
    texture = contrast * generator.uniform(0, 0.5) * smooth_field(image.shape, 32, generator)[0]
    return (image + weight * (value + texture - image)).astype(np.float32)


def coarsen(image: np.ndarray, voxels: Sequence[float]) -> np.ndarray:
    """Return the image as if its voxels were `voxels` ROI voxels long along each axis.

    The result is interpolated back to the ROI's grid. Axes with voxels shorter than a ROI voxel
    stay unchanged. A painted label map shows steps in a finer ROI, which no interpolated image has.
    """
    shape = [
        max(2, round(length / max(1.0, each)))
        for length, each in zip(image.shape, voxels, strict=True)
    ]
    if tuple(shape) == image.shape:
        return image
    tensor = F.interpolate(torch.from_numpy(image)[None, None], size=shape, mode="area")
    return resize(tensor[0].numpy(), image.shape)[0]


def degrade(image: np.ndarray, generator: np.random.Generator, thickest: float) -> np.ndarray:
    """Simulate the acquisition: blur, bias field, noise and thick slices, each in some images.

    thickest: largest thickness of a slice in ROI voxels, at least 1.5.
    """
    if generator.random() < 0.25:
        image = gaussian_filter(image, generator.uniform(0.4, 1.5), truncate=3)
    if generator.random() < 0.4:
        field = smooth_field(image.shape, int(generator.integers(2, 6)), generator)[0]
        image = image * np.exp(np.float32(generator.uniform(0, 0.4)) * field)
    if generator.random() < 0.5:
        sigma = np.float32(generator.uniform(0, 0.12) * image.std())
        image = image + sigma * generator.standard_normal(image.shape, dtype=np.float32)
    if generator.random() < 0.35:
        axis = 2 if generator.random() < 0.5 else int(generator.integers(3))
        image = thick_slices(image, axis, log_uniform(generator, 1.5, thickest))
    return image


def thick_slices(image: np.ndarray, axis: int, voxels: float) -> np.ndarray:
    """Return the image as acquired in slices of `voxels` ROI voxels along an axis."""
    shape = list(image.shape)
    shape[axis] = max(2, round(image.shape[axis] / voxels))
    edges = np.linspace(0, image.shape[axis], shape[axis] + 1).round().astype(int)
    sums = np.add.reduceat(image, edges[:-1], axis=axis)
    counts = np.diff(edges).reshape([-1 if n == axis else 1 for n in range(3)])
    return resize((sums / counts)[None], image.shape)[0]
