"""Each structure of a request gets the prompts about it and a ROI that holds them."""

import numpy as np
import pytest

from lib.cache import ByteCache
from lib.errors import InputError
from lib.imaging.mask import BoxMask
from lib.imaging.volume import Volume
from lib.infers.prompt_parser import parse_prompts
from lib.infers.scale import RoiScale
from lib.infers.structures import RoiPlacer, prompts_in_roi, structures_of

SHAPE_IJK = (300, 200, 90)
AFFINE_MM = np.diag([-1.2, 0.9, 2.5, 1])
VOLUME = Volume(np.zeros(SHAPE_IJK, np.int16), AFFINE_MM, is_ct=False)


def point(place, structure=1):
    key = {"semantic_id": structure}
    return {"type": "spatial", "subtype": "point", "prompt": place, "semantic_id_key": key}


def parsed(*prompts):
    return parse_prompts({"prompts": list(prompts)}, SHAPE_IJK)


def placer(size=32, spacing_mm=1.5, step=0):
    scale = RoiScale(size, spacing_mm, False, ByteCache(1, nbytes=lambda _: 1))
    return RoiPlacer(scale, VOLUME, "volume", step)


def place(*prompts):
    return placer().place(parsed(*prompts).items, None)


def given():
    values = np.zeros((20, 20, 20), np.uint8, order="F")
    values[:10], values[10:] = 4, 6
    return BoxMask(values, ((10, 30), (40, 60), (30, 50)), SHAPE_IJK, AFFINE_MM)


def test_the_roi_holds_the_prompts_on_the_structure_around_the_first():
    roi = place(point([100, 80, 40]), point([108, 80, 40]))
    np.testing.assert_allclose(roi.to_roi(np.array([[100, 80, 40]])), [[16, 16, 16]])
    far = place(point([100, 80, 40]), point([190, 80, 40]))
    assert far.spacing_mm > roi.spacing_mm == 1.5
    assert np.all(np.abs(far.to_roi(np.array([[190, 80, 40]])) - 15.5) <= 15.51)


def test_background_far_away_does_not_change_the_roi():
    near = place(point([100, 80, 40]))
    prompts = parsed(point([100, 80, 40]), point([299, 80, 40], 0), point([104, 80, 40], 0))
    assert placer().place(prompts.items, None) == near
    on_roi = prompts_in_roi(prompts.items, near)
    assert [prompt.is_foreground for prompt in on_roi] == [True, False]


def test_the_roi_of_a_given_mask_holds_it():
    prompts = parsed(point([12, 50, 40]))
    roi = placer().place(prompts.items, ((10, 60), (40, 60), (30, 50)))
    corners = roi.to_roi(np.array([[10, 40, 30], [59, 59, 49]]))
    assert corners.min() >= -1e-9 and corners.max() <= 31 + 1e-9


def test_structures_close_to_each_other_share_a_roi():
    prompts = parsed(point([100, 80, 40], 2), point([106, 80, 40], 1), point([190, 80, 40], 3))
    assert structures_of(prompts, None) == (2, 1, 3)
    shared = placer()
    first, second, third = (shared.place(prompts.about(n), None) for n in (2, 1, 3))
    assert first == second != third
    assert placer().place(prompts.about(1), None) != first


def test_prompts_of_the_background_are_about_the_given_structures_they_lie_in():
    background = parsed(point([25, 45, 35], 0), point([150, 45, 35], 0), point([12, 45, 35], 0))
    assert structures_of(background, given()) == (6, 4)
    with pytest.raises(InputError, match="all prompts mark background; mark a structure too"):
        structures_of(background, None)
    with pytest.raises(InputError, match="all prompts mark background"):
        structures_of(parsed(point([150, 45, 35], 0)), given())


@pytest.mark.parametrize(
    ("spacing_mm", "step", "expected"),
    [
        (4.0, 1, "size 1 gives the mask of size 0: the voxel of the ROI stays 4 mm"),
        (3.0, 2, "size 2 gives the mask of size 1: the voxel of the ROI stays 4 mm"),
        (0.4, -2, "size -2 gives the mask of size -1: the voxel of the ROI stays 0.4 mm"),
        (4.0, 0, None),
        (4.0, -2, None),
        (3.0, 1, None),
    ],
)
def test_a_size_that_changes_nothing_is_a_warning(spacing_mm, step, expected):
    rois = placer(64, spacing_mm, step)
    rois.place(parsed(point([100, 80, 40])).items, None)
    assert [text.split(";")[0] for text in rois.warnings] == ([expected] if expected else [])


def test_prompts_far_apart_leave_no_smaller_answer():
    rois = placer(32, 1.5, -1)
    roi = rois.place(parsed(point([100, 80, 40]), point([190, 80, 40])).items, None)
    assert f"stays {roi.spacing_mm:.3g} mm" in rois.warnings[0]
