"""The score of an image is the mean over clicks in its body."""

import numpy as np
import pytest

from lib.errors import InputError
from lib.imaging.volume import Volume
from lib.infers.image_score import PROBES, probe_places, score_image

SHAPE_IJK = (150, 120, 90)


@pytest.fixture
def volume():
    array = np.full(SHAPE_IJK, -1000, np.int16)
    array[30:90, 40:100, 20:70] = 40
    return Volume(array, np.eye(4), is_ct=True)


def test_places_lie_in_the_body_and_depend_on_the_name(volume):
    places = probe_places(volume, "a")
    assert places.shape == (PROBES, 3)
    assert (volume.array[tuple(places.T)] == 40).all()
    np.testing.assert_array_equal(probe_places(volume, "a"), places)
    assert not np.array_equal(probe_places(volume, "b"), places)


def test_the_score_is_the_mean_of_the_usable_places(volume):
    replies = iter([0.2, None, 0.4, 0.6])

    def ask(request):
        (place,) = request["foreground"]
        assert volume.array[tuple(place)] == 40
        value = next(replies)
        if value is None:
            raise InputError("no contrast")
        return {"expected_error": value}

    assert score_image(volume, "a", ask) == pytest.approx(0.4)


def test_an_image_without_a_usable_place_is_an_error(volume):
    def refuse(request):
        raise InputError("no contrast")

    with pytest.raises(InputError, match="no contrast"):
        score_image(volume, "a", refuse)
