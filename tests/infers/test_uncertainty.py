"""Uncertainty: probabilities of the regression, the next click, and their time."""

import time

import numpy as np

from lib.imaging.roi import Roi
from lib.infers.uncertainty import (
    cells_in_image,
    foreground_probability,
    label_error,
    next_clicks,
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
POINTS = ROI.to_roi(FIRST_IJK)


def test_probability_rises_with_the_margin() -> None:
    probability = foreground_probability(MARGINS, -0.8, 1)
    assert probability.shape == (CELLS,) * 3
    assert probability.dtype == np.float32
    line = probability[32, 32, 32:]
    assert line[0] > 0.9
    assert line[-1] < 0.01
    assert (np.diff(line[:12]) < 0).all()


def test_probability_at_the_border_follows_the_threshold() -> None:
    border = np.zeros((2, 3, 4), dtype=np.float32)
    low, high = (foreground_probability(border, threshold, 3)[0, 0, 0] for threshold in (-2, -0.5))
    assert low < 0.4
    assert high > 0.5
    later = foreground_probability(border, -2, 10)[0, 0, 0]
    assert later < low


def test_label_error_is_that_of_the_mask() -> None:
    probability = np.array([[[0.9, 0.9]]], dtype=np.float32)
    margins = np.array([[[1.0, -1.0]]], dtype=np.float32)
    np.testing.assert_allclose(label_error(probability, margins), [[[0.1, 0.9]]], rtol=1e-6)


def test_next_click_lies_in_the_region_of_most_uncertainty() -> None:
    error = 0.3 * (ball(np.array([32, 40, 32]), 3) > 0).astype(np.float32)
    error[28, 28, 28] = 0.9  # a higher value, but little of it
    voxel = next_clicks(error, MARGINS, np.zeros((0, 3)), ROI)[0]
    expected = ROI.to_image((np.array([[32, 40, 32]]) + 0.5) * 2 - 0.5)[0]
    np.testing.assert_allclose(voxel, expected, atol=3)


def test_next_click_avoids_earlier_ones() -> None:
    error = 0.3 * (ball(np.array([32, 40, 32]), 3) > 0).astype(np.float32)
    error += 0.2 * (ball(np.array([32, 24, 32]), 3) > 0)
    clicked = (np.array([[32, 40, 32]]) + 0.5) * 2 - 0.5
    first = ROI.to_roi(next_clicks(error, MARGINS, np.zeros((0, 3)), ROI)[:1])[0]
    second = ROI.to_roi(next_clicks(error, MARGINS, clicked, ROI)[:1])[0]
    assert np.linalg.norm(first - clicked[0]) < 8
    assert np.linalg.norm(second - clicked[0]) > 20


def test_places_worth_a_look_lie_apart() -> None:
    error = 0.3 * (ball(np.array([32, 40, 32]), 3) > 0).astype(np.float32)
    error += 0.2 * (ball(np.array([32, 24, 32]), 3) > 0)
    first, second, *_ = ROI.to_roi(next_clicks(error, MARGINS, np.zeros((0, 3)), ROI))
    assert np.linalg.norm(first - second) > 20


def test_next_click_stays_inside_the_image() -> None:
    inside = cells_in_image(ROI, CELLS)
    assert 0 < inside.sum() < inside.size
    error = np.where(inside, 0.01, 0.9).astype(np.float32)
    voxel = next_clicks(error, MARGINS, np.zeros((0, 3)), ROI)[0]
    assert ((voxel >= 0) & (voxel < SHAPE)).all()


def test_cells_in_image_agree_with_each_centre() -> None:
    cells = np.argwhere(np.ones((CELLS,) * 3, dtype=bool))
    centres = ROI.to_image((cells + 0.5) * 2 - 0.5)
    expected = ((centres > -0.5) & (centres < np.array(SHAPE) - 0.5)).all(axis=1)
    np.testing.assert_array_equal(cells_in_image(ROI, CELLS).ravel(), expected)


def test_all_takes_less_than_150_ms() -> None:
    points = POINTS + np.arange(10)[:, None]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        error = label_error(foreground_probability(MARGINS, -0.8, 10), MARGINS)
        next_clicks(error, MARGINS, points, ROI)[0]
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15
