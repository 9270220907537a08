"""The viewer draws its planes once a second while a volume is loaded, and at once for the user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser
from series import SERIES
from viewer_page import PromptViewer, open_prompt_viewer

from serving import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

DRAWN = """async ([isLoaded, input]) => {
    const viewportId = 'mpr-axial';
    const service = services.cornerstoneViewportService;
    const viewport = service.getCornerstoneViewport(viewportId);
    const { loadStatus } = cornerstone.cache.getVolume(viewport.getVolumeId());
    const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
    const before = loadStatus.loaded;
    let drawn = 0;
    const count = event => (drawn += event.detail.viewportId === viewportId);
    const { IMAGE_RENDERED } = cornerstone.Enums.Events;
    document.addEventListener(IMAGE_RENDERED, count, { capture: true });
    try {
        loadStatus.loaded = isLoaded;
        viewport.render();
        await wait(1500); // inputs before this call are forgotten, and the planes are drawn
        viewport.render();
        await wait(100);
        drawn = 0;
        const start = performance.now();
        for (let asked = 0; asked < 8; asked++) {
            if (input) document.body.dispatchEvent(new Event(input, { bubbles: true }));
            viewport.render();
            await wait(50);
        }
        const [atOnce, seconds] = [drawn, (performance.now() - start) / 1000];
        await wait(1200);
        return [atOnce, drawn, seconds];
    } finally {
        loadStatus.loaded = before;
        document.removeEventListener(IMAGE_RENDERED, count, { capture: true });
    }
}"""
"""DRAWN: asks eight times in half a second for a plane; returns how often it was drawn in that time
and 1.2 s later, and that time in seconds. A volume counts as loaded or not, and an event of the
user may come before each."""


@pytest.fixture
def viewer(
    browser: Browser, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> Iterator[PromptViewer]:
    study_uid, _ = uids[SERIES[0].name]
    with open_prompt_viewer(browser, server.url, study_uid) as viewer:
        yield viewer
        assert viewer.errors == []


def test_planes_are_drawn_seldom_while_a_volume_is_loaded(viewer: PromptViewer) -> None:
    at_once, later, seconds = viewer.page.evaluate(DRAWN, [False, ""])
    assert at_once <= 1 + seconds and 1 <= later <= 3 + seconds  # the last one is drawn, too
    at_once, *_ = viewer.page.evaluate(DRAWN, [False, "wheel"])
    assert at_once >= 4
    at_once, *_ = viewer.page.evaluate(DRAWN, [True, ""])
    assert at_once >= 4
