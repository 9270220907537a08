"""Prompts in the viewer at /viewer/ that start from a stored label or from brush strokes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from playwright.sync_api import Browser
from series import SampleSeries
from viewer_checks import (
    PLACES,
    Voxel,
    array_of,
    beside,
    check_becomes,
    on_stored_grid,
    point_prompts,
    voxel_at,
)
from viewer_page import PromptViewer, open_prompt_viewer

import torso
from serving import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("viewer_package")]

FILE = SampleSeries("viewer-start", "CT", "LAS", (80, 72, 50), (4.4, 4.6, 6.0), seed=51)
ORGAN, BONE = 2, 5

BRUSH = """() => {
    for (const toolGroupId of ['default', 'mpr'])
        commandsManager.run('setToolActive', {toolName: 'CircularBrush', toolGroupId});
}"""


@pytest.fixture(scope="module")
def study_uid(ball_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Put a volume into the server's folder; return the StudyInstanceUID of its series."""
    path = tmp_path_factory.mktemp("start") / "scan.nii.gz"
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


def test_prompts_start_from_a_stored_label(
    viewer: PromptViewer, ball_server: RunningServer
) -> None:
    """The label is drawn as it is stored; prompts change one structure and keep the other."""
    label = np.zeros(FILE.shape_ijk, np.uint8)
    label[20:34, 24:30, 10:17] = ORGAN
    label[34:45, 24:36, 12:21] = BONE
    store(ball_server, label, {"organ": ORGAN, "bone": BONE}, tag="earlier")
    viewer.page.reload()
    viewer.wait_until_ready()
    viewer.button("earlier")
    check_becomes(viewer, FILE, label)

    viewer.choose("organ")
    assert viewer.prompts() == []
    add = (31, 31, 14)  # beside the organ's end, at the bone
    viewer.press("mpr-axial", FILE.to_lps(add))
    expected = started_mask(ball_server, [(ORGAN, add)], label)
    assert (expected == ORGAN).sum() != (label == ORGAN).sum()
    np.testing.assert_array_equal(expected == BONE, label == BONE)
    np.testing.assert_array_equal(on_stored_grid(viewer, FILE), expected)

    viewer.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(on_stored_grid(viewer, FILE), label)
    viewer.page.keyboard.press("Control+z")
    assert not on_stored_grid(viewer, FILE).any()
    viewer.page.keyboard.press("Control+y")
    np.testing.assert_array_equal(on_stored_grid(viewer, FILE), label)

    viewer.page.get_by_label("may take voxels").check()
    viewer.press("mpr-axial", FILE.to_lps(add))
    expected = started_mask(ball_server, [(ORGAN, add)], label, overwrite=True)
    assert (expected == BONE).sum() < (label == BONE).sum()
    np.testing.assert_array_equal(on_stored_grid(viewer, FILE), expected)


def test_brush_strokes_count(viewer: PromptViewer, ball_server: RunningServer) -> None:
    """The next prompt starts from the mask with the strokes, which is there again after undo."""
    first = voxel_at(FILE, PLACES["mpr-axial"])
    saved, unsaved = (
        viewer.page.get_by_role("button", name=name, exact=True) for name in ("Save", "Save •")
    )
    saved.wait_for()
    viewer.press("mpr-axial", FILE.to_lps(first))
    pressed = on_stored_grid(viewer, FILE)
    viewer.page.evaluate(BRUSH)
    stroke = [FILE.to_lps(beside(FILE, first, mm)) for mm in (60.0, 90.0)]
    viewer.button("Save •")
    saved.wait_for()
    viewer.drag("mpr-axial", stroke)
    unsaved.wait_for()
    between = beside(FILE, first, 75.0)
    viewer.wait_until(lambda: on_stored_grid(viewer, FILE)[between] == 1, "the stroke is there")
    painted = on_stored_grid(viewer, FILE)
    assert not pressed[between]

    viewer.button("Point")
    second = beside(FILE, first, 25.0)
    viewer.press("mpr-axial", FILE.to_lps(second))
    assert viewer.prompts() == ["1. + Point"]
    expected = started_mask(ball_server, [(1, second)], painted)
    assert expected[beside(FILE, first, 75.0)] == 1
    np.testing.assert_array_equal(on_stored_grid(viewer, FILE), expected)
    viewer.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(on_stored_grid(viewer, FILE), painted)
    viewer.press("mpr-axial", FILE.to_lps(second))
    np.testing.assert_array_equal(on_stored_grid(viewer, FILE), expected)


# --- helpers --------------------------------------------------------------------------------------


def as_file(label: np.ndarray, folder: str) -> Path:
    """Write a label (I, J, K) uint8 on the grid of the image; return the path."""
    path = Path(folder, "label.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, FILE.affine_mm), path)
    return path


def store(server: RunningServer, label: np.ndarray, numbers: dict[str, int], tag: str) -> None:
    """Save a label on the server, as 3D Slicer does."""
    info = {"label_info": [{"name": name, "idx": number} for name, number in numbers.items()]}
    query = {"image": FILE.name, "tag": tag}
    with tempfile.TemporaryDirectory() as folder, as_file(label, folder).open("rb") as file:
        requests.put(
            f"{server.url}/datastore/label",
            params=query,
            files={"label": ("label.nii.gz", file)},
            data={"params": json.dumps(info)},
            timeout=60,
        ).raise_for_status()


def started_mask(
    server: RunningServer,
    points: list[tuple[int, Voxel]],
    start: np.ndarray,
    overwrite: bool = False,
) -> np.ndarray:
    """Return the server's mask (I, J, K) uint8 for points that start from a mask."""
    params = {"prompts": point_prompts(points), "overwrite": overwrite}
    with tempfile.TemporaryDirectory() as folder, as_file(start, folder).open("rb") as file:
        reply = requests.post(
            f"{server.url}/infer/fastsam3d",
            params={"image": FILE.name, "output": "box"},
            files={"initial_mask": ("mask.nii.gz", file)},
            data={"params": json.dumps(params)},
            timeout=60,
        )
    assert reply.status_code == 200, reply.text
    return array_of(reply, "mask", FILE)
