"""The viewer at /viewer/ when answers are late: presses that follow each other, undo and redo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event

import numpy as np
import pytest
import requests
from playwright.sync_api import Browser, Route
from series import SERIES
from viewer_checks import (
    PLACES,
    beside,
    check_becomes,
    on_stored_grid,
    params_of,
    patient_of,
    server_mask,
    voxel_at,
)
from viewer_page import PromptViewer, open_prompt_viewer

from serving import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

SERIES_0 = SERIES[0]
FIRST = voxel_at(SERIES_0, PLACES["mpr-axial"])

PRESSES = 25
EACH_MS = 100
ANSWER_S = 0.5
"""PRESSES, EACH_MS, ANSWER_S: a long drag of presses, ten a second, and a slow server."""

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

    def wait_for_prompts(self, count: int) -> Route:
        """Return the request of so many prompts; slow presses before it have requests too."""
        while True:
            for route in self.routes:
                if len(params_of(route.request.post_data or "")["prompts"]) == count:
                    return route
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


# --- each press is a step -------------------------------------------------------------------------


def test_each_press_is_a_step_though_answers_are_late(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """Undo takes back the last press alone, even if its answer replaced that of the one before."""
    image = uids[SERIES_0.name][1]
    voxels = [beside(SERIES_0, FIRST, distance_mm) for distance_mm in (0.0, 30.0, 60.0)]
    masks = [server_mask(server, image, voxels[:count]) for count in range(1, 4)]
    masks.insert(0, np.zeros_like(masks[0]))
    held = Held(viewer)
    for voxel in voxels:
        viewer.press_only("mpr-axial", SERIES_0.to_lps(voxel))
    held.wait()
    held.let_go()
    check_becomes(viewer, SERIES_0, masks[3])
    for key, counts in (("z", (2, 1, 0)), ("y", (1, 2, 3)), ("z", (2,))):
        for count in counts:
            viewer.page.keyboard.press(f"Control+{key}")
            assert len(viewer.prompts()) == count
            check_becomes(viewer, SERIES_0, masks[count])
    viewer.press("mpr-axial", SERIES_0.to_lps(voxels[2]), how="ctrl")  # ends what could be redone
    viewer.page.keyboard.press("Control+z")
    check_becomes(viewer, SERIES_0, masks[2])


def test_fast_undo_of_fast_presses(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """Three presses and two undos before any answer: the mask of the first press."""
    held = Held(viewer)
    for distance_mm in (0.0, 30.0, 60.0):
        voxel = beside(SERIES_0, FIRST, distance_mm)
        viewer.press_only("mpr-axial", SERIES_0.to_lps(voxel))
    held.wait()
    viewer.page.keyboard.press("Control+z")
    viewer.page.keyboard.press("Control+z")
    held.let_go()
    assert viewer.prompts() == ["1. + Point"]
    check_becomes(viewer, SERIES_0, server_mask(server, uids[SERIES_0.name][1], [FIRST]))


def test_a_press_on_another_structure_keeps_the_one_before(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """A press takes the place of an unanswered one of its own structure only."""
    image = uids[SERIES_0.name][1]
    second = voxel_at(SERIES_0, PLACES["mpr-sagittal"])
    held = Held(viewer)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(FIRST))
    held.wait()
    viewer.choose_by_key(2)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(second))
    held.let_go()
    first_mask = server_mask(server, image, [FIRST])
    both = np.where(first_mask, 1, 2 * server_mask(server, image, [second])).astype(np.uint8)
    check_becomes(viewer, SERIES_0, both)
    viewer.page.keyboard.press("Control+z")
    check_becomes(viewer, SERIES_0, first_mask)


def test_a_refused_press_leaves_the_unanswered_one_before(
    viewer: PromptViewer, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    held = Held(viewer)
    viewer.press_only("mpr-axial", SERIES_0.to_lps(FIRST))
    held.wait()
    viewer.press_only("mpr-axial", SERIES_0.to_lps(beside(SERIES_0, FIRST, 30.0)))
    held.wait(2)  # the first one waits too long
    held.is_open = True
    held.routes[1].fulfill(status=400, json={"detail": "the second press is refused"})
    viewer.wait_for_popup("the second press is refused")
    assert viewer.prompts() == ["1. + Point"]
    check_becomes(viewer, SERIES_0, server_mask(server, uids[SERIES_0.name][1], [FIRST]))
    assert viewer.page.evaluate(REMEMBERED) == 1


def test_presses_without_a_server_are_no_steps(viewer: PromptViewer) -> None:
    held = Held(viewer)
    for distance_mm in (0.0, 30.0, 60.0):
        voxel = beside(SERIES_0, FIRST, distance_mm)
        viewer.press_only("mpr-axial", SERIES_0.to_lps(voxel))
    held.wait_for_prompts(3).abort()
    viewer.wait_for_popup("The server does not answer")
    assert viewer.prompts() == []
    assert viewer.page.evaluate(REMEMBERED) == 0


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
        if is_over.is_set():
            answer()

    def answer() -> None:
        while waiting:
            counts["now"] -= 1
            waiting.pop(0).continue_()

    waiting: list[Route] = []
    is_over = Event()
    voxels = [beside(SERIES_0, FIRST, 4.0 * step) for step in range(PRESSES)]
    viewer.show(SERIES_0.to_lps(FIRST))
    viewer.page.route("**/infer/**", start)
    since = time.monotonic()
    for voxel in voxels:
        viewer.page.mouse.click(*viewer.page_position("mpr-axial", SERIES_0.to_lps(voxel)))
        viewer.page.wait_for_timeout(EACH_MS)
        if waiting and time.monotonic() > since + ANSWER_S:
            since = time.monotonic()
            answer()
    is_over.set()
    answer()
    assert max(running) == 1
    assert counts["sent"] <= PRESSES // 2
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
