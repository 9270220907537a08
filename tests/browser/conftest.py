"""Four series on the shared DICOM server, the shared server on it, and a real browser."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ohif_page import FLAGS, Viewer, open_viewer
from playwright.sync_api import Browser, sync_playwright
from series import SERIES, SampleSeries

from lib.server.viewer_package import ViewerError, viewer_files
from orthanc import Orthanc
from pacs import delete_series
from serving import RunningServer

ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
"""ARTIFACTS: folder for a picture of each test's end, and the server's log."""


PATIENTS = itertools.count(1000)
"""PATIENTS: the shared server keeps the labels of a series, so each module has its own patients."""


@pytest.fixture(scope="module")
def uids(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """Store all series; yield (StudyInstanceUID, SeriesInstanceUID) of each by its name."""
    folder = tmp_path_factory.mktemp("dicom")
    uids = {series.name: series.write(folder / series.name, next(PATIENTS)) for series in SERIES}
    pacs.upload(folder)
    yield uids
    for _, series_uid in uids.values():
        delete_series(pacs, series_uid)


@pytest.fixture(scope="module")
def server(dicom_server: RunningServer, uids: dict) -> Iterator[RunningServer]:
    yield dicom_server
    ARTIFACTS.mkdir(exist_ok=True)
    shutil.copy(dicom_server.log, ARTIFACTS / "ohif-server.log")


@pytest.fixture(scope="session")
def viewer_package() -> None:
    """Skip the tests of the viewer at /viewer/ if its package is not there."""
    try:
        viewer_files()
    except ViewerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def series(request: pytest.FixtureRequest) -> SampleSeries:
    return request.param


@pytest.fixture(scope="module")
def opened(
    browser: Browser, server: RunningServer, uids: dict, series: SampleSeries
) -> Iterator[Viewer]:
    """Open the series in the viewer; all tests of a series share the page."""
    with open_viewer(browser, server.url, uids[series.name][0]) as viewer:
        yield viewer


@pytest.fixture
def viewer(opened: Viewer, request: pytest.FixtureRequest) -> Iterator[Viewer]:
    """Yield the viewer without clicks and masks; afterwards, the page must have no errors."""
    opened.reset()
    yield opened
    ARTIFACTS.mkdir(exist_ok=True)
    opened.page.screenshot(path=ARTIFACTS / f"{request.node.name.replace(' ', '-')}.png")
    assert opened.errors == []
