"""The viewer at /viewer/ on a real Orthanc and on a folder of files: a press becomes a mask there.

The weights draw a ball at each click (`tests/data/make_click_ball.py`), so that the expected mask
is known in space. The viewer's labelmap is compared with the server's mask voxel for voxel, each on
its own grid in LPS mm.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from ohif_page import PLANES
from playwright.sync_api import Browser, Route
from scipy import ndimage
from series import SERIES, SampleSeries
from test_ohif import segment_ijk, stored_segmentations
from viewer_checks import (
    PLACES,
    around,
    array_of,
    asks_for,
    beside,
    check_becomes,
    check_drawn,
    check_presses,
    on_stored_grid,
    params_of,
    patient_of,
    sent,
    server_mask,
    server_reply,
    voxel_at,
    with_interactions,
    without_interactions,
)
from viewer_page import WINDOW, PromptViewer, open_prompt_viewer

import torso
from conftest import ARTIFACTS
from lib.imaging.affine import itk_affine
from orthanc import Orthanc
from pacs import delete_series
from serving import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

FILES = (
    SampleSeries("file LAS", "CT", "LAS", (80, 72, 50), (4.4, 4.6, 6.0), seed=21),
    SampleSeries("file SPL", "CT", "SPL", (56, 70, 84), (5.5, 4.6, 4.4), seed=22),
    SampleSeries("file ILA", "MR", "ILA", (54, 84, 72), (5.6, 4.4, 4.7), seed=23, turned=True),
)
"""FILES: volumes of a folder, in axis orders that no DICOM series has; the first is left-handed."""

DRAWN_KINDS = {"Box": "bounding_box", "Lasso": "lasso", "Scribble": "scribble"}
"""DRAWN_KINDS: the buttons of drawn prompts, and their names in a request."""


@pytest.fixture(scope="module")
def opened(
    browser: Browser, server: RunningServer, uids: dict, series: SampleSeries
) -> Iterator[PromptViewer]:
    """Open the series; all tests of a series share the page."""
    with open_prompt_viewer(browser, server.url, uids[series.name][0]) as viewer:
        yield viewer


@pytest.fixture
def viewer(opened: PromptViewer, request: pytest.FixtureRequest) -> Iterator[PromptViewer]:
    """Yield the viewer without prompts and masks; afterwards, the page must have no errors."""
    opened.reset()
    yield opened
    ARTIFACTS.mkdir(exist_ok=True)
    opened.page.screenshot(path=ARTIFACTS / f"{request.node.name.replace(' ', '-')}.png")
    assert opened.errors == []


def on(*series: SampleSeries) -> pytest.MarkDecorator:
    params = [pytest.param(one, id=one.name) for one in series]
    return pytest.mark.parametrize("series", params, indirect=True, scope="module")


ALL = on(*SERIES)
ONE = on(SERIES[0])


# --- place ----------------------------------------------------------------------------------------


@ALL
def test_presses_mark_the_place_in_all_planes(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict
) -> None:
    check_presses(viewer, series, server, uids[series.name][1])


@ONE
@pytest.mark.parametrize(
    "axis",
    [
        pytest.param(0, id="i"),
        pytest.param(1, id="j", marks=pytest.mark.slow),
        pytest.param(2, id="k", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_mask_is_noticed(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict, axis: int
) -> None:
    """The comparison fails if the mask is flipped along an axis on its way to the viewer."""

    def flip(route: Route) -> None:
        reply = route.fetch()
        size = json.loads(reply.headers["x-mask-box"])["size_ijk"]
        mask = np.frombuffer(reply.body(), np.uint8).reshape(size[::-1])
        route.fulfill(response=reply, body=np.flip(mask, 2 - axis).tobytes())

    check_is_noticed(viewer, series, server, uids[series.name][1], flip)


@ONE
@pytest.mark.parametrize(
    "axis",
    [
        pytest.param(0, id="i", marks=pytest.mark.slow),
        pytest.param(1, id="j", marks=pytest.mark.slow),
        pytest.param(2, id="k"),
    ],
)
def test_a_mask_that_is_a_voxel_off_is_noticed(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict, axis: int
) -> None:
    def shift(route: Route) -> None:
        reply = route.fetch()
        box = json.loads(reply.headers["x-mask-box"])
        for row in range(3):
            box["affine_lps"][row][3] += box["affine_lps"][row][axis]
        route.fulfill(response=reply, headers={**reply.headers, "x-mask-box": json.dumps(box)})

    check_is_noticed(viewer, series, server, uids[series.name][1], shift)


def check_is_noticed(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, image: str, change
) -> None:
    """Check that `check_presses` fails if the replies are changed on their way to the viewer."""
    viewer.page.route("**/infer/**", change)
    with pytest.raises(AssertionError):
        check_presses(viewer, series, server, image)


# --- prompts --------------------------------------------------------------------------------------


@ONE
@pytest.mark.parametrize("how", ("ctrl", "right"))
def test_exclude(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict, how: str
) -> None:
    first = voxel_at(series, PLACES["mpr-axial"])
    second = beside(series, first, -16.0)
    viewer.press("mpr-axial", series.to_lps(first))
    assert on_stored_grid(viewer, series)[second]
    viewer.press("mpr-axial", series.to_lps(second), how=how)
    mask = on_stored_grid(viewer, series)
    assert mask[first] and not mask[second]
    expected = server_mask(server, uids[series.name][1], [first], [second])
    np.testing.assert_array_equal(mask, expected)
    assert viewer.prompts() == ["1. + Point", "2. − Point"]


@ONE
def test_undo_and_redo(viewer: PromptViewer, series: SampleSeries) -> None:
    """Each step comes back, in both directions, with Ctrl+Z and with OHIF's arrows."""
    masks = [on_stored_grid(viewer, series)]
    first = voxel_at(series, PLACES["mpr-axial"])
    for distance_mm in (0.0, 30.0, 60.0, 90.0):
        voxel = beside(series, first, distance_mm)
        viewer.press("mpr-axial", series.to_lps(voxel))
        masks.append(on_stored_grid(viewer, series))
    assert len({mask.tobytes() for mask in masks}) == 5
    for step, mask in reversed(list(enumerate(masks[:-1]))):
        viewer.page.keyboard.press("Control+z")
        np.testing.assert_array_equal(on_stored_grid(viewer, series), mask)
        assert len(viewer.prompts()) == step
    for step, mask in list(enumerate(masks))[1:]:
        viewer.page.locator('[data-cy="redo-btn"]').click()
        np.testing.assert_array_equal(on_stored_grid(viewer, series), mask)
        assert len(viewer.prompts()) == step


