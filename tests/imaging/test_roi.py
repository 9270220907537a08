"""The ROI is placed around clicks, cropped and pasted correctly on every kind of grid."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nibabel import aff2axcodes
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from lib.imaging.interpolation import linear_taps
from lib.imaging.mask import dice
from lib.imaging.roi import Roi

ORDERS_AND_FLIPS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
SHEAR = np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]])  # a gantry tilted by 17°


def make_affine(order, signs, spacing_mm, degrees=(12, -9, 17), shear=None):
    """Stored axis a runs towards `signs[a]` × world axis `order[a]`, all turned by `degrees`."""
    axes = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()[:, order] * signs
    affine_mm = np.eye(4)
    affine_mm[:3, :3] = (axes if shear is None else axes @ shear) * spacing_mm
    affine_mm[:3, 3] = (-61.3, 40.2, 917.8)
    return affine_mm


def to_world(affine_mm, points):
    return points @ affine_mm[:3, :3].T + affine_mm[:3, 3]


def indices_of(shape):
    """Return every index of an array, (N, 3), in C order."""
    return np.indices(shape).reshape(3, -1).T


def distances_mm(affine_mm, shape, centre_mm):
    """Return the distance of every voxel centre from a point, as an array of `shape`."""
    offsets = to_world(affine_mm, indices_of(shape)) - centre_mm
    return np.linalg.norm(offsets, axis=1).reshape(shape)


def centre_of(affine_mm, weights):
    """Return the weighted mean position, mm."""
    points_mm = to_world(affine_mm, indices_of(weights.shape))
    return np.average(points_mm, axis=0, weights=weights.ravel())


@st.composite
def scenes(draw):
    """Draw a stored grid of any kind, clicks inside it, and a ROI size and spacing."""
    order, signs = draw(st.sampled_from(ORDERS_AND_FLIPS))
    spacing_mm = draw(st.tuples(*[st.floats(0.3, 5)] * 3))
    degrees = draw(st.tuples(*[st.floats(-20, 20)] * 3))
    shear = draw(st.sampled_from([None, SHEAR]))
    shape = draw(st.tuples(*[st.integers(4, 600)] * 3))
    click = st.tuples(*[st.integers(0, length - 1) for length in shape])
    clicks = np.array(draw(st.lists(click, min_size=1, max_size=5)), dtype=float)
    size = draw(st.sampled_from([15, 16, 128]))
    roi_spacing_mm = draw(st.sampled_from([1.5, 0.7]))
    affine_mm = make_affine(order, signs, spacing_mm, degrees, shear)
    return shape, affine_mm, clicks, size, roi_spacing_mm


def place(scene):
    shape, affine_mm, clicks, size, spacing_mm = scene
    return Roi.place(shape, affine_mm, clicks, size=size, spacing_mm=spacing_mm)


# Placing


@given(scenes())
def test_every_click_lies_in_the_roi_and_in_its_box(scene):
    roi, clicks = place(scene), scene[2]
    nearest = np.rint(roi.to_roi(clicks))
    assert nearest.min() >= 0 and nearest.max() <= roi.size - 1
    starts, stops = np.transpose(roi.box_ijk)
    assert (starts <= clicks).all() and (clicks < stops).all()


@given(scenes())
def test_the_roi_is_moved_and_coarsened_only_as_far_as_needed(scene):
    roi, (_, _, clicks, size, spacing_mm) = place(scene), scene
    clicks_roi = roi.to_roi(clicks)
    if roi.spacing_mm != spacing_mm:
        assert roi.spacing_mm > spacing_mm
        assert np.ptp(clicks_roi, axis=0).max() == pytest.approx(size - 1)
    for moved, low, high in zip(
        clicks_roi[0] - size // 2, clicks_roi.min(axis=0), clicks_roi.max(axis=0), strict=True
    ):
        if moved > 1e-6:
            assert low == pytest.approx(0, abs=1e-6)
        elif moved < -1e-6:
            assert high == pytest.approx(size - 1, abs=1e-6)


@given(scenes())
def test_one_click_is_the_centre_voxel_at_the_spacing_asked_for(scene):
    shape, affine_mm, clicks, size, spacing_mm = scene
    roi = Roi.place(shape, affine_mm, clicks[:1], size=size, spacing_mm=spacing_mm)
    assert roi.to_roi(clicks[:1]) == pytest.approx(np.full((1, 3), size // 2))
    assert roi.spacing_mm == spacing_mm


@given(scenes())
def test_frames_agree(scene):
    roi, (_, affine_mm, clicks, *_) = place(scene), scene
    clicks_roi = roi.to_roi(clicks)
    assert roi.to_image(clicks_roi) == pytest.approx(clicks, abs=1e-9)
    assert to_world(roi.affine_mm, clicks_roi) == pytest.approx(to_world(affine_mm, clicks))
    assert np.linalg.norm(roi.affine_mm[:3, :3], axis=0) == pytest.approx(roi.spacing_mm)


@given(scenes())
def test_the_same_clicks_give_an_equal_roi_that_can_be_a_key(scene):
    assert {place(scene): "cached"}[place(scene)] == "cached"


def test_defaults_are_what_the_weights_expect():
    roi = Roi.place((9, 8, 7), np.eye(4), np.array([[4, 4, 4]]))
    assert (roi.size, roi.spacing_mm) == (128, 1.5)


def test_two_clicks_coarsen_and_move_by_hand():
    # 11 ROI voxels span 30 mm on the last axis: 3 mm each. Only on this axis the ROI must move.
    clicks = np.array([[50, 50, 60], [53, 50, 30]])
    roi = Roi.place((100, 90, 80), np.eye(4), clicks, size=11, spacing_mm=2)
    assert roi.spacing_mm == 3
    assert roi.to_roi(clicks) == pytest.approx(np.array([[5, 5, 10], [6, 5, 0]]))


# Where things are, on all 48 axis orders and flips


@pytest.mark.parametrize("shear", [None, SHEAR], ids=["oblique", "sheared"])
@pytest.mark.parametrize(("order", "signs"), ORDERS_AND_FLIPS)
def test_a_blob_is_cropped_where_it_was_painted(order, signs, shear):
    shape, click = (58, 66, 34), np.array([[24, 30, 13]])
    affine_mm = make_affine(order, signs, (1.1, 0.8, 2.3), shear=shear)
    blob_mm = to_world(affine_mm, np.array([31.3, 24.6, 18.2]))
    image = np.exp(-0.5 * (distances_mm(affine_mm, shape, blob_mm) / 4) ** 2)

    roi = Roi.place(shape, affine_mm, click, size=64)
    cropped = roi.crop(image)

    assert aff2axcodes(roi.affine_mm) == ("R", "A", "S")
    assert centre_of(roi.affine_mm, cropped) == pytest.approx(blob_mm, abs=0.1)


@pytest.mark.parametrize("shear", [None, SHEAR], ids=["oblique", "sheared"])
@pytest.mark.parametrize(("order", "signs"), ORDERS_AND_FLIPS)
@pytest.mark.parametrize("cells", [16, 64])
def test_a_ball_is_pasted_where_it_was_in_the_roi(order, signs, shear, cells):
    shape, click = (58, 66, 34), np.array([[24, 30, 13]])
    affine_mm = make_affine(order, signs, (1.1, 0.8, 2.3), shear=shear)
    ball_mm = to_world(affine_mm, np.array([31.3, 24.6, 18.2]))
    roi = Roi.place(shape, affine_mm, click, size=64)
    # Cell c of a grid of `cells` covers ROI voxels from c × width - 0.5 on.
    width = roi.size / cells
    cells_mm = roi.affine_mm @ np.diag([width, width, width, 1])
    cells_mm[:3, 3] = to_world(roi.affine_mm, np.full(3, width / 2 - 0.5))

    mask = roi.paste(12 - distances_mm(cells_mm, (cells,) * 3, ball_mm))

    assert centre_of(affine_mm, mask) == pytest.approx(ball_mm, abs=0.25)
    painted = distances_mm(affine_mm, shape, ball_mm) < 12
    assert dice(mask == 1, painted) > (0.97 if cells == 64 else 0.9)


@pytest.mark.parametrize("spacing_mm", [(0.8, 0.8, 1.2), (1, 1, 1), (1.5, 0.7, 0.7), (1, 1.4, 3)])
@pytest.mark.parametrize(("order", "signs"), ORDERS_AND_FLIPS)
def test_crop_and_paste_keep_a_sphere(order, signs, spacing_mm):
    shape = tuple(np.floor(np.divide((46, 40, 52), spacing_mm)).astype(int).tolist())
    affine_mm = make_affine(order, signs, spacing_mm)
    click = np.array(shape) // 2
    sphere = distances_mm(affine_mm, shape, to_world(affine_mm, click + 0.3)) < 15
    roi = Roi.place(shape, affine_mm, click[None])
    assert dice(roi.paste(roi.crop(sphere), 0.5) == 1, sphere) > 0.97


# Crop and paste against independent implementations


def make_scene(order=(2, 0, 1), signs=(-1, 1, -1), click=(3.0, 25.0, 9.0)):
    """A small oblique volume, and a ROI that overhangs it."""
    shape = (23, 31, 17)
    affine_mm = make_affine(order, signs, (1.13, 0.91, 2.07))
    return shape, affine_mm, Roi.place(shape, affine_mm, np.array([click]), size=24)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("memory", ["C", "F"])
def test_crop_equals_map_coordinates(dtype, memory):
    shape, affine_mm, roi = make_scene()
    image = np.random.default_rng(0).integers(0, 200, shape).astype(dtype, order=memory)
    points = to_world(
        np.linalg.inv(affine_mm), to_world(roi.affine_mm, indices_of((roi.size,) * 3))
    )
    expected = map_coordinates(image.astype(float), points.T, order=1, mode="nearest")
    outside = ((points < -0.5) | (points > np.array(shape) - 0.5)).any(axis=1)
    expected[outside] = 0

    cropped = roi.crop(image)

    assert 0.1 < outside.mean() < 0.9
    assert cropped.dtype == np.float32 and cropped.flags.c_contiguous
    assert cropped.ravel() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("cells", [5, 8, 24])
def test_paste_equals_torch_then_map_coordinates(cells):
    shape, affine_mm, roi = make_scene()
    values = np.random.default_rng(1).normal(size=(cells,) * 3).astype(np.float32)
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], roi.size, mode="trilinear", align_corners=False
    )[0, 0].numpy()
    points = to_world(np.linalg.inv(roi.affine_mm), to_world(affine_mm, indices_of(shape)))
    expected = map_coordinates(upsampled.astype(float), points.T, order=1, mode="nearest")
    inside = ((points >= -0.5) & (points <= roi.size - 0.5)).all(axis=1)

    assert 0.1 < inside.mean() < 0.9
    for threshold in (-0.8, -0.3, 0, 0.4, 0.9):
        mask = roi.paste(values, threshold).ravel()
        clear = np.abs(expected - threshold) > 1e-5
        assert np.array_equal(mask[clear], (inside & (expected > threshold))[clear])


@pytest.mark.parametrize(("order", "signs"), ORDERS_AND_FLIPS)
def test_paste_gives_back_what_crop_took_where_the_grids_coincide(order, signs):
    shape = (19, 12, 25)
    affine_mm = make_affine(order, signs, (1.5, 1.5, 1.5), degrees=(0, 0, 0))
    roi = Roi.place(shape, affine_mm, np.array([[4, 6, 20]]), size=10)
    image = np.random.default_rng(2).integers(0, 9, shape)
    box = tuple(slice(*bounds) for bounds in roi.box_ijk)
    assert image[box].shape != image.shape
    for threshold in (0, 3.5, 7):
        expected = np.zeros(shape)
        expected[box] = image[box] > threshold
        assert np.array_equal(roi.paste(roi.crop(image), threshold), expected)


def plain_paste(roi, values_roi, threshold=0.0):
    """Paste by the definition, on the whole box: upsample, interpolate along k, i, j, compare."""

    def along(array, taps, axis):
        shape = [-1 if each == axis else 1 for each in range(3)]
        lower, upper = (weight.reshape(shape) for weight in (taps.lower_weight, taps.upper_weight))
        return lower * array.take(taps.lower, axis) + upper * array.take(taps.upper, axis)

    def interpolated(array_kji, taps_kji):
        for axis in (0, 2, 1):
            array_kji = along(array_kji, taps_kji[axis], axis)
        return array_kji

    cells = len(values_roi)
    upsampling = linear_taps((np.arange(roi.size) + 0.5) * cells / roi.size - 0.5, cells)
    upsampled = interpolated(
        values_roi.transpose(np.argsort(roi.axes)[::-1]).astype(np.float32), [upsampling] * 3
    )
    taps = [
        linear_taps(roi._roi_indices(axis)[slice(*roi.box_ijk[axis])], roi.size)
        for axis in (2, 1, 0)
    ]
    mask = np.zeros(roi.shape_ijk, dtype=np.uint8)
    box = tuple(slice(*bounds) for bounds in roi.box_ijk)
    mask[box] = (interpolated(upsampled, taps) > threshold).transpose()
    return mask


@pytest.mark.parametrize("threshold", [0.0, -0.7, 0.4])
@pytest.mark.parametrize("blob", ["noise", "ball", "corner", "nothing"])
@pytest.mark.parametrize(("order", "signs"), ORDERS_AND_FLIPS[::7])
def test_skipped_planes_change_no_voxel(order, signs, blob, threshold):
    """The mask equals that of the definition bit for bit."""
    shape, spacing_mm = (33, 27, 40), (1.1, 2.0, 1.3)
    roi = Roi.place(shape, make_affine(order, signs, spacing_mm), np.array([[12, 13, 30]]), size=24)
    radii = np.linalg.norm(np.indices((8, 8, 8)) - np.reshape([3, 4, 2.5], (3, 1, 1, 1)), axis=0)
    values = {
        "noise": np.random.default_rng(0).normal(size=(8, 8, 8)),
        "ball": 2.2 - radii,
        "corner": np.random.default_rng(1).normal(size=(8, 8, 8)) - 9,
        "nothing": np.full((8, 8, 8), -3.0),
    }[blob].astype(np.float32)
    values[0, 0, 7] += 30 * (blob == "corner")
    expected = plain_paste(roi, values, threshold)
    assert np.array_equal(roi.paste(values, threshold), expected)
    inside, box_ijk = roi.paste_box(values, threshold)
    assert inside.sum() == expected.sum()
    if blob == "nothing":
        assert inside.size == 0
    if blob in ("ball", "corner"):
        assert inside.size < 0.7 * np.prod([stop - start for start, stop in roi.box_ijk])


# Edges


def test_a_volume_smaller_than_the_roi_lies_in_zeros():
    image = np.arange(1, 4 * 6 * 5 + 1).reshape(4, 6, 5)
    roi = Roi.place(image.shape, np.diag([1.5, 1.5, 1.5, 1]), np.array([[2, 3, 2]]), size=12)
    expected = np.zeros((12, 12, 12))
    expected[4:8, 3:9, 4:9] = image
    assert np.array_equal(roi.crop(image), expected)
    assert roi.box_ijk == ((0, 4), (0, 6), (0, 5))
    assert roi.paste(np.ones((3, 3, 3))).all()


def test_an_outermost_voxel_reaches_half_a_voxel_out():
    # Voxels of 4 mm, ROI voxels of 1 mm: a stored voxel covers 2 mm to either side, ends included.
    image, affine_mm = np.full((4, 5, 6), 7), np.diag([4.0, 4, 4, 1])
    first = Roi.place(image.shape, affine_mm, np.array([[0, 0, 0]]), size=10, spacing_mm=1)
    assert first.crop(image)[:, 5, 5].tolist() == [0, 0, 0, 7, 7, 7, 7, 7, 7, 7]
    last = Roi.place(image.shape, affine_mm, np.array([[3, 4, 5]]), size=10, spacing_mm=1)
    assert last.crop(image)[5, 5, :].tolist() == [7, 7, 7, 7, 7, 7, 7, 7, 0, 0]


@pytest.mark.parametrize("corner", itertools.product((0, 22), (0, 30), (0, 16)))
def test_a_click_in_a_corner(corner):
    _, _, roi = make_scene(click=corner)
    image = np.zeros((23, 31, 17), dtype=np.int16)
    image[corner] = 500
    assert roi.crop(image)[12, 12, 12] == pytest.approx(500)
    assert roi.paste(np.ones((8, 8, 8)))[corner] == 1


def test_only_the_box_is_filled_and_only_its_surroundings_are_read():
    shape, affine_mm, roi = make_scene()
    points = to_world(np.linalg.inv(roi.affine_mm), to_world(affine_mm, indices_of(shape)))
    inside = ((points >= -0.5) & (points <= roi.size - 0.5)).all(axis=1).reshape(shape)
    assert np.array_equal(roi.paste(np.ones((8, 8, 8))) == 1, inside)

    image = np.full(shape, np.nan)
    image[tuple(slice(max(0, start - 1), stop + 1) for start, stop in roi.box_ijk)] = 1
    assert np.isnan(image).any() and not np.isnan(roi.crop(image)).any()


def test_the_mask_is_ready_for_writers():
    shape, _, roi = make_scene()
    mask = roi.paste(np.ones((8, 8, 8)))
    assert mask.shape == shape and mask.dtype == np.uint8
    assert mask.transpose(2, 1, 0).flags.c_contiguous


@pytest.mark.parametrize(
    "within", [((2, 9), (20, 30), (1, 12)), ((0, 99), (0, 99), (0, 99)), ((9, 12), (0, 2), (0, 17))]
)
def test_within_limits_the_mask(within):
    shape, _, roi = make_scene()
    values = np.random.default_rng(3).normal(size=(8, 8, 8))
    allowed = np.zeros(shape, dtype=np.uint8)
    allowed[tuple(slice(*bounds) for bounds in within)] = 1
    for threshold in (0, -99):
        mask = roi.paste(values, threshold, within)
        assert np.array_equal(mask, roi.paste(values, threshold) * allowed)


def test_the_threshold_comes_after_interpolation():
    # Two cells, 10 and -1, on four voxels are upsampled to 10, 7.25, 1.75, -1. Comparing the cells
    # first would give 1, 1, 0, 0.
    roi = Roi.place((6, 7, 8), np.diag([1.5, 1.5, 1.5, 1]), np.array([[3, 3, 3]]), size=4)
    values = np.broadcast_to(np.array([10.0, -1.0])[:, None, None], (2, 2, 2))
    assert roi.paste(values)[:, 3, 3].tolist() == [0, 1, 1, 1, 0, 0]
    assert roi.paste(values, 1.8)[:, 3, 3].tolist() == [0, 1, 1, 0, 0, 0]


def test_a_roi_beside_the_volume_is_empty():
    roi = Roi.place((23, 31, 17), np.eye(4), np.array([[900, 9, 9]]), size=24)
    assert roi.box_ijk[0] == (0, 0)
    assert not roi.crop(np.ones((23, 31, 17))).any()
    assert not roi.paste(np.ones((8, 8, 8))).any()


def test_arrays_of_another_shape_are_rejected():
    _, _, roi = make_scene()
    with pytest.raises(ValueError, match=r"\(23, 31, 17\) voxels, not \(31, 23, 17\)"):
        roi.crop(np.zeros((31, 23, 17)))
    with pytest.raises(ValueError, match=r"a cube, not \(8, 8, 7\)"):
        roi.paste(np.zeros((8, 8, 7)))
