"""Structures and marks become one mask; what is protected or unchanged keeps its voxels."""

import nibabel as nib
import numpy as np
import pytest

from lib.errors import InputError
from lib.imaging.mask import BoxMask
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.initial_mask import start_of
from lib.infers.mask_state import MaskState
from lib.infers.prompt_parser import parse_prompts
from lib.infers.semantic_mask import compose
from lib.infers.structures import RoiMask, RoiStructure
from lib.infers.transforms import PasteStructuresd

SHAPE_IJK = (40, 30, 24)
AFFINE_MM = np.diag([-1.2, 0.9, 2.5, 1])
VOLUME = Volume(np.zeros(SHAPE_IJK, np.int16), AFFINE_MM, is_ct=False)


def spatial(subtype, places, structure=1):
    return {
        "type": "spatial",
        "subtype": subtype,
        "prompt": places,
        "semantic_id_key": {"semantic_id": structure},
    }


def parsed(prompts, **request):
    return parse_prompts({"prompts": prompts, **request}, SHAPE_IJK, AFFINE_MM)


def roi_at(center, size=32, spacing_mm=1.5):
    return Roi.place(
        SHAPE_IJK, AFFINE_MM, np.array([center], dtype=float), size=size, spacing_mm=spacing_mm
    )


def ball(roi, center, radius_mm, cells=16):
    """Return a state whose mask is a ball; its values fall by 1 a millimetre."""
    places = (np.arange(cells) + 0.5) * roi.size / cells - 0.5
    grid = np.stack(np.meshgrid(places, places, places, indexing="ij"), axis=-1)
    middle = roi.to_roi(np.array([center], dtype=float))[0]
    distance_mm = np.linalg.norm(grid - middle, axis=-1) * roi.spacing_mm
    values = (radius_mm - distance_mm).astype(np.float32)
    return MaskState(values[::2, ::2, ::2], values, 0.0)


def structure(number, center, radius_mm):
    roi = roi_at(center)
    state = ball(roi, center, radius_mm)
    mask = RoiMask(roi, state.margins)
    return RoiStructure(number, roi, (), None, state, mask)


def given_structure(roi, start, state):
    return RoiStructure(1, roi, (), start, state, RoiMask(roi, state.margins))


def given(values):
    box_ijk = tuple((0, length) for length in SHAPE_IJK)
    return BoxMask(np.asfortranarray(values), box_ijk, SHAPE_IJK, AFFINE_MM)


def whole(structures, prompts, initial=None, overwrite=False):
    return compose(structures, prompts, VOLUME, initial, overwrite).mask.whole()


@pytest.mark.parametrize("within", [None, [12, 30, 5, 20, 8, 13]])
def test_one_structure_is_the_pasted_mask_with_the_marked_voxels(within):
    prompts = parsed(
        [spatial("point", [20, 15, 12]), spatial("point", [20, 15, 13], 0)], roi=within
    )
    one = structure(1, [20, 15, 12], 9)
    expected = one.roi.paste(one.state.margins, 0.0, within_ijk=prompts.within_ijk)
    expected[20, 15, 12] = 1
    if len(prompts.within(np.array([[20, 15, 13]]))):
        expected[20, 15, 13] = 0
    np.testing.assert_array_equal(whole([one], prompts), expected)


def test_a_mark_outside_of_the_roi_is_kept():
    one = structure(1, [20, 15, 12], 5)
    mask = whole([one], parsed([spatial("point", [20, 15, 12]), spatial("point", [0, 29, 23])]))
    assert mask[0, 29, 23] == 1


def test_the_latest_mark_of_a_voxel_counts():
    one = structure(1, [20, 15, 12], 5)
    marks = [spatial("point", [3, 4, 5], n) for n in (1, 0)]
    assert whole([one], parsed(marks))[3, 4, 5] == 0
    assert whole([one], parsed(marks[::-1]))[3, 4, 5] == 1


def test_all_voxels_along_a_scribble_are_marked():
    one = structure(1, [20, 15, 12], 1)
    mask = whole([one], parsed([spatial("scribble", [[2, 3, 4], [12, 3, 4], [12, 9, 4]])]))
    assert mask[2:13, 3, 4].all() and mask[12, 3:10, 4].all()


def test_two_structures_meet_where_their_values_are_equal():
    """Their order does not matter but for ties."""
    first, second = structure(1, [14, 15, 12], 9), structure(2, [24, 15, 12], 9)
    prompts = parsed([spatial("point", [14, 15, 12]), spatial("point", [24, 15, 12], 2)])
    mask = whole([first, second], prompts)
    np.testing.assert_array_equal(whole([second, first], prompts), mask)
    alone = [each.roi.paste(each.state.margins, 0.0) > 0 for each in (first, second)]
    assert (alone[0] & alone[1]).any(), "the balls must overlap"
    np.testing.assert_array_equal(mask > 0, alone[0] | alone[1])
    assert (mask[:19][alone[0][:19]] == 1).all() and (mask[20:][alone[1][20:]] == 2).all()


def test_other_structures_are_protected_unless_they_may_be_overwritten():
    initial = np.zeros(SHAPE_IJK, np.uint8)
    initial[24:32, 8:22, 6:18] = 7
    one = structure(1, [20, 15, 12], 9)
    prompts = parsed([spatial("point", [20, 15, 12]), spatial("point", [26, 15, 12])])
    result = compose([one], prompts, VOLUME, given(initial), False)
    mask = result.mask.whole()
    np.testing.assert_array_equal(mask == 7, initial == 7)
    assert (mask == 1).any() and result.hidden == 1
    mask = whole([one], prompts, given(initial), overwrite=True)
    pasted = one.roi.paste(one.state.margins, 0.0) > 0
    assert (pasted & (initial == 7)).any()
    np.testing.assert_array_equal(mask == 1, pasted)
    np.testing.assert_array_equal(mask == 7, (initial == 7) & ~pasted)


