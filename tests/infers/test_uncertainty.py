"""Uncertainty: probabilities of the regression, the next click, and their time."""

import time

import numpy as np
import pytest

from lib.imaging.roi import Roi
from lib.infers.uncertainty import (
    FARTHEST,
    cells_in_image,
    features,
    foreground_probability,
    label_error,
    next_click,
)

CELLS, SIZE = 64, 128
SHAPE = (70, 90, 31)
AFFINE = np.array([[0, 1.5, 0, -40], [-1.2, 0, 0, 60], [0, 0, 4.0, -20], [0, 0, 0, 1.0]])
"""AFFINE: anisotropic, with swapped axes and one of them flipped."""
FIRST_IJK = np.array([[33, 41, 15]])
ROI = Roi.place(SHAPE, AFFINE, FIRST_IJK, size=SIZE, spacing_mm=1.5)


def ball(centre: np.ndarray, radius: float) -> np.ndarray:
    """Return margins (CELLS,)*3 of a ball: radius minus distance in cells, within ± 6."""
    grid = np.stack(np.meshgrid(*[np.arange(CELLS)] * 3, indexing="ij"), axis=-1)
    return np.clip(radius - np.linalg.norm(grid - centre, axis=-1), -6, 6).astype(np.float32)


MARGINS = ball(np.array([32, 32, 32]), 6)
LOGITS = MARGINS[::2, ::2, ::2].copy()
POINTS = ROI.to_roi(FIRST_IJK)
LABELS = np.array([1])


def probability_of(margins: np.ndarray, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return foreground_probability(margins, -0.8, LOGITS, points, labels, SIZE)


def test_probability_rises_with_the_margin() -> None:
    probability = probability_of(MARGINS, POINTS, LABELS)
    assert probability.shape == (CELLS,) * 3
    assert probability.dtype == np.float32
    line = probability[32, 32, 32:]
    assert line[0] > 0.7
    assert line[-1] < 0.1
    assert (np.diff(line[:12]) <= 1e-6).all()


def test_label_error_is_that_of_the_mask() -> None:
    probability = np.array([[[0.9, 0.9]]], dtype=np.float32)
    margins = np.array([[[1.0, -1.0]]], dtype=np.float32)
    np.testing.assert_allclose(label_error(probability, margins), [[[0.1, 0.9]]], rtol=1e-6)


def test_features_measure_distances_in_radii_of_the_mask() -> None:
    far = np.vstack([POINTS, POINTS + [30, 0, 0]])
    _, _, threshold, log_count, foreground, background, inside, log_radius = features(
        MARGINS, -0.8, LOGITS, far, np.array([1, 0]), SIZE
    )
    assert threshold == np.float32(-0.8)
    assert log_count == pytest.approx(np.log(2))
    assert np.exp(log_radius) == pytest.approx(6, abs=0.1)
    np.testing.assert_array_equal(inside, MARGINS > 0)
    cell = (32, 32, 32)
    assert foreground[cell] == pytest.approx(0, abs=0.15)
    assert background[cell] == pytest.approx(15 / 6, abs=0.15)
    assert foreground.max() == FARTHEST


def test_features_without_background_clicks() -> None:
    background = features(MARGINS, -0.8, LOGITS, POINTS, LABELS, SIZE)[5]
    assert (np.asarray(background) == FARTHEST).all()


def test_next_click_lies_in_the_region_of_most_uncertainty() -> None:
    error = 0.3 * (ball(np.array([32, 40, 32]), 3) > 0).astype(np.float32)
    error[28, 28, 28] = 0.9  # a higher value, but little of it
    voxel = next_click(error, MARGINS, np.zeros((0, 3)), ROI)
    expected = ROI.to_image((np.array([[32, 40, 32]]) + 0.5) * 2 - 0.5)[0]
    np.testing.assert_allclose(voxel, expected, atol=3)


def test_next_click_avoids_earlier_ones() -> None:
    error = 0.3 * (ball(np.array([32, 40, 32]), 3) > 0).astype(np.float32)
    error += 0.2 * (ball(np.array([32, 24, 32]), 3) > 0)
    clicked = (np.array([[32, 40, 32]]) + 0.5) * 2 - 0.5
    first = ROI.to_roi(next_click(error, MARGINS, np.zeros((0, 3)), ROI)[None])[0]
    second = ROI.to_roi(next_click(error, MARGINS, clicked, ROI)[None])[0]
    assert np.linalg.norm(first - clicked[0]) < 8
    assert np.linalg.norm(second - clicked[0]) > 20


def test_next_click_stays_inside_the_image() -> None:
    inside = cells_in_image(ROI, CELLS)
    assert 0 < inside.sum() < inside.size
    error = np.where(inside, 0.01, 0.9).astype(np.float32)
    voxel = next_click(error, MARGINS, np.zeros((0, 3)), ROI)
    assert ((voxel >= 0) & (voxel < SHAPE)).all()


def test_cells_in_image_agree_with_each_centre() -> None:
    cells = np.argwhere(np.ones((CELLS,) * 3, dtype=bool))
    centres = ROI.to_image((cells + 0.5) * 2 - 0.5)
    expected = ((centres > -0.5) & (centres < np.array(SHAPE) - 0.5)).all(axis=1)
    np.testing.assert_array_equal(cells_in_image(ROI, CELLS).ravel(), expected)


def test_all_takes_less_than_150_ms() -> None:
    points = POINTS + np.arange(10)[:, None]
    labels = np.arange(10) % 2
    times = []
    for _ in range(5):
        start = time.perf_counter()
        error = label_error(probability_of(MARGINS, points, labels), MARGINS)
        next_click(error, MARGINS, points, ROI)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15