@ONE
def test_a_prompt_is_removed(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict
) -> None:
    first = voxel_at(series, PLACES["mpr-axial"])
    second = beside(series, first, 40.0)
    for voxel in (first, second):
        viewer.press("mpr-axial", series.to_lps(voxel))
    with viewer.waiting_for_mask():
        viewer.remove_prompt(0)
    expected = server_mask(server, uids[series.name][1], [second])
    np.testing.assert_array_equal(on_stored_grid(viewer, series), expected)
    viewer.button("Remove all")
    assert viewer.prompts() == []
    assert not on_stored_grid(viewer, series).any()


@ONE
def test_a_second_structure_keeps_the_first(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict
) -> None:
    first = voxel_at(series, PLACES["mpr-axial"])
    second = beside(series, first, 25.0)
    viewer.press("mpr-axial", series.to_lps(first))
    viewer.choose("bone")
    assert viewer.prompts() == []
    viewer.press("mpr-axial", series.to_lps(second))
    target = server_mask(server, uids[series.name][1], [first])
    bone = server_mask(server, uids[series.name][1], [second])
    assert (target & bone).any()  # otherwise the first structure has nothing to lose
    expected = np.where(target, 1, bone * 5)
    np.testing.assert_array_equal(on_stored_grid(viewer, series), expected)

    viewer.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(on_stored_grid(viewer, series), target)


