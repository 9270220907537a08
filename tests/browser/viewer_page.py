"""Control the viewer at /viewer/ with the mouse and the keys, as a user does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from ohif_page import DRAWN, MOVE_PLANE, PAGE_POSITION, PLANES, SEE, TIMEOUT_MS
from playwright.sync_api import Browser, Page, Response, Route, TimeoutError

WINDOW = {"width": 1500, "height": 760}

READY = """() => {
    const engine = window.services?.cornerstoneViewportService?.getRenderingEngine?.();
    const viewports = engine ? engine.getViewports() : [];
    const segmentations = window.services?.segmentationService?.getSegmentations() ?? [];
    return viewports.length === 3 && segmentations.length > 0 && viewports.every(viewport => {
        const volumeId = viewport.getAllVolumeIds?.()[0];
        const shown = services.segmentationService.getSegmentationRepresentations(viewport.id);
        const loaded = volumeId && cornerstone.cache.getVolume(volumeId)?.loadStatus?.loaded;
        return loaded && shown.length && viewport.getActors().length > 1;
    });
}"""

SHOWS = """description => {
    const {viewportGridService, displaySetService, segmentationService} = services;
    return [...viewportGridService.getState().viewports.keys()].every(id => {
        const sets = viewportGridService.getDisplaySetsUIDsForViewport(id)
            .map(uid => displaySetService.getDisplaySetByUID(uid));
        const set = sets.find(set => set.SeriesDescription === description);
        const active = segmentationService.getActiveSegmentation(id);
        const imageId = active?.representationData.Labelmap?.imageIds?.[0];
        return Boolean(imageId && set?.imageIds.includes(
            cornerstone.cache.getImage(imageId)?.referencedImageId));
    });
}"""

# LABELMAP: the voxels of the labelmap in the active viewport, their shape, and the geometry that
# leads from (i, j, k) to LPS mm
LABELMAP = """() => {
    const viewportId = services.viewportGridService.getActiveViewportId();
    const {segmentationId} = services.segmentationService.getActiveSegmentation(viewportId);
    const volume = cornerstoneTools.utilities.segmentation
        .getOrCreateSegmentationVolume(segmentationId);
    const slices = volume.imageIds.map(
        id => cornerstone.cache.getImage(id).voxelManager.getScalarData());
    const decoder = new TextDecoder('latin1');
    return {
        shape: [...volume.dimensions],
        text: slices.map(slice => decoder.decode(slice)).join(''),
        origin: [...volume.origin], spacing: [...volume.spacing], direction: [...volume.direction],
    };
}"""

# OVERLAY: the point in space and the opacity of every third pixel of the layer above a plane
OVERLAY = """id => {
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);
    const canvas = viewport.element.querySelector('canvas.fs-overlay');
    if (!canvas) return '[]';
    const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const seen = [];
    for (let x = 1; x < canvas.width; x += 3)
        for (let y = 1; y < canvas.height; y += 3) {
            const at = 4 * (y * canvas.width + x);
            const point = viewport.canvasToWorld([x + 0.5, y + 0.5]);
            seen.push([...point, ...image.data.slice(at, at + 4)]);
        }
    return JSON.stringify(seen);
}"""

FOCAL_POINTS = """ids => ids.map(id => {
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);
    const {focalPoint, viewPlaneNormal} = viewport.getCamera();
    return [[...focalPoint], [...viewPlaneNormal]];
})"""

COUNT_CHANGES = """() => {
    window.labelmapChanges = 0;
    const event = cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
    cornerstone.eventTarget.addEventListener(event, () => window.labelmapChanges++);
}"""


class PromptViewer:
    """A study in the mode FastSAM3D, with its three planes.

    hosts: every host that the page asked. errors: what went wrong in the page's scripts.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def open(self, server_url: str, study_uid: str) -> None:
        """Open a study and wait until all slices are loaded and the tool is ready."""
        self.page.goto(f"{server_url}/viewer/fastsam3d?StudyInstanceUIDs={study_uid}")
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(READY, timeout=TIMEOUT_MS)
        self.page.locator(".fs li[aria-current=true]").wait_for()
        self.page.evaluate(COUNT_CHANGES)

    # --- input ------------------------------------------------------------------------------------

    def show(self, point_lps: list[float]) -> None:
        """Move all three planes through a point."""
        for plane in PLANES:
            self.page.evaluate(MOVE_PLANE, [plane, point_lps])

    def page_position(self, plane: str, point_lps: list[float]) -> tuple[float, float]:
        x, y = self.page.evaluate(PAGE_POSITION, [plane, point_lps])
        return x, y

    def press(self, plane: str, point_lps: list[float], *, how: str = "left") -> Response:
        """Press on a point and wait for the mask; how: left, right, or ctrl. Return the reply."""
        with self.waiting_for_mask() as waiting:
            self.press_only(plane, point_lps, how=how)
        return waiting["reply"]

    def press_only(self, plane: str, point_lps: list[float], *, how: str = "left") -> None:
        self.show(point_lps)
        x, y = self.page_position(plane, point_lps)
        if how == "ctrl":
            self.page.keyboard.down("Control")
        self.page.mouse.click(x, y, button="right" if how == "right" else "left")
        if how == "ctrl":
            self.page.keyboard.up("Control")

    def drag(self, plane: str, path_lps: list[list[float]]) -> None:
        """Draw a path with the left button; all its points lie in one plane."""
        self.show(path_lps[0])
        points = [self.page_position(plane, point) for point in path_lps]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=8)
        self.page.mouse.up()

    @contextmanager
    def waiting_for_mask(self) -> Iterator[dict[str, Any]]:
        """Wait for the reply to what is done inside, and until the labelmap has it."""
        changes = self.page.evaluate("window.labelmapChanges")
        result: dict[str, Any] = {}
        with self.page.expect_response("**/infer/**", timeout=TIMEOUT_MS) as waiting:
            yield result
        result["reply"] = waiting.value
        if waiting.value.status == 200:
            self.page.wait_for_function(f"window.labelmapChanges > {changes}", timeout=TIMEOUT_MS)

    def button(self, name: str) -> None:
        self.page.locator(".fs").get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str) -> None:
        """Work on the structure of this name."""
        self.page.locator(".fs li[data-segment] span", has_text=label).click()
        self.page.locator(".fs li[aria-current=true]", has_text=label).wait_for()

    def choose_by_key(self, number: int) -> None:
        """Work on the structure of this number with Alt and a digit."""
        self.page.keyboard.press(f"Alt+{number}")
        self.page.locator(f".fs li[data-segment='{number}'][aria-current=true]").wait_for()

    def prompts(self) -> list[str]:
        """Return the lines of the list of prompts."""
        self.page.evaluate(DRAWN)
        return self.page.locator(".fs li[data-prompt] span").all_inner_texts()

    def remove_prompt(self, number: int) -> None:
        self.page.locator(f".fs li[data-prompt='{number}'] button").click()

    def show_series(self, description: str) -> None:
        """Show a series of the study in all planes."""
        thumbnail = self.page.locator('[data-cy="study-browser-thumbnail"]', has_text=description)
        thumbnail.dblclick()
        self.page.wait_for_function(SHOWS, arg=description, timeout=TIMEOUT_MS)
        self.page.wait_for_function(READY, timeout=TIMEOUT_MS)
        self.page.wait_for_timeout(500)

    def reset(self) -> None:
        """Take everything back, and choose the first structure and the point tool."""
        self.page.evaluate("""() => {
            const history = cornerstone.utilities.HistoryMemo.DefaultHistoryMemo;
            while (history.canUndo) history.undo();
        }""")
        self.page.unroute_all()
        self.choose("target")
        self.button("Point")
        self.errors.clear()

    # --- what is there ----------------------------------------------------------------------------

    def labelmap(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the segment numbers (I, J, K) uint8 of the viewer's own grid, and its affine.

        The affine (4, 4) leads from an index to LPS mm. The viewer's grid may have another order
        and direction of its axes than the file.
        """
        read = self.page.evaluate(LABELMAP)
        voxels = np.frombuffer(read["text"].encode("latin1"), np.uint8)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(read["direction"], (3, 3)).T * read["spacing"]
        affine[:3, 3] = read["origin"]
        return voxels.reshape(read["shape"][::-1]).T, affine

    def see(self, plane: str) -> tuple[np.ndarray, np.ndarray]:
        """Read the pixels of a plane: points (N, 3) in LPS mm, and whether each is coloured."""
        self.page.evaluate(DRAWN)
        seen = np.array(json.loads(self.page.evaluate(SEE, plane)))
        return seen[:, :3], np.ptp(seen[:, 3:], axis=1) > 20

    def overlay(self, plane: str) -> tuple[np.ndarray, np.ndarray]:
        """Read the layer above a plane: points (N, 3) in LPS mm, and RGBA (N, 4); N = 0: none."""
        self.page.evaluate(DRAWN)
        seen = np.array(json.loads(self.page.evaluate(OVERLAY, plane))).reshape(-1, 7)
        return seen[:, :3], seen[:, 3:]

    def wait_for_overlay(self, *, shown: bool) -> None:
        count = len(PLANES) if shown else 0
        self.page.wait_for_function(
            f"document.querySelectorAll('.fs-overlay').length === {count}", timeout=TIMEOUT_MS
        )

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds; what: says it in the message if it never does."""
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            self.page.wait_for_timeout(100)

    def off_planes_mm(self, point_lps: list[float]) -> list[float]:
        """Return how far a point is from each of the three planes."""
        planes = self.page.evaluate(FOCAL_POINTS, list(PLANES))
        return [abs(np.dot(np.subtract(point_lps, focal), normal)) for focal, normal in planes]

    def wait_for_popup(self, text: str) -> None:
        try:
            self.page.get_by_text(text).first.wait_for(timeout=TIMEOUT_MS)
        except TimeoutError as error:
            shown = self.page.locator(".fs, [data-sonner-toast]").all_inner_texts()
            raise AssertionError(f"no message {text!r}; the page says {shown}") from error


@contextmanager
def open_prompt_viewer(
    browser: Browser,
    server_url: str,
    study_uid: str,
    routes: Mapping[str, Callable[[Route], None]] | None = None,
) -> Iterator[PromptViewer]:
    """Open a study in a new window; routes: what answers requests in place of the server."""
    context = browser.new_context(viewport=WINDOW)
    for pattern, answer in (routes or {}).items():
        context.route(pattern, answer)
    try:
        viewer = PromptViewer(context.new_page())
        viewer.open(server_url, study_uid)
        yield viewer
    finally:
        context.close()
