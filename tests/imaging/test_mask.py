"""A mask kept as its box is the same mask, voxel for voxel and byte for byte."""

import numpy as np
import pytest

from lib.imaging import mask as module
from lib.imaging.mask import BoxMask

SHAPE_IJK = (7, 9, 12)
BOXES = {
    "inside": ((2, 5), (1, 8), (3, 10)),
    "all": ((0, 7), (0, 9), (0, 12)),
    "last plane": ((0, 7), (3, 4), (11, 12)),
    "one voxel": ((0, 1), (0, 1), (0, 1)),
    "empty": ((0, 0), (0, 0), (0, 0)),
}


def box_mask(box_ijk, seed=0):
    lengths = [stop - start for start, stop in box_ijk]
    values = np.random.default_rng(seed).integers(0, 2, lengths, dtype=np.uint8)
    return BoxMask(values, box_ijk, SHAPE_IJK, np.eye(4))


def expected(mask):
    whole = np.zeros(SHAPE_IJK, dtype=np.uint8)
    whole[tuple(slice(*bounds) for bounds in mask.box_ijk)] = mask.values
    return whole


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("name", BOXES)
def test_the_whole(name, dtype):
    mask = box_mask(BOXES[name])
    whole = mask.whole(dtype)
    assert whole.dtype == dtype and whole.flags.f_contiguous
    np.testing.assert_array_equal(whole, expected(mask))


@pytest.mark.parametrize("stretch_bytes", [10, 63, 200, 2**18])
@pytest.mark.parametrize("name", BOXES)
def test_stretches_are_the_bytes_of_a_file(name, stretch_bytes, monkeypatch):
    monkeypatch.setattr(module, "STRETCH_BYTES", stretch_bytes)
    mask = box_mask(BOXES[name])
    stretches = list(mask.stretches())
    assert b"".join(stretches) == expected(mask).tobytes(order="F")
    plane_bytes = SHAPE_IJK[0] * SHAPE_IJK[1]
    assert max(map(len, stretches)) <= max(stretch_bytes, plane_bytes)
    assert mask.nbytes == sum(map(len, stretches))


@pytest.mark.parametrize("name", BOXES)
def test_a_box_grows_around_voxels(name):
    mask = box_mask(BOXES[name])
    grown = mask.including(np.array([[3, 8, 4], [6, 0, 2]]))
    np.testing.assert_array_equal(grown.whole(), expected(mask))
    grown.set_voxel(6, 0, 2, 1)
    grown.set_voxel(3, 8, 4, 0)
    after = expected(mask)
    after[6, 0, 2], after[3, 8, 4] = 1, 0
    np.testing.assert_array_equal(grown.whole(), after)


def test_a_box_that_holds_the_voxels_stays():
    mask = box_mask(BOXES["inside"])
    assert mask.including(np.array([[2, 1, 3], [4, 7, 9]])) is mask
    assert mask.including(np.zeros((0, 3), dtype=int)) is mask
    empty = box_mask(BOXES["empty"]).including(np.zeros((0, 3), dtype=int))
    assert not empty.whole().any()
