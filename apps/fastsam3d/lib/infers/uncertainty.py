"""What the mask does not know: the probability that a cell's label is wrong, and the next click.

A logistic regression turns what a click computes anyway into the probability of foreground. It sees
the mask's margins (`corrections.py`), the network's logits, the threshold, and where the clicks
are. `training/fit_uncertainty.py` fits it on simulated clicks.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from lib.imaging.roi import Roi
from lib.infers.corrections import ball_radius, bell, cell_place

FARTHEST = 4.0
"""FARTHEST: limit of the distances to clicks, in radii of a ball of the mask's volume."""

# Logistic regression. Inputs: `features`. Output: the logit of the probability of foreground.
COEFFICIENTS = np.array([0.4, 0.2, 0.5, 0.1, -0.2, 0.1, 0.3, 0.1])
INTERCEPT = -0.2

KNOWN_RADII = 0.5
"""KNOWN_RADII: around a click, the standard deviation of the region where the next one would tell
little, in radii of a ball of the mask's volume."""

REGION_RADII = 0.35
"""REGION_RADII: standard deviation of the blur that sums the uncertainty, in the same radii."""


@torch.inference_mode()
def foreground_probability(
    margins: np.ndarray,
    threshold: float,
    logits: np.ndarray,
    points_roi: np.ndarray,
    labels: np.ndarray,
    roi_size: int,
) -> np.ndarray:
    """Return the calibrated probability that each cell is foreground, (c, c, c) float32.

    margins: (c, c, c) float32 of the mask (`correct`). threshold: logit that was subtracted from
    the newest answer. logits: (s, s, s) float32 of the network. points_roi: (N, 3) ROI voxel
    indices of all clicks. labels: (N,), 1 foreground, 0 background. roi_size: ROI voxels along each
    axis.
    """
    inputs = features(margins, threshold, logits, points_roi, labels, roi_size)
    total = np.full_like(margins, INTERCEPT)
    for coefficient, values in zip(COEFFICIENTS, inputs, strict=True):
        total += np.float32(coefficient) * values
    return torch.from_numpy(total).sigmoid_().numpy()


def label_error(probability: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Return the probability that the label of each cell is wrong, (c, c, c) float32 in [0, 1].

    probability: see :func:`foreground_probability`. margins: of the mask whose labels are judged.
    """
    return np.where(margins > 0, 1 - probability, probability)


def features(
    margins: np.ndarray,
    threshold: float,
    logits: np.ndarray,
    points_roi: np.ndarray,
    labels: np.ndarray,
    roi_size: int,
) -> list[np.ndarray | np.floating]:
    """Return the inputs of the regression: eight arrays (c, c, c) or single numbers, float32.

    The parameters are those of :func:`foreground_probability`.
    """
    cells = len(margins)
    low_res = torch.from_numpy(logits)[None, None]
    network = F.interpolate(low_res, size=(cells,) * 3, mode="trilinear")[0, 0].numpy()
    radius = max(1.0, ball_radius(margins))
    to_foreground, to_background = (
        np.minimum(_distance(points_roi[labels == label], cells, roi_size) / radius, FARTHEST)
        for label in (1, 0)
    )
    return [
        margins,
        network,
        np.float32(threshold),
        np.float32(np.log(len(labels))),
        to_foreground,
        to_background,
        (margins > 0).astype(np.float32),
        np.float32(np.log(radius)),
    ]


def _distance(points_roi: np.ndarray, cells: int, roi_size: int) -> np.ndarray:
    """Return the distance of each cell to the nearest point, in cells; `cells` without points."""
    nearest = np.full((cells,) * 3, cells**2, dtype=np.float32)
    for point in points_roi:
        i, j, k = (
            np.square(np.arange(cells) - along).astype(np.float32)
            for along in cell_place(point, roi_size, cells)
        )
        np.minimum(nearest, i[:, None, None] + j[:, None] + k, out=nearest)
    return np.sqrt(nearest)


def next_click(
    error: np.ndarray, margins: np.ndarray, points_roi: np.ndarray, roi: Roi
) -> np.ndarray:
    """Return the stored voxel (3,) int64 whose click is expected to help most.

    It is the centre of the region, of about the mask's size, that holds most uncertainty. What lies
    near an earlier click counts less. error: see :func:`label_error`. margins: of the mask.
    points_roi: (N, 3) ROI voxel indices of all clicks. roi: where they lie.
    """
    cells = len(error)
    radius = max(1.0, ball_radius(margins))
    inside = cells_in_image(roi, cells)
    unknown = error * inside
    for point in points_roi:
        known = bell(cells, cell_place(point, roi.size, cells), max(1.5, KNOWN_RADII * radius))
        unknown *= 1 - known
    blurred = ndimage.gaussian_filter(
        unknown, max(1.0, REGION_RADII * radius), truncate=2.5, mode="constant"
    )
    cell = np.unravel_index(np.where(inside, blurred, -1).argmax(), error.shape)
    place_roi = (np.array(cell) + 0.5) * roi.size / cells - 0.5
    voxel = np.rint(roi.to_image(place_roi[None])[0]).astype(np.int64)
    return voxel.clip(0, np.array(roi.shape_ijk) - 1)


def cells_in_image(roi: Roi, cells: int) -> np.ndarray:
    """Return which cells have their centre inside the stored image, (cells,)*3 bool."""
    centres_roi = np.repeat(((np.arange(cells) + 0.5) * roi.size / cells - 0.5)[:, None], 3, axis=1)
    centres_ijk = roi.to_image(centres_roi)
    inside = (centres_ijk > -0.5) & (centres_ijk < np.array(roi.shape_ijk) - 0.5)
    i, j, k = (inside[:, axis] for axis in roi.axes)
    return i[:, None, None] & j[:, None] & k
