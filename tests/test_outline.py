"""Masks end where the image has edges, and are what the clicks say where they lie."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lib import outline as module
from lib.outline import CELLS, guide_of, outline

SIZE = 128
CENTRE = np.array([70.0, 60.0, 64.0])
NO_CLICKS = np.zeros((0, 3)), np.zeros(0, dtype=int)


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


@pytest.mark.parametrize(("radius", "threshold"), [(23, -1), (30, 0)])
def test_a_vague_mask_grows_or_shrinks_to_the_edge(
    roi_image: np.ndarray, radius: float, threshold: float
) -> None:
    wanted, logits = ball(CELLS, 26), vague_logits(radius)
    values = outline(logits, threshold, guide_of(roi_image), CENTRE[None], np.array([1]), SIZE)
    assert values.shape == (CELLS,) * 3 and values.dtype == np.float32
    assert dice(values > 0, wanted) > 0.94 > dice(coarse(logits - threshold), wanted)


@pytest.mark.parametrize("sharpness", [0, 1])
def test_without_edges_the_mask_stays_about_as_it_is(sharpness: float) -> None:
    noise = np.random.default_rng(1).normal(0, 1, (SIZE,) * 3)
    flat = (sharpness * noise).astype(np.float32)
    logits = vague_logits(26)
    values = outline(logits, 0.0, guide_of(flat), CENTRE[None], np.array([1]), SIZE)
    assert np.isfinite(values).all()
    assert dice(values > 0, coarse(logits)) > 0.8


def test_the_threshold_is_that_of_the_logits(roi_image: np.ndarray) -> None:
    logits, guide = vague_logits(26), guide_of(roi_image)
    first = outline(logits, 0.0, guide, *NO_CLICKS, SIZE)
    other = outline(logits - 1.5, -1.5, guide, *NO_CLICKS, SIZE)
    np.testing.assert_allclose(first, other, atol=1e-4)


def test_clicked_cells_are_what_the_last_click_says(roi_image: np.ndarray) -> None:
    points_roi = np.array([[70, 60, 64], [20, 20, 20], [71, 60, 64], [100, 100, 100.0]])
    labels = np.array([1, 1, 0, 0])
    values = outline(vague_logits(26), 0.0, guide_of(roi_image), points_roi, labels, SIZE)
    cells = (points_roi * CELLS // SIZE).astype(int)
    assert [bool(values[tuple(cell)] > 0) for cell in cells] == [False, True, False, False]


def test_more_clicks_weigh_more_against_the_network(roi_image: np.ndarray) -> None:
    """Clicks in a second object that the network does not see at all."""
    image = roi_image.copy()
    image[4:28, 4:28, 4:28] += 2
    points_roi = np.array([[8, 8, 8], [22, 20, 10], [10, 22, 22], [20, 8, 20], [16, 16, 16.0]])
    found = [
        np.count_nonzero(
            outline(
                vague_logits(26),
                0.0,
                guide_of(image),
                points_roi[:count],
                np.ones(count, dtype=int),
                SIZE,
            )[:16, :16, :16]
            > 0
        )
        for count in (1, 3, 5)
    ]
    assert found[0] < found[1] < found[2]


def test_nothing_is_found_where_nothing_was(roi_image: np.ndarray) -> None:
    nothing = np.full((32,) * 3, -5.0, dtype=np.float32)
    assert not (outline(nothing, 0.0, guide_of(roi_image), *NO_CLICKS, SIZE) > 0).any()


def test_a_mask_of_the_whole_roi_stays(roi_image: np.ndarray) -> None:
    everything = np.full((32,) * 3, 5.0, dtype=np.float32)
    assert (outline(everything, 0.0, guide_of(roi_image), *NO_CLICKS, SIZE) > 0).all()


def test_the_walk_is_the_minimum() -> None:
    """Against the whole matrix, with numpy's solver."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 5)
    prior, trust = torch.rand(2, *shape, generator=generator)
    weights = module._edge_weights(torch.randn(shape, generator=generator))
    unit = torch.eye(60).reshape(60, *shape)
    matrix = torch.stack([module._apply(x, trust + 0.1, weights).flatten() for x in unit])
    assert torch.equal(matrix, matrix.T)
    exact = np.linalg.solve(matrix.numpy(), ((trust + 0.1) * prior).flatten().numpy())
    walked = module._walk(prior, trust + 0.1, weights).flatten().numpy()
    np.testing.assert_allclose(walked, exact, atol=0.02)
