"""Prefetching: each image once, in order, in the background; errors are only logged."""

import logging
import threading

import pydicom
import pytest
import requests

import torso
from ct_series import write_ct_series
from lib.errors import InputError
from lib.server.read_ahead import Prefetcher
from pacs import delete_series

WAIT_SECONDS = 30


class RecordingLoader:
    """Records the paths that it is asked to load; waits while ``may_go_on`` is not set."""

    def __init__(self):
        self.loaded = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, data):
        assert self.may_go_on.wait(WAIT_SECONDS)
        self.loaded.append(data["image_path"])


@pytest.fixture
def loader():
    return RecordingLoader()


def finish(prefetch):
    prefetch._executor.submit(lambda: None).result(WAIT_SECONDS)


def test_opened_images_are_read(loader):
    prefetch = Prefetcher(loader)
    for name in "ab":
        prefetch(name, lambda name=name: f"/studies/{name}.nii.gz")
    finish(prefetch)
    assert loader.loaded == ["/studies/a.nii.gz", "/studies/b.nii.gz"]


def test_hundreds_of_requests_for_one_series_are_one_read(loader):
    prefetch, calls = Prefetcher(loader), []

    def find():
        calls.append(1)
        return "/cache/series"

    for _ in range(300):
        prefetch("1.2.3", find)
    finish(prefetch)
    assert len(calls) == len(loader.loaded) == 1


def test_requests_do_not_wait_and_the_queue_is_short(loader):
    loader.may_go_on.clear()
    prefetch = Prefetcher(loader)
    for number in range(20):
        prefetch(str(number), lambda number=number: f"/{number}")
    loader.may_go_on.set()
    finish(prefetch)
    assert loader.loaded == [f"/{number}" for number in range(Prefetcher.MAX_QUEUED)]
    prefetch("19", lambda: "/19")
    finish(prefetch)
    assert loader.loaded[-1] == "/19"


@pytest.mark.parametrize("error", [InputError("too thin"), OSError("gone"), KeyError("a bug")])
def test_a_failure_is_logged_and_the_next_is_read(loader, caplog, error):
    def fail():
        raise error

    prefetch = Prefetcher(loader)
    with caplog.at_level(logging.INFO):
        prefetch("bad", fail)
        prefetch("good", lambda: "/good")
        finish(prefetch)
    assert "could not prefetch bad" in caplog.text
    assert loader.loaded == ["/good"]


def test_a_series_that_a_viewer_loads_is_prefetched(pacs, dicom_server, tmp_path):
    """OHIF fetches each slice through this server; requests for headers alone do not count."""
    affine_mm = torso.centred_affine((30, 26, 12), (10.0, 11.0, 20.0), "LPS")
    hu, _ = torso.sample((30, 26, 12), affine_mm, seed=1)
    slices = write_ct_series(hu, affine_mm, tmp_path / "series", seed=51)
    header = pydicom.dcmread(slices[0])
    pacs.upload(tmp_path / "series")
    uid = header.SeriesInstanceUID
    url = f"{dicom_server.url}/proxy/dicom/wado/studies/{header.StudyInstanceUID}/series/{uid}"
    for path in ("metadata", f"instances/{header.SOPInstanceUID}/frames/1"):
        assert f"prefetched {uid}" not in dicom_server.log_text()
        assert requests.get(f"{url}/{path}", timeout=60).status_code == 200
    dicom_server.wait_for_log(f"prefetched {uid}", WAIT_SECONDS)
    delete_series(pacs, uid)
