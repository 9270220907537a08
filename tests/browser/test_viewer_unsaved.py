"""Unsaved work in the viewer at /viewer/ is there again from the server's journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from playwright.sync_api import Browser
from series import SampleSeries
from test_viewer_start import BRUSH
from viewer_checks import PLACES, beside, check_becomes, on_stored_grid, voxel_at
from viewer_page import WINDOW, PromptViewer, open_prompt_viewer

import torso
from serving import BALL_WEIGHTS, RunningServer, free_port, running_server

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

FILE = SampleSeries("unsaved", "CT", "LAS", (80, 72, 50), (4.4, 4.6, 6.0), seed=71)
FIRST = voxel_at(FILE, PLACES["mpr-axial"])
SECOND = beside(FILE, FIRST, 30.0)
THIRD = beside(FILE, FIRST, 60.0)

NAME_BROWSER = "name => { localStorage['fastsam3d:browser'] = name; }"


@pytest.fixture
def serve(tmp_path: Path) -> Callable[[], AbstractContextManager[RunningServer]]:
    """Return what starts a server on one volume, on the same address each time."""
    (tmp_path / "studies").mkdir()
    image, _ = torso.sample(FILE.shape_ijk, FILE.affine_mm, seed=FILE.seed, supersample=1)
    stored = nibabel.Nifti1Image(image.astype(np.int16), FILE.affine_mm)
    nibabel.save(stored, tmp_path / "studies" / f"{FILE.name}.nii.gz")
    port = free_port()
    log = tmp_path / "log"
    return lambda: running_server(tmp_path / "studies", log, *BALL_WEIGHTS, port=port)


@pytest.fixture
def server(serve: Callable[[], AbstractContextManager[RunningServer]]) -> Iterator[RunningServer]:
    with serve() as running:
        yield running


def study_of(server: RunningServer) -> str:
    (study,) = requests.get(f"{server.url}/dicom-web/studies", timeout=30).json()
    return study["0020000D"]["Value"][0]


def wait_for_record(viewer: PromptViewer, action: Callable[[], object]) -> None:
    """Do what is drawn without a request for a mask, and wait until the journal has it."""
    with viewer.page.expect_response("**/work") as recorded:
        action()
    assert recorded.value.status == 200


def reload(viewer: PromptViewer) -> None:
    viewer.page.on("dialog", lambda dialog: dialog.accept())  # unsaved work is asked about
    viewer.page.reload()
    viewer.wait_until_ready()


def test_after_a_reload_and_after_a_new_start_of_the_server(
    browser: Browser, serve: Callable[[], AbstractContextManager[RunningServer]]
) -> None:
    """Prompts of all structures are there; what was undone or removed is not."""
    with ExitStack() as stack:
        with serve() as server:
            viewer = stack.enter_context(open_prompt_viewer(browser, server.url, study_of(server)))
            viewer.press("mpr-axial", FILE.to_lps(FIRST))
            viewer.press("mpr-axial", FILE.to_lps(SECOND), how="ctrl")
            viewer.press("mpr-axial", FILE.to_lps(THIRD))
            keyboard = viewer.page.keyboard
            wait_for_record(viewer, lambda: keyboard.press("Control+z"))
            viewer.choose("bone")
            viewer.press("mpr-coronal", FILE.to_lps(THIRD))
            viewer.choose("vessel")
            viewer.press("mpr-coronal", FILE.to_lps(voxel_at(FILE, PLACES["mpr-sagittal"])))
            wait_for_record(viewer, lambda: viewer.button("Remove all"))
            before = on_stored_grid(viewer, FILE)
            assert set(np.unique(before)) == {0, 1, 5}
        with serve():
            reload(viewer)
            check_becomes(viewer, FILE, before)
            assert viewer.prompts() == ["1. + Point", "2. − Point"]
            viewer.choose("bone")
            assert viewer.prompts() == ["1. + Point"]
            viewer.page.get_by_role("button", name="Save •").wait_for()
            viewer.press("mpr-axial", FILE.to_lps(beside(FILE, THIRD, 20.0)))
            assert len(viewer.prompts()) == 2
            assert viewer.errors == []


def test_brush_strokes_and_what_starts_from_them(browser: Browser, server: RunningServer) -> None:
    """A stroke is kept as it is; prompts after it start from it again."""
    with open_prompt_viewer(browser, server.url, study_of(server)) as viewer:
        viewer.press("mpr-axial", FILE.to_lps(FIRST))
        viewer.page.evaluate(BRUSH)
        stroke = [FILE.to_lps(voxel) for voxel in (SECOND, THIRD)]
        wait_for_record(viewer, lambda: viewer.drag("mpr-axial", stroke))
        painted = on_stored_grid(viewer, FILE)
        assert painted[THIRD]
        reload(viewer)
        check_becomes(viewer, FILE, painted)
        assert viewer.prompts() == []

        viewer.button("Point")
        viewer.press("mpr-axial", FILE.to_lps(beside(FILE, THIRD, 20.0)))
        grown = on_stored_grid(viewer, FILE)
        assert (grown != painted).any()
        reload(viewer)
        check_becomes(viewer, FILE, grown)
        assert viewer.prompts() == ["1. + Point"]
        assert viewer.errors == []


def test_a_save_ends_it_and_later_work_starts_from_the_label(
    browser: Browser, server: RunningServer
) -> None:
    """The saved label is drawn when the scan is opened, in any browser, and counts as saved."""
    study = study_of(server)
    with open_prompt_viewer(browser, server.url, study) as viewer:
        viewer.press("mpr-axial", FILE.to_lps(FIRST))
        saved = on_stored_grid(viewer, FILE)
        viewer.button("Save •")
        viewer.wait_for_popup("The label is saved: target")
        viewer.button("Save")
        viewer.wait_for_popup("Nothing has changed")
        reload(viewer)
        check_becomes(viewer, FILE, saved)
        assert viewer.prompts() == []
        viewer.page.get_by_role("button", name="Save", exact=True).wait_for()
    with open_prompt_viewer(browser, server.url, study) as viewer:
        check_becomes(viewer, FILE, saved)
        viewer.press("mpr-axial", FILE.to_lps(THIRD))
        later = on_stored_grid(viewer, FILE)
        assert later[THIRD] and later[FIRST]
        reload(viewer)
        check_becomes(viewer, FILE, later)
        viewer.button("Save •")
        viewer.wait_for_popup("The label is saved")
        assert viewer.errors == []


def test_the_same_user_in_another_browser(browser: Browser, server: RunningServer) -> None:
    """The name of the user decides: the one that signed in, or that the browser made."""
    study = study_of(server)
    with open_prompt_viewer(browser, server.url, study) as viewer:
        viewer.press("mpr-axial", FILE.to_lps(FIRST))
        name = viewer.page.evaluate("localStorage['fastsam3d:browser']")
        mask = on_stored_grid(viewer, FILE)
    context = browser.new_context(viewport=WINDOW)
    viewer = PromptViewer(context.new_page())
    viewer.page.goto(f"{server.url}/viewer/app-config.js")
    viewer.page.evaluate(NAME_BROWSER, name)
    viewer.open(server.url, study)
    check_becomes(viewer, FILE, mask)
    assert viewer.prompts() == ["1. + Point"]
    context.close()


def test_work_of_another_user_is_offered_and_not_drawn(
    browser: Browser, server: RunningServer
) -> None:
    study = study_of(server)
    with open_prompt_viewer(browser, server.url, study) as viewer:
        viewer.choose("bone")
        viewer.press("mpr-axial", FILE.to_lps(FIRST))
        mask = on_stored_grid(viewer, FILE)
    with open_prompt_viewer(browser, server.url, study) as viewer:
        offer = viewer.page.locator(".fs [data-other]", has_text="bone")
        offer.wait_for()
        assert not on_stored_grid(viewer, FILE).any()
        offer.get_by_role("button", name="Continue").click()
        check_becomes(viewer, FILE, mask)
        viewer.choose("bone")
        assert viewer.prompts() == ["1. + Point"]
        offer.wait_for(state="detached")
        viewer.page.keyboard.press("Control+z")
        assert not on_stored_grid(viewer, FILE).any()
        assert viewer.errors == []


# --- two users save -------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["Add theirs", "Replace theirs"])
def test_the_second_save_does_not_replace_the_first_silently(
    browser: Browser, server: RunningServer, answer: str
) -> None:
    study = study_of(server)
    with ExitStack() as stack:
        anna, ben = (
            stack.enter_context(open_prompt_viewer(browser, server.url, study)) for _ in range(2)
        )
        anna.choose("organ")
        anna.press("mpr-axial", FILE.to_lps(FIRST))
        ben.choose("bone")
        ben.press("mpr-axial", FILE.to_lps(THIRD))
        theirs, own = on_stored_grid(anna, FILE), on_stored_grid(ben, FILE)
        anna.button("Save •")
        anna.wait_for_popup("The label is saved: organ")
        ben.button("Save •")
        alert = ben.page.get_by_role("alert").filter(has_text="Not saved")
        alert.wait_for()
        assert "browser" in alert.inner_text() and versions(server) == 1

        ben.button(answer)
        expected = np.where(own > 0, own, theirs) if answer == "Add theirs" else own
        check_becomes(ben, FILE, expected)
        if answer == "Add theirs":
            alert.wait_for(state="detached")
            ben.button("Save •")
        names = "organ, bone" if answer == "Add theirs" else "bone"
        ben.wait_for_popup(f"The label is saved: {names}")
        assert versions(server) == 2
        assert ben.errors == [] and anna.errors == []


def versions(server: RunningServer) -> int:
    query = {"image": FILE.name, "tag": "final"}
    reply = requests.get(f"{server.url}/datastore/label/versions", query, timeout=30).json()
    return reply["current"]["version"]


def test_a_save_leaves_the_work_of_another_page_of_the_browser(
    browser: Browser, server: RunningServer
) -> None:
    """Two windows of one user: what the second one drew is no part of the first one's label."""
    with open_prompt_viewer(browser, server.url, study_of(server)) as first:
        first.press("mpr-axial", FILE.to_lps(FIRST))
        second = second_page(first, server)
        second.choose_by_key(2)
        second.press("mpr-axial", FILE.to_lps(THIRD))
        first.button("Save •")
        first.wait_for_popup("The label is saved")
        reload(second)
        check_becomes_labels(second, {1, 2})
        second.choose_by_key(2)
        second.wait_until(lambda: second.prompts() == ["1. + Point"], "the prompt is there")
        assert first.errors == second.errors == []


