"""A scan stored in the 48 orders of its axes gets the same mask in space, over HTTP.

The test weights draw a ball of 20 mm at each click, so the expected mask is known. The second click
lies off the centre of the ROI along all axes, so that a flip of any axis moves its ball.
"""

import json

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk

import torso
from selftest import ORIENTATIONS, ClickedScan, dice_in_space

SHAPE_IJK, SPACING_MM = (60, 52, 34), (5.0, 5.5, 8.0)
RADIUS_MM = 20.0
CLICKS_IJK = np.array([[44, 30, 17], [39, 24, 20]])
LEAST_DICE = 0.95


@pytest.fixture(scope="module")
def scan():
    affine_mm = torso.centred_affine(SHAPE_IJK, SPACING_MM, "LPS")
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.15))
    affine_mm = turn @ affine_mm  # oblique, as patients lie
    return ClickedScan(torso.sample(SHAPE_IJK, affine_mm, seed=3)[0], affine_mm, CLICKS_IJK)


@pytest.fixture(scope="module")
def balls(scan):
    """Return the expected mask on the grid of the original scan."""
    centres_mm = nib.affines.apply_affine(scan.affine_mm, scan.clicks_ijk)
    voxels_mm = nib.affines.apply_affine(scan.affine_mm, np.moveaxis(np.indices(SHAPE_IJK), 0, -1))
    distance_mm = np.min([np.linalg.norm(voxels_mm - c, axis=-1) for c in centres_mm], axis=0)
    return as_image((distance_mm < RADIUS_MM).astype(np.uint8), scan.affine_mm)


@pytest.fixture(scope="module")
def axial_mask(ball_server, scan, tmp_path_factory):
    """Return the mask of the original scan."""
    return mask_of(ball_server, scan, tmp_path_factory.mktemp("axial") / "scan.nii.gz")


def as_image(array_ijk, affine_mm):
    image = sitk.GetImageFromArray(array_ijk.transpose())
    spacing_mm = np.linalg.norm(affine_mm[:3, :3], axis=0)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((to_lps @ (affine_mm[:3, :3] / spacing_mm)).flatten().tolist())
    image.SetOrigin((to_lps @ affine_mm[:3, 3]).tolist())
    return image


def mask_of(server, stored, path):
    """Upload a scan, click on it and return the mask."""
    if path.suffix == ".nrrd":
        sitk.WriteImage(as_image(stored.array_ijk, stored.affine_mm), str(path))
    else:
        nib.save(nib.Nifti1Image(stored.array_ijk, stored.affine_mm), path)
    with path.open("rb") as file:
        upload = requests.put(f"{server.url}/session/", files={"files": (path.name, file)})
    params = {"foreground": stored.clicks_ijk.tolist(), "result_extension": ".nrrd"}
    reply = requests.post(
        f"{server.url}/infer/fastsam3d",
        params={"session_id": upload.json()["session_id"], "output": "image"},
        data={"params": json.dumps(params)},
    )
    assert reply.status_code == 200, reply.text
    received = path.with_name("mask.nrrd")
    received.write_bytes(reply.content)
    return sitk.ReadImage(str(received))


def orientation_name(orientation):
    return "".join("-+"[flip > 0] + "ijk"[int(axis)] for axis, flip in orientation)


def test_there_are_48():
    assert len({orientation_name(orientation) for orientation in ORIENTATIONS}) == 48


def test_the_mask_is_the_right_one(axial_mask, balls):
    assert dice_in_space(axial_mask, balls) > 0.9


def stored_scans():
    """Yield each orientation in both formats; the fast suite takes one of them in turn."""
    for number, orientation in enumerate(ORIENTATIONS):
        for format_number, extension in enumerate((".nii.gz", ".nrrd")):
            marks = [pytest.mark.slow] if (number + format_number) % 2 else []
            name = f"{orientation_name(orientation)}{extension}"
            yield pytest.param(orientation, extension, marks=marks, id=name)


@pytest.mark.parametrize(("orientation", "extension"), stored_scans())
def test_same_mask_in_space(ball_server, scan, axial_mask, balls, tmp_path, orientation, extension):
    stored = scan.reoriented(orientation)
    mask = mask_of(ball_server, stored, tmp_path / f"scan{extension}")
    assert mask.GetSize() == stored.array_ijk.shape
    for click_ijk, in_scan in zip(stored.clicks_ijk.tolist(), CLICKS_IJK.tolist(), strict=True):
        assert mask[click_ijk] == 1
        np.testing.assert_allclose(
            mask.TransformIndexToPhysicalPoint(click_ijk),
            balls.TransformIndexToPhysicalPoint(in_scan),
            atol=1e-3,
        )
    assert dice_in_space(mask, axial_mask) > LEAST_DICE
    assert dice_in_space(mask, balls) > 0.9
