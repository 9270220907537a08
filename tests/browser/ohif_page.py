"""Control the OHIF viewer that the server serves with the mouse, as a user does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import BytesParser
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, Request

PLANES = ("mpr-axial", "mpr-sagittal", "mpr-coronal")
FLAGS = (
    "--no-sandbox",  # CI runs as root
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
)
WINDOW = {"width": 1700, "height": 760}
TIMEOUT_MS = 60_000
DOUBLE_CLICK_MS = 600

READY = """() => {
    const engine = window.services?.cornerstoneViewportService?.getRenderingEngine?.();
    const viewports = engine ? engine.getVolumeViewports() : [];
    return viewports.length === 3 && viewports.every(viewport => {
        const {referencedId} = viewport.getActors()[0] ?? {};
        return referencedId && cornerstone.cache.getVolume(referencedId)?.loadStatus?.loaded;
    });
}"""

VIEWPORT = "const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);"

MOVE_PLANE = f"""([id, point]) => {{
    {VIEWPORT}
    const {{focalPoint, position, viewPlaneNormal: normal}} = viewport.getCamera();
    const depth = normal.reduce((sum, n, axis) => sum + n * (point[axis] - focalPoint[axis]), 0);
    const moved = from => from.map((x, axis) => x + depth * normal[axis]);
    viewport.setCamera({{focalPoint: moved(focalPoint), position: moved(position)}});
    viewport.render();
}}"""

PAGE_POSITION = f"""([id, point]) => {{
    {VIEWPORT}
    const [x, y] = viewport.worldToCanvas(point);
    const {{left, top}} = viewport.element.getBoundingClientRect();
    return [left + x, top + y];
}}"""

# SEE: the point in space and the colour of every third pixel of a plane, in each direction
SEE = f"""id => {{
    {VIEWPORT}
    const {{canvas, element}} = viewport;
    const scale = canvas.width / element.clientWidth;
    const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const seen = [];
    for (let x = 1; x < canvas.width; x += 3)
        for (let y = 1; y < canvas.height; y += 3) {{
            const at = 4 * (y * canvas.width + x);
            const point = viewport.canvasToWorld([(x + 0.5) / scale, (y + 0.5) / scale]);
            seen.push([...point, ...image.data.slice(at, at + 3)]);
        }}
    return JSON.stringify(seen);  // a text passes to Python faster than its numbers
}}"""

COUNT_CLICKS = """() => {
    const annotations = cornerstoneTools.annotation.state.getAnnotationManager();
    return annotations.getAllAnnotations()
        .filter(annotation => annotation.metadata.toolName === 'ProbeMONAILabel').length;
}"""

COUNT_CHANGES = """() => {
    window.labelmapChanges = 0;
    const event = cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
    cornerstone.eventTarget.addEventListener(event, () => window.labelmapChanges++);
}"""

LABELMAP = """() => {
    const volume = services.segmentationService.getLabelmapVolume('1');
    const text = new TextDecoder('latin1').decode(volume.voxelManager.getCompleteScalarDataArray());
    return [volume.dimensions, text];
}"""

ERASE = """() => {
    const {voxelManager} = services.segmentationService.getLabelmapVolume('1');
    const length = voxelManager.getCompleteScalarDataArray().length;
    voxelManager.setCompleteScalarDataArray(new Uint8Array(length));
    const event = cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
    cornerstone.triggerEvent(cornerstone.eventTarget, event, {segmentationId: '1'});
}"""

# DRAWN: waits until the planes are drawn, which happens in the next frame
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

SEGMENT_INDEX = """label => {
    const [segmentation] = services.segmentationService.getSegmentations();
    const segments = Object.values(segmentation.config?.segments ?? segmentation.segments);
    return segments.find(segment => segment.label === label).segmentIndex;
}"""


@dataclass(frozen=True)
class PointPromptsRun:
    """The request that the button Run sent, and its reply."""

    image: str
    params: dict[str, Any]
    status: int
    body: bytes


class Viewer:
    """A study in OHIF's MONAI Label mode, with its three planes."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, server_url: str, study_uid: str) -> None:
        """Open a study, wait until all slices are loaded, connect, and open the tab for clicks."""
        page = self.page
        page.goto(f"{server_url}/ohif/monai-label?StudyInstanceUIDs={study_uid}")
        page.wait_for_function(READY, timeout=TIMEOUT_MS)
        # messages stay for up to 15 s and would keep the buttons below them from being clicked
        page.add_style_tag(content="[data-sonner-toaster] * { pointer-events: none !important; }")
        hide = page.get_by_text("Confirm and Hide")
        if hide.count():
            hide.click()
        page.locator(".settingsTable button.actionButton").click()
        page.get_by_text("Point Prompts", exact=True).click(timeout=TIMEOUT_MS)
        page.evaluate(COUNT_CHANGES)

    def choose(self, label: str) -> None:
        """Choose the label, or ``background``, of the clicks that follow."""
        self.page.locator("tr.clickable-row", has_text=label).click()

    def show(self, point_lps: list[float]) -> None:
        """Move all three planes through a point."""
        for plane in PLANES:
            self.page.evaluate(MOVE_PLANE, [plane, point_lps])

    def click(self, plane: str, point_lps: list[float]) -> None:
        """Click on a point in a plane; a first click activates a plane that is not active."""
        self.show(point_lps)
        x, y = self.page.evaluate(PAGE_POSITION, [plane, point_lps])
        if self.page.evaluate("services.viewportGridService.getState().activeViewportId") != plane:
            self.page.mouse.click(x, y)
            self.page.wait_for_timeout(DOUBLE_CLICK_MS)
        clicks = self.page.evaluate(COUNT_CLICKS)
        self.page.mouse.click(x, y)
        # the viewer adds the click after the time of a double click
        self.page.wait_for_function(f"({COUNT_CLICKS})() > {clicks}", timeout=TIMEOUT_MS)

    def clear(self, which: str = "Clear All Points") -> None:
        self.page.get_by_text(which, exact=True).click()

    def reset(self) -> None:
        """Remove all clicks, masks and errors."""
        self.clear()
        self.page.evaluate(ERASE)
        self.errors.clear()

    def press_run(self) -> PointPromptsRun:
        """Press Run; wait for the reply and, if it is a mask, until the viewer has drawn it."""
        changes = self.page.evaluate("window.labelmapChanges")
        with self.page.expect_response("**/infer/**", timeout=TIMEOUT_MS) as waiting:
            self.page.locator('button[title="Run PointPrompts"]').click()
        reply = waiting.value
        if reply.status == 200:
            self.page.wait_for_function(f"window.labelmapChanges > {changes}", timeout=TIMEOUT_MS)
        return PointPromptsRun(
            image=_query(reply.request)["image"],
            params=_form_field(reply.request, "params"),
            status=reply.status,
            body=reply.body(),
        )

    def labelmap(self) -> np.ndarray:
        """Return the viewer's segment numbers (I, J, K) uint8."""
        dimensions, text = self.page.evaluate(LABELMAP)
        return np.frombuffer(text.encode("latin1"), np.uint8).reshape(dimensions[::-1]).T

    def segment(self, label: str) -> int:
        """Return the number of a label in the labelmap."""
        return self.page.evaluate(SEGMENT_INDEX, label)

    def see(self, plane: str) -> tuple[np.ndarray, np.ndarray]:
        """Read the pixels of a plane from the screen; the image is grey, segments are coloured.

        Returns points (N, 3) in LPS mm, and whether each is coloured (N,).
        """
        self.page.evaluate(DRAWN)
        seen = np.array(json.loads(self.page.evaluate(SEE, plane)))
        return seen[:, :3], np.ptp(seen[:, 3:], axis=1) > 20

    def wait_for_popup(self, text: str) -> None:
        """Wait until the viewer shows a message that contains the text."""
        self.page.get_by_text(text).first.wait_for(timeout=TIMEOUT_MS)


@contextmanager
def open_viewer(browser: Browser, server_url: str, study_uid: str) -> Iterator[Viewer]:
    context = browser.new_context(viewport=WINDOW)
    # the stock viewer expects the server on port 8000
    context.add_cookies(
        [{"name": "MONAILABEL_SERVER_URL", "value": f"{server_url}/", "url": server_url}]
    )
    try:
        viewer = Viewer(context.new_page())
        viewer.open(server_url, study_uid)
        yield viewer
    finally:
        context.close()


def _query(request: Request) -> dict[str, str]:
    from urllib.parse import parse_qsl, urlsplit

    return dict(parse_qsl(urlsplit(request.url).query))


def _form_field(request: Request, name: str) -> Any:
    """Return the JSON in a field of a multipart form."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + (request.post_data_buffer or b""))
    for part in message.get_payload():
        if part.get_param("name", header="content-disposition") == name:
            return json.loads(part.get_payload(decode=True))
    raise AssertionError(f"the form has no field {name}")
