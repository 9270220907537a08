"""A mask to start from is read from a file on the image's grid and brought to the ROI."""

import nibabel as nib
import numpy as np
import pytest

from lib.cache import ByteCache
from lib.errors import InputError
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.initial_mask import (
    pooled,
    read_initial,
    start_of,
    structure_box,
    structures_at,
)
from lib.infers.transforms import ReadInitialMaskd

SHAPE_IJK = (40, 30, 24)
AFFINE_MM = np.diag([-1.2, 0.9, 2.5, 1])
IMAGE = Volume(np.zeros(SHAPE_IJK, np.int16), AFFINE_MM, is_ct=False)
MASK = np.zeros(SHAPE_IJK, np.uint8)
MASK[10:20, 5:25, 4:12] = 2
MASK[20:26, 5:25, 4:12] = 200


@pytest.fixture
def write(tmp_path):
    def write_mask(values, affine_mm=AFFINE_MM, name="mask.nii.gz"):
        nib.save(nib.Nifti1Image(values, affine_mm), tmp_path / name)
        return tmp_path / name

    return write_mask


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_the_mask_is_read_in_the_box_of_its_structures(write, dtype):
    initial = read_initial(write(MASK.astype(dtype)), IMAGE)
    assert initial.box_ijk == ((10, 26), (5, 25), (4, 12)) and initial.values.dtype == np.uint8
    np.testing.assert_array_equal(initial.whole(), MASK)
    assert structure_box(initial, 2) == ((10, 20), (5, 25), (4, 12))
    assert structure_box(initial, 200) == ((20, 26), (5, 25), (4, 12))
    assert structure_box(initial, 3) is None


def test_a_mask_of_background_only_has_no_structure(write, roi):
    initial = read_initial(write(np.zeros(SHAPE_IJK, np.uint8)), IMAGE)
    assert not initial.whole().any()
    assert structure_box(initial, 1) is None
    assert structures_at(initial, np.array([[0, 0, 0], [39, 29, 23]])) == []
    assert start_of(initial, 1, roi, 32) is None


def test_a_mask_of_one_structure_everywhere(write):
    full = np.full(SHAPE_IJK, 3, np.uint8)
    np.testing.assert_array_equal(read_initial(write(full), IMAGE).whole(), full)


def test_scaled_integers_are_rounded(write):
    np.testing.assert_array_equal(
        read_initial(write(MASK.astype(np.float32) * 1.0001), IMAGE).whole(), MASK
    )


@pytest.mark.parametrize(
    ("values", "affine_mm", "message"),
    [
        (MASK[:-1], AFFINE_MM, "on another grid than the image: it has .* voxels, the image"),
        (MASK, np.diag([1.2, 0.9, 2.5, 1]), r"another grid .*: it lies up to [0-9.]+ mm away"),
        (MASK.astype(np.int16) - 1, AFFINE_MM, "from -1 to 199; save it with .* 0 to 255"),
        (
            MASK.astype(np.int16) * 2,
            AFFINE_MM,
            "from 0 to 400; save it with values from 0 to 255",
        ),
        (
            MASK.astype(np.float32) / 4,
            AFFINE_MM,
            "initial_mask holds fractions; save it as integers",
        ),
        (
            np.full(SHAPE_IJK, np.nan, np.float32),
            AFFINE_MM,
            "initial_mask holds NaN and no structure; save it as integers",
        ),
    ],
)
def test_another_mask_is_an_error(write, values, affine_mm, message):
    with pytest.raises(InputError, match=message):
        read_initial(write(values, affine_mm), IMAGE)


def test_the_structures_at_marked_voxels(write):
    initial = read_initial(write(MASK), IMAGE)
    voxels = np.array([[21, 6, 5], [0, 0, 0], [11, 6, 5], [22, 6, 5], [39, 29, 23]])
    assert structures_at(initial, voxels) == [200, 2]


@pytest.fixture
def roi():
    center = np.array([[18.0, 15, 8]])
    return Roi.place(SHAPE_IJK, AFFINE_MM, center, size=128, spacing_mm=0.5)


def test_the_state_shows_the_structure_on_the_roi(write, roi):
    initial = read_initial(write(MASK), IMAGE)
    start = start_of(initial, 2, roi, 32)
    pasted = roi.paste(start.margins, 0.0)
    assert (pasted != (MASK == 2)).sum() < 0.1 * (MASK == 2).sum()
    assert start.low_res.shape == (32, 32, 32) and abs(start.low_res).max() <= 6
    assert start_of(initial, 9, roi, 32) is None and start_of(None, 1, roi, 32) is None


def test_the_digest_changes_with_the_mask(write, roi):
    initial = read_initial(write(MASK), IMAGE)
    digests = [start_of(initial, number, roi, 32).digest() for number in (2, 200, 2)]
    assert digests[0] == digests[2] != digests[1]


def test_pooled_shares():
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[:3, :2, :2] = True
    share = pooled(mask, 4)
    assert share[0, 0, 0] == 1 and share[1, 0, 0] == 0.5 and share.sum() == 1.5


@pytest.mark.parametrize(
    ("request_keys", "name"), [({}, "initial_mask"), ({"start_from": "draft"}, "start_from")]
)
def test_an_error_names_the_key_that_the_client_sent(write, request_keys, name):
    path = write(np.zeros((4, 5, 6), np.uint8))
    data = {"initial_mask": path, "volume": IMAGE, "volume_key": "key", **request_keys}
    with pytest.raises(InputError, match=f"^{name} is on another grid than the image"):
        ReadInitialMaskd(ByteCache(1000, lambda mask: mask.values.nbytes))(data)
