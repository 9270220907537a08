"""OHIF's clicks through the real server on a real Orthanc: the mask is where the user clicked.

The weights draw a ball at each click (`tests/data/make_click_ball.py`). The expected mask is thus
known in space, without the geometry code of this project or of OHIF.
"""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from ohif_page import PLANES, PointPromptsRun, Viewer
from playwright.sync_api import Route
from series import SERIES, SampleSeries

from lib.imaging.mask import dice
from orthanc import Orthanc
from serving import RunningServer

pytestmark = pytest.mark.browser


def on(
    *, fast: tuple[SampleSeries, ...], slow: tuple[SampleSeries, ...] = ()
) -> pytest.MarkDecorator:
    """Run a test on each series; the fast suite leaves the slow ones out.

    The place of a mask depends on the geometry of the series, so the fast suite clicks on all of
    them. What the buttons do does not depend on it, so one series or two show it there.
    """
    params = [pytest.param(series, id=series.name) for series in fast]
    params += [pytest.param(series, id=series.name, marks=pytest.mark.slow) for series in slow]
    return pytest.mark.parametrize("series", params, indirect=True, scope="module")


ALL = on(fast=SERIES)
ENDS = on(fast=(SERIES[0], SERIES[-1]), slow=SERIES[1:-1])
ONE = on(fast=SERIES[:1], slow=SERIES[1:])


Voxel = tuple[int, int, int]

RADIUS_MM = 20.0
VOXEL_MM = 6.0
"""VOXEL_MM: margin at the surface of the ball, which consists of voxels on the screen."""

PLACES = {
    "mpr-axial": (0.30, 0.60, 0.35),
    "mpr-sagittal": (0.65, 0.38, 0.62),
    "mpr-coronal": (0.38, 0.66, 0.70),
}
"""PLACES: where to click in each plane, off centre, as shares of the volume's lengths."""


@ENDS
@pytest.mark.parametrize("plane", PLANES[1:])
def test_a_click_in_the_other_planes(
    viewer: Viewer,
    series: SampleSeries,
    server: RunningServer,
    uids: dict[str, tuple[str, str]],
    plane: str,
) -> None:
    check_click(viewer, series, server, uids, plane)


@ALL
def test_a_click_in_the_first_plane(
    viewer: Viewer,
    series: SampleSeries,
    server: RunningServer,
    uids: dict[str, tuple[str, str]],
) -> None:
    check_click(viewer, series, server, uids, PLANES[0])


def check_click(
    viewer: Viewer,
    series: SampleSeries,
    server: RunningServer,
    uids: dict[str, tuple[str, str]],
    plane: str,
) -> None:
    """Click in a plane; request, labelmap and drawn planes must agree with the click."""
    voxel = voxel_at(series, PLACES[plane])
    viewer.choose("organ")
    viewer.click(plane, series.to_lps(voxel))
    run = viewer.press_run()

    assert run.image == uids[series.name][1]
    assert run.params["foreground"] == [list(voxel)]
    assert run.params["background"] == []
    check_ball(viewer, series, voxel)
    check_drawn(viewer, series, voxel)
    np.testing.assert_array_equal(
        viewer.labelmap(), viewer.segment("organ") * server_mask(server, series, run)
    )


@ONE
def test_more_clicks_refine(viewer: Viewer, series: SampleSeries) -> None:
    first = voxel_at(series, PLACES["mpr-axial"])
    second, third = beside(series, first, 30.0), beside(series, first, -16.0)
    viewer.choose("organ")
    viewer.click("mpr-axial", series.to_lps(first))
    viewer.press_run()
    one_click = viewer.labelmap()

    viewer.click("mpr-axial", series.to_lps(second))
    run = viewer.press_run()
    assert run.params["foreground"] == [list(first), list(second)]
    two_clicks = viewer.labelmap()
    assert not one_click[second]
    assert two_clicks[first] and two_clicks[second]

    viewer.choose("background")
    viewer.click("mpr-axial", series.to_lps(third))
    viewer.choose("organ")
    run = viewer.press_run()
    assert run.params["background"] == [list(third)]
    assert two_clicks[third] and not viewer.labelmap()[third]
    assert viewer.labelmap()[second]


