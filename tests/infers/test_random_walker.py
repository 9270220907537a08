"""Masks end where the image has edges, and are what the clicks say where they lie."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lib.infers import random_walker as module
from lib.infers.random_walker import CELLS, guide_of, outline
from lib.networks import mask_threshold

SIZE = 128
CENTRE = np.array([70.0, 60.0, 64.0])
ONE_CLICK = CENTRE[None], np.array([1])


def ball(size: int, radius: float) -> np.ndarray:
    """On cells that divide the ROI."""
    places = np.stack(np.meshgrid(*[(np.arange(size) + 0.5) * SIZE / size] * 3, indexing="ij"), -1)
    return np.linalg.norm(places - CENTRE - 0.5, axis=-1) < radius


@pytest.fixture(scope="module")
def roi_image() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.2, (SIZE,) * 3)
    return (2.0 * ball(SIZE, 26) + noise - 0.1).astype(np.float32)


def vague_logits(radius: float) -> np.ndarray:
    """As of a network that finds a ball, but not where it ends, on cells of four voxels."""
    return (6 * gaussian_filter(ball(32, radius).astype(np.float32), 2) - 3).astype(np.float32)


def coarse(logits: np.ndarray) -> np.ndarray:
    """The mask without any of this, on the cells of the outline."""
    shown = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], size=(CELLS,) * 3, mode="trilinear"
    )
    return (shown[0, 0] > 0).numpy()


def dice(mask: np.ndarray, wanted: np.ndarray) -> float:
    return 2 * np.count_nonzero(mask & wanted) / (mask.sum() + wanted.sum())


def mask_of(logits: np.ndarray, image: np.ndarray, *clicks: np.ndarray) -> np.ndarray:
    """As the server cuts it."""
    values = outline(logits, guide_of(image), *(clicks or ONE_CLICK), SIZE)
    assert values.shape == (CELLS,) * 3 and values.dtype == np.float32
    return values > float(mask_threshold(torch.from_numpy(values)[None], "expected_dice"))


@pytest.mark.parametrize("radius", [20, 23])
def test_a_vague_mask_grows_to_the_edge(roi_image: np.ndarray, radius: float) -> None:
    wanted, logits = ball(CELLS, 26), vague_logits(radius)
    assert dice(mask_of(logits, roi_image), wanted) > 0.94 > dice(coarse(logits), wanted)


@pytest.mark.parametrize("sharpness", [0.01, 1])
def test_without_edges_the_mask_stays_about_as_it_is(sharpness: float) -> None:
    noise = np.random.default_rng(1).normal(0, 1, (SIZE,) * 3)
    logits = 2 * vague_logits(26)
    mask = mask_of(logits, (sharpness * noise).astype(np.float32))
    assert dice(mask, coarse(logits)) > 0.8


def test_clicked_cells_are_what_the_last_click_says(roi_image: np.ndarray) -> None:
    points_roi = np.array([[70, 60, 64], [20, 20, 20], [71, 60, 64], [100, 100, 100.0]])
    mask = mask_of(vague_logits(26), roi_image, points_roi, np.array([1, 1, 0, 0]))
    cells = (points_roi * CELLS // SIZE).astype(int)
    assert [bool(mask[tuple(cell)]) for cell in cells] == [False, True, False, False]


def test_more_clicks_weigh_more_against_the_network(roi_image: np.ndarray) -> None:
    """Clicks in a second object that the network does not see at all."""
    image = roi_image.copy()
    image[4:28, 4:28, 4:28] += 2
    points_roi = np.array([[8, 8, 8], [22, 20, 10], [10, 22, 22], [20, 8, 20], [16, 16, 16.0]])
    found = [
        outline(vague_logits(26), guide_of(image), points_roi[:count], np.ones(count, int), SIZE)[
            2:14, 2:14, 2:14
        ].mean()
        for count in (1, 3, 5)
    ]
    assert found[0] + 0.2 < found[1] < found[2] - 0.2


def test_nothing_is_found_where_nothing_was(roi_image: np.ndarray) -> None:
    nothing = np.full((32,) * 3, -5.0, dtype=np.float32)
    assert not mask_of(nothing, roi_image, np.zeros((0, 3)), np.zeros(0, int)).any()


def test_a_mask_of_the_whole_roi_stays(roi_image: np.ndarray) -> None:
    assert mask_of(np.full((32,) * 3, 5.0, dtype=np.float32), roi_image).all()


def test_the_walk_is_the_minimum() -> None:
    """Against the whole matrix, with numpy's solver."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 5)
    prior, trust = torch.rand(2, *shape, generator=generator)
    trust += 0.1
    weights = module._edge_weights(torch.randn(shape, generator=generator))
    cells = np.arange(60).reshape(shape)
    matrix = np.diag(trust.flatten().double().numpy())
    for axis, weight in enumerate(weights):
        before, after = np.delete(cells, -1, axis), np.delete(cells, 0, axis)
        for a, b, w in zip(before.flat, after.flat, weight.flatten().tolist(), strict=True):
            matrix[[a, b], [a, b]] += w
            matrix[[a, b], [b, a]] -= w
    exact = np.linalg.solve(matrix, (trust * prior).flatten().double().numpy())
    walked = module._walk(prior, trust, weights).flatten().numpy()
    np.testing.assert_allclose(walked, exact, atol=0.02)
