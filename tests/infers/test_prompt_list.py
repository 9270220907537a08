"""The ordered list of prompts: each entry is parsed, or an error names it by its number."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS
from lib.infers.prompt_parser import parse_prompts
from lib.infers.prompts import Prompt

SHAPE = (50, 40, 30)
AFFINE_MM = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.7, 0.9, 2.5]), [10, -20, 30]
)
POINT = [1, 2, 3]
LASSO = [[10, 10, 5], [20, 10, 5], [20, 20, 5], [10, 20, 5]]


def spatial(subtype, places, structure=1, **others):
    return {
        "type": "spatial",
        "subtype": subtype,
        "prompt": places,
        "semantic_id_key": {"semantic_id": structure},
        **others,
    }


def parse(*prompts, **request):
    return parse_prompts({"prompts": list(prompts), **request}, SHAPE, AFFINE_MM)


def test_prompts_keep_their_order_and_structures():
    parsed = parse(
        spatial("point", POINT, 3, aux={"color": "red"}),
        spatial("point", [4, 5, 6], 0),
        spatial("scribble", [[7, 8, 9], [9, 8, 9]], 3),
        spatial("lasso", LASSO, 1),
        spatial("bounding_box", [[9, 9, 9], [2, 1, 5]], 0),
    )
    assert parsed.items == (
        Prompt("point", ((1, 2, 3),), 3),
        Prompt("point", ((4, 5, 6),), 0),
        Prompt("scribble", ((7, 8, 9), (9, 8, 9)), 3),
        Prompt("lasso", tuple(map(tuple, LASSO)), 1),
        Prompt("bounding_box", ((9, 9, 9), (2, 1, 5)), 0),
    )
    assert parsed.structures == (3, 1)
    assert [prompt.subtype for prompt in parsed.about(1)] == ["point", "lasso", "bounding_box"]
    assert parsed.warnings == ()


def test_places_in_lps_mm_are_those_voxels():
    def to_lps(places):
        return (nib.affines.apply_affine(AFFINE_MM, places) @ RAS_TO_LPS).tolist()

    parsed = parse(
        spatial("point", to_lps([POINT])[0]), spatial("lasso", to_lps(LASSO)), coordinates="lps_mm"
    )
    assert parsed.items == parse(spatial("point", POINT), spatial("lasso", LASSO)).items


def test_the_box_of_slicer_still_limits_the_mask():
    parsed = parse(spatial("point", POINT), roi=[0, 9, 0, 9, 0, 9])
    assert parsed.within_ijk == ((0, 10),) * 3


@pytest.mark.parametrize(
    "lists", [{"foreground": [POINT]}, {"background": [POINT]}, {"foreground": 7}]
)
def test_both_forms_are_an_error(lists):
    with pytest.raises(InputError, match="prompts and also foreground or background"):
        parse(spatial("point", POINT), **lists)
    assert parse(spatial("point", POINT), foreground=[], background=None).items


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "prompt 2 is 7; expected an object"),
        ({**spatial("point", POINT), "type": "text"}, "prompt 2 is a text; this model takes spat"),
        ({**spatial("point", POINT), "type": None}, "prompt 2 has the type None; send 'spatial'"),
        (spatial("ray", POINT), "prompt 2 has the subtype 'ray'; choose one of point, scribble"),
        (spatial(["point"], POINT), r"prompt 2 has the subtype \['point'\]; choose"),
        (spatial("point", POINT, -1), r"prompt 2 \(point\) has the semantic_id_key .*n from 1 to"),
        (spatial("point", POINT, 256), "semantic_id_key"),
        (spatial("point", POINT, True), "semantic_id_key"),
        (spatial("point", POINT, 1.0), "semantic_id_key"),
        (spatial("point", POINT, None), "semantic_id_key"),
        ({**spatial("point", POINT), "semantic_id_key": 3}, "semantic_id_key 3; send"),
        (
            spatial("point", None),
            r"prompt 2 \(point\): None is not a place of three finite numbers",
        ),
        (spatial("point", [1, 2]), "is not a place of three finite numbers; expected one place"),
        (spatial("point", [[1, 2, 3]]), "is not a place"),
        (spatial("point", [1, 2, float("nan")]), r"\[1, 2, nan\] is not a place"),
        (spatial("point", [1, 2, "3"]), "is not a place"),
        (spatial("point", [50, 2, 3]), r"prompt 2 \(point\): \(50, 2, 3\) lies outside the image"),
        (spatial("scribble", []), r"prompt 2 \(scribble\) is \[\]; expected a path"),
        (spatial("scribble", POINT), r"prompt 2 \(scribble\): 1 is not a place"),
        (spatial("scribble", [POINT, [1, 2, -3]]), r"\(1, 2, -3\) lies outside the image of 50 ×"),
        (spatial("scribble", [POINT] * 1001), r"prompt 2 \(scribble\) has 1001 places; send at"),
        (spatial("lasso", LASSO[:2]), r"prompt 2 \(lasso\) has 2 different places; draw a closed"),
        (spatial("lasso", LASSO[:2] * 3), "has 2 different places"),
        (spatial("lasso", [[1, 1, 1], [5, 5, 1], [9, 9, 1]]), "is a line; draw a closed path"),
        (
            spatial("lasso", [*LASSO[:3], LASSO[1]]),
            "encloses an area of 0.00 voxels; draw it around",
        ),
        (spatial("lasso", [*LASSO, [12, 25, 7]]), r"prompt 2 \(lasso\) leaves its plane"),
        (spatial("lasso", [[1, 1, 1], [9, 1, 2], [9, 9, 3]]), "leaves its plane"),
        (spatial("bounding_box", [POINT]), r"prompt 2 \(bounding_box\) has 1 places; expected two"),
        (spatial("bounding_box", [POINT, POINT]), "has a size of 0 × 0 × 0 voxels, which is no ar"),
        (spatial("bounding_box", [POINT, [9, 2, 3]]), "8 × 0 × 0 voxels"),
        (spatial("bounding_box", [POINT, [9, 9, 30]]), "lies outside the image"),
        (spatial("bounding_box", [POINT, [9, 9, float("inf")]]), "is not a place"),
    ],
)
def test_a_bad_prompt_is_named_by_its_number(prompt, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(spatial("point", POINT), prompt)
    assert str(caught.value).startswith("prompt 2") and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts is empty; mark the structure"),
        ("all", "prompts is 'all'; expected a list"),
        ({"type": "spatial"}, "expected a list of prompts"),
        ([spatial("point", POINT)] * 201, "201 prompts are too many; send at most 200"),
    ],
)
def test_a_value_that_is_no_list_of_prompts_is_an_error(prompts, message):
    with pytest.raises(InputError, match=message):
        parse_prompts({"prompts": prompts}, SHAPE)


def test_a_lasso_in_mm_may_lie_in_a_plane_that_is_oblique_to_the_slices():
    path = [[10, 10, 5], [30, 10, 9], [30, 30, 9], [10, 30, 5]]
    lps = (nib.affines.apply_affine(AFFINE_MM, path) @ RAS_TO_LPS).tolist()
    assert parse(spatial("lasso", lps), coordinates="lps_mm").items[0].subtype == "lasso"
    lps[0][2] += 3
    with pytest.raises(InputError, match="leaves its plane"):
        parse(spatial("lasso", lps), coordinates="lps_mm")


def test_a_box_in_a_plane_is_a_box():
    assert parse(spatial("bounding_box", [POINT, [9, 9, 3]])).items[0].subtype == "bounding_box"


def test_the_voxels_of_a_scribble_are_connected():
    (prompt,) = parse(spatial("scribble", [[2, 3, 4], [20, 9, 4], [20, 30, 11]])).items
    voxels = prompt.voxels_ijk
    assert {(2, 3, 4), (20, 9, 4), (20, 30, 11)} <= set(map(tuple, voxels.tolist()))
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(voxels.T)] = True
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["spatial", "lasso"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["semantic_id", "a"]), inner, max_size=2)
    ),
    max_leaves=10,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.just("spatial") | JSON,
                "subtype": st.sampled_from(["point", "scribble", "lasso", "bounding_box"]) | JSON,
                "prompt": st.lists(st.lists(st.integers(-1, 9), min_size=3, max_size=3)) | JSON,
                "semantic_id_key": st.just({"semantic_id": 1}) | JSON,
            },
        )
        | JSON,
        max_size=4,
    )
)
def test_any_list_gives_prompts_inside_the_image_or_an_input_error(prompts):
    try:
        parsed = parse_prompts({"prompts": prompts}, (9, 7, 5))
    except InputError as error:
        assert len(str(error)) < 300
        return
    for prompt in parsed.items:
        assert np.all(prompt.points_ijk >= -0.5)
        assert np.all(prompt.points_ijk < np.array([9, 7, 5]) - 0.5)
