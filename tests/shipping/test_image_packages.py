"""The server works without the packages that the image leaves out."""

import nibabel as nib
import numpy as np
import pytest

from serving import BALL_WEIGHTS, running_server

SHAPE_IJK = (40, 32, 22)


@pytest.fixture(scope="module")
def server(request, tmp_path_factory):
    repository = request.config.rootpath
    folder = tmp_path_factory.mktemp("only-image")
    (folder / "studies").mkdir()
    scan = np.random.default_rng(0).integers(-900, 900, SHAPE_IJK, dtype=np.int16)
    nib.save(nib.Nifti1Image(scan, np.diag([-2, -1.5, 3, 1])), folder / "studies" / "head.nii")
    folders = (repository / "tests/data/only_image", repository / "deploy/stand-ins")
    env = {
        "PYTHONPATH": ":".join(map(str, folders)),
        "IMAGE_PACKAGES": str(repository / "deploy/requirements-image.txt"),
    }
    log = folder / "server.log"
    with running_server(folder / "studies", log, *BALL_WEIGHTS, env=env) as running:
        yield running


def test_a_click_and_a_trainer_need_no_other_package(server):
    mask = server.mask("fastsam3d", "head", {"foreground": [[20, 16, 11]]})
    assert mask.GetSize() == SHAPE_IJK
    assert mask[20, 16, 11] == 1
    assert "fastsam3d" in server.info()["trainers"]
