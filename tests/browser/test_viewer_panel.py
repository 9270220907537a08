"""What the viewer at /viewer/ does besides masks: jumps, locks, names, signs and questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from ohif_page import DRAWN, MOVE_PLANE, PLANES, TIMEOUT_MS
from playwright.sync_api import Browser, Dialog, Locator, Route
from series import SampleSeries
from viewer_checks import PLACES, beside, on_stored_grid, voxel_at
from viewer_page import PromptViewer, open_prompt_viewer

import torso
from serving import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

FILE = SampleSeries("viewer-panel", "CT", "LAS", (80, 72, 50), (4.4, 4.6, 6.0), seed=91)
FIRST = voxel_at(FILE, PLACES["mpr-axial"])
SECOND = beside(FILE, FIRST, 40.0)

NOTE_VIOLATIONS = """
    window.violations = [];
    document.addEventListener('securitypolicyviolation', event => {
        window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
    });
"""

LOCK = """number => {
    const service = services.segmentationService;
    const id = services.viewportGridService.getActiveViewportId();
    const {segmentationId} = service.getActiveSegmentation(id);
    service.setSegmentLocked(segmentationId, number, true);
}"""


LEFT_OF_AXIAL = """() => services.cornerstoneViewportService
    .getCornerstoneViewport('mpr-axial').element.getBoundingClientRect().left"""


@pytest.fixture(scope="module")
def study_uid(ball_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Put a volume into the server's folder; return the StudyInstanceUID of its series."""
    path: Path = tmp_path_factory.mktemp("panel") / "scan.nii.gz"
    image, _ = torso.sample(FILE.shape_ijk, FILE.affine_mm, seed=FILE.seed, supersample=1)
    nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), FILE.affine_mm), path)
    ball_server.add_study(path, FILE.name)
    query = {"PatientID": FILE.name}
    studies = requests.get(f"{ball_server.url}/dicom-web/studies", query, timeout=30).json()
    (uid,) = (study["0020000D"]["Value"][0] for study in studies)
    return uid


# CHANGE_SEGMENTS: rename a structure to its own name, after which the panel is drawn again
CHANGE_SEGMENTS = """() => {
    const service = services.segmentationService;
    const id = services.viewportGridService.getActiveViewportId();
    const {segmentationId, segments} = service.getActiveSegmentation(id);
    service.setSegmentLabel(segmentationId, 1, segments[1].label);
}"""

# MARKS: the bright pixels of the marks within 8 pixels of a point of a plane, as "red" or "green"
MARKS = """([id, point]) => {
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);
    const canvas = viewport.element.querySelector('canvas.fs-marks');
    if (!canvas) return [];
    const [x, y] = viewport.worldToCanvas(point);
    const {data} = canvas.getContext('2d').getImageData(x - 8, y - 8, 16, 16);
    const seen = new Set();
    for (let at = 0; at < data.length; at += 4)
        if (data[at + 3] === 255 && Math.max(...data.slice(at, at + 3)) > 200)
            seen.add(data[at] > data[at + 1] ? 'red' : 'green');
    return [...seen];
}"""
GREEN, RED = "green", "red"


def marks_at(viewer: PromptViewer, plane: str, point_lps: list[float]) -> set[str]:
    return set(viewer.page.evaluate(MARKS, [plane, point_lps]))


def wait_for_focus(viewer: PromptViewer, field: Locator) -> None:
    field.wait_for()
    viewer.wait_until(
        lambda: field.evaluate("field => field === document.activeElement"), "the field is ready"
    )


@pytest.fixture
def viewer(browser: Browser, ball_server: RunningServer, study_uid: str) -> Iterator[PromptViewer]:
    with open_prompt_viewer(browser, ball_server.url, study_uid) as viewer:
        yield viewer
        assert viewer.errors == []


def test_a_prompt_can_be_jumped_to(viewer: PromptViewer) -> None:
    for voxel in (FIRST, SECOND):
        viewer.press("mpr-axial", FILE.to_lps(voxel))
    assert max(viewer.off_planes_mm(FILE.to_lps(FIRST))) > 10.0
    viewer.page.locator(".fs li[data-prompt='0'] span").click()
    assert max(viewer.off_planes_mm(FILE.to_lps(FIRST))) < 2.0
    assert len(viewer.off_planes_mm(FILE.to_lps(FIRST))) == len(PLANES)