@ONE
def test_the_newest_of_fast_presses_wins(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict
) -> None:
    """Older requests are cancelled, and the last mask has all presses."""
    first = voxel_at(series, PLACES["mpr-axial"])
    voxels = [beside(series, first, 8.0 * step) for step in range(8)]
    viewer.press("mpr-axial", series.to_lps(voxels[0]))
    for voxel in voxels[1:]:
        x, y = viewer.page_position("mpr-axial", series.to_lps(voxel))
        viewer.page.mouse.click(x, y)
    assert len(viewer.prompts()) == 8
    check_becomes(viewer, series, server_mask(server, uids[series.name][1], voxels))


@ONE
def test_the_size_key_asks_for_another_answer(viewer: PromptViewer, series: SampleSeries) -> None:
    viewer.press("mpr-axial", series.to_lps(voxel_at(series, PLACES["mpr-axial"])))
    for key, size in (("]", 1), ("]", 2), ("[", 1), ("wheel", 0)):
        with viewer.waiting_for_mask() as waiting:
            if key == "wheel":
                viewer.page.keyboard.down("Alt")
                viewer.page.mouse.wheel(0, 100)
                viewer.page.keyboard.up("Alt")
            else:
                viewer.page.keyboard.press(key)
        assert sent(waiting["reply"])["size"] == size


