"""What the viewer at /viewer/ does besides masks: jumps, locks, names, signs and questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from ohif_page import PLANES, TIMEOUT_MS
from playwright.sync_api import Browser, Route
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
    viewer.page.once("dialog", lambda dialog: dialog.accept("left kidney"))
    viewer.button("New structure")
    row = viewer.page.locator(".fs li[data-segment]", has_text="left kidney")
    row.wait_for()
    number = int(row.get_attribute("data-segment") or 0)
    viewer.choose("left kidney")
    viewer.press("mpr-axial", FILE.to_lps(FIRST))
    assert set(np.unique(on_stored_grid(viewer, FILE))) == {0, number}
    colours = viewer.page.locator(".fs li[data-segment] .dot").evaluate_all(
        "dots => dots.map(dot => dot.style.background)"
    )
    assert len(set(colours)) == len(colours) == number


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
    viewer.page.wait_for_timeout(1000)
    assert asked == ["beforeunload"]
    assert viewer.prompts() == ["1. + Point"]
    viewer.button("Save •")
    viewer.page.get_by_role("button", name="Save", exact=True).wait_for()
    viewer.page.evaluate("setTimeout(() => location.assign('/viewer/'), 0)")
    viewer.page.wait_for_url("**/viewer/")
    assert asked == ["beforeunload"]
