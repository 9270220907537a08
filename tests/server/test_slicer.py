"""The requests of 3D Slicer's plugin, on a folder of NIfTI files and on a DICOM server."""

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from monailabel.client.client import MONAILabelClientException

import torso
from ct_series import write_ct_series
from lib.options import LABELS
from pacs import delete_series
from slicer import SlicerPlugin, voxels

SHAPE_IJK, SPACING_MM = (60, 52, 34), (5.0, 5.5, 8.0)
LIVER, MIDDLE = [44, 30, 17], [30, 25, 15]


@pytest.fixture(scope="module")
def scan():
    """Return HU and affine of a coarse torso, stored sagittally."""
    affine_mm = torso.centred_affine(SHAPE_IJK, SPACING_MM, "PIR")
    return torso.sample(SHAPE_IJK, affine_mm, seed=1)[0], affine_mm


@pytest.fixture(scope="module")
def on_nifti(scan, ball_server, tmp_path_factory):
    """Return the server, and the ID of the scan there."""
    path = tmp_path_factory.mktemp("scan") / "torso.nii.gz"
    nib.save(nib.Nifti1Image(*scan), path)
    ball_server.add_study(path, "torso")
    return ball_server, "torso"


@pytest.fixture(scope="module")
def on_dicom(scan, pacs, dicom_server, tmp_path_factory):
    """Yield the server, and the ID of the scan there."""
    folder = tmp_path_factory.mktemp("series")
    slices = write_ct_series(*scan, folder, seed=50)
    pacs.upload(folder)
    uid = str(pydicom.dcmread(slices[0]).SeriesInstanceUID)
    yield dicom_server, uid
    delete_series(pacs, uid)


@pytest.fixture(params=["nifti", "dicom"])
def server_and_image(request):
    return request.getfixturevalue(f"on_{request.param}")


@pytest.fixture
def server(server_and_image):
    return server_and_image[0]


@pytest.fixture
def image(server_and_image):
    return server_and_image[1]


@pytest.fixture
def slicer(server, tmp_path):
    return SlicerPlugin(server.url, tmp_path)


def world_mm(mask, index):
    return mask.TransformIndexToPhysicalPoint(index)


def test_a_point_becomes_a_segment_around_it(image, slicer, scan):
    assert slicer.info["labels"] == list(LABELS)
    mask, reply = slicer.click(image, [LIVER])
    expected_mm = nib.affines.apply_affine(scan[1], LIVER) * [-1, -1, 1]
    np.testing.assert_allclose(world_mm(mask, LIVER), expected_mm, atol=1e-3)
    inside = np.argwhere(voxels(mask))
    assert voxels(mask)[tuple(LIVER)] == 1
    assert set(np.unique(voxels(mask))) == {0, 1}
    away_mm = np.linalg.norm((inside - LIVER) * SPACING_MM, axis=1)
    assert 15 < away_mm.max() < 30
    assert reply["warnings"] == []


def test_points_are_sent_all_together_each_time(image, slicer):
    first, _ = slicer.click(image, [LIVER], reset_state=True)
    both, _ = slicer.click(image, [LIVER, MIDDLE])
    without, _ = slicer.click(image, [LIVER], [MIDDLE])
    assert voxels(both)[tuple(MIDDLE)] == 1 and voxels(both)[tuple(LIVER)] == 1
    assert voxels(both).sum() > 1.5 * voxels(first).sum()
    assert voxels(without)[tuple(LIVER)] == 1 and voxels(without)[tuple(MIDDLE)] == 0


def test_an_unsorted_box_limits_the_segment(image, slicer):
    i, j, k = LIVER
    mask, _ = slicer.click(image, [LIVER], roi=[i + 1, i - 1, j - 2, j, k + 1, k - 1])
    everywhere, _ = slicer.click(image, [LIVER])
    box = np.zeros(SHAPE_IJK, bool)
    box[i - 1 : i + 2, j - 2 : j + 1, k - 1 : k + 2] = True
    np.testing.assert_array_equal(voxels(mask), voxels(everywhere) * box)


