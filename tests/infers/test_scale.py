"""The ROI's voxel follows the size of the clicked structure, and nothing but image and click."""

import numpy as np
import pytest

from lib.cache import ByteCache
from lib.imaging.roi import Roi
from lib.imaging.volume import Volume
from lib.infers.scale import (
    LARGEST_MM,
    LOOKS,
    SMALLEST_MM,
    RoiScale,
    estimate_diameter,
    is_in_large_region,
)

CENTRE_IJK = np.array([60.0, 50.0, 45.0])
SHAPE_IJK = (120, 110, 90)


def ball_volume(radius_mm):
    """Return a bright ball in weak noise, voxels of 2 mm."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE_IJK), indexing="ij"), axis=-1)
    inside = np.linalg.norm((grid - CENTRE_IJK) * 2.0, axis=-1) < radius_mm
    noise = np.random.default_rng(0).normal(0, 10, SHAPE_IJK)
    array = (200 + 300 * inside + noise).astype(np.int16)
    return Volume(array, np.diag([2.0, 2, 2, 1]), is_ct=False)


def scale(auto=True, default_mm=1.5):
    return RoiScale(128, default_mm, auto, ByteCache(100, nbytes=lambda _: 1))


def test_the_estimate_grows_with_the_structure():
    line = np.arange(64)
    squares = (line - 30)[:, None, None] ** 2 + (line - 33)[:, None] ** 2 + (line - 35) ** 2
    place = (np.array([30, 33, 35]) + 0.5) / 64
    noise = np.random.default_rng(0).normal(0, 0.1, (64,) * 3)
    estimates = [
        estimate_diameter((2.0 * (squares < radius**2) - 1 + noise).astype(np.float32), place)
        for radius in (3, 6, 12, 24)
    ]
    assert estimates == sorted(estimates)
    assert estimates[-1] > 1.5 * estimates[0]


def test_a_small_structure_gets_a_finer_roi():
    spacings = [
        scale().spacing_mm(ball_volume(radius_mm), "key", CENTRE_IJK, 0) for radius_mm in (8, 45)
    ]
    assert SMALLEST_MM <= spacings[0] < spacings[1] <= LARGEST_MM


def test_without_auto_the_default_stays():
    assert scale(auto=False).spacing_mm(ball_volume(6), "key", CENTRE_IJK, 0) == 1.5


@pytest.mark.parametrize(("step", "factor"), [(-2, 1 / 2.25), (-1, 1 / 1.5), (1, 1.5), (2, 2.25)])
def test_sizes_are_steps_of_the_voxel(step, factor):
    spacing_mm = scale(auto=False).spacing_mm(ball_volume(6), "key", CENTRE_IJK, step)
    assert spacing_mm == pytest.approx(1.5 * factor)


def test_sizes_stay_within_the_limits():
    volume = ball_volume(6)
    assert scale(auto=False, default_mm=3.0).spacing_mm(volume, "a", CENTRE_IJK, 2) == LARGEST_MM
    assert scale(auto=False, default_mm=0.5).spacing_mm(volume, "a", CENTRE_IJK, -2) == SMALLEST_MM


@pytest.mark.parametrize("default_mm", [0.3, 1.5, 5.0])
def test_a_larger_size_is_never_a_smaller_voxel(default_mm):
    rule, volume = scale(auto=False, default_mm=default_mm), ball_volume(6)
    sizes = [rule.spacing_mm(volume, "a", CENTRE_IJK, step) for step in (-2, -1, 0, 1, 2)]
    assert sizes == sorted(sizes)


def test_each_image_and_click_has_its_own_choice():
    """The cache is keyed by both; a choice does not depend on what was asked before."""
    rule, small, large = scale(), ball_volume(6), ball_volume(45)
    expected = {
        (name, i): scale().spacing_mm(volume, name, CENTRE_IJK + i, 0)
        for name, volume in (("small", small), ("large", large))
        for i in (0, 20)
    }
    for (name, i), spacing_mm in [*expected.items(), *reversed(expected.items())]:
        volume = small if name == "small" else large
        assert rule.spacing_mm(volume, name, CENTRE_IJK + i, 0) == spacing_mm
    assert len(set(expected.values())) > 1


def test_a_roi_without_contrast_keeps_the_default():
    flat = Volume(np.full(SHAPE_IJK, 7, np.int16), np.diag([2.0, 2, 2, 1]), is_ct=False)
    assert scale().spacing_mm(flat, "key", CENTRE_IJK, 0) == 1.5


def image_of_ball(radius, contrast=3.0):
    """Return cells (64,)*3 with a ball around (30, 33, 35), and that place as a share."""
    line = np.arange(64)
    squares = (line - 30)[:, None, None] ** 2 + (line - 33)[:, None] ** 2 + (line - 35) ** 2
    noise = np.random.default_rng(0).normal(0, 0.05, (64,) * 3)
    image = (contrast * (squares < radius**2) - 1 + noise).astype(np.float32)
    return image, (np.array([30, 33, 35]) + 0.5) / 64


@pytest.mark.parametrize(
    ("radius", "contrast", "expected"),
    [
        (22, 3.0, True),
        (22, -2.0, True),
        (12, 3.0, False),  # small
        (22, 0.3, False),  # the wider tolerance leaks
        (22, 0.0, False),  # everything is alike
    ],
)
def test_a_large_region_needs_size_and_a_clear_border(radius, contrast, expected):
    assert is_in_large_region(*image_of_ball(radius, contrast)) == expected


def test_a_large_uniform_structure_gets_the_coarsest_roi():
    volume = ball_volume(70)
    assert scale().spacing_mm(volume, "key", CENTRE_IJK, 0) == LARGEST_MM
    assert scale(auto=False).spacing_mm(volume, "key", CENTRE_IJK, 0) == 1.5


def test_foreground_clicks_vote_on_a_large_region(monkeypatch):
    """Near the border of a lung a click says little; a nodule's border may look like the lung."""
    votes = {60.0: True, 61.0: False, 62.0: True, 63.0: True}
    volume, looks = ball_volume(20), []

    def is_large(self, volume, volume_key, click_ijk):
        looks.append(click_ijk[0])
        return votes[click_ijk[0]]

    monkeypatch.setattr(RoiScale, "_is_large", is_large)
    clicks_ijk = np.array([[i, 50.0, 45.0] for i in votes])
    spacings = [
        scale().spacing_mm(volume, "key", CENTRE_IJK, 0, clicks_ijk[:count])
        for count in (1, 2, 3, 4)
    ]
    # one vote of two is not enough, and the fourth click has none
    assert [spacing == LARGEST_MM for spacing in spacings] == [True, False, True, True]
    assert looks[-LOOKS:] == [60.0, 61.0, 62.0] and LOOKS == 3


def test_one_crop_serves_both_questions_and_the_encoder(monkeypatch):
    crops = []
    crop = Roi.crop
    monkeypatch.setattr(Roi, "crop", lambda *args: crops.append(args[0]) or crop(*args))
    rule, volume = scale(), ball_volume(20)
    first = [rule.spacing_mm(volume, "key", CENTRE_IJK, step) for step in (0, 0, 1)]
    assert first[0] == first[1] and len(crops) == 1
    image = rule.images.crop(volume, "key", crops[0])
    assert len(crops) == 1 and image.shape == (128,) * 3
    rule.images.crop(volume, "other", crops[0])
    assert len(crops) == 2
