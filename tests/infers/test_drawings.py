"""The shape of a drawing means the same in any orientation, at any scale and in oblique planes."""

import numpy as np
import pytest

from lib.imaging.roi import Roi
from lib.infers.drawings import LARGEST_MM, SMALLEST_MM, describe, kind_of, region, roi_rule
from lib.infers.random_walker import CELLS

SIZE = 128
SHAPE_IJK = (60, 90, 40)
# flipped, with another axis order than RAS, anisotropic
AFFINE_MM = np.array([[0, 0, 2.5, -40], [-0.7, 0, 0, 30], [0, 1.1, 0, -50], [0, 0, 0, 1.0]])
VOXEL_MM = np.array([0.7, 1.1, 2.5])
BOX_IJK = np.array([[38.0, 20, 12], [15, 61, 30.0]])


def cell_places() -> np.ndarray:
    """Return the ROI indices of all cells' centres, (CELLS, CELLS, CELLS, 3)."""
    line = (np.arange(CELLS) + 0.5) * SIZE / CELLS - 0.5
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), -1)


def roi_around(path_ijk: np.ndarray, subtype: str) -> Roi:
    centre, spacing_mm = roi_rule(subtype, path_ijk, VOXEL_MM, SIZE)
    return Roi.place(SHAPE_IJK, AFFINE_MM, centre[None], size=SIZE, spacing_mm=spacing_mm)


def circle(normal: np.ndarray, radius: float, count: int = 40) -> np.ndarray:
    """Return places on a circle in the ROI, in the plane with a normal, around CENTRE."""
    normal = normal / np.linalg.norm(normal)
    first = np.cross(normal, [1.0, 0, 0])
    first /= np.linalg.norm(first)
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)[:, None]
    return CENTRE + radius * (np.cos(angle) * first + np.sin(angle) * np.cross(normal, first))


CENTRE = np.array([60.0, 66, 58])
OBLIQUE = np.array([1.0, 2, 3])


def test_terms_of_a_box_follow_the_stored_image() -> None:
    roi = roi_around(BOX_IJK, "bounding_box")
    shape = describe("bounding_box", roi.to_roi(BOX_IJK), SIZE)
    places_ijk = roi.to_image(cell_places().reshape(-1, 3))
    middle, half = BOX_IJK.mean(axis=0), np.abs(BOX_IJK[1] - BOX_IJK[0]) / 2
    relative = np.abs(places_ijk - middle) / half
    assert shape.kind == "box"
    radius, farthest = (term.ravel() for term in shape.terms)
    np.testing.assert_allclose(radius, np.linalg.norm(relative, axis=1), atol=1e-3)
    np.testing.assert_allclose(farthest, relative.max(axis=1), atol=1e-3)
    assert not shape.inside[shape.terms[1] > 1].any()
    assert np.isnan(shape.fixed).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_in_a_plane_lies_across_the_right_axis(axis: int) -> None:
    flat = BOX_IJK.copy()
    flat[:, axis] = 22
    roi = roi_around(flat, "bounding_box")
    shape = describe("bounding_box", roi.to_roi(flat), SIZE)
    assert shape.kind == "flat_box"
    off_plane = np.abs(cell_places() - roi.to_roi(flat)[0])[..., roi.axes.index(axis)]
    decided = np.isfinite(shape.fixed)
    assert decided.any() and off_plane[decided].max() <= SIZE / CELLS
    assert not shape.fixed[decided].any()  # a box tells where the structure is not
    height = shape.terms[1]
    order = np.argsort(off_plane.ravel())
    assert (np.diff(height.ravel()[order]) >= -1e-5).all() and height.max() > 1


@pytest.mark.parametrize("normal", [np.array([0.01, 0, 1]), OBLIQUE, -OBLIQUE[::-1]])
def test_terms_of_a_lasso_follow_its_plane(normal: np.ndarray) -> None:
    shape = describe("lasso", circle(normal, 24), SIZE)
    offset = cell_places() - CENTRE
    across = offset @ normal / np.linalg.norm(normal)
    in_plane = np.sqrt((offset**2).sum(axis=-1) - across**2)
    edge, height = shape.terms[:2]
    close = (in_plane < 40) & (np.abs(across) < 60)
    np.testing.assert_allclose(edge[close], in_plane[close] / 24, atol=0.06)
    np.testing.assert_allclose(height[close], np.abs(across)[close] / 24, atol=0.06)
    decided = np.isfinite(shape.fixed)
    assert np.abs(across[decided]).max() < SIZE / CELLS
    assert in_plane[shape.fixed == 1].max() < 24 < in_plane[shape.fixed == 0].min()
    assert (shape.fixed == 1).sum() > 100
    assert np.linalg.norm(shape.clicks_roi - CENTRE) < 4


