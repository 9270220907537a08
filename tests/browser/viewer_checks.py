"""Compare the viewer's labelmap and its planes with the server's masks, each on its own grid."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import requests
import SimpleITK as sitk
from ohif_page import PLANES, TIMEOUT_MS
from playwright.sync_api import Response, Route
from scipy import ndimage
from series import LPS_TO_RAS, SampleSeries
from viewer_page import PromptViewer

from serving import RunningServer

RADIUS_MM = 20.0
VOXEL_MM = 6.0
"""VOXEL_MM: margin at the surface of the ball, which consists of voxels on the screen."""

PLACES = {
    "mpr-axial": (0.30, 0.60, 0.35),
    "mpr-sagittal": (0.65, 0.38, 0.62),
    "mpr-coronal": (0.38, 0.66, 0.70),
}
"""PLACES: where to press in each plane, off centre, as shares of the volume's lengths."""

Voxel = tuple[int, int, int]


def patient_of(server: RunningServer, study_uid: str) -> str:
    """Return the patient's ID of a study, as the list of studies shows it."""
    query = {"StudyInstanceUID": study_uid}
    (study,) = requests.get(f"{server.url}/dicom-web/studies", query, timeout=30).json()
    return str(study["00100020"]["Value"][0])


def check_presses(
    viewer: PromptViewer, series: SampleSeries, server: RunningServer, image: str
) -> None:
    """Press on a structure in each plane; labelmap and planes must agree with the server's masks.

    One press is enough in each plane. Each structure has an include and an exclude beside it along
    all axes, so that its mask has no symmetry.
    """
    expected = np.zeros(series.shape_ijk, np.uint8)
    for number, (plane, shares) in enumerate(PLACES.items(), start=1):
        voxel = voxel_at(series, shares)
        off = (voxel[0] + 2, voxel[1] + 3, voxel[2] + 2)
        viewer.choose_by_key(number)
        viewer.press(plane, series.to_lps(voxel))
        check_drawn(viewer, series, voxel)
        viewer.press(plane, series.to_lps(off), how="ctrl")
        mask = server_mask(server, image, [voxel], [off])
        assert all((mask != np.flip(mask, axis)).any() for axis in range(3))
        expected[(expected == 0) & (mask == 1)] = number
    np.testing.assert_array_equal(on_stored_grid(viewer, series), expected)


def check_drawn(viewer: PromptViewer, series: SampleSeries, voxel: Voxel) -> None:
    """Check that all three planes through the voxel colour the ball around it."""
    centre = series.to_lps(voxel)
    viewer.show(centre)
    for plane in PLANES:
        points, coloured = viewer.see(plane)
        inside = np.linalg.norm(points - centre, axis=1) < RADIUS_MM - VOXEL_MM
        assert inside.sum() > 20, plane
        assert coloured[inside].mean() > 0.98, plane  # a crosshair's line may cross it


def check_becomes(viewer: PromptViewer, series: SampleSeries, expected: np.ndarray) -> None:
    """Check that the labelmap becomes this one, once the requests that run are answered."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while time.monotonic() < deadline:
        if (on_stored_grid(viewer, series) == expected).all():
            return
        viewer.page.wait_for_timeout(200)
    np.testing.assert_array_equal(on_stored_grid(viewer, series), expected)


def on_stored_grid(viewer: PromptViewer, series: SampleSeries) -> np.ndarray:
    """Return the viewer's segment numbers (I, J, K) uint8 on the stored grid of the series."""
    labels, affine_lps = viewer.labelmap()
    viewed = np.argwhere(labels)
    stored = np.zeros(series.shape_ijk, np.uint8)
    if len(viewed):
        places = viewed @ affine_lps[:3, :3].T + affine_lps[:3, 3]
        voxels = np.array([series.to_voxel(place) for place in places])
        np.testing.assert_allclose(voxels, np.rint(voxels), atol=0.05)
        stored[tuple(np.rint(voxels).astype(int).T)] = labels[tuple(viewed.T)]
    return stored