def test_drawn_prompts_reach_the_server(
    browser: Browser, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """A server that takes ordered prompts gets their places in LPS mm, in the order of drawing."""
    series = SERIES[0]
    centre = voxel_at(series, PLACES["mpr-axial"])
    corners = [(-6, -4), (6, -4), (6, 5)]
    path = [series.to_lps((centre[0] + i, centre[1] + j, centre[2])) for i, j in corners]
    beside_image = series.to_lps((-3, centre[1], centre[2]))
    bodies = []

    def answer(route: Route) -> None:
        bodies.append(params_of(route.request.post_data or ""))
        route.fulfill(status=400, json={"detail": f"refusal {len(bodies)}"})

    routes = {"**/infer/**": answer, "**/info/": with_interactions}
    with open_prompt_viewer(browser, server.url, uids[series.name][0], routes) as viewer:
        for number, (kind, name) in enumerate(DRAWN_KINDS.items(), start=1):
            viewer.button(kind)
            viewer.drag("mpr-axial", path)
            viewer.wait_for_popup(f"refusal {number}")
            (prompt,) = bodies[-1]["prompts"]
            assert prompt["subtype"] == name
            assert prompt["semantic_id_key"] == {"semantic_id": 1}
            ends = [prompt["prompt"][0], prompt["prompt"][-1]]
            np.testing.assert_allclose(ends, [path[0], path[-1]], atol=2.0)
            assert len(prompt["prompt"]) == 2 if kind == "Box" else len(prompt["prompt"]) > 5
            assert viewer.prompts() == []  # a refused prompt does not stay
        viewer.button("Box")
        viewer.drag("mpr-axial", [path[0], beside_image])
        viewer.wait_for_popup(f"refusal {number + 1}")
        corner = series.to_voxel(bodies[-1]["prompts"][0]["prompt"][1])
        np.testing.assert_allclose(corner, (0, *centre[1:]), atol=1.0)


def test_an_older_server_takes_points_only(
    browser: Browser, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    series = SERIES[0]
    i, j, k = voxel_at(series, PLACES["mpr-axial"])
    routes = {"**/info/": without_interactions}
    with open_prompt_viewer(browser, server.url, uids[series.name][0], routes) as viewer:
        reply = viewer.press("mpr-axial", series.to_lps((i, j, k)))
        assert len(sent(reply)["foreground"]) == 1
        viewer.button("Lasso")
        viewer.drag("mpr-axial", [series.to_lps(voxel) for voxel in ((i, j, k), (i + 9, j, k))])
        viewer.wait_for_popup("takes points only")
        assert viewer.prompts() == ["1. + Point"]


# --- where the mask may be wrong ------------------------------------------------------------------


@on(SERIES[0], SERIES[-1])
def test_uncertainty_lies_over_its_voxels(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict
) -> None:
    """All planes show the server's map in its place; off by default, and again with the key."""
    voxel = voxel_at(series, PLACES["mpr-axial"])
    off = (voxel[0] + 2, voxel[1] + 3, voxel[2] + 2)
    viewer.press("mpr-axial", series.to_lps(voxel))
    assert len(viewer.overlay("mpr-axial")[0]) == 0
    with viewer.page.expect_response(asks_for("uncertainty")):
        viewer.page.keyboard.press("u")
    viewer.wait_for_overlay(shown=True)
    with viewer.page.expect_response(asks_for("uncertainty")):  # of the mask after the next press
        viewer.press("mpr-axial", series.to_lps(off), how="ctrl")
    viewer.page.locator(".fs button[aria-busy=false]", has_text="Uncertainty").wait_for()
    reply = server_reply(server, uids[series.name][1], [(1, voxel), (0, off)], ["uncertainty"])
    uncertainty = array_of(reply, "uncertainty", series)
    assert all(np.abs(uncertainty - np.flip(uncertainty, axis)).max() > 50 for axis in range(3))
    peak = np.unravel_index(ndimage.minimum_filter(uncertainty, 3).argmax(), series.shape_ijk)
    viewer.show(series.to_lps(tuple(map(int, peak))))
    for plane in PLANES:
        points, rgba = viewer.overlay(plane)
        least, most = around(uncertainty, points, series)
        assert (least > 60).sum() > 5, plane
        assert (rgba[least > 60, 3] > 60).mean() > 0.98, plane
        assert (rgba[most < 3, 3] < 10).mean() > 0.98, plane
    viewer.page.screenshot(path=ARTIFACTS / f"uncertainty-{series.name.replace(' ', '-')}.png")
    viewer.page.keyboard.press("u")
    viewer.wait_for_overlay(shown=False)


@ONE
def test_the_next_place_worth_a_click(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict
) -> None:
    """Each press of the key leads all planes to the next place of the server and marks it."""
    voxel = voxel_at(series, PLACES["mpr-axial"])
    viewer.press("mpr-axial", series.to_lps(voxel))
    reply = server_reply(server, uids[series.name][1], [(1, voxel)], ["next_click"])
    places = json.loads(reply.headers["X-Mask-Box"])["next_click"]["places_ijk"]
    for number, place in enumerate([*places, places[0]]):
        viewer.page.keyboard.press("n")
        viewer.page.locator(f".fs [data-place='{number % len(places) + 1}']").wait_for()
        assert max(viewer.off_planes_mm(series.to_lps(place))) < 0.1
        for plane in PLANES:
            points, rgba = viewer.overlay(plane)
            ring = points[rgba[:, 3] > 100]
            np.testing.assert_allclose(ring.mean(axis=0), series.to_lps(place), atol=4.0)
    assert viewer.prompts() == ["1. + Point"]
    viewer.press("mpr-axial", series.to_lps(beside(series, voxel, 12.0)))
    viewer.wait_for_overlay(shown=False)


# --- around ---------------------------------------------------------------------------------------


@ONE
def test_messages_of_the_server_are_shown(viewer: PromptViewer, series: SampleSeries) -> None:
    """A warning comes with its mask; an error leaves prompts and mask as they were."""
    i, j, k = voxel_at(series, PLACES["mpr-axial"])
    viewer.press("mpr-axial", series.to_lps((i, j, k)))
    reply = viewer.press("mpr-axial", series.to_lps((i, -8, k)))
    viewer.wait_for_popup("outside")
    count = 2 if reply.status == 200 else 1  # a list of prompts is refused, clicks are left out
    assert len(viewer.prompts()) == count

    before = on_stored_grid(viewer, series)
    refusal = {"detail": "the server is being tested"}
    viewer.page.route("**/infer/**", lambda route: route.fulfill(status=400, json=refusal))
    viewer.press("mpr-axial", series.to_lps((i + 4, j, k)))
    viewer.wait_for_popup("the server is being tested")
    assert len(viewer.prompts()) == count
    np.testing.assert_array_equal(on_stored_grid(viewer, series), before)


@ONE
def test_keys_are_listed(viewer: PromptViewer, series: SampleSeries) -> None:
    viewer.page.keyboard.press("?")
    viewer.page.get_by_text("smaller or larger answer").wait_for()
    viewer.page.keyboard.press("?")
    viewer.page.get_by_text("smaller or larger answer").wait_for(state="hidden")


@ONE
def test_no_other_host_is_asked(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer
) -> None:
    viewer.press("mpr-axial", series.to_lps(voxel_at(series, PLACES["mpr-axial"])))
    assert viewer.hosts <= {urlsplit(server.url).netloc, ""}  # "": data and blob URLs


def test_leaving_and_entering_again(
    browser: Browser, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    """The list shows the studies; a study that is opened a second time works as the first time."""
    series = SERIES[0]
    study_uid, series_uid = uids[series.name]
    voxel = voxel_at(series, PLACES["mpr-axial"])
    with open_prompt_viewer(browser, server.url, study_uid) as viewer:
        viewer.press("mpr-axial", series.to_lps(voxel))
        viewer.page.once("dialog", lambda dialog: dialog.accept())  # unsaved work is asked about
        viewer.page.locator('[data-cy="return-to-work-list"]').click()
        viewer.page.get_by_text(patient_of(server, study_uid)).first.wait_for()
        viewer.page.go_back()
        viewer.wait_until_ready()
        # a press takes the place of work that is not restored within some seconds
        check_becomes(viewer, series, server_mask(server, series_uid, [voxel]))
        second = beside(series, voxel, 20.0)
        viewer.press("mpr-axial", series.to_lps(second))
        assert viewer.prompts() == ["1. + Point", "2. + Point"]
        check_becomes(viewer, series, server_mask(server, series_uid, [voxel, second]))
        assert viewer.errors == []


def test_saving_and_loading_again(
    browser: Browser, server: RunningServer, pacs: Orthanc, tmp_path: Path
) -> None:
    """The DICOM-SEG has the voxels that the viewer shows; the page has them after a reload."""
    series = SampleSeries(
        "oblique, saved", "MR", "LPS", (88, 80, 56), (4.4, 4.2, 5.5), seed=15, turned=True
    )
    study_uid, series_uid = series.write(tmp_path)
    pacs.upload(tmp_path)
    with open_prompt_viewer(browser, server.url, study_uid) as viewer:
        for number, shares in ((2, PLACES["mpr-axial"]), (5, PLACES["mpr-coronal"])):
            viewer.choose_by_key(number)
            viewer.press("mpr-axial", series.to_lps(voxel_at(series, shares)))
        viewer.button("Save •")
        viewer.wait_for_popup("The label is saved: organ, bone")
        shown = on_stored_grid(viewer, series)
        assert set(np.unique(shown)) == {0, 2, 5}
        (segmentation,) = stored_segmentations(pacs, study_uid)
        names = [segment.SegmentLabel for segment in segmentation.SegmentSequence]
        for number, name in enumerate(names, start=1):
            expected = shown == {"organ": 2, "bone": 5}[name]
            np.testing.assert_array_equal(segment_ijk(segmentation, number, series), expected)

        viewer.page.reload()
        viewer.wait_until_ready()
        check_becomes(viewer, series, shown)
        viewer.choose("bone")
        assert viewer.prompts() == []  # they start from the label
    delete_series(pacs, segmentation.SeriesInstanceUID)
    delete_series(pacs, series_uid)


@ONE
def test_overwriting_and_taking_it_back(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, uids: dict
) -> None:
    """With the switch, a mask takes voxels of another structure; undo gives them back."""
    first = voxel_at(series, PLACES["mpr-axial"])
    second = beside(series, first, 25.0)
    viewer.press("mpr-axial", series.to_lps(first))
    before = on_stored_grid(viewer, series)
    viewer.choose("bone")
    switch = viewer.page.get_by_label("may take voxels")
    switch.check()
    viewer.press("mpr-axial", series.to_lps(second))
    bone = server_mask(server, uids[series.name][1], [second])
    after = np.where(bone, 5, before)
    assert ((before == 1) & (after == 5)).any()
    np.testing.assert_array_equal(on_stored_grid(viewer, series), after)
    viewer.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(on_stored_grid(viewer, series), before)
    viewer.page.keyboard.press("Control+y")
    np.testing.assert_array_equal(on_stored_grid(viewer, series), after)
    switch.uncheck()


def test_several_series_of_a_study(
    browser: Browser, server: RunningServer, pacs: Orthanc, tmp_path: Path
) -> None:
    """Each series has its own structures; going back to the first one shows its mask again."""
    several = [
        SampleSeries("first of two", "CT", "LPS", (80, 72, 50), (4.8, 4.6, 6.0), seed=31),
        SampleSeries("second of two", "CT", "PIR", (70, 60, 64), (4.8, 5.6, 6.0), seed=31),
    ]
    uids = [series.write(tmp_path / series.name) for series in several]
    assert uids[0][0] == uids[1][0]
    pacs.upload(tmp_path)
    try:
        with open_prompt_viewer(browser, server.url, uids[0][0]) as viewer:
            for number in (0, 1, 0):
                viewer.show_series(several[number].name)
                series, (_, image) = several[number], uids[number]
                voxel = voxel_at(series, PLACES["mpr-axial"])
                if not viewer.prompts():
                    viewer.press("mpr-axial", series.to_lps(voxel))
                assert viewer.prompts() == ["1. + Point"]
                expected = server_mask(server, image, [voxel])
                np.testing.assert_array_equal(on_stored_grid(viewer, series), expected)
                check_drawn(viewer, series, voxel)
            assert viewer.errors == []
    finally:
        for _, image in uids:
            delete_series(pacs, image)


def test_the_list_opens_a_study_with_our_mode(
    browser: Browser, server: RunningServer, uids: dict[str, tuple[str, str]]
) -> None:
    context = browser.new_context(viewport=WINDOW)
    viewer = PromptViewer(context.new_page())
    viewer.page.goto(f"{server.url}/viewer/")
    study_uid, _ = uids[SERIES[0].name]
    viewer.page.get_by_text(patient_of(server, study_uid)).first.dblclick()
    viewer.wait_until_ready()
    assert "/viewer/fastsam3d" in viewer.page.url
    assert study_uid in viewer.page.url
    context.close()


@pytest.mark.parametrize(
    "file",
    [*(pytest.param(file, marks=pytest.mark.slow) for file in FILES[:-1]), FILES[-1]],
    ids=[file.name for file in FILES],
)
def test_a_file_of_a_folder(
    browser: Browser, ball_server: RunningServer, tmp_path: Path, file: SampleSeries
) -> None:
    """The mask lands on the file's own grid, for every order and direction of its axes."""
    name = f"viewer-{file.name.replace(' ', '-')}"
    image, _ = torso.sample(file.shape_ijk, file.affine_mm, seed=file.seed, supersample=1)
    stored = image.astype(np.int16) if file.modality == "CT" else image.astype(np.float32) * 0.37
    nibabel.save(nibabel.Nifti1Image(stored, file.affine_mm), tmp_path / f"{name}.nii.gz")
    ball_server.add_study(tmp_path / f"{name}.nii.gz", name)
    query = {"PatientID": name}
    studies = requests.get(f"{ball_server.url}/dicom-web/studies", query, timeout=30).json()
    (study_uid,) = (study["0020000D"]["Value"][0] for study in studies)
    with open_prompt_viewer(browser, ball_server.url, study_uid) as viewer:
        check_presses(viewer, file, ball_server, name)
        viewer.button("Save •")
        viewer.wait_for_popup("The label is saved")
        np.testing.assert_array_equal(saved_label(ball_server, name), on_stored_grid(viewer, file))
        assert viewer.errors == []


def saved_label(server: RunningServer, image: str) -> np.ndarray:
    """Return the label (I, J, K) that the server has for an image of its folder."""
    query = {"label": image, "tag": "final"}
    reply = requests.get(f"{server.url}/datastore/label", query, timeout=60)
    with tempfile.NamedTemporaryFile(suffix=".nrrd") as file:
        file.write(reply.content)
        file.flush()
        label = sitk.ReadImage(file.name)
    stored = sitk.ReadImage(str(Path(server.studies, f"{image}.nii.gz")))
    np.testing.assert_allclose(itk_affine(label), itk_affine(stored), atol=1e-3)
    return sitk.GetArrayFromImage(label).T