def test_a_lasso_that_crosses_itself_has_no_hole() -> None:
    large, small = circle(OBLIQUE, 24), circle(OBLIQUE, 12)
    twice = np.concatenate([large, large[:1], small, small[:1]])
    inside = describe("lasso", circle(OBLIQUE, 24), SIZE).fixed == 1
    assert region("lasso", twice, SIZE)[inside].all()


@pytest.mark.parametrize(
    ("subtype", "path"),
    [("bounding_box", np.array([[30.0, 50, 40], [80, 90, 71]])), ("lasso", circle(OBLIQUE, 24))],
)
def test_the_direction_of_a_drawing_does_not_matter(subtype: str, path: np.ndarray) -> None:
    forward, backward = (describe(subtype, p, SIZE) for p in (path, path[::-1]))
    for one, other in zip(forward.terms, backward.terms, strict=True):
        np.testing.assert_allclose(one, other, atol=0.1)


def test_a_scribble_decides_its_cells_and_clicks_on_them() -> None:
    path = np.array([[30.0, 40, 50], [60, 80, 50], [60, 81, 90]])
    shape = describe("scribble", path, SIZE)
    on_path = shape.fixed == 1
    assert not (shape.fixed == 0).any()
    np.testing.assert_array_equal(on_path, region("scribble", path, SIZE))
    for place in [*path, (path[0] + path[1]) / 2, *shape.clicks_roi]:
        assert on_path[tuple(((place + 0.5) * CELLS / SIZE).astype(int))]
    np.testing.assert_allclose(shape.clicks_roi[[0, -1]], path[[0, -1]])
    # cell (10, 45, 30) lies 40 ROI voxels from (60, 81, 90) along the first axis
    assert shape.terms[0][10, 40, 45] == pytest.approx(39 / 41, abs=0.05)


def test_regions_hold_their_cells_alone() -> None:
    box = np.array([[20.0, 30, 40], [60, 100, 50]])
    places = cell_places()
    in_box = ((places >= box[0]) & (places <= box[1])).all(axis=-1)
    np.testing.assert_array_equal(region("bounding_box", box, SIZE), in_box)
    flat = np.array([[20.0, 30, 40], [60, 100, 40]])
    in_plane = region("bounding_box", flat, SIZE)
    assert set(np.argwhere(in_plane)[:, 2]) == {20}
    assert in_plane.sum() == in_box.any(axis=2).sum()
    lasso = np.argwhere(region("lasso", circle(OBLIQUE, 24), SIZE)) * 2 + 0.5 - CENTRE
    assert np.linalg.norm(lasso, axis=1).max() < 26
    assert np.abs(lasso @ OBLIQUE).max() / np.linalg.norm(OBLIQUE) < SIZE / CELLS
    assert len(lasso) * 4 == pytest.approx(np.pi * 24**2, rel=0.3)


def test_the_roi_holds_the_drawing_at_its_own_scale() -> None:
    centre, spacing_mm = roi_rule("bounding_box", BOX_IJK, VOXEL_MM, SIZE)
    np.testing.assert_allclose(centre, [26.5, 40.5, 21])
    assert spacing_mm == pytest.approx(2.2 * 41 * 1.1 / SIZE)  # the longest side is along j
    tiny, huge = BOX_IJK / 20, BOX_IJK * 20
    assert roi_rule("scribble", tiny, VOXEL_MM, SIZE)[1] == SMALLEST_MM
    assert roi_rule("lasso", huge, VOXEL_MM, SIZE)[1] == LARGEST_MM


def test_kinds() -> None:
    assert kind_of("lasso", BOX_IJK) == "lasso"
    assert kind_of("bounding_box", BOX_IJK) == "box"
    assert kind_of("bounding_box", np.array([[0.0, 10, 0], [50, 10.4, 60]])) == "flat_box"
    with pytest.raises(ValueError, match="'point'"):
        kind_of("point", BOX_IJK)
