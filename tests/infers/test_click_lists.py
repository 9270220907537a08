"""The click lists of stock clients and the box: parsed, or an error names the value."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS
from lib.infers.prompt_parser import parse_prompts

SHAPE = (512, 400, 90)
INSIDE = [[1, 2, 3], [511, 399, 89], [0, 0, 0]]


def places(prompts):
    """Return the places of all prompts, each of which must be a point."""
    assert all(prompt.subtype == "point" for prompt in prompts.items)
    return [list(place) for prompt in prompts.items for place in prompt.places_ijk]


def labels(prompts):
    return [prompt.structure for prompt in prompts.items]


def test_clicks_keep_their_order_foreground_first():
    request = {"background": [[9, 9, 9], [4, 5, 6]], "foreground": INSIDE}
    prompts = parse_prompts(request, SHAPE)
    assert places(prompts) == [*INSIDE, [9, 9, 9], [4, 5, 6]]
    assert labels(prompts) == [1, 1, 1, 0, 0]
    assert prompts.within_ijk is None and prompts.warnings == ()


@pytest.mark.parametrize(
    "request_",
    [
        {"background": INSIDE},
        {"foreground": None, "background": INSIDE},
        {"foreground": [], "background": INSIDE},
        # OHIF sends the background clicks under both names while that list is active
        {"foreground": INSIDE, "background": INSIDE},
    ],
)
def test_background_alone_is_an_error(request_):
    with pytest.raises(InputError, match="only background clicks; choose the label and click"):
        parse_prompts(request_, SHAPE)


def test_clicks_in_common_are_not_the_same_clicks():
    prompts = parse_prompts({"foreground": INSIDE, "background": INSIDE[:1]}, SHAPE)
    assert labels(prompts) == [1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32, np.float64])
def test_numpy_clicks_are_accepted(dtype):
    prompts = parse_prompts({"foreground": np.array(INSIDE, dtype=dtype)}, SHAPE)
    assert places(prompts) == INSIDE


@pytest.mark.parametrize(
    "request_",
    [{}, {"foreground": []}, {"foreground": None, "background": None}, {"background": []}],
)
def test_no_click_is_an_error(request_):
    with pytest.raises(InputError, match="there is no click; click on the structure"):
        parse_prompts(request_, SHAPE)


@pytest.mark.parametrize("clicks", ["1,2,3", 7, True, {"i": 1}])
@pytest.mark.parametrize("key", ["foreground", "background"])
def test_a_value_that_is_no_list_is_an_error(key, clicks):
    with pytest.raises(InputError) as caught:
        parse_prompts({"foreground": INSIDE, key: clicks}, SHAPE)
    assert str(caught.value) == f"{key} is {clicks!r}; expected a list of clicks [[i, j, k], …]"


@pytest.mark.parametrize(
    "click",
    [
        5,
        None,
        "abc",
        [],
        [1, 2],
        [1, 2, 3, 4],
        [1, 2, "3"],
        [1, 2, None],
        [1, True, 3],
        [1, np.True_, 3],
        [[1, 2, 3]],
        [1, 2, [3]],
        [1, 2, float("nan")],
        [float("inf"), 2, 3],
        [1, 2, 10**400],
        [1, 2, 3j],
        [1, 2, np.complex64(3)],
        {"0": 1, "1": 2, "2": 3},
    ],
    ids=repr,
)
@pytest.mark.parametrize("key", ["foreground", "background"])
def test_a_value_that_is_no_click_is_an_error(key, click):
    with pytest.raises(InputError) as caught:
        parse_prompts({key: [[1, 2, 3], click]}, SHAPE)
    assert str(caught.value).startswith(f"{key} click {repr(click)[:50]}")
    assert str(caught.value).endswith("[i, j, k] or [x, y, z] in mm, for each click")
    assert len(str(caught.value)) < 200


def test_one_click_without_a_list_around_it_is_an_error():
    with pytest.raises(InputError, match="foreground click 10 is not a place"):
        parse_prompts({"foreground": [10, 20, 30]}, SHAPE)


OUTSIDE = [[512, 40, 3], [-1, 40, 3], [5, 400, 3], [5, 40, 90], [5, 40, -0.51], [511.5, 40, 3]]


@pytest.mark.parametrize("click", OUTSIDE)
def test_a_click_outside_is_left_out_while_others_remain(click):
    prompts = parse_prompts({"foreground": [click, *INSIDE], "background": [[5, 5, 5]]}, SHAPE)
    assert places(prompts) == [*INSIDE, [5, 5, 5]]
    assert labels(prompts) == [1, 1, 1, 0]
    assert len(prompts.warnings) == 1
    assert prompts.warnings[0].endswith("lies outside the image of 512 × 400 × 90 voxels; left out")


@pytest.mark.parametrize("click", OUTSIDE)
def test_only_a_click_outside_is_an_error(click):
    with pytest.raises(InputError) as caught:
        parse_prompts({"foreground": [click]}, SHAPE)
    place = ", ".join(f"{value:g}" for value in click)
    assert str(caught.value) == (
        f"click ({place}) lies outside the image of 512 × 400 × 90 voxels; click inside the image"
    )


def test_several_clicks_outside_are_counted():
    with pytest.raises(InputError, match=r"^6 clicks, the first at \(512, 40, 3\), lie outside"):
        parse_prompts({"foreground": OUTSIDE}, SHAPE)


@pytest.mark.parametrize("click", [[-0.5, 0, 0], [511.49, 399.49, 89.49]])
def test_a_click_within_the_outermost_voxels_is_inside(click):
    assert places(parse_prompts({"foreground": [click]}, SHAPE)) == [click]


def test_too_many_clicks_are_an_error():
    assert len(parse_prompts({"foreground": [[1, 2, 3]] * 100}, SHAPE).items) == 100
    with pytest.raises(InputError, match="101 clicks are too many; send at most 100"):
        parse_prompts({"foreground": [[1, 2, 3]] * 99, "background": [[4, 5, 6]] * 2}, SHAPE)


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([10, 20, 30, 40, 5, 6], ((10, 21), (30, 41), (5, 7))),
        ([20, 10, 40, 30, 6, 5], ((10, 21), (30, 41), (5, 7))),
        ([-50, 700, 30, 30, 89, 200], ((0, 512), (30, 31), (89, 90))),
        ([9.6, 20.4, 30, 40, 5, 6], ((10, 21), (30, 41), (5, 7))),
        ([], None),
        (None, None),
    ],
)
def test_the_box_is_sorted_clipped_and_half_open(roi, expected):
    assert parse_prompts({"foreground": INSIDE, "roi": roi}, SHAPE).within_ijk == expected


@pytest.mark.parametrize(
    "roi",
    [
        [1, 2, 3],
        "all",
        7,
        [1, 2, 3, 4, 5, None],
        [1, 2, 3, 4, 5, "6"],
        [1, 2, 3, 4, 5, float("nan")],
    ],
    ids=repr,
)
def test_a_value_that_is_no_box_is_an_error(roi):
    with pytest.raises(InputError) as caught:
        parse_prompts({"foreground": INSIDE, "roi": roi}, SHAPE)
    assert str(caught.value) == (
        f"roi {roi!r} is not a box; expected six numbers [i0, i1, j0, j1, k0, k1]"
    )


@pytest.mark.parametrize("roi", [[512, 600, 0, 9, 0, 9], [0, 9, 0, 9, -7, -1]])
def test_a_box_outside_the_image_is_an_error(roi):
    with pytest.raises(InputError, match="lies outside the image of 512 × 400 × 90 voxels; move"):
        parse_prompts({"foreground": INSIDE, "roi": roi}, SHAPE)


@given(
    st.dictionaries(
        st.sampled_from(["foreground", "background", "roi"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.just("1"),
            lambda inner: st.lists(inner, max_size=6),
            max_leaves=12,
        ),
    )
)
def test_any_request_gives_clicks_inside_the_image_or_an_input_error(request_):
    try:
        prompts = parse_prompts(request_, (9, 7, 5))
    except InputError as error:
        assert len(str(error)) < 200
        return
    points_ijk = np.array(places(prompts))
    assert len(points_ijk) >= 1
    assert np.all(np.rint(points_ijk) >= 0)
    assert np.all(points_ijk < np.array([9, 7, 5]) - 0.5)


AFFINE_MM = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.7, 0.9, 2.5]), [10, -20, 30]
)


def to_lps(points_ijk):
    return (nib.affines.apply_affine(AFFINE_MM, points_ijk) @ RAS_TO_LPS).tolist()


def test_clicks_in_lps_mm_are_those_voxels():
    request = {"foreground": to_lps(INSIDE), "background": to_lps([[9, 9, 9]])}
    prompts = parse_prompts({**request, "coordinates": "lps_mm"}, SHAPE, AFFINE_MM)
    assert places(prompts) == [*INSIDE, [9, 9, 9]]
    rounded = {key: np.round(clicks, 3).tolist() for key, clicks in request.items()}
    again = parse_prompts({**rounded, "coordinates": "lps_mm"}, SHAPE, AFFINE_MM)
    assert places(again) == places(prompts)
    assert prompts.items[1].voxels_ijk.tolist() == [INSIDE[1]]


def test_a_click_in_mm_outside_of_the_image_is_named_as_it_was_sent():
    ((x, y, z),) = to_lps([[600, 2, 3]])
    request = {"foreground": [[x, y, z]], "coordinates": "lps_mm"}
    with pytest.raises(InputError, match=rf"click \({x:.6g}, {y:.6g}, {z:.6g}\) mm lies outside"):
        parse_prompts(request, SHAPE, AFFINE_MM)


@pytest.mark.parametrize("coordinates", ["ras_mm", 1, ["ijk"]])
def test_an_unknown_frame_is_named(coordinates):
    with pytest.raises(InputError, match="coordinates is .*; choose one of ijk, lps_mm"):
        parse_prompts({"foreground": INSIDE, "coordinates": coordinates}, SHAPE)
