"""Synthetic images keep their geometry and depend on the generator alone."""

import numpy as np
import pytest
from training.fields import bend, resize, smooth_field
from training.scenes import clutter_scene, lesion

from training import synthesis

SHAPE = (20, 24, 28)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def two_halves() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[4:16, 4:20, 4:14], labels[4:16, 4:20, 14:24] = 1, 2
    return labels


def test_painted_structures_are_homogeneous_and_differ() -> None:
    differences = []
    for seed in range(10):
        image = synthesis.paint(two_halves(), rng(seed))
        assert image.shape == SHAPE and image.dtype == np.float32 and image.min() >= 0
        left, right = image[7:13, 7:17, 7:11], image[7:13, 7:17, 17:21]
        assert max(left.std(), right.std()) < 0.2
        differences.append(abs(left.mean() - right.mean()))
    assert max(differences) > 0.3


@pytest.mark.parametrize("make", [synthesis.paint, lambda x, g: synthesis.degrade(x + 1.0, g, 8)])
def test_images_depend_on_the_generator_alone(make) -> None:  # noqa: ANN001
    first, again, other = (make(two_halves(), rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_background_is_divided_by_intensity_and_labels_stay() -> None:
    labels = two_halves()
    image = np.broadcast_to(np.arange(SHAPE[2], dtype=np.float32), SHAPE)
    divided = synthesis.split_ground(labels, image, rng())
    np.testing.assert_array_equal(divided[labels > 0], labels[labels > 0])
    line = divided[0, 0]
    assert len(np.unique(line)) > 1 and (np.diff(line.astype(int)) >= 0).all()
    assert line.min() > 2


@pytest.mark.parametrize("is_ct", [True, False])
def test_recoloured_images_are_finite_and_not_negative(is_ct: bool) -> None:
    image = rng().normal(0, 400, SHAPE).astype(np.float32)
    image = image if is_ct else np.abs(image)
    for seed in range(20):
        recoloured = synthesis.recolour(image, is_ct, rng(seed))
        assert np.isfinite(recoloured).all() and recoloured.min() >= 0
        assert recoloured.std() > 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_blur_along_their_axis_only(axis: int) -> None:
    ramps = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij")
    for other in {0, 1, 2} - {axis}:
        np.testing.assert_allclose(
            synthesis.thick_slices(ramps[other], axis, 4), ramps[other], rtol=1e-5
        )
    noise = rng().standard_normal(SHAPE).astype(np.float32)
    blurred = synthesis.thick_slices(noise, axis, 4)
    assert blurred.mean() == pytest.approx(noise.mean(), abs=0.01)
    assert np.diff(blurred, axis=axis).std() < 0.4 * np.diff(noise, axis=axis).std()


def test_a_lesion_contains_the_centre_and_changes_the_image_there() -> None:
    image = np.full((32, 32, 32), 5, dtype=np.float32) + 0.1 * rng().random(
        (32, 32, 32), np.float32
    )
    for seed in range(20):
        level = lesion(32, rng(seed))
        assert level[16, 16, 16] < 1
        changed = synthesis.add_lesion(image, level, rng(seed)) - image
        assert np.abs(changed[level > 2]).max(initial=0) == 0
        assert np.abs(changed[16, 16, 16]) > 0


def test_scenes_have_many_structures_and_depend_on_the_generator_alone() -> None:
    scenes = [clutter_scene(40, rng(seed)) for seed in range(6)]
    np.testing.assert_array_equal(scenes[0], clutter_scene(40, rng(0)))
    for scene in scenes:
        assert scene.dtype == np.uint8 and scene.shape == (40, 40, 40)
        assert len(np.unique(scene)) > 5


def test_fields_are_smooth_and_resizing_keeps_the_extent() -> None:
    field = smooth_field(SHAPE, 4, rng(), channels=2)
    assert field.shape == (2, *SHAPE) and field.std() > 0.3
    assert np.abs(np.diff(field, axis=3)).max() < 1
    blocks = np.kron(np.array([[[1.0, 2.0]]]), np.ones((1, 1, 10)))
    small = resize(np.array([[[[1.0, 2.0]]]]), (1, 1, 20))[0]
    np.testing.assert_allclose(small[..., [0, 1, -2, -1]], blocks[..., [0, 1, -2, -1]])


def test_label_map_and_image_are_bent_alike_around_the_centre() -> None:
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[8:24, 6:26, 13:19] = 3
    image = 10 * labels.astype(np.float32)
    changed = []
    for seed in range(4):
        bent, its_image = bend(labels, image, rng(seed))
        assert bent.dtype == labels.dtype and set(np.unique(bent)) == {0, 3}
        assert bent[16, 16, 16] == 3
        apart = np.count_nonzero((its_image > 15) != (bent == 3))  # of the image and its labels
        assert apart < 0.2 * np.count_nonzero(bent != labels)
        assert 0.7 < np.count_nonzero(bent) / np.count_nonzero(labels) < 1.4
        changed.append(np.count_nonzero(bent != labels))
    assert min(changed) > 100
    assert bend(labels, None, rng())[1] is None


def test_nothing_is_bent_without_turn_and_shift() -> None:
    class Still:
        """Draws the mean of each distribution."""

        def normal(self, mean: float, deviation: float, count: int) -> np.ndarray:
            return np.zeros(count)

        def uniform(self, low: float, high: float) -> float:
            return low

        def integers(self, low: int, high: int) -> int:
            return low

        def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return np.ones(shape, dtype)

    labels = rng().integers(0, 5, (16, 16, 16)).astype(np.uint8)
    bent, image = bend(labels, labels.astype(np.float32), Still())
    np.testing.assert_array_equal(bent, labels)
    np.testing.assert_allclose(image, labels, atol=1e-4)
