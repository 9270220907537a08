"""What the mask does not know: the probability that a cell's label is wrong, and the next click."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from lib.imaging.roi import Roi
from lib.infers.corrections import ball_radius, bell, cell_place

# Platt scaling, fitted by training/fit_uncertainty.py on 80 series of ten simulated clicks on data
# that may be trained on. Inputs: margin, threshold, logarithm of the number of clicks. Output: the
# logit of the probability.
COEFFICIENTS = np.array([1.2643, 0.8106, -0.1674])
INTERCEPT = 1.0692

KNOWN_RADII = 0.5
"""KNOWN_RADII: around a click, the standard deviation of the region where the next one would tell
little, in radii of a ball of the mask's volume."""

REGION_RADII = 0.35
"""REGION_RADII: standard deviation of the blur that sums the uncertainty, in the same radii."""


def foreground_probability(margins: np.ndarray, threshold: float, clicks: int) -> np.ndarray:
    """Return the calibrated probability that each cell is foreground, (c, c, c) float32.

    margins: (c, c, c) float32 of the mask (`correct`). threshold: logit that was subtracted from
    the last answer in them. clicks: number of clicks so far, at least 1. Source: Platt,
    Probabilistic Outputs for Support Vector Machines, 1999.
    """
    of_margin, of_threshold, of_count = COEFFICIENTS.tolist()
    offset = of_threshold * threshold + of_count * np.log(clicks) + INTERCEPT
    logits = np.float32(of_margin) * margins + np.float32(offset)
    return 1 / (1 + np.exp(-logits))


def label_error(probability: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Return the probability that the label of each cell is wrong, (c, c, c) float32 in [0, 1].

    probability: see :func:`foreground_probability`. margins: of the mask whose labels are judged.
    """
    return np.where(margins > 0, 1 - probability, probability)


def expected_error(probability: np.ndarray, margins: np.ndarray) -> float:
    """Return the expected volume of the wrong cells per expected volume of the structure.

    probability: see :func:`foreground_probability`. margins: of the mask.
    """
    error = label_error(probability, margins)
    return float(error.sum() / max(probability.sum(), 1.0))


def next_clicks(
    error: np.ndarray, margins: np.ndarray, points_roi: np.ndarray, roi: Roi, count: int = 5
) -> np.ndarray:
    """Return stored voxels (count, 3) int64 that are worth a look, the most uncertain region first.

    Each is the centre of a region, of about a third of the mask's size, that holds much
    uncertainty. Regions near earlier clicks and near each other count less. error: see
    :func:`label_error`. margins: of the mask. points_roi: (N, 3) ROI voxel indices of all clicks.
    roi: where they lie.
    """
    cells = len(error)
    radius = max(1.0, ball_radius(margins))
    inside = cells_in_image(roi, cells)
    unknown = error * inside
    known_radius = max(1.5, KNOWN_RADII * radius)
    for point in points_roi:
        unknown *= 1 - bell(cells, cell_place(point, roi.size, cells), known_radius)
    blurred = ndimage.gaussian_filter(
        unknown, max(1.0, REGION_RADII * radius), truncate=2.5, mode="constant"
    )
    places_roi = []
    for _ in range(count):
        cell = np.array(np.unravel_index(np.where(inside, blurred, -1).argmax(), error.shape))
        blurred *= 1 - bell(cells, cell, known_radius)
        places_roi.append((cell + 0.5) * roi.size / cells - 0.5)
    voxels_ijk = np.rint(roi.to_image(np.array(places_roi))).astype(np.int64)
    return voxels_ijk.clip(0, np.array(roi.shape_ijk) - 1)


def cells_in_image(roi: Roi, cells: int) -> np.ndarray:
    """Return which cells have their centre inside the stored image, (cells,)*3 bool."""
    centres_roi = np.repeat(((np.arange(cells) + 0.5) * roi.size / cells - 0.5)[:, None], 3, axis=1)
    centres_ijk = roi.to_image(centres_roi)
    inside = (centres_ijk > -0.5) & (centres_ijk < np.array(roi.shape_ijk) - 0.5)
    i, j, k = (inside[:, axis] for axis in roi.axes)
    return i[:, None, None] & j[:, None] & k
