"""A folder of files answers DICOMweb: exact geometry, exact voxels, search."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import requests
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from lib.errors import InputError
from lib.imaging.affine import RAS_TO_LPS
from lib.imaging.volume import Volume
from lib.server.folder_series import pixel_scale, slice_axes
from serving import RunningServer

SHAPE = (7, 5, 9)
SPACING_MM = (0.8, 2.5, 1.7)
TURN = Rotation.from_euler("xyz", (17, -11, 23), degrees=True).as_matrix()


def affine(axes: np.ndarray) -> np.ndarray:
    """Return an affine to RAS mm whose columns are these unit vectors."""
    affine_mm = np.eye(4)
    affine_mm[:3, :3] = axes * SPACING_MM
    affine_mm[:3, 3] = (-31.25, 14.5, 7.75)
    return affine_mm


ORDERS = {
    "identity": np.eye(3),
    "left-handed": np.diag([1.0, -1.0, 1.0]),
    "reversed": np.diag([-1.0, -1.0, -1.0]),
    "sagittal": np.eye(3)[:, [1, 2, 0]] * [-1, 1, 1],
    "oblique": TURN,
    "oblique, left-handed": TURN[:, [0, 2, 1]],
}


def volume(array: np.ndarray, affine_mm: np.ndarray | None = None) -> Volume:
    return Volume(array, np.eye(4) if affine_mm is None else affine_mm, is_ct=False)


@pytest.mark.parametrize("name", ORDERS)
def test_axes_are_those_of_the_file(name: str) -> None:
    affine_lps = affine(ORDERS[name])
    axes, spacing_mm = slice_axes(affine_lps, SHAPE, "a")
    np.testing.assert_allclose(axes * spacing_mm, affine_lps[:3, :3], atol=1e-9)


def test_a_sheared_grid_is_refused() -> None:
    sheared = affine(np.eye(3))
    sheared[0, 2] += 0.1
    with pytest.raises(InputError, match='"a" has axes that are not at right angles'):
        slice_axes(sheared, SHAPE, "a")


@pytest.mark.parametrize("dtype", ("int16", "uint8", "uint16", "int32", "float32"))
def test_values_survive(dtype: str) -> None:
    """Integers are exact; other values are off by at most half of a step, as the scale says."""
    generator = np.random.default_rng(1)
    low, high = {"int16": (-1024, 3071), "uint8": (0, 255), "uint16": (0, 65535)}.get(
        dtype, (-100_000, 100_000)
    )
    values = generator.uniform(low, high, SHAPE).astype(dtype)
    values[0, 0, :2] = low, high
    scale = pixel_scale(volume(values))
    pixels = scale.pixels(values)
    assert pixels.dtype == np.int16
    back = pixels * scale.slope + scale.intercept
    is_exact = dtype in ("int16", "uint8", "uint16")
    assert scale.slope == 1 if is_exact else scale.slope == pytest.approx(200_000 / 65535)
    np.testing.assert_allclose(back, values, atol=0 if is_exact else scale.slope / 2 + 1e-6, rtol=0)


@pytest.fixture(scope="module")
def stored(ball_server: RunningServer, tmp_path_factory) -> tuple[str, np.ndarray, np.ndarray]:
    """An oblique, left-handed file among the studies: its name, voxels and affine to RAS mm."""
    values = np.random.default_rng(2).integers(-1000, 2000, SHAPE).astype(np.int16)
    affine_mm = affine(ORDERS["oblique, left-handed"])
    path = tmp_path_factory.mktemp("file") / "viewer-oblique.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine_mm), path)
    ball_server.add_study(path, "viewer-oblique")
    return "viewer-oblique", values, nibabel.load(path).affine


def test_the_series_is_the_file(ball_server: RunningServer, stored) -> None:
    """Each pixel of each frame, put in its place by the headers alone, is the voxel there."""
    name, values, affine_mm = stored
    root = f"{ball_server.url}/dicom-web/studies"
    (study,) = requests.get(root, {"00100020": name}, timeout=30).json()
    study_url = f"{root}/{first(study, '0020000D')}"
    (series,) = requests.get(f"{study_url}/series", timeout=30).json()
    url = f"{study_url}/series/{first(series, '0020000E')}"
    headers = requests.get(f"{url}/metadata", timeout=30).json()
    assert len(headers) == SHAPE[2] == first(study, "00201208")
    (opened,) = requests.get(root, {"00100020": name}, timeout=30).json()
    assert not {"00080060", "00080061"} & set(study)  # its voxels had not been read
    assert first(opened, "00080061") == first(headers[0], "00080060") == "CT"
    for header in headers:
        row, column = np.reshape(header["00200037"]["Value"], (2, 3))
        between_rows, between_columns = header["00280030"]["Value"]
        corner = np.array(header["00200032"]["Value"])
        pixels = frame(f"{url}/instances/{first(header, '00080018')}/frames/1", header)
        for (y, x), value in np.ndenumerate(pixels):
            place_lps = corner + row * between_columns * x + column * between_rows * y
            voxel = apply_affine(np.linalg.inv(affine_mm), RAS_TO_LPS @ place_lps)
            np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-3)
            assert values[tuple(np.rint(voxel).astype(int))] == value


def frame(url: str, header: dict) -> np.ndarray:
    reply = requests.get(url, timeout=30)
    boundary = reply.headers["content-type"].rpartition("boundary=")[2].encode()
    part = reply.content.split(b"--" + boundary)[1]
    body = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
    rows, columns = first(header, "00280010"), first(header, "00280011")
    pixels = np.frombuffer(body, "<i2").reshape(rows, columns)
    return pixels * first(header, "00281053") + first(header, "00281052")


def first(dataset: dict, tag: str):
    return dataset[tag]["Value"][0]


def test_search(ball_server: RunningServer, stored) -> None:
    root = f"{ball_server.url}/dicom-web/studies"

    def names(**query: str) -> set[str]:
        return {first(s, "00100020") for s in requests.get(root, query, timeout=30).json()}

    assert names(PatientName="*OBLIQUE*") == {"viewer-oblique"}
    assert names(PatientName="nothing") == set()
    assert len(names(limit="1")) == 1
    assert not names(offset="100000")


def test_what_is_not_there_is_a_404(ball_server: RunningServer, stored) -> None:
    for path in ("studies/1.2/metadata", "patients", "studies/1/series/2/instances/3/frames/1"):
        reply = requests.get(f"{ball_server.url}/dicom-web/{path}", timeout=30)
        assert reply.status_code == 404, path
        assert reply.json()["detail"]


def test_the_image_of_a_series(ball_server: RunningServer, stored) -> None:
    root = f"{ball_server.url}/dicom-web/series"
    (series,) = requests.get(root, {"PatientID": stored[0]}, timeout=30).json()
    url = f"{ball_server.url}/viewer/series/{first(series, '0020000E')}"
    assert requests.get(url, timeout=30).json() == {"image": stored[0]}


def test_stored_labels_of_a_series(ball_server: RunningServer, stored, tmp_path) -> None:
    """They are listed with their structures, and come with their place on the file's own grid."""
    name, _, affine_mm = stored
    root = f"{ball_server.url}/dicom-web/series"
    (series,) = requests.get(root, {"PatientID": name}, timeout=30).json()
    url = f"{ball_server.url}/viewer/series/{first(series, '0020000E')}/labels"
    assert requests.get(url, timeout=30).json() == []

    label = np.zeros(SHAPE, np.uint8)
    label[2:5, 1, 3:7] = 3
    label[5, 2:4, 4] = 9
    path = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(label, affine_mm), path)
    structures = [{"name": "organ", "idx": 3}, {"name": "bone", "idx": 9}]
    with path.open("rb") as file:
        requests.put(
            f"{ball_server.url}/datastore/label",
            params={"image": name, "tag": "draft"},
            files={"label": (path.name, file)},
            data={"params": json.dumps({"label_info": structures})},
            timeout=60,
        ).raise_for_status()
    draft = {"tag": "draft", "version": 1, "user": "", "structures": structures}
    assert requests.get(url, timeout=30).json() == [draft]

    reply = requests.get(f"{url}/draft", timeout=30)
    box = json.loads(reply.headers["X-Mask-Box"])
    inside = np.frombuffer(reply.content, np.uint8).reshape(box["size_ijk"][::-1]).T
    whole = np.zeros(SHAPE, np.uint8)
    for voxel, value in np.ndenumerate(inside):
        place_lps = apply_affine(np.array(box["affine_lps"]), voxel)
        there = apply_affine(np.linalg.inv(affine_mm), RAS_TO_LPS @ place_lps)
        whole[tuple(np.rint(there).astype(int))] = value
    np.testing.assert_array_equal(whole, label)
    assert requests.get(f"{url}/final", timeout=30).status_code == 404
