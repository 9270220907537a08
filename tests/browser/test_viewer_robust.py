"""The viewer at /viewer/ with several users, and when the server or the PACS is gone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from playwright.sync_api import Browser
from series import SERIES, SampleSeries
from viewer_checks import (
    PLACES,
    beside,
    check_becomes,
    on_stored_grid,
    server_mask,
    voxel_at,
)
from viewer_page import open_prompt_viewer

import torso
from pacs import running_pacs
from serving import BALL_WEIGHTS, RunningServer, free_port, running_server

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

SERIES_0 = SERIES[0]
FIRST = voxel_at(SERIES_0, PLACES["mpr-axial"])
FILE = SampleSeries("robust", "CT", "LAS", (80, 72, 50), (4.4, 4.6, 6.0), seed=41)


def test_two_users_on_one_series(
    browser: Browser, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """Each gets the mask of their own prompts, in their own window."""
    study_uid, image = uids[SERIES_0.name]
    places = [FIRST, voxel_at(SERIES_0, PLACES["mpr-sagittal"])]
    with ExitStack() as stack:
        users = [
            stack.enter_context(open_prompt_viewer(browser, server.url, study_uid)) for _ in places
        ]
        for distance_mm in (0.0, 20.0, 40.0):
            for user, place in zip(users, places, strict=True):
                voxel = beside(SERIES_0, place, distance_mm)
                user.press_only("mpr-axial", SERIES_0.to_lps(voxel))
        for user, place in zip(users, places, strict=True):
            voxels = [beside(SERIES_0, place, mm) for mm in (0.0, 20.0, 40.0)]
            assert len(user.prompts()) == 3
            check_becomes(user, SERIES_0, server_mask(server, image, voxels))
            assert user.errors == []


def test_the_server_is_started_again(browser: Browser, tmp_path: Path) -> None:
    """While it is gone, a press gets a sentence; after that, the prompts are there as before."""
    (tmp_path / "studies").mkdir()
    image, _ = torso.sample(FILE.shape_ijk, FILE.affine_mm, seed=FILE.seed, supersample=1)
    stored = nibabel.Nifti1Image(image.astype(np.int16), FILE.affine_mm)
    nibabel.save(stored, tmp_path / "studies" / "robust.nii.gz")
    port = free_port()
    first = voxel_at(FILE, PLACES["mpr-axial"])
    second = beside(FILE, first, 25.0)

    def served():
        return running_server(tmp_path / "studies", tmp_path / "log", *BALL_WEIGHTS, port=port)

    with ExitStack() as stack:
        with served() as server:
            study = requests.get(f"{server.url}/dicom-web/studies", timeout=30).json()[0]
            study_uid = study["0020000D"]["Value"][0]
            viewer = stack.enter_context(open_prompt_viewer(browser, server.url, study_uid))
            viewer.press("mpr-axial", FILE.to_lps(first))
            before = on_stored_grid(viewer, FILE)
        viewer.press_only("mpr-axial", FILE.to_lps(second))
        viewer.wait_for_popup("The server does not answer")
        assert viewer.prompts() == ["1. + Point"]
        np.testing.assert_array_equal(on_stored_grid(viewer, FILE), before)
        with served() as server:
            viewer.press("mpr-axial", FILE.to_lps(second))
            assert viewer.prompts() == ["1. + Point", "2. + Point"]
            expected = server_mask(server, "robust", [first, second])
            np.testing.assert_array_equal(on_stored_grid(viewer, FILE), expected)
        assert viewer.errors == []


@pytest.mark.parametrize(
    "is_cached",
    [pytest.param(True, id="cached", marks=pytest.mark.slow), pytest.param(False, id="not cached")],
)
def test_the_pacs_is_gone(browser: Browser, tmp_path: Path, is_cached: bool) -> None:
    """Presses on a scan that the server has go on; else the message says what is missing."""
    uids = SERIES_0.write(tmp_path / "series")
    env = {
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "0",
    }
    with ExitStack() as pacs_stack, ExitStack() as stack:
        pacs = pacs_stack.enter_context(running_pacs(tmp_path))
        pacs.upload(tmp_path / "series")
        running = running_server(pacs.dicomweb_url, tmp_path / "log", *BALL_WEIGHTS, env=env)
        server = stack.enter_context(running)
        # without the scan on the server: it is not read ahead, and no press was made
        routes = {} if is_cached else {"**/viewer/series/**": answer_with(uids[1])}
        viewer = stack.enter_context(open_prompt_viewer(browser, server.url, uids[0], routes))
        if is_cached:
            viewer.press("mpr-axial", SERIES_0.to_lps(FIRST))
        pacs_stack.close()
        second = beside(SERIES_0, FIRST, 30.0)
        if is_cached:
            viewer.press("mpr-axial", SERIES_0.to_lps(second))
            expected = server_mask(server, uids[1], [FIRST, second])
            np.testing.assert_array_equal(on_stored_grid(viewer, SERIES_0), expected)
        else:
            remove_cache(tmp_path / "cache")
            viewer.press_only("mpr-axial", SERIES_0.to_lps(second))
            viewer.wait_for_popup("DICOM server")
            assert viewer.prompts() == []
        assert viewer.errors == []


def answer_with(image: str):
    return lambda route: route.fulfill(json={"image": image})


def remove_cache(folder: Path) -> None:
    """Remove the scans that the server has fetched."""
    files = [path for path in folder.rglob("*.nii.gz") if path.is_file()]
    for path in files:
        path.unlink()