@ONE
def test_a_second_label_keeps_the_first(
    viewer: Viewer, series: SampleSeries, server: RunningServer
) -> None:
    first = voxel_at(series, PLACES["mpr-axial"])
    second = beside(series, first, 25.0)
    viewer.choose("organ")
    viewer.click("mpr-axial", series.to_lps(first))
    organ = server_mask(server, series, viewer.press_run())

    viewer.choose("bone")
    viewer.click("mpr-axial", series.to_lps(second))
    run = viewer.press_run()
    assert run.params["foreground"] == [list(second)]
    bone = server_mask(server, series, run)
    assert (organ & bone).any()  # otherwise the first label has nothing to lose
    expected = np.where(organ, viewer.segment("organ"), bone * viewer.segment("bone"))
    np.testing.assert_array_equal(viewer.labelmap(), expected)


@ONE
def test_clear_points_and_run(viewer: Viewer, series: SampleSeries) -> None:
    voxel = voxel_at(series, PLACES["mpr-axial"])
    viewer.choose("organ")
    viewer.click("mpr-axial", series.to_lps(voxel))
    viewer.press_run()
    before = viewer.labelmap()

    viewer.clear("Clear Points")
    assert viewer.press_run().status == 400
    np.testing.assert_array_equal(viewer.labelmap(), before)

    other = voxel_at(series, PLACES["mpr-coronal"])
    viewer.click("mpr-axial", series.to_lps(other))
    assert viewer.press_run().params["foreground"] == [list(other)]
    check_ball(viewer, series, other)


