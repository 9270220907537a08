"""Saving from the viewer at /viewer/ to a PACS, and starting from what others stored there."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
import requests
from highdicom.seg import (
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
    segread,
)
from playwright.sync_api import Browser
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from series import SampleSeries
from test_ohif import segment_ijk, stored_segmentations
from viewer_checks import PLACES, check_becomes, on_stored_grid, voxel_at
from viewer_page import PromptViewer, open_prompt_viewer

from orthanc import Orthanc
from pacs import delete_series, stored_instances
from serving import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

SERIES = SampleSeries("to be saved", "CT", "LIP", (80, 60, 46), (4.8, 5.0, 6.6), seed=81)


@pytest.fixture(scope="module")
def uids(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Store a series of a study of its own; yield the UIDs of both."""
    folder = tmp_path_factory.mktemp("saving")
    study_uid, series_uid = SERIES.write(folder)
    pacs.upload(folder)
    yield study_uid, series_uid
    for segmentation in stored_segmentations(pacs, study_uid):
        delete_series(pacs, segmentation.SeriesInstanceUID)
    delete_series(pacs, series_uid)


@pytest.fixture
def viewer(
    browser: Browser, server: RunningServer, uids: tuple[str, str]
) -> Iterator[PromptViewer]:
    with open_prompt_viewer(browser, server.url, uids[0]) as viewer:
        yield viewer
        assert viewer.errors == []


def test_a_segmentation_of_others_is_what_prompts_start_from(
    viewer: PromptViewer, pacs: Orthanc, uids: tuple[str, str]
) -> None:
    """It is on the PACS alone; its structures are drawn voxel for voxel, under their names."""
    drawn = np.zeros(SERIES.shape_ijk, np.uint8)
    drawn[20:34, 24:30, 10:17] = 1
    drawn[40:50, 30:39, 20:31] = 2
    store_segmentation(pacs, uids[1], drawn, ["Cyst", "Nodule"])
    viewer.page.reload()
    viewer.wait_until_ready()
    assert not on_stored_grid(viewer, SERIES).any()  # nobody chose it
    viewer.button("by another program")
    viewer.page.locator(".fs li[data-segment]", has_text="Nodule").wait_for()
    numbers = {name: segment_number(viewer, name) for name in ("Cyst", "Nodule")}
    expected = np.select([drawn == 1, drawn == 2], [numbers["Cyst"], numbers["Nodule"]])
    check_becomes(viewer, SERIES, expected.astype(np.uint8))
    viewer.choose("Nodule")
    viewer.press("mpr-axial", SERIES.to_lps((45, 40, 25)))
    assert on_stored_grid(viewer, SERIES)[45, 40, 25] == numbers["Nodule"]
    viewer.page.keyboard.press("Control+z")
    viewer.page.keyboard.press("Control+z")
    check_becomes(viewer, SERIES, np.zeros(SERIES.shape_ijk, np.uint8))


def test_the_menu_of_the_segment_table_saves_as_save_does(
    viewer: PromptViewer, server: RunningServer, pacs: Orthanc, uids: tuple[str, str]
) -> None:
    """One DICOM-SEG on the PACS, which pydicom and highdicom read voxel for voxel; one label."""
    study_uid, series_uid = uids
    before = {each.SOPInstanceUID for each in stored_segmentations(pacs, study_uid)}
    for number, shares in ((2, PLACES["mpr-axial"]), (5, PLACES["mpr-coronal"])):
        viewer.choose_by_key(number)
        viewer.press("mpr-axial", SERIES.to_lps(voxel_at(SERIES, shares)))
    shown = on_stored_grid(viewer, SERIES)
    assert set(np.unique(shown)) == {0, 2, 5}
    export(viewer, "DICOM SEG")
    viewer.wait_for_popup("The label is saved: organ, bone")
    assert viewer.page.get_by_role("dialog").count() == 0
    stored = stored_segmentations(pacs, study_uid)
    (segmentation,) = (each for each in stored if each.SOPInstanceUID not in before)
    names = [segment.SegmentLabel for segment in segmentation.SegmentSequence]
    assert names == ["organ", "bone"]
    for number, value in ((1, 2), (2, 5)):
        np.testing.assert_array_equal(segment_ijk(segmentation, number, SERIES), shown == value)
    np.testing.assert_array_equal(read_by_highdicom(segmentation, pacs, series_uid), shown)

    label = requests.get(
        f"{server.url}/datastore/label/info", {"label": series_uid, "tag": "final"}, timeout=30
    ).json()
    assert label["voxels"] == np.count_nonzero(shown) and label["interactions"] >= 2
    viewer.page.get_by_role("button", name="Save", exact=True).wait_for()
    export(viewer, "DICOM SEG")  # nothing has changed
    viewer.wait_for_popup("Nothing has changed")
    assert len(stored_segmentations(pacs, study_uid)) == len(stored)


def export(viewer: PromptViewer, name: str) -> None:
    """Choose an entry of the menu Export in OHIF's own segment table."""
    page = viewer.page
    page.locator('[data-cy="panelSegmentationWithToolsLabelMap-btn"]').click()
    page.locator('[data-cy="segmentation-collapsed-more-btn-Labelmap"]').click()
    page.get_by_role("menuitem", name="Export").click()
    page.get_by_role("menuitem", name=name).click()
    while page.get_by_role("menu").count():  # OHIF leaves it open
        page.keyboard.press("Escape")
        page.wait_for_timeout(200)
    page.locator('[data-cy="prompts-btn"]').click()


def segment_number(viewer: PromptViewer, name: str) -> int:
    row = viewer.page.locator(".fs li[data-segment]", has_text=name)
    return int(row.get_attribute("data-segment") or 0)


def store_segmentation(pacs: Orthanc, series_uid: str, drawn: np.ndarray, names: list[str]) -> None:
    """Store a label map (I, J, K) as another program would, with highdicom."""
    slices = stored_instances(pacs, series_uid)
    frames = [
        drawn[:, :, round(float(SERIES.to_voxel(each.ImagePositionPatient)[2]))].T
        for each in slices
    ]
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, start=1)
    ]
    segmentation = Segmentation(
        source_images=slices,
        pixel_array=np.stack(frames),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=7,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Another",
        manufacturer_model_name="Another",
        software_versions="1",
        device_serial_number="1",
        series_description="by another program",
    )
    file = io.BytesIO()
    segmentation.save_as(file)
    requests.post(f"{pacs.url}/instances", file.getvalue(), timeout=60).raise_for_status()


def read_by_highdicom(segmentation: pydicom.Dataset, pacs: Orthanc, series_uid: str) -> np.ndarray:
    """Return the label values (I, J, K) that highdicom reads for the slices of the series."""
    file = io.BytesIO()
    segmentation.save_as(file)
    file.seek(0)
    read = segread(file)
    slices = stored_instances(pacs, series_uid)
    uids = [each.SOPInstanceUID for each in slices]
    masks = read.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    values = np.zeros(SERIES.shape_ijk, np.uint8)
    for each, planes in zip(slices, masks, strict=True):
        k = round(float(SERIES.to_voxel(each.ImagePositionPatient)[2]))
        for number, value in ((0, 2), (1, 5)):
            values[:, :, k][planes[..., number].T > 0] = value
    return values
