"""A mask stored as its box is the same mask, voxel for voxel and byte for byte."""

import numpy as np
import pytest

from lib.imaging import mask as module
from lib.imaging.box import EMPTY_BOX, box_slices, contains
from lib.imaging.mask import BoxMask, dice

SHAPE_IJK = (7, 9, 12)
BOXES = {
    "inside": ((2, 5), (1, 8), (3, 10)),
    "all": ((0, 7), (0, 9), (0, 12)),
    "last plane": ((0, 7), (3, 4), (11, 12)),
    "one voxel": ((0, 1), (0, 1), (0, 1)),
    "empty": EMPTY_BOX,
}


def box_mask(box_ijk, seed=0):
    lengths = [stop - start for start, stop in box_ijk]
    values = np.random.default_rng(seed).integers(0, 2, lengths, dtype=np.uint8)
    return BoxMask(values, box_ijk, SHAPE_IJK, np.eye(4))


def whole_mask(mask):
    whole = np.zeros(SHAPE_IJK, dtype=np.uint8)
    whole[box_slices(mask.box_ijk)] = mask.values
    return whole


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("name", BOXES)
def test_the_whole_mask(name, dtype):
    mask = box_mask(BOXES[name])
    whole = mask.whole(dtype)
    assert whole.dtype == dtype and whole.flags.f_contiguous
    np.testing.assert_array_equal(whole, whole_mask(mask))


@pytest.mark.parametrize("chunk_bytes", [10, 63, 200, 2**18])
@pytest.mark.parametrize("name", BOXES)
def test_chunks_are_the_bytes_of_a_file(name, chunk_bytes, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    mask = box_mask(BOXES[name])
    chunks = list(mask.chunks())
    assert b"".join(chunks) == whole_mask(mask).tobytes(order="F")
    plane_bytes = SHAPE_IJK[0] * SHAPE_IJK[1]
    assert max(map(len, chunks)) <= max(chunk_bytes, plane_bytes)
    assert mask.nbytes == sum(map(len, chunks))


@pytest.mark.parametrize("name", BOXES)
def test_a_box_grows_around_voxels(name):
    mask = box_mask(BOXES[name])
    grown = mask.including(np.array([[3, 8, 4], [6, 0, 2]]))
    np.testing.assert_array_equal(grown.whole(), whole_mask(mask))
    assert all(contains(grown.box_ijk, *voxel) for voxel in ((3, 8, 4), (6, 0, 2)))


@pytest.mark.parametrize("name", BOXES)
def test_a_box_covers_another_box(name):
    mask = box_mask(BOXES[name])
    grown = mask.covering(((0, 2), (3, 9), (1, 2)))
    np.testing.assert_array_equal(grown.whole(), whole_mask(mask))
    assert contains(grown.box_ijk, 0, 3, 1) and contains(grown.box_ijk, 1, 8, 1)
    assert mask.covering(EMPTY_BOX) is mask


def test_a_box_that_holds_the_voxels_stays():
    mask = box_mask(BOXES["inside"])
    assert mask.including(np.array([[2, 1, 3], [4, 7, 9]])) is mask
    assert mask.including(np.zeros((0, 3), dtype=int)) is mask
    empty = box_mask(BOXES["empty"]).including(np.zeros((0, 3), dtype=int))
    assert not empty.whole().any()


def test_dice_is_twice_the_overlap_over_the_sum():
    mask = np.array([True, True, True, False, False])
    other = np.array([False, True, True, True, False])
    assert dice(mask, other) == dice(other, mask) == 2 * 2 / (3 + 3)
    assert dice(mask, mask) == 1
    assert dice(mask, ~mask) == 0
    assert dice(mask & ~mask, mask & ~mask) == 1
