"""Clicked voxels get their label, and an empty mask is an error; pasting needs the box only."""

import numpy as np
import pytest

from lib.cache import ByteCache
from lib.errors import InputError
from lib.imaging.box import EMPTY_BOX
from lib.imaging.mask import BoxMask
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.prompts import parse_prompts
from lib.infers.scale import RoiScale
from lib.infers.transforms import LabelClickedVoxelsd, PasteRoid, PlaceRoid, allowed_voxels

SHAPE_IJK = (6, 9, 12)
BLOCK_IJK = ((1, 4), (2, 5), (3, 8))


def fixed_scale(roi_size, spacing_mm):
    return RoiScale(roi_size, spacing_mm, False, ByteCache(1, nbytes=lambda _: 1))


def label_clicks(box_ijk, of_the_volume=(), **request):
    """Return the whole mask and the warnings if the network's mask is a box."""
    volume = Volume(np.zeros(SHAPE_IJK), np.eye(4), is_ct=False, warnings=of_the_volume)
    prompts = parse_prompts(request, SHAPE_IJK)
    values = np.ones([stop - start for start, stop in box_ijk], dtype=np.uint8)
    mask = BoxMask(values, box_ijk, SHAPE_IJK, np.eye(4)).including(allowed_voxels(prompts))
    data = LabelClickedVoxelsd()({"pred": mask, "prompts": prompts, "volume": volume})
    return data["pred"].whole(), data["warnings"]


def block():
    mask = np.zeros(SHAPE_IJK, dtype=bool)
    mask[1:4, 2:5, 3:8] = True
    return mask


def test_clicks_override_the_network():
    mask, warnings = label_clicks(
        BLOCK_IJK, foreground=[[5, 8, 11], [2, 3, 4]], background=[[1, 2, 3], [0, 0, 0]]
    )
    expected = block()
    expected[5, 8, 11] = True
    expected[1, 2, 3] = False
    np.testing.assert_array_equal(mask, expected)
    assert warnings == []


def test_a_warning_says_that_the_network_found_nothing():
    mask, warnings = label_clicks(EMPTY_BOX, foreground=[[4.4, 8.2, 11]], background=[[1, 1, 1]])
    assert np.argwhere(mask).tolist() == [[4, 8, 11]]
    assert "nothing was found at this click" in warnings[0]
    assert "remove background clicks" in warnings[0]


def test_warnings_about_the_scan_reach_the_reply():
    _, warnings = label_clicks(BLOCK_IJK, ("3 voxels are NaN",), foreground=[[2, 3, 4]])
    assert warnings == ["3 voxels are NaN"]


def test_clicks_outside_of_the_box_stay_outside():
    mask, _ = label_clicks(BLOCK_IJK, foreground=[[5, 8, 11]], roi=[1, 3, 2, 4, 3, 7])
    np.testing.assert_array_equal(mask, block())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"background": [[1, 1, 1]]}, "only background clicks; choose the label"),
        ({"foreground": [[5, 8, 11]], "roi": [0, 1, 0, 1, 0, 1]}, "outside of the box"),
        ({"foreground": [[5, 8, 11]], "background": [[5, 8, 11]] * 2}, "or on each other"),
    ],
)
def test_an_empty_mask_is_an_error(request_, message):
    with pytest.raises(InputError, match=message):
        label_clicks(EMPTY_BOX, **request_)


def test_a_click_may_lie_outside_of_the_pasted_box():
    """With coarse voxels, the centre of the clicked voxel lies beyond the last ROI voxel."""
    shape_ijk, affine_mm = (30, 20, 25), np.diag([5.0, 5, 5, 1])
    request = {"foreground": [[10.0, 10, 10]], "background": [[12.5, 10.0, 10.0]]}
    data = {
        "volume": Volume(np.zeros(shape_ijk, np.int16), affine_mm, is_ct=False),
        "prompts": parse_prompts(request, shape_ijk),
    }
    data = PlaceRoid(fixed_scale(16, 1.0))({**data, "volume_key": "a"})
    data["prompts"] = parse_prompts({"foreground": [[10, 10, 10], [12.51, 10, 10]]}, shape_ijk)
    box_ijk = data["roi_cube"].box_ijk
    assert box_ijk[0][1] <= 13
    data["values"] = np.ones((4, 4, 4), dtype=np.float32)
    data["threshold"] = 0.0
    mask = LabelClickedVoxelsd()(PasteRoid()(data))["pred"].whole()
    expected = data["roi_cube"].paste(data["values"])
    expected[13, 10, 10] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("within", [None, [30, 80, 20, 60, 5, 25]])
def test_the_mask_is_the_pasted_one_with_the_clicks(within):
    """The box saves memory and time only: its voxels are those of the whole grid."""
    shape_ijk, affine_mm = (90, 70, 40), np.diag([-1.2, 0.9, 2.5, 1])
    request = {"foreground": [[50, 30, 15], [60, 44, 20]], "background": [[40, 25, 11]]}
    prompts = parse_prompts({**request, "roi": within}, shape_ijk)
    volume = Volume(np.zeros(shape_ijk, np.int16), affine_mm, is_ct=False)
    data = PlaceRoid(fixed_scale(32, 1.5))(
        {"volume": volume, "volume_key": "a", "prompts": prompts}
    )
    roi: Roi = data["roi_cube"]
    for seed in range(3):
        generator = np.random.default_rng(seed)
        data["values"] = generator.normal(-seed, 1, (8, 8, 8)).astype(np.float32)
        data["threshold"] = generator.normal()
        mask = LabelClickedVoxelsd()(PasteRoid()(data))["pred"].whole()
        expected = roi.paste(data["values"], data["threshold"], within_ijk=prompts.within_ijk)
        for (i, j, k), label in zip(prompts.voxels_ijk, prompts.labels, strict=True):
            if prompts.is_within(i, j, k):
                expected[i, j, k] = label
        np.testing.assert_array_equal(mask, expected)
