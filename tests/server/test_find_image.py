"""Reading ahead: once, in order, never in the way, and silent where it fails."""

import logging
import threading
import time

import pydicom
import pytest
import requests

import torso
from ct_series import write_ct_series
from lib.errors import InputError
from lib.server.read_ahead import ReadAhead
from pacs import running_pacs
from serving import running_server

WAIT_SECONDS = 30


class Loader:
    """Notes what it is asked to load, and can be held up."""

    def __init__(self):
        self.loaded = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, data):
        assert self.may_go_on.wait(WAIT_SECONDS)
        self.loaded.append(data["image_path"])


@pytest.fixture
def loader():
    return Loader()


def finish(read_ahead):
    read_ahead._thread.submit(lambda: None).result(WAIT_SECONDS)


def test_what_is_opened_is_read(loader):
    read_ahead = ReadAhead(loader)
    for name in "ab":
        read_ahead(name, lambda name=name: f"/studies/{name}.nii.gz")
    finish(read_ahead)
    assert loader.loaded == ["/studies/a.nii.gz", "/studies/b.nii.gz"]


def test_hundreds_of_requests_for_one_series_are_one_read(loader):
    read_ahead, found = ReadAhead(loader), []

    def find():
        found.append(1)
        return "/cache/series"

    for _ in range(300):
        read_ahead("1.2.3", find)
    finish(read_ahead)
    assert len(found) == len(loader.loaded) == 1


def test_nobody_waits_and_few_images_do(loader):
    loader.may_go_on.clear()
    read_ahead = ReadAhead(loader)
    for number in range(20):
        read_ahead(str(number), lambda number=number: f"/{number}")
    loader.may_go_on.set()
    finish(read_ahead)
    assert loader.loaded == [f"/{number}" for number in range(ReadAhead.MOST_WAITING)]
    read_ahead("19", lambda: "/19")
    finish(read_ahead)
    assert loader.loaded[-1] == "/19"


@pytest.mark.parametrize("error", [InputError("too thin"), OSError("gone"), KeyError("a bug")])
def test_a_failure_is_logged_and_the_next_is_read(loader, caplog, error):
    def fail():
        raise error

    read_ahead = ReadAhead(loader)
    with caplog.at_level(logging.INFO):
        read_ahead("bad", fail)
        read_ahead("good", lambda: "/good")
        finish(read_ahead)
    assert "bad was not read ahead" in caplog.text
    assert loader.loaded == ["/good"]


def test_a_series_that_a_viewer_loads_is_read_ahead(tmp_path):
    """OHIF fetches each slice through this server; its headers alone do not count."""
    affine_mm = torso.centred_affine((30, 26, 12), (10.0, 11.0, 20.0), "LPS")
    slices = write_ct_series(
        torso.sample((30, 26, 12), affine_mm, seed=1)[0], affine_mm, tmp_path / "series"
    )
    one = pydicom.dcmread(slices[0])
    series = f"studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}"
    with running_pacs(tmp_path) as pacs, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
        pacs.upload(tmp_path / "series")
        with running_server(pacs.dicomweb_url, tmp_path / "log") as server:
            proxied = f"{server.url}/proxy/dicom/wado/{series}"
            for path in ("metadata", f"instances/{one.SOPInstanceUID}/frames/1"):
                assert "was read ahead" not in server.log.read_text(encoding="utf-8")
                assert requests.get(f"{proxied}/{path}", timeout=60).status_code == 200
            deadline = time.monotonic() + WAIT_SECONDS
            expected = f"{one.SeriesInstanceUID} was read ahead"
            while expected not in server.log.read_text(encoding="utf-8"):
                assert time.monotonic() < deadline
                time.sleep(0.2)