def test_a_save_leaves_what_another_page_did_to_the_same_structure(
    browser: Browser, server: RunningServer
) -> None:
    with open_prompt_viewer(browser, server.url, study_of(server)) as first:
        first.press("mpr-axial", FILE.to_lps(FIRST))
        second = second_page(first, server)
        second.press("mpr-axial", FILE.to_lps(THIRD))
        mask = on_stored_grid(second, FILE)
        first.button("Save •")
        first.wait_for_popup("The label is saved")
        reload(second)
        check_becomes(second, FILE, mask)
        second.wait_until(lambda: len(second.prompts()) == 2, "both prompts are there")
        second.button("Save •")
        second.wait_for_popup("The label is saved")
        reload(second)
        check_becomes(second, FILE, mask)
        second.page.get_by_role("button", name="Save", exact=True).wait_for()
        assert second.prompts() == []
        assert first.errors == second.errors == []


def second_page(first: PromptViewer, server: RunningServer) -> PromptViewer:
    """Open the study in another page of the same browser, and wait for the first page's press."""
    second = PromptViewer(first.page.context.new_page())
    second.open(server.url, study_of(server))
    second.wait_until(lambda: second.prompts() == ["1. + Point"], "the work is listed")
    # else the next press takes the answer of this mask for its own
    second.wait_until(lambda: on_stored_grid(second, FILE).any(), "the work is drawn")
    return second


def check_becomes_labels(viewer: PromptViewer, numbers: set[int]) -> None:
    viewer.wait_until(
        lambda: set(np.unique(on_stored_grid(viewer, FILE))) - {0} == numbers,
        f"the structures {numbers} are drawn",
    )
