"""A drawing alone finds a structure with contrast; its state goes on with clicks."""

import numpy as np
import pytest
import torch

from lib.imaging.mask import dice
from lib.infers.drawing_prior import IMPOSSIBLE, TRUST, intensity, previous_mask, prior_logits
from lib.infers.drawings import describe
from lib.infers.random_walker import CELLS, random_walk
from lib.networks import mask_threshold

SIZE = 128
CENTRE, AXES = np.array([62.0, 70, 57]), np.array([17.0, 25, 21])
NO_CLICK = np.zeros((0, 3)), np.zeros(0, dtype=int)
PLANE = np.array([0.4, -0.3, 1.0])


def walk(shape, logits, guide, points_roi, labels, roi_size):
    """Walk from a drawing's prior as the predictor does."""
    trust = TRUST[shape.kind]
    arguments = (logits, guide, points_roi, labels, roi_size)
    return random_walk(*arguments, fixed=shape.fixed, drawing_trust=trust)


def ellipsoid() -> np.ndarray:
    line = (np.arange(CELLS) + 0.5) * SIZE / CELLS - 0.5
    places = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1)
    return (((places - CENTRE) / AXES) ** 2).sum(axis=-1) < 1


@pytest.fixture(scope="module")
def guide() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.3, (CELLS,) * 3)
    return (ellipsoid() - 0.2 + noise).astype(np.float32)


def oblique_lasso() -> np.ndarray:
    """Return where the ellipsoid's surface meets the plane through its centre."""
    first = np.cross(PLANE, [1.0, 0, 0])
    second = np.cross(PLANE, first)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)[:, None]
    rays = np.cos(angle) * first / np.linalg.norm(first)
    rays = rays + np.sin(angle) * second / np.linalg.norm(second)
    return CENTRE + rays / np.linalg.norm(rays / AXES, axis=1, keepdims=True)


FLAT = np.array([[1.0, 1, 0], [-1, -1, 0]])
DRAWINGS = {
    "box": ("bounding_box", CENTRE + AXES * np.array([[1.0], [-1.0]])),
    "flat_box": ("bounding_box", CENTRE + AXES * FLAT),
    "lasso": ("lasso", oblique_lasso()),
    "scribble": ("scribble", CENTRE + np.array([[-8.0, 0, 0], [0, 5, 0], [0, 12, 2]])),
}


def threshold_of(values: np.ndarray) -> float:
    return float(mask_threshold(torch.from_numpy(values)[None], "expected_dice"))


def values_of(name: str, guide: np.ndarray) -> np.ndarray:
    subtype, path = DRAWINGS[name]
    shape = describe(subtype, path, SIZE)
    assert shape.kind == name
    network = np.full((32,) * 3, -2, dtype=np.float32)
    network[10:22, 10:22, 10:22] = 0  # it is not sure of anything
    values = walk(shape, prior_logits(shape, guide, network), guide, *NO_CLICK, SIZE)
    assert values.shape == (CELLS,) * 3 and values.dtype == np.float32
    return values


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_finds_the_structure(name: str, guide: np.ndarray) -> None:
    values = values_of(name, guide)
    assert dice(values > threshold_of(values), ellipsoid()) > (0.8 if name == "scribble" else 0.9)


@pytest.mark.parametrize("name", ["box", "flat_box", "lasso"])
def test_without_contrast_the_shape_remains(name: str) -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, (CELLS,) * 3).astype(np.float32)
    values = values_of(name, noise)
    assert dice(values > threshold_of(values), ellipsoid()) > 0.7


def test_the_intensity_tells_inside_from_outside(guide: np.ndarray) -> None:
    shape = describe(*DRAWINGS["box"], SIZE)
    logits = intensity(shape, guide)
    inside = ellipsoid()
    assert logits[inside].mean() > 0.5 and logits[~inside & shape.near].mean() < -0.3
    np.testing.assert_allclose(intensity(shape, 100 * guide - 7), logits, atol=0.05)
    assert not intensity(shape, np.full_like(guide, 2.0)).any()


def test_a_region_that_the_roi_cuts_off_gives_no_intensity(guide: np.ndarray) -> None:
    # the box fills the ROI, so that there is no cell outside of it
    shape = describe("lasso", np.array([[-300.0, -300, 64], [500, -300, 64], [64, 900, 64]]), SIZE)
    assert not shape.outside.any()
    assert not intensity(shape, guide).any()


def test_cells_that_are_not_near_are_impossible(guide: np.ndarray) -> None:
    shape = describe(*DRAWINGS["box"], SIZE)
    logits = prior_logits(shape, guide)
    assert (logits[~shape.near] == IMPOSSIBLE).all() and (logits[shape.near] > IMPOSSIBLE).all()


def test_a_scribble_needs_the_network(guide: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scribble"):
        prior_logits(describe(*DRAWINGS["scribble"], SIZE), guide)


def test_a_lasso_decides_its_plane_and_a_click_counts_more(guide: np.ndarray) -> None:
    shape = describe(*DRAWINGS["lasso"], SIZE)
    logits = prior_logits(shape, guide)
    values = walk(shape, logits, guide, *NO_CLICK, SIZE)
    assert values[shape.fixed == 1].min() > 3 and values[shape.fixed == 0].max() < -3
    clicked = tuple(np.argwhere(shape.fixed == 1)[7])
    click = (np.array([clicked]) + 0.5) * SIZE / CELLS - 0.5
    assert walk(shape, logits, guide, click, np.array([0]), SIZE)[clicked] < -3


def test_a_walk_without_decided_cells_is_the_same(guide: np.ndarray) -> None:
    logits = prior_logits(describe(*DRAWINGS["box"], SIZE), guide)
    undecided = np.full_like(guide, np.nan)
    plain = random_walk(logits, guide, *NO_CLICK, SIZE)
    np.testing.assert_array_equal(
        random_walk(logits, guide, *NO_CLICK, SIZE, fixed=undecided), plain
    )


def test_the_previous_mask_is_positive_where_the_mask_is(guide: np.ndarray) -> None:
    values = values_of("box", guide)
    threshold = threshold_of(values)
    low_res = previous_mask(values, threshold, 32)
    assert low_res.shape == (32,) * 3 and low_res.dtype == np.float32
    assert abs(low_res).max() <= 8
    upsampled = low_res.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert dice(upsampled > 0, values > threshold) > 0.85
