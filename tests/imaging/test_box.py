"""Boxes: their slices, what they contain, their common part and their hull."""

import numpy as np
import pytest

from lib.imaging.box import EMPTY_BOX, box_slices, contains, hull, intersect

BOX_IJK = ((2, 5), (1, 8), (3, 10))


def test_slices_select_the_voxels_that_the_box_contains():
    selected = np.zeros((7, 9, 12), dtype=bool)
    selected[box_slices(BOX_IJK)] = True
    for index, is_selected in np.ndenumerate(selected):
        assert contains(BOX_IJK, *index) == is_selected


def test_slices_in_an_outer_box_start_at_that_box():
    outer_ijk = ((1, 7), (1, 9), (2, 12))
    assert box_slices(BOX_IJK, outer_ijk) == (slice(1, 4), slice(0, 7), slice(1, 8))


@pytest.mark.parametrize(
    ("other_ijk", "expected"),
    [
        (((0, 99), (0, 99), (0, 99)), BOX_IJK),
        (((4, 9), (0, 2), (9, 12)), ((4, 5), (1, 2), (9, 10))),
        (((5, 9), (0, 2), (9, 12)), ((5, 5), (1, 2), (9, 10))),
    ],
    ids=["inside", "overlapping", "beside"],
)
def test_the_common_part_of_two_boxes(other_ijk, expected):
    assert intersect(BOX_IJK, other_ijk) == intersect(other_ijk, BOX_IJK) == expected


def test_the_hull_holds_the_box_and_the_voxels():
    voxels_ijk = np.array([[3, 8, 4], [6, 0, 5]])
    assert hull(BOX_IJK, voxels_ijk) == ((2, 7), (0, 9), (3, 10))
    assert hull(EMPTY_BOX, voxels_ijk) == ((3, 7), (0, 9), (4, 6))
    assert hull(BOX_IJK, np.zeros((0, 3), dtype=int)) == BOX_IJK
    assert hull(EMPTY_BOX, np.zeros((0, 3), dtype=int)) == EMPTY_BOX
