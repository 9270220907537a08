"""Changes in the folder of studies reach the list, also after errors."""

import shutil
import time

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from lib.datastore import stored_list
from lib.datastore.safe_store import FolderDatastore

AFFINE_MM = from_matvec(np.diag([-1.5, -0.9, 2.5]), [20, -30, 40])


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    scan = np.random.default_rng(1).integers(-1000, 1000, (21, 17, 13), dtype=np.int16)
    nib.save(nib.Nifti1Image(scan, AFFINE_MM), folder / "a.nii.gz")
    return folder


@pytest.fixture
def store(studies):
    extensions = ["*.nii.gz", "*.nii", "*.nrrd"]
    opened = FolderDatastore(str(studies), extensions=extensions, auto_reload=True)
    yield opened
    opened._observer.stop()
    opened._observer.join()


def wait_for(store, names):
    deadline = time.monotonic() + 30
    while set(store.list_images()) != names and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(store.list_images()) == names


def test_files_that_come_go_and_get_another_name(store, studies):
    shutil.copy(studies / "a.nii.gz", studies / "b.nii.gz")
    wait_for(store, {"a", "b"})
    (studies / "b.nii.gz").rename(studies / "c.nii.gz")
    wait_for(store, {"a", "c"})
    (studies / "c.nii.gz").unlink()
    wait_for(store, {"a"})


def test_an_error_does_not_end_the_watch(store, studies, monkeypatch, caplog):
    """As on a network drive that is gone for a moment, or on a disk that is read only for one."""
    monkeypatch.setattr(stored_list, "RETRY_SECONDS", 0.1)
    real, calls = store._list_images, []

    def fail_at_first():
        calls.append("")
        if len(calls) < 4:
            raise OSError("stale file handle")
        return real()

    monkeypatch.setattr(store, "_list_images", fail_at_first)
    shutil.copy(studies / "a.nii.gz", studies / "b.nii.gz")
    wait_for(store, {"a", "b"})
    assert "is not renewed (stale file handle)" in caplog.text
    shutil.copy(studies / "a.nii.gz", studies / "c.nii.gz")
    wait_for(store, {"a", "b", "c"})
