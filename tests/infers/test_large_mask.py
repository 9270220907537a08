"""A mask that leaves its ROI goes on in a coarser one, without an edge at the face."""

import numpy as np
import pytest

from lib.imaging.roi import Roi
from lib.infers.large_mask import coarser_mm, fits_inside, join, reaches_face
from lib.infers.scale import LARGEST_MM

SHAPE_IJK = (90, 120, 200)
# oblique order, flips and anisotropy: stored axes run along P, L, S
AFFINE_MM = np.array([[0, -1.5, 0, 70], [-2.0, 0, 0, 60], [0, 0, 1.2, -90], [0, 0, 0, 1]])
CENTRE_IJK = np.array([[45.0, 60.0, 100.0]])
SIZE, CELLS = 64, 32


def place(spacing_mm: float, centre_ijk: np.ndarray = CENTRE_IJK) -> Roi:
    return Roi.place(SHAPE_IJK, AFFINE_MM, centre_ijk, size=SIZE, spacing_mm=spacing_mm)


def tube(roi: Roi, radius_mm: float) -> np.ndarray:
    """Return values above 0 in a tube along S through the centre, on the cells of a ROI."""
    places = (np.arange(CELLS) + 0.5) * SIZE / CELLS - 0.5
    grid = np.stack(np.meshgrid(places, places, places, indexing="ij"), -1).reshape(-1, 3)
    offsets_mm = (roi.to_image(grid) - CENTRE_IJK) * (2.0, 1.5, 1.2)
    distance = np.hypot(offsets_mm[:, 0], offsets_mm[:, 1])
    return (radius_mm - distance).reshape((CELLS,) * 3).astype(np.float32)


def ball(roi: Roi, radius_mm: float) -> np.ndarray:
    places = (np.arange(CELLS) + 0.5) * SIZE / CELLS - 0.5
    grid = np.stack(np.meshgrid(places, places, places, indexing="ij"), -1).reshape(-1, 3)
    offsets_mm = (roi.to_image(grid) - CENTRE_IJK) * (2.0, 1.5, 1.2)
    distance = np.linalg.norm(offsets_mm, axis=1)
    return (radius_mm - distance).reshape((CELLS,) * 3).astype(np.float32)


def test_a_tube_reaches_the_face_and_a_ball_inside_does_not() -> None:
    fine = place(1.5)
    assert reaches_face(tube(fine, 9), 0.0, fine)
    assert not reaches_face(tube(fine, 9), 20.0, fine)
    assert not reaches_face(ball(fine, 20), 0.0, fine)


def test_a_mask_may_end_where_the_scan_ends() -> None:
    """The ROI of 4 mm holds the scan's whole 240 mm along S."""
    whole = place(4.0)
    values = np.ones((CELLS,) * 3, dtype=np.float32)
    assert not reaches_face(values, 0.0, whole)
    assert reaches_face(values, 0.0, place(2.0))


@pytest.mark.parametrize("end", [0, -1])
def test_each_face_is_looked_at(end: int) -> None:
    for axis in range(3):
        values = np.zeros((CELLS,) * 3, dtype=np.float32)
        index = [slice(10, 20)] * 3
        index[axis] = slice(end, None) if end else slice(0, 1)
        values[tuple(index)] = 1
        assert reaches_face(values, 0.5, place(1.0))


def test_the_next_roi_is_coarser_up_to_the_limit() -> None:
    assert coarser_mm(place(1.5)) == 3.0
    assert coarser_mm(place(3.0)) == LARGEST_MM
    assert coarser_mm(place(LARGEST_MM)) is None


def test_a_tube_fits_the_finer_roi_and_a_lung_does_not() -> None:
    fine, coarse = place(1.5), place(3.0)
    assert fits_inside(tube(coarse, 12), 0.0, coarse, fine)
    assert not fits_inside(ball(coarse, 60), 0.0, coarse, fine)
    assert fits_inside(np.zeros((CELLS,) * 3), 0.5, coarse, fine)


def test_the_joined_tube_is_complete_and_as_sharp_as_the_finer_roi() -> None:
    fine, coarse = place(1.5), place(3.0)
    # the coarser ROI finds a tube that is too wide
    values, threshold = join(tube(fine, 9) + 1, 1.0, fine, tube(coarse, 12) - 2, -2.0, coarse)
    assert values.shape == (SIZE,) * 3 and values.dtype == np.float32
    mask = coarse.paste(values, threshold).astype(bool)
    areas = mask.sum(axis=(0, 1))
    inside = [k for k in range(200) if abs(k - 100) * 1.2 < 48 - 8 * 1.5 - 2]
    beyond = [k for k in range(200) if 50 < abs(k - 100) * 1.2 < 90]
    expected = np.pi * np.array([9, 12]) ** 2 / (2.0 * 1.5)
    np.testing.assert_allclose(areas[inside], expected[0], rtol=0.1)
    np.testing.assert_allclose(areas[beyond], expected[1], rtol=0.1)
    # no step at the face: from one plane to the next the area changes little
    assert np.abs(np.diff(areas[30:170])).max() < 0.2 * (expected[1] - expected[0])


def test_values_fade_only_where_the_scan_goes_on() -> None:
    """The first face along S lies outside of the scan: the finer ROI counts up to its end."""
    low = np.array([[45.0, 60.0, 10.0]])
    fine, coarse = place(1.5, low), place(3.0, low)
    ones = np.ones((CELLS,) * 3, dtype=np.float32)
    values, threshold = join(ones, 0.0, fine, -ones, 0.0, coarse)
    mask = coarse.paste(values, threshold)
    assert mask[45, 60, 0] and not mask[45, 60, 100]
