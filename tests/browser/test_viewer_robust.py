"""The viewer at /viewer/ when things go wrong: late answers, a server or a PACS that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from playwright.sync_api import Browser, Route
from series import SERIES, SampleSeries
from viewer_checks import (
    PLACES,
    beside,
    check_becomes,
    on_stored_grid,
    patient_of,
    server_mask,
    voxel_at,
)
from viewer_page import PromptViewer, open_prompt_viewer

import torso
from pacs import running_pacs
from serving import BALL_WEIGHTS, RunningServer, free_port, running_server

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

SERIES_0 = SERIES[0]
FIRST = voxel_at(SERIES_0, PLACES["mpr-axial"])
FILE = SampleSeries("robust", "CT", "LAS", (80, 72, 50), (4.4, 4.6, 6.0), seed=41)

PRESSES = 25
EACH_MS = 100
"""PRESSES, EACH_MS: a long drag of presses, ten a second."""

REMEMBERED = "cornerstone.utilities.HistoryMemo.DefaultHistoryMemo.undoAvailable"


class Held:
    """Answers to requests for masks that wait until the test lets them go."""

    def __init__(self, viewer: PromptViewer) -> None:
        self.page = viewer.page
        self.routes: list[Route] = []
        self.is_open = False
        self.page.route("**/infer/**", self._hold)

    def _hold(self, route: Route) -> None:
        if self.is_open:
            route.continue_()
        else:
            self.routes.append(route)

    def wait(self, count: int = 1) -> None:
        while len(self.routes) < count:
            self.page.wait_for_timeout(50)

    def let_go(self) -> None:
        """Answer all that were held, and let later ones pass."""
        self.is_open = True
        for route in self.routes:
            route.continue_()
        self.page.wait_for_timeout(1500)


@pytest.fixture
def viewer(
    browser: Browser, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> Iterator[PromptViewer]:
    with open_prompt_viewer(browser, server.url, uids[SERIES_0.name][0]) as viewer:
        yield viewer
        assert viewer.errors == []


# --- late answers ---------------------------------------------------------------------------------


def test_an_undone_press_is_not_drawn(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """Undo before the answer drops it, whether it is the first press or not; redo asks again."""
    image = uids[SERIES_0.name][1]
    held = Held(viewer)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(FIRST))
    held.wait()
    viewer.page.keyboard.press("Control+z")
    held.let_go()
    assert viewer.prompts() == []
    assert not on_stored_grid(viewer, SERIES_0).any()
    viewer.page.keyboard.press("Control+y")
    check_becomes(viewer, SERIES_0, server_mask(server, image, [FIRST]))
    assert viewer.prompts() == ["1. + Point"]

    held = Held(viewer)
    second = beside(SERIES_0, FIRST, 30.0)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(second))
    held.wait()
    viewer.page.keyboard.press("Control+z")
    held.let_go()
    np.testing.assert_array_equal(
        on_stored_grid(viewer, SERIES_0), server_mask(server, image, [FIRST])
    )
    assert viewer.prompts() == ["1. + Point"]


def test_a_refused_press_is_no_step(viewer: PromptViewer) -> None:
    """After an error, undo takes back the press before."""
    viewer.press("mpr-axial", SERIES_0.to_lps(FIRST))
    viewer.page.route("**/infer/**", lambda route: route.fulfill(status=400, json={"detail": "no"}))
    viewer.press("mpr-axial", SERIES_0.to_lps(beside(SERIES_0, FIRST, 30.0)))
    viewer.wait_until(lambda: viewer.page.evaluate(REMEMBERED) == 1, "one step of the history")
    viewer.page.keyboard.press("Control+z")
    assert not on_stored_grid(viewer, SERIES_0).any()
    assert viewer.prompts() == []


def test_an_answer_after_leaving_is_there_on_coming_back(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """The page of before does not draw it; the journal has it."""
    study_uid, image = uids[SERIES_0.name]

    def count() -> int:
        reply = requests.get(f"{server.url}/interactions/{image}", timeout=30)
        return len(reply.json()["interactions"]) if reply.ok else 0

    before = count()
    held = Held(viewer)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(FIRST))
    held.wait()
    viewer.page.once("dialog", lambda dialog: dialog.accept())  # unsaved work is asked about
    viewer.page.locator('[data-cy="return-to-work-list"]').click()
    viewer.page.get_by_text(patient_of(server, study_uid)).first.wait_for()
    held.let_go()
    viewer.wait_until(lambda: count() > before, "the press is in the journal")
    assert viewer.errors == []
    viewer.page.go_back()
    viewer.wait_until_ready()
    check_becomes(viewer, SERIES_0, server_mask(server, image, [FIRST]))
    assert viewer.prompts() == ["1. + Point"]


def test_a_long_drag_of_presses_queues_nothing(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """A slow server gets few of many fast presses, one by one, and the last one has them all."""
    running: list[int] = []
    counts = {"now": 0, "sent": 0}

    def start(route: Route) -> None:
        counts["now"] += 1
        counts["sent"] += 1
        running.append(counts["now"])
        waiting.append(route)

    waiting: list[Route] = []
    voxels = [beside(SERIES_0, FIRST, 4.0 * step) for step in range(PRESSES)]
    viewer.show(SERIES_0.to_lps(FIRST))
    viewer.page.route("**/infer/**", start)
    for number, voxel in enumerate(voxels):
        viewer.page.mouse.click(*viewer.page_position("mpr-axial", SERIES_0.to_lps(voxel)))
        viewer.page.wait_for_timeout(EACH_MS)
        if number % 5 == 4:  # an answer takes half a second
            while waiting:
                waiting.pop(0).continue_()
                counts["now"] -= 1
    viewer.page.unroute("**/infer/**")
    while waiting:
        waiting.pop(0).continue_()
    assert max(running) == 1
    assert counts["sent"] <= PRESSES // 5 + 1
    assert len(viewer.prompts()) == PRESSES
    check_becomes(viewer, SERIES_0, server_mask(server, uids[SERIES_0.name][1], voxels))
    later: list[str] = []
    viewer.page.on("request", lambda request: later.append(request.url))
    viewer.page.wait_for_timeout(1000)
    assert not [url for url in later if "/infer/" in url]


def test_a_request_that_hangs_does_not_stop_the_next(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    held = Held(viewer)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(FIRST))
    held.wait()
    second = beside(SERIES_0, FIRST, 30.0)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(second))
    held.wait(2)
    held.routes[1].continue_()
    check_becomes(viewer, SERIES_0, server_mask(server, uids[SERIES_0.name][1], [FIRST, second]))


# --- others ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "not cached"])
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
