"""Normalised images have the statistics that the networks were trained with."""

import numpy as np
import pytest
import torch

from lib.errors import InputError
from lib.imaging.intensity import looks_like_ct, normalize


def random_image(low, high, shape=(7, 9, 11)):
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def padded(value, low, high):
    """Return an image with one value around the patient, whose own values are from low to high."""
    image = random_image(low, high)
    image[:2, :3] = value
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (random_image(-1024, 900), True),
        (random_image(-250, 900), True),
        (random_image(-199, 900), False),
        (random_image(-5.5, 900), False),
        (random_image(0, 900), False),
        (padded(-3024, -1000, 900), True),
        (padded(-32768, -1000, 900), True),
        (padded(-1024, -150, 900), True),  # air replaced by one value
        (padded(-2000, 0, 1400), False),
        (padded(-32768, 0, 1400), False),
        (padded(-1000, 0, 1400), False),
        (padded(-2000, -5.5, 1400), False),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_ct_is_recognised_by_its_air_and_padding_is_no_air(image, expected, dtype):
    image = image.astype(dtype)
    assert looks_like_ct(image, float(image.min())) is expected


def test_the_statistics_are_those_of_the_positive_voxels():
    image = random_image(-100, 300)
    expected = torch.from_numpy(image)
    foreground = expected[expected > 0]
    expected = (expected - foreground.mean()) / foreground.std()

    normalized = normalize(image, is_ct=False)

    assert normalized.dtype == np.float32
    assert normalized == pytest.approx(expected.numpy(), abs=1e-5)
    assert normalized[image > 0].std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_the_standard_deviation_is_the_sample_one():
    # The voxels > 0 are 1 and 3: mean 2, sample standard deviation sqrt(2), population's 1.
    image = np.array([[-4.0, 0.0], [1.0, 3.0]])
    expected = np.array([[-6, -2], [-1, 1]]) / np.sqrt(2)
    assert normalize(image, is_ct=False) == pytest.approx(expected)


def test_only_a_ct_is_clamped():
    image = random_image(-3000, 4000)
    clamped = normalize(np.clip(image, -1000, 1000), is_ct=False)
    assert np.array_equal(normalize(image, is_ct=True), clamped)
    assert not np.allclose(normalize(image, is_ct=False), clamped)


@pytest.mark.parametrize(
    "image",
    [random_image(-900, -100), np.clip(random_image(-1, 1), -1, 0), random_image(-2, 2) > 0],
    ids=["nothing positive", "zero and below", "positive voxels all one"],
)
def test_without_contrast_above_zero_all_voxels_count(image):
    normalized = normalize(image, is_ct=False)
    assert normalized.mean() == pytest.approx(0, abs=1e-5)
    assert normalized.std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_one_positive_voxel_is_not_enough():
    image = random_image(-900, -100)
    image[3, 4, 5] = 8
    assert np.isfinite(normalize(image, is_ct=False)).all()


@pytest.mark.parametrize("value", [0, -7, 1234.5])
def test_a_region_of_one_value_is_rejected(value):
    with pytest.raises(InputError, match=rf"no contrast \(every voxel is {value}\); click on"):
        normalize(np.full((5, 6, 7), value, dtype=np.float32), is_ct=False)


def test_rounding_noise_is_no_contrast():
    image = np.float32(1000) + random_image(0, 1e-4)
    assert image.min() < image.max()
    with pytest.raises(InputError, match="no contrast"):
        normalize(image, is_ct=False)


def test_a_ct_of_air_beyond_the_window_is_rejected():
    with pytest.raises(InputError, match="every voxel is -1000"):
        normalize(random_image(-3024, -1001), is_ct=True)


def test_the_image_is_not_changed():
    image = random_image(-3000, 4000)
    before = image.copy()
    normalize(image, is_ct=True)
    assert np.array_equal(image, before)
