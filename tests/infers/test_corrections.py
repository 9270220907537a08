"""Corrections: what a click changes, what it keeps, and that it is quick."""

import time

import numpy as np
import pytest

from lib.infers.corrections import ANSWERED, border_distance, correct, is_satisfied

CELLS, ROI = 64, 128
CENTRE = np.array([31.5, 29.5, 33.5])


def ball(centre: np.ndarray, radius: float) -> np.ndarray:
    """Return margins (CELLS,)*3 of a ball: radius minus distance, within ± 6."""
    grid = np.stack(np.meshgrid(*[np.arange(CELLS)] * 3, indexing="ij"), axis=-1)
    distances = np.linalg.norm(grid - centre, axis=-1)
    return np.clip(radius - distances, -6, 6).astype(np.float32)


def voxel_at(place: np.ndarray) -> np.ndarray:
    """Return the ROI voxel indices at a place in cells."""
    return (place + 0.5) * ROI / CELLS - 0.5


BEFORE = ball(CENTRE, 8)
SIDE = CENTRE + [12, 0, 0]
"""SIDE: a place 4 cells outside of BEFORE."""


def test_first_answer_is_returned() -> None:
    assert correct(None, BEFORE, voxel_at(CENTRE), 1, ROI) is BEFORE


def test_answer_to_an_empty_mask_is_returned() -> None:
    empty = np.full_like(BEFORE, -3)
    assert correct(empty, BEFORE, voxel_at(CENTRE), 1, ROI) is BEFORE


@pytest.mark.parametrize(("place", "label"), [(CENTRE, 1), (SIDE, 0)])
def test_satisfied_click_changes_nothing(place: np.ndarray, label: int) -> None:
    answer = ball(CENTRE, 20)
    assert is_satisfied(BEFORE, voxel_at(place), label, ROI)
    assert correct(BEFORE, answer, voxel_at(place), label, ROI) is BEFORE
    assert not is_satisfied(BEFORE, voxel_at(place), 1 - label, ROI)


@pytest.mark.parametrize(("place", "label"), [(SIDE, 1), (CENTRE, 0)])
def test_clicked_cell_gets_its_label_against_the_answer(place: np.ndarray, label: int) -> None:
    after = correct(BEFORE, BEFORE, voxel_at(place), label, ROI)
    cell = tuple(np.rint(place).astype(int))
    assert (after[cell] > 0) == bool(label)


def test_change_near_the_click_is_taken_and_far_change_is_not() -> None:
    far_place = CENTRE - [0, 0, 27]
    answer = np.maximum(np.maximum(BEFORE, ball(SIDE, 4)), ball(far_place, 3))
    after = correct(BEFORE, answer, voxel_at(SIDE), 1, ROI)
    assert answer[tuple(np.rint(far_place).astype(int))] > 0
    assert after[tuple(np.rint(far_place).astype(int))] < 0
    assert after[tuple(np.rint(SIDE - [1, 0, 0]).astype(int))] > 0
    # what the mask held on the other side stays
    assert after[tuple(np.rint(CENTRE - [6, 0, 0]).astype(int))] > 0


def test_removal_by_a_foreground_click_is_damped_by_opposed() -> None:
    answer = np.full_like(BEFORE, -6)
    answer[0, 0, 0] = 6  # an addition at the same distance as a removal below
    before = BEFORE.copy()
    before[0, 0, 0], before[63, 0, 0] = -6, 6
    before[31, 22, 0] = 6  # the mask is near, so that the push ends before both
    point = voxel_at(np.array([31.5, 20.0, 0.0]))
    after = correct(before, answer, point, 1, ROI)
    added, removed = after[0, 0, 0] - before[0, 0, 0], before[63, 0, 0] - after[63, 0, 0]
    assert added == pytest.approx(12 * ANSWERED.far, abs=0.01)
    assert removed / added == pytest.approx(ANSWERED.opposed, abs=0.02)


@pytest.mark.parametrize(("place", "label"), [(SIDE, 1), (CENTRE, 0)])
def test_a_given_mask_changes_towards_the_label_and_near_the_click(
    place: np.ndarray, label: int
) -> None:
    answer = ball(CENTRE + [0, 9.0, 0], 14) if label else np.full_like(BEFORE, -4)
    given = np.where(BEFORE > 0, np.float32(6), np.float32(-6))
    after = correct(given, answer, voxel_at(place), label, ROI, is_given=True)
    answered = correct(given, answer, voxel_at(place), label, ROI)
    held, holds = given > 0, after > 0
    if label:
        assert (held <= holds).all() and holds.sum() > held.sum()
    else:
        assert (holds <= held).all() and 0.7 * held.sum() < holds.sum() < held.sum()
        assert (answered > 0).sum() < 0.5 * held.sum()


def test_deep_click_reaches_further() -> None:
    near, deep = CENTRE + [0, 9.0, 0], CENTRE + [0, 20.0, 0]
    answer = np.full_like(BEFORE, 6)
    added = [
        np.count_nonzero(correct(BEFORE, answer, voxel_at(place), 1, ROI) > 0)
        for place in (near, deep)
    ]
    assert added[1] > 2 * added[0]


def test_inputs_are_kept() -> None:
    before, answer = BEFORE.copy(), ball(SIDE, 9)
    kept = answer.copy()
    after = correct(before, answer, voxel_at(SIDE), 1, ROI)
    assert after.dtype == np.float32
    np.testing.assert_array_equal(before, BEFORE)
    np.testing.assert_array_equal(answer, kept)


def test_mirrored_inputs_give_a_mirrored_result() -> None:
    answer = np.maximum(BEFORE, ball(SIDE, 5))
    after = correct(BEFORE, answer, voxel_at(SIDE), 1, ROI)
    mirrored = correct(
        BEFORE[::-1],
        answer[::-1],
        voxel_at(63 - SIDE) * [1, 0, 0] + voxel_at(SIDE) * [0, 1, 1],
        1,
        ROI,
    )
    np.testing.assert_allclose(mirrored[::-1], after, atol=1e-5)


def test_border_distance_counts_cells() -> None:
    assert border_distance(BEFORE, SIDE, True) == pytest.approx(4, abs=0.6)
    assert border_distance(BEFORE, CENTRE, False) == pytest.approx(8, abs=0.6)
    assert border_distance(np.full_like(BEFORE, -1), SIDE, True) == 0


def test_correction_is_quick() -> None:
    answer = ball(SIDE, 9)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        correct(BEFORE, answer, voxel_at(SIDE), 1, ROI)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02