def test_a_given_mask_stays_where_no_prompt_changed_it():
    """Also its voxels outside of the ROI and its details below the ROI's cells."""
    generator = np.random.default_rng(0)
    initial = np.zeros(SHAPE_IJK, np.uint8)
    initial[2:38, 4:26, 3:20] = generator.random((36, 22, 17)) < 0.8
    roi = roi_at([20, 15, 12], size=64, spacing_mm=0.4)
    start = start_of(given(initial), 1, roi, 32)
    unchanged = given_structure(roi, start, start)
    prompts = parsed([spatial("point", [20, 15, 12])])
    expected = initial.copy()
    expected[20, 15, 12] = 1
    np.testing.assert_array_equal(whole([unchanged], prompts, given(initial)), expected)

    removed = start.margins.copy()
    removed[:32] = -5  # one half of the ROI
    changed = given_structure(roi, start, MaskState(removed[::2, ::2, ::2], removed, 0.0))
    mask = whole([changed], prompts, given(initial))
    places = nib.affines.apply_affine(np.linalg.inv(roi.affine_mm) @ AFFINE_MM, np.argwhere(mask))
    inside = np.all((places > 2) & (places < 61), axis=1)
    assert np.all(places[inside][:, 0] > 28) and inside.any()
    outside = np.ones(SHAPE_IJK, dtype=bool)
    outside[tuple(slice(*bounds) for bounds in roi.box_ijk)] = False
    np.testing.assert_array_equal(mask[outside], initial[outside])


def test_an_addition_takes_no_voxel_off_a_given_mask():
    """Also not where the given mask has details that its cells do not hold."""
    generator = np.random.default_rng(0)
    initial = np.zeros(SHAPE_IJK, np.uint8)
    initial[10:30, 6:24, 4:18] = generator.random((20, 18, 14)) < 0.3
    roi = roi_at([20, 15, 12], size=64, spacing_mm=2.0)
    start = start_of(given(initial), 1, roi, 32)
    added = np.maximum(start.margins, 2)
    larger = given_structure(roi, start, MaskState(added[::2, ::2, ::2], added, 0.0))
    mask = whole([larger], parsed([spatial("point", [20, 15, 12])]), given(initial))
    assert not ((initial == 1) & (mask == 0)).any()
    assert np.count_nonzero(mask) > 1.5 * np.count_nonzero(initial)


def test_an_empty_mask_is_an_error():
    one = structure(1, [20, 15, 12], -1)
    data = {
        "structures": [one],
        "prompts": parsed([spatial("point", [20, 15, 12], n) for n in (1, 0)]),
        "volume": VOLUME,
        "initial": None,
    }
    with pytest.raises(InputError, match="or on each other; move them"):
        PasteStructuresd()(data)


def test_a_warning_says_that_the_network_found_nothing():
    data = {
        "structures": [structure(1, [20, 15, 12], -1), structure(2, [30, 15, 12], 5)],
        "prompts": parsed(
            [
                spatial("point", [20, 15, 12]),
                spatial("point", [30, 15, 12], 2),
                spatial("point", [5, 5, 5], 0),
            ]
        ),
        "volume": VOLUME,
        "initial": None,
    }
    data = PasteStructuresd()(data)
    assert (data["pred"].whole() == 1).sum() == 1
    (warning,) = data["warnings"]
    assert "nothing was found at this click" in warning and "remove background" in warning


def test_a_warning_says_that_another_structure_holds_all_that_was_found():
    where = [20, 15, 12]
    data = {
        "structures": [structure(1, where, 9), structure(2, where, 9)],
        "prompts": parsed([spatial("point", where), spatial("point", where, 2)]),
        "volume": VOLUME,
        "initial": None,
    }
    data = PasteStructuresd()(data)
    assert (data["pred"].whole() == 2).sum() == 1
    (warning,) = data["warnings"]
    assert "structure 2 belongs to other structures; move its prompts" in warning


def test_a_part_that_was_not_found_is_a_warning_once():
    initial = np.zeros(SHAPE_IJK, np.uint8)
    initial[4:12, 8:22, 6:18] = 1
    roi = roi_at([8, 15, 12], size=64)
    start = start_of(given(initial), 1, roi, 32)
    far = structure(1, [30, 15, 12], -1)
    data = {
        "structures": [given_structure(roi, start, start), far],
        "prompts": parsed([spatial("point", [30, 15, 12])]),
        "volume": VOLUME,
        "initial": given(initial),
    }
    data = PasteStructuresd()(data)
    mask = data["pred"].whole()
    assert mask[30, 15, 12] == 1 and mask.sum() == initial.sum() + 1
    (warning,) = data["warnings"]
    assert "nothing was found at this click" in warning


def test_warnings_about_the_scan_reach_the_reply():
    volume = Volume(np.zeros(SHAPE_IJK), AFFINE_MM, is_ct=False, warnings=("3 voxels are NaN",))
    data = {
        "structures": [structure(1, [20, 15, 12], 9)],
        "prompts": parsed([spatial("point", [20, 15, 12])]),
        "volume": volume,
        "initial": None,
    }
    assert PasteStructuresd()(data)["warnings"] == ["3 voxels are NaN"]