def test_a_locked_structure_stays_as_it_is(viewer: PromptViewer) -> None:
    """Neither its own prompts nor a neighbour's mask with the switch change it."""
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    before = on_stored_grid(viewer, FILE)
    viewer.page.evaluate(LOCK, 1)
    viewer.press_only("mpr-axial", FILE.to_lps(SECOND))
    viewer.wait_for_popup("This structure is locked")
    assert viewer.prompts() == ["1. + Point"]
    viewer.choose("bone")
    viewer.page.get_by_label("may take voxels").check()
    viewer.press("mpr-axial", FILE.to_lps(beside(FILE, FIRST, 24.0)))
    after = on_stored_grid(viewer, FILE)
    assert (after == 5).any()
    np.testing.assert_array_equal(after == 1, before == 1)


def test_a_new_structure_has_the_name_that_was_typed(viewer: PromptViewer) -> None:
    """The field has the keys meanwhile, also when the panel draws itself again."""
    viewer.button("New structure")
    field = viewer.page.get_by_label("Name of the structure")
    wait_for_focus(viewer, field)
    viewer.page.keyboard.type("left ")
    viewer.page.evaluate(CHANGE_SEGMENTS)
    viewer.page.evaluate(DRAWN)
    viewer.page.keyboard.type("kidney")
    viewer.page.keyboard.press("Enter")
    row = viewer.page.locator(".fs li[data-segment]", has_text="left kidney")
    row.wait_for()
    number = int(row.get_attribute("data-segment") or 0)
    viewer.page.locator(".fs li[aria-current=true]", has_text="left kidney").wait_for()
    assert viewer.page.locator("[data-kind=point]").get_attribute("aria-pressed") == "true"
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    assert set(np.unique(on_stored_grid(viewer, FILE))) == {0, number}
    colours = viewer.page.locator(".fs li[data-segment] .dot").evaluate_all(
        "dots => dots.map(dot => dot.style.background)"
    )
    assert len(set(colours)) == len(colours) == number


def test_a_name_that_is_there_is_chosen_and_escape_adds_nothing(viewer: PromptViewer) -> None:
    rows = viewer.page.locator(".fs li[data-segment]")
    count = rows.count()
    field = viewer.page.get_by_label("Name of the structure")
    for key in ("Enter", "Escape"):
        viewer.page.keyboard.press("a")
        wait_for_focus(viewer, field)
        viewer.page.keyboard.type("bone" if key == "Enter" else "something else")
        viewer.page.keyboard.press(key)
        field.wait_for(state="detached")
        viewer.page.locator(".fs li[aria-current=true]", has_text="bone").wait_for()
    assert rows.count() == count


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1024, 600)])
def test_the_whole_panel_can_be_reached(viewer: PromptViewer, width: int, height: int) -> None:
    """A window that is too low for the panel scrolls it: each button can be pressed."""
    viewer.page.set_viewport_size({"width": width, "height": height})
    for number in range(8):
        viewer.press("mpr-axial", FILE.to_lps(beside(FILE, FIRST, 3.0 * number)))
    viewer.page.locator(".fs summary").click()
    panel = viewer.page.locator(".fastsam3d-panel")
    heights = panel.evaluate("panel => [panel.clientHeight, panel.scrollHeight]")
    assert heights[1] > heights[0] > 300
    for name in ("Uncertainty", "Next place", "? Keys", "Train"):
        button = viewer.page.locator(".fs").get_by_role("button", name=name, exact=True)
        button.hover(timeout=TIMEOUT_MS)  # scrolls to it, and fails if something covers it
        box = button.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height, name


def test_keys_work_after_the_switch_was_used(viewer: PromptViewer) -> None:
    """A checkbox that has the focus takes neither the keys of prompts nor undo and redo."""
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    viewer.page.get_by_label("may take voxels").uncheck()
    viewer.page.get_by_label("may take voxels").click()
    assert viewer.page.evaluate("document.activeElement.type") == "checkbox"
    with viewer.waiting_for_mask():
        viewer.page.keyboard.press("]")
    for keys, prompts in (("z", ["1. + Point"]), ("z", []), ("y", ["1. + Point"])):
        viewer.page.get_by_label("may take voxels").focus()
        viewer.page.keyboard.press(f"Control+{keys}")
        viewer.wait_until(lambda expected=prompts: viewer.prompts() == expected, f"{keys} acts")


def test_prompts_are_marked_where_they_were_made(viewer: PromptViewer) -> None:
    """In planes through them; included ones are green, excluded ones red; undo takes them away."""
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    viewer.press("mpr-axial", FILE.to_lps(SECOND), how="ctrl")
    for voxel, colour in ((FIRST, GREEN), (SECOND, RED)):
        viewer.show(FILE.to_lps(voxel))
        viewer.page.evaluate(DRAWN)
        for plane in PLANES:
            assert marks_at(viewer, plane, FILE.to_lps(voxel)) == {colour}, plane
    off = beside(FILE, FIRST, 20.0)
    for plane in PLANES:
        viewer.page.evaluate(MOVE_PLANE, [plane, FILE.to_lps((off[0], off[1] + 9, off[2] + 5))])
    viewer.page.evaluate(DRAWN)
    assert marks_at(viewer, "mpr-axial", FILE.to_lps(FIRST)) == set()
    for _ in range(2):
        viewer.page.keyboard.press("Control+z")
    viewer.show(FILE.to_lps(FIRST))
    viewer.wait_until(
        lambda: viewer.page.locator(".fs-marks").count() == 0, "the marks are taken away"
    )


