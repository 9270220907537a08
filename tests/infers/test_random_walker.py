"""Masks end at the edges of the image, and clicked cells get their label.

Sums round differently with another number of threads. The tests compare with Dice far from its
limit, or within a stated tolerance, and pass with one and with two threads.
"""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lib.imaging.mask import dice
from lib.infers import random_walker as module
from lib.infers.random_walker import CELLS, make_guide, random_walk
from lib.networks import mask_threshold

SIZE = 128
CENTRE = np.array([70.0, 60.0, 64.0])
ONE_CLICK = CENTRE[None], np.array([1])


def ball(size: int, radius: float) -> np.ndarray:
    """Return a ball on size³ cells that divide the ROI, as booleans. radius: in ROI voxels."""
    places = np.stack(np.meshgrid(*[(np.arange(size) + 0.5) * SIZE / size] * 3, indexing="ij"), -1)
    return np.linalg.norm(places - CENTRE - 0.5, axis=-1) < radius


@pytest.fixture(scope="module")
def roi_image() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.2, (SIZE,) * 3)
    return (2.0 * ball(SIZE, 26) + noise - 0.1).astype(np.float32)


def vague_logits(radius: float) -> np.ndarray:
    """Return logits (32,)*3 of a network that finds a ball, but not its boundary."""
    return (6 * gaussian_filter(ball(32, radius).astype(np.float32), 2) - 3).astype(np.float32)


def coarse(logits: np.ndarray) -> np.ndarray:
    """Return the mask without the random walker, on its cells."""
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], size=(CELLS,) * 3, mode="trilinear"
    )
    return (upsampled[0, 0] > 0).numpy()


def mask_of(logits: np.ndarray, image: np.ndarray, *clicks: np.ndarray) -> np.ndarray:
    """Return the mask that the server makes of logits."""
    values = random_walk(logits, make_guide(image), *(clicks or ONE_CLICK), SIZE)
    assert values.shape == (CELLS,) * 3 and values.dtype == np.float32
    return values > float(mask_threshold(torch.from_numpy(values)[None], "expected_dice"))


@pytest.mark.parametrize("radius", [20, 23])
def test_a_vague_mask_grows_to_the_edge(roi_image: np.ndarray, radius: float) -> None:
    target, logits = ball(CELLS, 26), vague_logits(radius)
    assert dice(mask_of(logits, roi_image), target) > 0.94 > dice(coarse(logits), target)


@pytest.mark.parametrize("sharpness", [0.01, 1])
def test_without_edges_the_mask_hardly_changes(sharpness: float) -> None:
    noise = np.random.default_rng(1).normal(0, 1, (SIZE,) * 3)
    logits = 2 * vague_logits(26)
    mask = mask_of(logits, (sharpness * noise).astype(np.float32))
    assert dice(mask, coarse(logits)) > 0.8


def test_clicked_cells_get_the_label_of_the_last_click(roi_image: np.ndarray) -> None:
    points_roi = np.array([[70, 60, 64], [20, 20, 20], [71, 60, 64], [100, 100, 100.0]])
    mask = mask_of(vague_logits(26), roi_image, points_roi, np.array([1, 1, 0, 0]))
    cells = (points_roi * CELLS // SIZE).astype(int)
    assert [bool(mask[tuple(cell)]) for cell in cells] == [False, True, False, False]


def test_more_clicks_weigh_more_against_the_network(roi_image: np.ndarray) -> None:
    """The clicks lie in a second object that the network does not find."""
    image = roi_image.copy()
    image[4:28, 4:28, 4:28] += 2
    points_roi = np.array([[8, 8, 8], [22, 20, 10], [10, 22, 22], [20, 8, 20], [16, 16, 16.0]])
    guide, means = make_guide(image), []
    for count in (1, 3, 5):
        labels = np.ones(count, int)
        values = random_walk(vague_logits(26), guide, points_roi[:count], labels, SIZE)
        means.append(values[2:14, 2:14, 2:14].mean())
    assert means[0] + 0.2 < means[1] < means[2] - 0.2


def test_an_empty_mask_stays_empty(roi_image: np.ndarray) -> None:
    nothing = np.full((32,) * 3, -5.0, dtype=np.float32)
    assert not mask_of(nothing, roi_image, np.zeros((0, 3)), np.zeros(0, int)).any()


def test_a_mask_of_the_whole_roi_stays(roi_image: np.ndarray) -> None:
    assert mask_of(np.full((32,) * 3, 5.0, dtype=np.float32), roi_image).all()


@pytest.mark.parametrize(
    ("residual", "tolerance"),
    [
        (module.RESIDUAL, 0.02),  # the error at which the conjugate gradient stops
        (1e-10, 1e-4),  # run to convergence: what float32 rounds
    ],
)
def test_the_result_is_the_minimum(
    monkeypatch: pytest.MonkeyPatch, residual: float, tolerance: float
) -> None:
    """The solution of the whole matrix by numpy's solver is the reference."""
    monkeypatch.setattr(module, "RESIDUAL", residual)
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
    result = module._minimise(prior, trust, weights).flatten().numpy()
    np.testing.assert_allclose(result, exact, rtol=0, atol=tolerance)


def test_a_click_reaches_further_in_a_coarse_roi(roi_image: np.ndarray) -> None:
    """The network finds a part of a uniform ball; at an ordinary voxel size nothing changes."""
    logits, guide = vague_logits(12), make_guide(roi_image)
    missed = ball(CELLS, 24) & ~ball(CELLS, 16)
    default, finer, coarse = (
        random_walk(logits, guide, *ONE_CLICK, SIZE, spacing_mm)[missed].mean()
        for spacing_mm in (1.5, 0.8, 4.0)
    )
    assert default == finer < coarse - 1
