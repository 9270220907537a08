"""Clicked voxels are what the clicks say, and an answer is never empty without a word."""

import numpy as np
import pytest

from lib.errors import InputError
from lib.prompts import parse_prompts
from lib.transforms import HonourClicksd

SHAPE_IJK = (6, 9, 12)


def honour(pred, **request):
    data = {"pred": pred.astype(np.uint8), "prompts": parse_prompts(request, SHAPE_IJK)}
    return HonourClicksd()(data)


def block():
    mask = np.zeros(SHAPE_IJK, dtype=bool)
    mask[1:4, 2:5, 3:8] = True
    return mask


def test_clicks_override_the_network():
    data = honour(block(), foreground=[[5, 8, 11], [2, 3, 4]], background=[[1, 2, 3], [0, 0, 0]])
    expected = block()
    expected[5, 8, 11] = True
    expected[1, 2, 3] = False
    np.testing.assert_array_equal(data["pred"], expected)
    assert data["warnings"] == []


def test_what_the_network_did_not_find_is_said():
    data = honour(np.zeros(SHAPE_IJK), foreground=[[4.4, 8.2, 11]], background=[[1, 1, 1]])
    assert np.argwhere(data["pred"]).tolist() == [[4, 8, 11]]
    assert "nothing was found at this click" in data["warnings"][0]
    assert "remove background clicks" in data["warnings"][0]


def test_clicks_outside_of_the_box_stay_outside():
    box = {"roi": [1, 3, 2, 4, 3, 7]}
    data = honour(block(), foreground=[[5, 8, 11]], **box)
    np.testing.assert_array_equal(data["pred"], block())


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"background": [[1, 1, 1]]}, "only background clicks; choose the label"),
        ({"foreground": [[5, 8, 11]], "roi": [0, 1, 0, 1, 0, 1]}, "outside of the box"),
        ({"foreground": [[5, 8, 11]], "background": [[5, 8, 11]] * 2}, "or on each other"),
    ],
)
def test_an_empty_mask_is_refused(request_, says):
    with pytest.raises(InputError, match=says):
        honour(np.zeros(SHAPE_IJK), **request_)