def test_a_local_volume(image, slicer, scan, tmp_path):
    nib.save(nib.Nifti1Image(*scan), tmp_path / "mine.nii.gz")
    slicer.open_local(tmp_path / "mine.nii.gz")
    local, _ = slicer.click("mine", [LIVER], label="lesion")
    slicer.session = ""
    stored, _ = slicer.click(image, [LIVER])
    # DICOM stacks a left-handed scan in reverse, so the masks are compared in space, not by index
    resampled = sitk.Resample(stored, local, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert voxels(local).sum() > 0
    assert np.mean(voxels(local) != voxels(resampled)) < 1e-3


def test_the_label_of_a_local_volume_is_saved_with_it(server, slicer, scan, tmp_path):
    nib.save(nib.Nifti1Image(*scan), tmp_path / "mine.nii.gz")
    slicer.open_local(tmp_path / "mine.nii.gz")
    mask, _ = slicer.click("mine", [LIVER])
    slicer.keep_local(tmp_path / "mine.nii.gz")
    slicer.save("mine", mask, ["organ"])
    saved = sitk.ReadImage(slicer.client.download_label("mine", "final"))
    np.testing.assert_array_equal(voxels(saved), voxels(mask))
    slicer.session = ""
    again, _ = slicer.click("mine", [LIVER])
    np.testing.assert_array_equal(voxels(again), voxels(mask))
    slicer.keep_local(tmp_path / "mine.nii.gz")  # as with each further label
    forget(server, "mine")


def forget(server, image):
    """Remove an uploaded image, which other tests on the server must not meet."""
    folder = server.studies if isinstance(server.studies, Path) else server.folder / "cache"
    for path in folder.rglob(f"{image}.*"):
        path.unlink()
    deadline = time.monotonic() + 30
    while image in server.images():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_next_sample_is_loaded_from_the_server(server, image, slicer):
    sample = slicer.next_sample()
    is_folder = isinstance(server.studies, Path)  # other tests may have added images to it
    assert sample["id"] in (server.images() if is_folder else {image})
    assert sample["path"].endswith(f"{sample['name']}")
    reply = requests.get(f"{server.url}/datastore/image?image={sample['id']}", timeout=60)
    start = b"\x1f\x8b" if sample["name"].endswith(".gz") else b"\x5c\x01"  # gzip or NIfTI
    assert reply.ok and reply.content[:2] == start


@pytest.mark.parametrize(
    ("foreground", "background", "says"),
    [
        ([[500, 0, 0]], [], "outside the image"),
        ([], [LIVER], "there are only background clicks; choose the label"),
        ([LIVER], [LIVER], "there are only background clicks"),
    ],
)
def test_the_plugin_shows_the_reason_of_a_refusal(image, slicer, foreground, background, says):
    with pytest.raises(MONAILabelClientException) as refused:
        slicer.click(image, foreground, background)
    status, response = refused.value.msg.split("; Response: ", 1)
    assert status == "Status: 400"
    assert says in json.loads(response)["detail"]


def test_clicks_keep_their_label_where_the_network_finds_nothing(image, slicer):
    """The plugin would keep showing the last mask if the new one were empty."""
    background = [[44, 30, 16], [44, 30, 18]]
    mask, reply = slicer.click(image, [LIVER], background)
    expected = np.zeros_like(voxels(mask))
    expected[tuple(LIVER)] = 1
    np.testing.assert_array_equal(voxels(mask), expected)
    assert "nothing was found at this click, only the clicks are marked" in reply["warnings"][-1]


def test_an_expired_session_is_reported(on_nifti, tmp_path):
    slicer = SlicerPlugin(on_nifti[0].url, tmp_path)
    slicer.session = "4f6c1e80-gone"
    with pytest.raises(MONAILabelClientException, match="Not Found"):
        slicer.click("mine", [LIVER])


def test_a_training_that_must_fail_is_refused(on_nifti, tmp_path):
    slicer = SlicerPlugin(on_nifti[0].url, tmp_path)
    with pytest.raises(MONAILabelClientException) as refused:
        slicer.client.train_start("sam_med3d", {"max_epochs": 2})
    assert "Status: 404" in refused.value.msg
    assert "no trainer" in refused.value.msg
    with pytest.raises(MONAILabelClientException) as refused:
        config = slicer.config("trainers", "fastsam3d")
        slicer.client.train_start("fastsam3d", {**config, "max_epochs": 0})
    assert "Status: 400" in refused.value.msg
    assert "max_epochs is 0" in refused.value.msg
    assert not slicer.client.train_status(True)
    assert slicer.client.train_stop() is None


def test_a_submitted_label_is_in_the_folder(on_nifti, tmp_path):
    server, _ = on_nifti
    slicer = SlicerPlugin(server.url, tmp_path)
    mask, _ = slicer.click("torso", [LIVER])
    assert slicer.save("torso", mask, ["organ"])["label"] == "torso"
    stored = sitk.ReadImage(str(server.studies / "labels" / "final" / "torso.nii.gz"))
    np.testing.assert_array_equal(voxels(stored), voxels(mask))
    np.testing.assert_allclose(world_mm(stored, LIVER), world_mm(mask, LIVER), atol=1e-3)
    path = slicer.client.download_label("torso", "final")
    np.testing.assert_array_equal(voxels(sitk.ReadImage(path)), voxels(mask))


SAVE_REFUSALS = {
    "image": ({"image": "nobody"}, "x.nii.gz", "{}", 404, "no image 'nobody'"),
    "a path": ({"image": "../torso"}, "x.nii.gz", "{}", 404, "no image"),
    "tag": ({"image": "torso", "tag": ".."}, "x.nii.gz", "{}", 400, "tag is '..'"),
    "file": ({"image": "torso"}, "x.txt", "{}", 400, "label is 'x.txt'; send one of .nii.gz"),
    "params": ({"image": "torso"}, "x.nii.gz", "{", 400, "params is not JSON"),
}


@pytest.mark.parametrize("case", SAVE_REFUSALS)
def test_labels_that_cannot_be_saved(on_nifti, case):
    query, name, params, status, says = SAVE_REFUSALS[case]
    reply = requests.put(
        f"{on_nifti[0].url}/datastore/label",
        params=query,
        data={"params": params},
        files={"label": (name, b"voxels")},
        timeout=60,
    )
    assert reply.status_code == status
    assert says in reply.json()["detail"]
