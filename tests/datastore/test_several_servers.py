"""Several servers use one folder of studies at a time: neither breaks what the other wrote."""

import fcntl
import json
import os
import threading

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from lib.datastore.journal import FOLDER, Interaction, Journal
from lib.datastore.safe_store import FolderDatastore

SHAPE_IJK = (19, 14, 11)
AFFINE_MM = from_matvec(np.diag([-1.5, -0.9, 2.5]), [20, -30, 40])


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("head", "leg"):
        nib.save(nib.Nifti1Image(np.zeros(SHAPE_IJK, np.int16), AFFINE_MM), folder / f"{name}.nii")
    return folder


@pytest.fixture
def two_servers(studies):
    """Stores as two processes have them; neither watches the folder for changes."""
    return [
        FolderDatastore(str(studies), extensions=["*.nii", "*.nii.gz"], auto_reload=False)
        for _ in range(2)
    ]


@pytest.fixture
def label(tmp_path):
    voxels = np.zeros(SHAPE_IJK, np.uint8)
    voxels[3:9, 4:8, 2:6] = 1
    nib.save(nib.Nifti1Image(voxels, AFFINE_MM), tmp_path / "label.nii.gz")
    return tmp_path / "label.nii.gz"


def listed(studies):
    """Return the version of each listed final label, by image."""
    entries = json.loads((studies / "datastore_v2.json").read_text())["objects"]
    return {
        image: entry["labels"]["final"]["info"]["version"]
        for image, entry in entries.items()
        if entry["labels"]
    }


def test_labels_of_both_servers_are_listed(two_servers, studies, label):
    first, second = two_servers
    first.store_label("head", label, "final", {})
    second.store_label("leg", label, "final", {})
    assert listed(studies) == {"head": 1, "leg": 1}
    first.store_label("head", label, "final", {})
    second.update_label_info("leg", "final", {"reviewed": True})
    assert listed(studies) == {"head": 2, "leg": 1}
    saved = second.store_label("head", label, "final", {}, base=2)
    assert (saved.version.number, saved.replaced.number) == (3, 2)


def test_each_server_sees_what_the_other_saved(two_servers, studies, label):
    first, second = two_servers
    first.store_label("head", label, "final", {"label_info": [{"name": "brain", "idx": 1}]})
    assert second.get_label_uri("head", "final") == str(studies / "labels/final/head.nii.gz")
    assert second.get_label_info("head", "final")["label_info"] == [{"name": "brain", "idx": 1}]
    assert second.get_labeled_images("final") == ["head"]
    first.store_label("head", label, "final", {})
    assert second.get_label_info("head", "final")["version"] == 2
    second.add_image("arm", str(studies / "leg.nii"), {})
    assert first.get_image_uri("arm") == str(studies / "arm.nii")
    assert first.get_image_info("arm")["name"] == "arm.nii"


def test_a_line_of_the_journal_waits_while_another_server_writes(tmp_path):
    journal = Journal(tmp_path, max_bytes=1 << 20)
    folder = tmp_path / FOLDER
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    interaction = Interaction("head", "", {"foreground": [[1, 2, 3]]}, {}, "a" * 64, "b" * 64)
    writer = threading.Thread(target=journal.append, args=(interaction,))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()
    assert journal.read("head") == []
    os.close(handle)
    writer.join(10)
    assert len(Journal(tmp_path, 1 << 20).read("head")) == 1
