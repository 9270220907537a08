"""What a prompt tells the network, and what drawings and regions make of a mask."""

import numpy as np

from lib.infers.corrections import CLICKED
from lib.infers.mask_state import MaskState, RoiPrompt
from lib.infers.mask_steps import (
    clicks_of,
    fixed_cells,
    is_satisfied_by,
    joined,
    without_protected,
    without_region,
)
from lib.infers.roi_cells import on_cells

POINT = RoiPrompt("point", ((10.0, 20, 30),), True)
SCRIBBLE = RoiPrompt("scribble", ((0.0, 0, 0), (10, 0, 0), (10, 30, 0)), False)
BOX = RoiPrompt("bounding_box", ((0.0, 0, 0), (63, 127, 127)), False)


def state(value=-1.0, cells=64):
    margins = np.full((cells,) * 3, value, dtype=np.float32)
    return MaskState(np.full((32,) * 3, value, np.float32), margins, 0.0)


def test_points_and_scribbles_become_clicks_in_their_order():
    points_roi, labels = clicks_of([SCRIBBLE, BOX, POINT])
    np.testing.assert_allclose(points_roi, [[0, 0, 0], [10, 10, 0], [10, 30, 0], [10, 20, 30]])
    assert labels.tolist() == [0, 0, 0, 1]
    assert clicks_of([BOX])[0].shape == (0, 3)


def test_a_point_in_a_mask_of_its_label_is_satisfied():
    assert is_satisfied_by(state(1.0), POINT, 128)
    assert not is_satisfied_by(state(1.0), RoiPrompt("point", POINT.places_roi, False), 128)
    assert not is_satisfied_by(state(-1.0), RoiPrompt("point", POINT.places_roi, False), 128)
    assert not is_satisfied_by(state(1.0), SCRIBBLE, 128)


def test_a_background_box_takes_its_cells_off():
    for cells in (32, 64):
        after = without_region(state(2.0, cells), BOX, 128)
        assert (after.margins[:32] == -CLICKED).all() and (after.margins[32:] == 2).all()
        assert (after.low_res[:16] < -5).all() and (after.low_res[16:] == 2).all()
        assert (after.fixed[:32] == 0).all() and np.isnan(after.fixed[32:]).all()


def test_a_second_drawing_adds_to_the_mask():
    before = state(-1.0)
    before.margins[:8] = 3
    drawing = np.full((64,) * 3, -2, dtype=np.float32)
    drawing[20:30] = 1
    decided = np.full((64,) * 3, np.nan, dtype=np.float32)
    decided[6:8], decided[40] = 0, 1
    margins = joined(before, drawing, decided)
    assert (margins[:6] == 3).all() and (margins[20:30] == 1).all()
    assert (margins[6:8] == -CLICKED).all() and (margins[40] == CLICKED).all()
    np.testing.assert_array_equal(joined(state(-1.0), drawing, None), drawing)


def test_the_newest_drawing_and_protected_cells_count_most():
    nan = np.nan
    first = np.full((4, 4, 4), nan, dtype=np.float32)
    first[0], first[1] = 1, 0
    newest = np.full((4, 4, 4), nan, dtype=np.float32)
    newest[1] = 1
    protected = np.zeros((4, 4, 4), dtype=bool)
    protected[0] = True
    result = fixed_cells(first, protected, newest)
    assert (result[0] == 0).all() and (result[1] == 1).all() and np.isnan(result[2:]).all()
    assert fixed_cells(None, None) is None and fixed_cells(first, None) is first
    assert fixed_cells(None, None, np.full((4, 4, 4), nan, dtype=np.float32)) is None


def test_logits_of_protected_cells_are_low():
    protected = np.zeros((8, 8, 8), dtype=bool)
    protected[:3] = True
    logits = without_protected(np.ones((4, 4, 4), np.float32), protected)
    assert (logits[:2] < -5).all() and (logits[2:] == 1).all()


def test_coarse_margins_are_interpolated_on_the_cells():
    coarse = np.broadcast_to(np.arange(32, dtype=np.float32)[:, None, None], (32,) * 3).copy()
    fine = on_cells(coarse)
    assert fine.shape == (64,) * 3 and on_cells(fine) is fine
    np.testing.assert_allclose(fine[1:-1, 5, 7], np.arange(62) / 2 + 0.25, atol=1e-6)