# A flip along i is in the fast suite; those along j and k take the same path.
@on(fast=SERIES[:1])
@pytest.mark.parametrize(
    "axis",
    [
        pytest.param(0, id="i"),
        pytest.param(1, id="j", marks=pytest.mark.slow),
        pytest.param(2, id="k", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_mask_is_noticed(viewer: Viewer, series: SampleSeries, axis: int) -> None:
    """The checks fail if the mask is flipped along an axis on its way to the viewer."""
    voxel = voxel_at(series, PLACES["mpr-axial"])
    viewer.choose("organ")
    viewer.click("mpr-axial", series.to_lps(voxel))
    viewer.page.route("**/infer/**", lambda route: answer_flipped(route, series, axis))
    viewer.press_run()
    viewer.page.unroute("**/infer/**")
    for check in (check_ball, check_drawn):
        with pytest.raises(AssertionError):
            check(viewer, series, voxel)


@ENDS
def test_a_label_is_saved(
    viewer: Viewer, series: SampleSeries, pacs: Orthanc, uids: dict[str, tuple[str, str]]
) -> None:
    """The DICOM-SEG in Orthanc has the voxels that the viewer shows, in the same place."""
    for label, place in (("organ", "mpr-axial"), ("bone", "mpr-coronal")):
        viewer.choose(label)
        viewer.click("mpr-axial", series.to_lps(voxel_at(series, PLACES[place])))
        viewer.press_run()
    viewer.page.get_by_text("Save Label", exact=True).click()
    viewer.wait_for_popup("The label is saved")

    (segmentation,) = stored_segmentations(pacs, uids[series.name][0])
    names = [segment.SegmentLabel for segment in segmentation.SegmentSequence]
    assert sorted(names) == ["bone", "organ"]
    for number, name in enumerate(names, start=1):
        expected = viewer.labelmap() == viewer.segment(name)
        np.testing.assert_array_equal(segment_ijk(segmentation, number, series), expected)


@on(fast=SERIES[:1])
def test_the_viewer_shows_the_messages_of_the_server(viewer: Viewer, series: SampleSeries) -> None:
    voxel = voxel_at(series, PLACES["mpr-axial"])
    viewer.press_run()
    viewer.wait_for_popup("there is no click")

    viewer.choose("background")
    viewer.click("mpr-axial", series.to_lps(voxel))
    viewer.press_run()
    viewer.wait_for_popup("there are only background clicks")

    viewer.clear()
    viewer.choose("organ")
    viewer.click("mpr-axial", series.to_lps(voxel))
    outside = (voxel[0], -8, voxel[2])
    viewer.click("mpr-axial", series.to_lps(outside))
    run = viewer.press_run()
    viewer.wait_for_popup("outside the image")
    assert run.params["foreground"] == [list(voxel), list(outside)]
    check_ball(viewer, series, voxel)


# --- checks ---------------------------------------------------------------------------------------


def check_ball(viewer: Viewer, series: SampleSeries, voxel: Voxel) -> None:
    """Check that the labelmap is the ball around the voxel."""
    mask = viewer.labelmap() == viewer.segment("organ")
    ball = series.distance_mm(voxel) < RADIUS_MM
    assert mask[voxel]
    assert dice(mask, ball) > 0.9


def check_drawn(viewer: Viewer, series: SampleSeries, voxel: Voxel) -> None:
    """Check that all three planes through the voxel colour the ball around it, and only that."""
    centre = series.to_lps(voxel)
    viewer.show(centre)
    for plane in PLANES:
        points, coloured = viewer.see(plane)
        distances = np.linalg.norm(points - centre, axis=1)
        inside = distances < RADIUS_MM - VOXEL_MM
        assert inside.sum() > 20, plane
        assert coloured[inside].all(), plane
        assert not coloured[distances > RADIUS_MM + VOXEL_MM].any(), plane


# --- helpers --------------------------------------------------------------------------------------


def voxel_at(series: SampleSeries, shares: tuple[float, float, float]) -> Voxel:
    i, j, k = (int(share * length) for share, length in zip(shares, series.shape_ijk, strict=True))
    return i, j, k


def beside(series: SampleSeries, voxel: Voxel, distance_mm: float) -> Voxel:
    """Return the voxel at a distance along i."""
    i, j, k = voxel
    return i + round(distance_mm / series.spacing_mm[0]), j, k


def server_mask(server: RunningServer, series: SampleSeries, run: PointPromptsRun) -> np.ndarray:
    """Return the server's mask (I, J, K) uint8 for the same request; it lies on the series."""
    image = server.mask("fastsam3d", run.image, run.params)
    far = [length - 1 for length in series.shape_ijk]
    np.testing.assert_allclose(
        image.TransformIndexToPhysicalPoint(far), series.to_lps(tuple(far)), atol=0.01
    )
    return sitk.GetArrayFromImage(image).T


def stored_segmentations(pacs: Orthanc, study_uid: str) -> list[pydicom.Dataset]:
    """Return the DICOM-SEG objects in a study."""
    query = f"{pacs.dicomweb_url}/studies/{study_uid}/instances?Modality=SEG"
    instances = requests.get(query, timeout=30).json()
    uids = [instance["00080018"]["Value"][0] for instance in instances]
    lookup = f"{pacs.url}/tools/lookup"
    keys = [requests.post(lookup, data=uid, timeout=30).json()[0]["ID"] for uid in uids]
    files = [requests.get(f"{pacs.url}/instances/{key}/file", timeout=30) for key in keys]
    return [pydicom.dcmread(io.BytesIO(file.content)) for file in files]


def segment_ijk(segmentation: pydicom.Dataset, number: int, series: SampleSeries) -> np.ndarray:
    """Return a segment (I, J, K) bool, each frame at the slice of its stored position."""
    mask = np.zeros(series.shape_ijk, bool)
    frames = segmentation.PerFrameFunctionalGroupsSequence
    for frame, pixels in zip(frames, segmentation.pixel_array, strict=True):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            corner = frame.PlanePositionSequence[0].ImagePositionPatient
            i, j, k = np.rint(series.to_voxel(corner)).astype(int)
            assert (i, j) == (0, 0)
            mask[:, :, k] = pixels.T
    return mask


def answer_flipped(route: Route, series: SampleSeries, axis: int) -> None:
    """Send the server's reply to the viewer with the mask flipped along an axis."""
    reply = route.fetch()
    head, voxels = reply.body().split(b"\n\n", 1)
    mask_kji = np.frombuffer(voxels, np.uint8).reshape(series.shape_ijk[::-1])
    route.fulfill(response=reply, body=head + b"\n\n" + np.flip(mask_kji, 2 - axis).tobytes())
