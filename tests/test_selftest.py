"""The self-test passes with a correct server and fails with one that misplaces its masks."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import selftest

AFFINE_MM = np.array([[0, 0, 4.0, -20], [-3.0, 0, 0, 60], [0, -2.5, 0, 50], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def server(ball_server, tmp_path_factory):
    """The shared server with two more studies, one of which has too few slices."""
    folder = tmp_path_factory.mktemp("selftest")
    image = np.random.default_rng(0).normal(40, 10, (40, 52, 30)).astype(np.int16)
    for name, voxels in (("knee", image), ("thin", image[:, :, :2])):
        nib.save(nib.Nifti1Image(voxels, AFFINE_MM), folder / f"{name}.nii.gz")
        ball_server.add_study(folder / f"{name}.nii.gz", name)
    return ball_server


def test_a_correct_server_passes(server, capsys):
    assert selftest.main(["--server", server.url]) == 0
    report = capsys.readouterr().out
    lines = report.splitlines()
    assert len(lines) == 1 + 48 + 1
    assert len({line.split()[0] for line in lines[1:-1]}) == 48
    assert lines[-1].startswith("passed; least Dice 0.9") or "1.000" in lines[-1]


@pytest.mark.slow  # the whole self-test twice more, on an image of the server
def test_with_an_image_of_the_server(server, capsys):
    clicks = ["--click", "12,20,9", "--click", "20,30,14"]
    assert selftest.main(["--server", server.url, "--image", "knee", *clicks]) == 0
    assert "passed" in capsys.readouterr().out
    assert selftest.main(["--server", server.url, "--image", "knee", "--model", "fastsam3d"]) == 0


def flipped(axis):
    """Return a replacement of `Client.mask` that flips each mask along an axis."""

    def mask(client, path, clicks_ijk, real=selftest.Client.mask):
        correct = real(client, path, clicks_ijk)
        wrong = sitk.GetImageFromArray(np.flip(sitk.GetArrayFromImage(correct), 2 - axis))
        wrong.CopyInformation(correct)
        return wrong

    return mask


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_server_that_flips_an_axis_fails(server, monkeypatch, capsys, axis):
    monkeypatch.setattr(selftest, "ORIENTATIONS", selftest.ORIENTATIONS[::6])
    monkeypatch.setattr(selftest.Client, "mask", flipped(axis))
    assert selftest.main(["--server", server.url]) == 1
    report = capsys.readouterr().out
    assert "FAILED" in report
    assert "masks lie elsewhere than the first" in report
    assert "of 2 clicks: it lies elsewhere" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nobody"], "404"),
        (["--image", "thin"], "needs at least"),
        (["--image", "knee", "--click", "400,1,1"], "outside the image"),
        (["--model", "unet"], "there is no model 'unet'"),
    ],
)
def test_errors_of_the_server_are_shown(server, capsys, arguments, message):
    assert selftest.main(["--server", server.url, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_no_server(capsys):
    assert selftest.main(["--server", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err
