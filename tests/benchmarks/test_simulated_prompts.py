"""Simulated drawings fit their structure, and depend on nothing but their arguments."""

import numpy as np
import pytest
from benchmarks.simulated_prompts import DRAWINGS, POINTS, box, largest_slice, lasso, scribble

SPACING_MM = (0.7, 2.5, 1.1)


def banana() -> np.ndarray:
    """Return a bent structure, thickest in the slice j = 9, (60, 20, 44) bool."""
    i, j, k = np.indices((60, 20, 44))
    ring = np.hypot((i - 30) * 0.7, (k - 8) * 1.1)
    return (np.abs(ring - 16) < 5 - np.abs(j - 9)) & (k > 8)


def drawn(name: str, seed: int = 0) -> np.ndarray:
    return DRAWINGS[name](banana(), SPACING_MM, np.random.default_rng(seed))


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_depends_on_its_arguments_alone(name: str) -> None:
    first = drawn(name)
    np.testing.assert_array_equal(first, drawn(name))
    other = drawn(name, seed=1)
    assert first.shape != other.shape or not np.allclose(first, other)
    assert (first > -0.5).all() and (first < np.array(banana().shape) - 0.5).all()


def test_the_sides_of_a_box_are_near_those_of_the_structure() -> None:
    places = np.argwhere(banana())
    low, high = places.min(axis=0) - 0.5, places.max(axis=0) + 0.5
    corners = np.stack([box(banana(), SPACING_MM, np.random.default_rng(s)) for s in range(50)])
    error = (corners - [low, high]) / (high - low)
    assert np.abs(error).max() <= 0.05 + 1e-9
    assert (np.abs(error).max(axis=0) > 0.04).all()  # each side moves


def test_drawings_in_a_plane_lie_in_the_largest_slice() -> None:
    axis, index, mask = largest_slice(banana(), SPACING_MM)
    assert (axis, index) == (1, 9)
    np.testing.assert_array_equal(mask, banana()[:, 9])
    for name in ("box_in_plane", "lasso", "scribble"):
        assert (drawn(name)[:, 1] == 9).all()
        assert (np.ptp(drawn(name), axis=0)[[0, 2]] > 0).all()


@pytest.mark.parametrize(
    ("spacing_mm", "axis"), [((1, 1, 1), 2), ((3, 1, 3), 2), ((3, 1, 1), 0), ((2, 2.001, 1), 1)]
)
def test_slices_lie_across_the_largest_voxel_or_k(spacing_mm: tuple, axis: int) -> None:
    assert largest_slice(banana(), spacing_mm)[0] == axis


def test_a_lasso_follows_the_outline() -> None:
    path = lasso(banana(), SPACING_MM, np.random.default_rng(0))
    assert path.shape == (POINTS, 3)
    x, z = (path[:, 0] - 30) * 0.7, (path[:, 2] - 8) * 1.1
    from_line = np.abs(np.abs(np.hypot(x, z) - 16) - 5)
    assert np.median(from_line[z > 3]) < 1.5  # mm; the structure is 41 mm long
    assert from_line.max() > 0.1  # a hand errs


@pytest.mark.parametrize("seed", range(5))
def test_a_scribble_stays_in_the_structure(seed: int) -> None:
    path = scribble(banana(), SPACING_MM, np.random.default_rng(seed))
    i, j, k = path.astype(int).T
    assert banana()[i, j, k].all()
    ends_mm = np.linalg.norm((path[-1] - path[0]) * SPACING_MM)
    assert 0.35 * 41 < ends_mm < 0.65 * 41
    assert np.abs(np.diff(path, axis=0)).max() <= 1


@pytest.mark.parametrize("name", DRAWINGS)
def test_one_voxel_can_be_drawn(name: str) -> None:
    target = np.zeros((5, 6, 7), dtype=bool)
    target[0, 5, 3] = True
    path = DRAWINGS[name](target, (1.0, 2.0, 1.0), np.random.default_rng(0))
    assert path.ndim == 2 and path.shape[1] == 3 and len(path) >= 1
    assert np.isfinite(path).all()