def test_the_list_of_keys_is_in_sight(viewer: PromptViewer) -> None:
    viewer.page.set_viewport_size({"width": 1280, "height": 720})
    viewer.page.keyboard.press("?")
    keys = viewer.page.get_by_role("dialog", name="Keys")
    keys.wait_for()
    box = keys.bounding_box()
    assert box is not None
    assert box["x"] > 0
    assert box["x"] + box["width"] < 1280
    assert box["y"] + box["height"] < 720
    assert keys.evaluate("element => element.scrollHeight <= element.clientHeight")
    viewer.page.keyboard.press("Escape")
    keys.wait_for(state="detached")


def test_the_list_of_one_series_is_closed(viewer: PromptViewer) -> None:
    """The planes get its room; a click opens it."""
    thumbnails = viewer.page.locator('[data-cy="study-browser-thumbnail"]')
    viewer.page.set_viewport_size({"width": 1280, "height": 720})
    thumbnails.wait_for(state="detached")
    assert viewer.page.evaluate(LEFT_OF_AXIAL) < 80
    viewer.page.locator('[data-cy="side-panel-header-left"]').click()
    thumbnails.wait_for()


def test_a_sign_while_the_server_computes(viewer: PromptViewer) -> None:
    """It comes when an answer takes longer than 0.3 s, and goes with the answer."""
    held: list[Route] = []
    viewer.page.route("**/infer/**", lambda route: held.append(route))
    sign = viewer.page.get_by_role("status").filter(has_text="Computing")
    viewer.press_only("mpr-axial", FILE.to_lps(FIRST))
    sign.wait_for(timeout=TIMEOUT_MS)
    held[0].continue_()
    sign.wait_for(state="detached", timeout=TIMEOUT_MS)


def test_the_policy_stops_other_hosts_and_nothing_else(
    browser: Browser, ball_server: RunningServer, study_uid: str
) -> None:
    context = browser.new_context(viewport={"width": 1500, "height": 760})
    context.add_init_script(NOTE_VIOLATIONS)
    viewer = PromptViewer(context.new_page())
    viewer.open(ball_server.url, study_uid)
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    assert viewer.page.evaluate("window.violations") == []
    asked = "fetch('http://127.0.0.1:9/').then(() => 'sent', error => error.name)"
    assert viewer.page.evaluate(asked) == "TypeError"
    assert "connect-src" in viewer.page.evaluate("window.violations")[0]
    context.close()


def test_unsaved_work_is_asked_about_on_leaving(viewer: PromptViewer) -> None:
    asked: list[str] = []

    def stay(dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    viewer.page.on("dialog", stay)
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    viewer.page.evaluate("setTimeout(() => location.assign('/viewer/'), 0)")
    viewer.wait_until(lambda: asked, "it asks")
    viewer.page.wait_for_timeout(1000)  # it asks once
    assert asked == ["beforeunload"]
    assert viewer.prompts() == ["1. + Point"]
    viewer.button("Save •")
    viewer.page.get_by_role("button", name="Save", exact=True).wait_for()
    viewer.page.evaluate("setTimeout(() => location.assign('/viewer/'), 0)")
    viewer.page.wait_for_url("**/viewer/")
    assert asked == ["beforeunload"]


def test_the_way_back_to_the_list_asks_about_unsaved_work(viewer: PromptViewer) -> None:
    """OHIF's arrow stays on the page, whose beforeunload does not come then."""
    arrow = viewer.page.locator('[data-cy="return-to-work-list"]')
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    viewer.page.once("dialog", stay)
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    arrow.click()
    assert len(asked) == 1
    assert "Leave without saving?" in asked[0]
    assert viewer.prompts() == ["1. + Point"]
    viewer.page.once("dialog", lambda dialog: dialog.accept())
    arrow.click()
    viewer.page.get_by_text(FILE.name).first.wait_for()


def test_the_way_back_does_not_ask_if_all_is_saved(viewer: PromptViewer) -> None:
    viewer.page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    viewer.page.locator('[data-cy="return-to-work-list"]').click()
    viewer.page.get_by_text(FILE.name).first.wait_for()
