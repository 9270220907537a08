"""Copies of scans are found and removed; labels, journals and added images stay."""

import os
import time
from pathlib import Path

import pytest
from monailabel.config import settings

import forget
from lib.datastore.cached_scans import find_series, find_sessions, find_training_copies

PACS = "0123456789abcdef0123456789abcdef"
UID, OTHER = "1.2.840.1", "1.2.840.2"


def write(path: Path, days_old: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(1000))
    for each in (path, path.parent):
        os.utime(each, (time.time() - 86400 * days_old,) * 2)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The caches of a server: two series, a session, a training; and what must stay."""
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", f"{tmp_path}/dicom")
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", f"{tmp_path}/sessions")
    pacs = tmp_path / "dicom" / PACS
    write(pacs / f"{UID}.nii.gz", days_old=40)
    write(pacs / UID / "000000.dcm", days_old=40)
    write(pacs / f"{OTHER}.nii.gz")
    write(pacs / OTHER / "000000.dcm")
    write(tmp_path / "sessions" / "a-session" / "meta.info")
    write(tmp_path / "sessions" / "a-session" / "head.nii.gz")
    write(tmp_path / "model" / "fastsam3d" / "run" / "cache" / "rois" / "a.safetensors")
    return tmp_path


@pytest.fixture
def kept(folder):
    """Files that are no copies, or that a server fetches right now."""
    pacs = folder / "dicom" / PACS
    return [
        write(pacs / "added-by-a-client.nii.gz"),
        write(pacs / "datastore_v2.json"),
        write(pacs / "labels" / "final" / f"{UID}.nii.gz", days_old=40),
        write(pacs / "labels" / ".journal" / f"{UID}.jsonl", days_old=40),
        write(pacs / "fetching-now" / "slices" / "000000.dcm"),
        write(folder / "dicom" / "studies" / "1" / "scan.nii.gz"),  # no folder of the cache
        write(folder / "sessions" / "not-a-session" / "scan.nii.gz"),
        write(folder / "model" / "fastsam3d" / "run" / "state.pt"),
    ]


def run(folder, *arguments):
    return forget.main([*arguments, "--model-dir", str(folder / "model")])


def names(folder):
    found = (
        *find_series(folder / "dicom"),
        *find_sessions(folder / "sessions"),
        *find_training_copies(folder / "model"),
    )
    return {scan.name for scan in found}


def test_the_list_removes_nothing(folder, kept, capsys):
    assert run(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"series {UID}: 0.0 MB, 40 days, in {folder / 'dicom' / PACS}" in lines
    assert lines[-1] == "found: 4 of 4"
    assert names(folder) == {UID, OTHER, "a-session", "fastsam3d"}


def test_all_copies_are_removed_and_nothing_else(folder, kept):
    assert run(folder, "--remove") == 0
    left = {path for path in folder.rglob("*") if path.is_file()}
    assert left == set(kept)


def test_old_copies_are_removed(folder):
    assert run(folder, "--remove", "--older-than", "30") == 0
    assert names(folder) == {OTHER, "a-session", "fastsam3d"}


def test_a_patients_copies_are_removed(folder, capsys):
    """With those of trainings, which may hold parts of the scan."""
    assert run(folder, "--remove", OTHER, "1.2.3") == 0
    assert names(folder) == {UID, "a-session"}
    assert "there is no copy of 1.2.3" in capsys.readouterr().err


def test_a_copy_that_stays_is_reported(folder, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("lib.datastore.cached_scans.shutil.rmtree", refuse)
    assert run(folder, "--remove") == 1
    output = capsys.readouterr()
    assert "Permission denied" in output.err and output.out.endswith("removed: 0 of 4\n")
    # the folder of slices is left, by which the next run knows the series
    assert UID in names(folder)
