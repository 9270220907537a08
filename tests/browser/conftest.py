"""A real Orthanc with four series, a real server on it, and a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ohif import FLAGS, Viewer, open_viewer
from playwright.sync_api import Browser, sync_playwright
from series import SERIES, Series

from orthanc import Orthanc, running_orthanc
from serving import Server, free_port, running_server

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = REPOSITORY / "tests" / "data" / "click_ball.safetensors"
ARTIFACTS = REPOSITORY / "test-artifacts"


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), free_port()) as orthanc:
        yield orthanc


@pytest.fixture(scope="session")
def uids(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Name of each series, all stored in Orthanc -> StudyInstanceUID, SeriesInstanceUID."""
    folder = tmp_path_factory.mktemp("dicom")
    uids = {series.name: series.write(folder / series.name) for series in SERIES}
    orthanc.upload(folder)
    return uids


@pytest.fixture(scope="session")
def server(
    orthanc: Orthanc, uids: dict[str, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    os.environ["MONAI_LABEL_DICOMWEB_CACHE_PATH"] = str(folder / "cache")
    log = folder / "server.log"
    with running_server(orthanc.dicomweb_url, log, "--conf", "weights", str(WEIGHTS)) as server:
        yield server
    ARTIFACTS.mkdir(exist_ok=True)
    shutil.copy(log, ARTIFACTS / "ohif-server.log")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def series(request: pytest.FixtureRequest) -> Series:
    return request.param


@pytest.fixture(scope="module")
def opened(
    browser: Browser, server: Server, uids: dict[str, tuple[str, str]], series: Series
) -> Iterator[Viewer]:
    """The series in the viewer; one session for all tests of a series."""
    with open_viewer(browser, server.url, uids[series.name][0]) as viewer:
        yield viewer


@pytest.fixture
def viewer(opened: Viewer, request: pytest.FixtureRequest) -> Iterator[Viewer]:
    """The viewer without clicks and masks; at the end a picture, and no error in the page."""
    opened.reset()
    yield opened
    ARTIFACTS.mkdir(exist_ok=True)
    opened.page.screenshot(path=ARTIFACTS / f"{request.node.name.replace(' ', '-')}.png")
    assert opened.errors == []
