"""Simulated clicks lie on errors, carry the right label, and depend on the generator alone."""

import numpy as np
import pytest
import tiny
import torch
from scipy.ndimage import distance_transform_cdt

from lib.imaging.roi import Roi
from lib.networks import MaskPolicy
from lib.trainers.clicks import (
    ClickSeries,
    depth,
    draw_cells,
    next_clicks,
    on_cells,
    roi_generators,
)

SHAPE = (6, 8, 10)
CELL = 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box(*bounds: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(1, *SHAPE)
    mask[(0, *(slice(*pair) for pair in bounds))] = 1
    return mask


def cells_of(points_roi: torch.Tensor) -> list[int]:
    return (points_roi[0, 0] // CELL).int().tolist()


def test_a_missed_part_gets_a_positive_click_inside_it() -> None:
    target, predicted = box((1, 5), (2, 7), (3, 9)), box((1, 5), (2, 7), (3, 6))
    for seed in range(20):
        points_roi, labels = next_clicks(predicted - 0.5, target, generator(seed), CELL)
        i, j, k = cells_of(points_roi)
        assert labels.tolist() == [[1]]
        assert 1 <= i < 5 and 2 <= j < 7 and 6 <= k < 9


def test_an_added_part_gets_a_negative_click_inside_it() -> None:
    target, predicted = box((1, 3), (2, 7), (3, 9)), box((1, 5), (2, 7), (3, 9))
    for seed in range(20):
        points_roi, labels = next_clicks(predicted - 0.5, target, generator(seed), CELL)
        i, j, k = cells_of(points_roi)
        assert labels.tolist() == [[0]]
        assert 3 <= i < 5 and 2 <= j < 7 and 3 <= k < 9


def test_clicks_reach_every_voxel_of_a_cell() -> None:
    target = box((2, 3), (4, 5), (7, 8))
    points = {
        tuple(next_clicks(target * 0 - 1, target, generator(seed), CELL)[0].flatten().tolist())
        for seed in range(80)
    }
    assert points == {(4 + i, 8 + j, 14 + k) for i in range(2) for j in range(2) for k in range(2)}


def test_without_an_error_the_least_certain_cell_is_clicked() -> None:
    target = box((1, 5), (2, 7), (3, 9))
    logits = (target - 0.5) * 60
    logits[0, 2, 3, 4] = 0.1
    points_roi, labels = next_clicks(logits, target, generator(), CELL)
    assert cells_of(points_roi) == [2, 3, 4]
    assert labels.tolist() == [[1]]


def test_half_of_the_users_click_on_the_larger_part_of_the_error_only() -> None:
    target, predicted = box((0, 6), (0, 8), (0, 5)), box((5, 6), (7, 8), (4, 8))
    labels = [
        int(next_clicks(predicted - 0.5, target, generator(seed), CELL)[1]) for seed in range(60)
    ]
    assert labels.count(1) > 50


def test_same_generator_same_click() -> None:
    target = torch.rand((3, *SHAPE), generator=generator(4))
    logits = torch.randn((3, *SHAPE), generator=generator(5))
    first = next_clicks(logits, target, generator(1), CELL)
    again = next_clicks(logits, target, generator(1), CELL)
    other = next_clicks(logits, target, generator(2), CELL)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_cells_are_drawn_in_proportion_to_their_weight() -> None:
    weights = torch.zeros(4000, 2, 3, 2)
    weights[:, 0, 1, 1], weights[:, 1, 2, 0] = 1, 3
    numbers = torch.rand(4000, generator=generator(), dtype=torch.float64)
    counts = torch.bincount(draw_cells(weights, numbers), minlength=12)
    assert counts.nonzero()[:, 0].tolist() == [3, 10]
    assert 2800 < counts[10] < 3200


def test_depth_is_the_chessboard_distance() -> None:
    mask = torch.nn.functional.pad(torch.ones(1, 7, 9, 11), (2, 2, 2, 2, 2, 2))
    mask[0, 4, 6, 7] = 0
    expected = distance_transform_cdt(mask[0].numpy(), metric="chessboard")
    assert torch.equal(depth(mask)[0], torch.from_numpy(expected).float())
    assert depth(mask, levels=2).max() == 2


def test_with_a_generator_per_roi_clicks_do_not_depend_on_the_batch() -> None:
    targets = torch.rand((3, *SHAPE), generator=generator(4))
    logits = torch.randn((3, *SHAPE), generator=generator(5))
    points_roi, _ = next_clicks(logits, targets, roi_generators("abc", 7), CELL)
    alone, _ = next_clicks(logits[1:2], targets[1:2], roi_generators("b", 7), CELL)
    assert torch.equal(points_roi[1:2], alone)
    other_seed, _ = next_clicks(logits, targets, roi_generators("abc", 8), CELL)
    assert not torch.equal(points_roi, other_seed)


@pytest.mark.parametrize("history", ["all", "newest"])
def test_a_series_decodes_the_previous_mask_and_the_clicks_of_the_policy(
    history: str,
) -> None:
    network = tiny.student(policy=MaskPolicy(click_history=history))
    points_roi = torch.tensor([[[3.0, 20, 9], [25, 8, 14]]])
    labels = torch.tensor([[1, 0]])
    with torch.no_grad():
        embedding = network.encode(torch.randn(1, 1, 32, 32, 32, generator=generator()))
        series = ClickSeries(network, embedding)
        series.decode(points_roi[:, :1], labels[:, :1])
        logits = series.decode(points_roi, labels)

        first, _ = network.decode(
            embedding, points_roi[:, :1], labels[:, :1], torch.zeros(1, 1, 16, 16, 16)
        )
        decoded = slice(None) if history == "all" else slice(1, None)
        second, _ = network.decode(embedding, points_roi[:, decoded], labels[:, decoded], first)
    assert torch.equal(logits, second[:, 0])


def test_a_series_does_not_depend_on_the_batch() -> None:
    network = tiny.student()
    points_roi = torch.rand(2, 1, 3, generator=generator(1)) * 31
    labels = torch.ones(2, 1, dtype=torch.long)
    with torch.no_grad():
        embedding = network.encode(torch.randn(2, 1, 32, 32, 32, generator=generator()))
        both = ClickSeries(network, embedding).decode(points_roi, labels)
        alone = ClickSeries(network, embedding[1:]).decode(points_roi[1:], labels[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_masks_are_resized_as_in_serving() -> None:
    logits = torch.randn(1, 8, 8, 8, generator=generator())
    roi = Roi.place((32, 32, 32), np.eye(4), np.array([[16, 16, 16]]), size=32, spacing_mm=1)
    pasted = roi.paste(logits[0].numpy()).astype(bool)
    np.testing.assert_array_equal((on_cells(logits, 32)[0] > 0).numpy(), pasted)