def server_mask(
    server: RunningServer, image: str, include: list[Voxel], exclude: list[Voxel] | None = None
) -> np.ndarray:
    """Return the server's mask (I, J, K) uint8 for clicks at voxels of the stored grid."""
    clicks = {"foreground": list(map(list, include)), "background": list(map(list, exclude or []))}
    mask = server.mask("fastsam3d", image, clicks)
    return sitk.GetArrayFromImage(mask).T


def voxel_at(series: SampleSeries, shares: tuple[float, float, float]) -> Voxel:
    i, j, k = (int(share * length) for share, length in zip(shares, series.shape_ijk, strict=True))
    return i, j, k


def beside(series: SampleSeries, voxel: Voxel, distance_mm: float) -> Voxel:
    """Return the voxel at a distance along i."""
    i, j, k = voxel
    return i + round(distance_mm / series.spacing_mm[0]), j, k


def asks_for(output: str) -> Callable[[Response], bool]:
    """Return whether a response answers a request for an output."""
    return lambda response: f'"{output}"' in (response.request.post_data or "")


def server_reply(
    server: RunningServer,
    image: str,
    points: list[tuple[int, Voxel]],
    outputs: list[str],
) -> requests.Response:
    """Return the server's box for points, each with its semantic_id, in their order."""
    params = {"prompts": point_prompts(points), "outputs": outputs}
    reply = server.infer("fastsam3d", image, params, output="box")
    assert reply.status_code == 200, reply.text
    return reply


def point_prompts(points: list[tuple[int, Voxel]]) -> list[dict]:
    """Return the ordered prompts of points, each with its semantic_id."""
    return [
        {
            "type": "spatial",
            "subtype": "point",
            "prompt": list(voxel),
            "semantic_id_key": {"semantic_id": number},
        }
        for number, voxel in points
    ]


def array_of(reply: requests.Response, name: str, series: SampleSeries) -> np.ndarray:
    """Return an array of a box on the stored grid of the series, (I, J, K) uint8."""
    box = json.loads(reply.headers["X-Mask-Box"])
    size, offset = box["size_ijk"], box["offset_ijk"]
    arrays = np.frombuffer(reply.content, np.uint8).reshape(len(box["arrays"]), *size[::-1])
    stored = np.zeros(series.shape_ijk, np.uint8)
    inside = tuple(slice(start, start + count) for start, count in zip(offset, size, strict=True))
    stored[inside] = arrays[box["arrays"].index(name)].T
    return stored


def around(
    values: np.ndarray, points: np.ndarray, series: SampleSeries
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest of the voxels (I, J, K) around each point (N, 3) LPS mm."""
    affine = np.linalg.inv(LPS_TO_RAS @ series.affine_mm)
    places = points @ affine[:3, :3].T + affine[:3, 3]
    return tuple(
        ndimage.map_coordinates(
            extreme(values, 3, mode="constant"), places.T, order=0, mode="grid-constant"
        )
        for extreme in (ndimage.minimum_filter, ndimage.maximum_filter)
    )


def sent(reply: Response) -> dict:
    return params_of(reply.request.post_data or "")


def params_of(form: str) -> dict:
    """Return the JSON of the form field params."""
    (line,) = (line for line in form.splitlines() if line.startswith("{"))
    return json.loads(line)


def with_interactions(route: Route) -> None:
    """Answer as a server that takes ordered prompts."""
    reply = route.fetch()
    route.fulfill(response=reply, json={**reply.json(), "interactions": {"spatial": ["point"]}})


def without_interactions(route: Route) -> None:
    """Answer as a server that takes clicks alone."""
    reply = route.fetch()
    info = reply.json()
    for described in (info, *info["models"].values()):
        described.pop("interactions", None)
    route.fulfill(response=reply, json=info)
