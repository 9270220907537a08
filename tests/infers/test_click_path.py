"""What the click path promises, through the task that the server runs.

The mask is a function of image, weights, prompts and options alone, the order of prompts counts, a
neighbour never loses a voxel, and a given mask changes where the prompts say so.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from ball_task import ball_task, spatial, whole_mask
from lib.infers.request import INITIAL_MASK

SHAPE_IJK = (90, 60, 40)
AFFINE_MM = nib.affines.from_matvec(np.diag([-1.5, -1.8, 2.6]), [60, 50, -30])
CENTRE = [22, 30, 20]

KINDS = {
    "point": ("point", CENTRE),
    "box": ("bounding_box", [[12, 20, 13], [32, 40, 27]]),
    "box_in_plane": ("bounding_box", [[12, 20, 20], [32, 40, 20]]),
    "lasso": ("lasso", [[12, 22, 20], [30, 20, 20], [33, 38, 20], [14, 40, 20]]),
    "scribble": ("scribble", [[15, 28, 19], [22, 30, 20], [29, 33, 20]]),
}
LATER = [spatial("point", [36, 30, 20]), spatial("point", [22, 30, 26], 0)]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    noise = np.random.default_rng(0).normal(0, 20, SHAPE_IJK)
    noise[8:36, 16:44, 10:30] += 60
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image((noise + 300).astype(np.int16), AFFINE_MM), path)
    return path


@pytest.fixture(scope="module")
def task():
    return ball_task(auto_zoom=True)


@pytest.fixture
def give(tmp_path):
    """Return a function that writes a given mask and returns the entries of a request with it."""

    def write(values):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.nii.gz"
        nib.save(nib.Nifti1Image(values, AFFINE_MM), path)
        return {INITIAL_MASK: str(path)}

    return write


def box_mask(number, *bounds):
    values = np.zeros(SHAPE_IJK, np.uint8)
    values[tuple(slice(*each) for each in bounds)] = number
    return values


def prompts_of(kind):
    return [spatial(*KINDS[kind]), *LATER]


def test_earlier_requests_and_caches_do_not_change_a_mask(image, task, give):
    first = box_mask(1, (14, 26), (24, 40), (14, 26))
    second = first.copy()  # in the same box, so that the ROI is the same
    second[17:23, 27:37, 17:23] = 0
    given = [give(values) for values in (first, second)]
    requests = [{"prompts": prompts_of(kind)[:count]} for kind in KINDS for count in (1, 2, 3)]
    requests += [{"prompts": LATER, **each} for each in given]
    requests += [{"prompts": prompts_of("point"), "size": -1}]
    fresh = [whole_mask(ball_task(0, auto_zoom=True), image, request) for request in requests]
    for order in (np.arange(len(requests)), np.random.default_rng(0).permutation(len(requests))):
        for number in order:
            mask = whole_mask(task, image, requests[number])
            np.testing.assert_array_equal(mask, fresh[number], err_msg=str(requests[number]))
    assert len({mask.tobytes() for mask in fresh}) > 0.8 * len(fresh)


def test_the_order_of_prompts_counts(image, task):
    prompts = [*prompts_of("scribble"), spatial("point", [30, 36, 22])]
    masks = [whole_mask(task, image, {"prompts": each}) for each in (prompts, prompts[::-1])]
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_takes_a_voxel_of_a_neighbour(image, task, give, kind):
    neighbour = box_mask(9, (26, 44), (20, 44), (10, 30))
    request = {"prompts": prompts_of(kind), **give(neighbour)}
    mask = whole_mask(task, image, request)
    np.testing.assert_array_equal(mask == 9, neighbour == 9)
    assert np.count_nonzero(mask == 1) > 500
    taken = whole_mask(task, image, {**request, "overwrite": True})
    assert ((taken == 1) & (neighbour == 9)).any()


def test_a_far_click_adds_a_part_and_keeps_the_given_mask(image, task, give):
    given = box_mask(3, (14, 28), (24, 36), (14, 26))
    alone = whole_mask(task, image, {"prompts": [spatial("point", [72, 30, 20], 3)]})
    request = {"prompts": [spatial("point", [72, 30, 20], 3)], **give(given)}
    mask = whole_mask(task, image, request)
    assert np.count_nonzero(alone) > 300
    np.testing.assert_array_equal(mask, np.maximum(given, alone))
    # background near the given mask still changes it, and leaves the new part
    request["prompts"].append(spatial("point", [21, 30, 20], 0))
    mask = whole_mask(task, image, request)
    assert mask[21, 30, 20] == 0 and (mask[50:] == alone[50:]).all()
    assert np.count_nonzero(mask[:40]) > 0.7 * np.count_nonzero(given)
