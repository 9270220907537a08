"""Take the pictures of /viewer/ in docs from a real run: start `make serve`, then

    PYTHONPATH=sample-data:tools:tests .venv/bin/python tests/browser/viewer_pictures.py [URL]

It segments a vertebral body of the real CT and of the real MR of the sample data, which it finds in
their label maps.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import requests
from ohif_page import FLAGS
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from scipy.ndimage import distance_transform_edt
from viewer_page import PromptViewer

REPOSITORY = Path(__file__).resolve().parents[2]
LABELS = REPOSITORY / "sample-data" / "build" / "labels"
IMAGES = REPOSITORY / "docs" / "images"

WINDOW = {"width": 1280, "height": 640}

SCANS = ("ct_spine", "mr_spine")

CLICKS = 4

COLOURS = 128

NAME = "vertebral bodies"


def main(server_url: str, labels: Path = LABELS) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        for image in SCANS:
            take(browser, server_url, image, labels / f"{image}.nii.gz")
        browser.close()


def take(browser: Browser, server_url: str, image: str, label: Path) -> None:
    """Open a scan, click on its largest structure CLICKS times, and keep a picture."""
    context = browser.new_context(viewport=WINDOW)
    viewer = PromptViewer(context.new_page())
    viewer.open(server_url, study_uid(server_url, image))
    viewer.button("New structure")
    viewer.page.get_by_label("Name of the structure").fill(NAME)
    viewer.page.keyboard.press("Enter")
    viewer.choose(NAME)
    stored = nibabel.load(label)
    target = largest(np.asarray(stored.dataobj))
    mask = np.zeros_like(target)
    for _ in range(CLICKS):
        voxel, include = next_click(target, mask, stored.header.get_zooms())
        place = to_lps(stored.affine, voxel)
        reply = viewer.press("mpr-axial", place, how="left" if include else "ctrl")
        assert reply.status == 200, reply.text()
        mask = drawn(viewer, stored)
    dice = 2 * (mask & target).sum() / (mask.sum() + target.sum())
    print(f"{image}: Dice {dice:.2f} after {CLICKS} clicks")
    viewer.show(to_lps(stored.affine, deepest(target, stored.header.get_zooms())))
    viewer.page.mouse.move(5, 5)
    viewer.page.wait_for_timeout(2500)  # messages and the pointer's traces go
    picture = Image.open(io.BytesIO(viewer.page.screenshot())).convert("RGB")
    # MAXCOVERAGE keeps the small areas' colours, which tell the structures apart
    picture = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    picture.save(IMAGES / f"viewer-{image.partition('_')[0]}.png", optimize=True)
    context.close()


def largest(labels: np.ndarray) -> np.ndarray:
    """Return the largest structure (I, J, K) bool of a label map."""
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    return labels == values[counts.argmax()]


def next_click(
    target: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, ...]
) -> tuple[tuple[int, ...], bool]:
    """Return the voxel deepest inside the larger error, and whether to include it."""
    missing, excess = target & ~mask, mask & ~target
    error = missing if missing.sum() >= excess.sum() else excess
    return deepest(error, spacing_mm), error is missing


def deepest(region: np.ndarray, spacing_mm: tuple[float, ...]) -> tuple[int, ...]:
    depth_mm = distance_transform_edt(np.pad(region, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return tuple(int(i) for i in np.unravel_index(depth_mm.argmax(), region.shape))


def to_lps(affine: np.ndarray, voxel: tuple[int, ...]) -> list[float]:
    right, anterior, superior = (affine @ (*voxel, 1))[:3]
    return [-float(right), -float(anterior), float(superior)]


def drawn(viewer: PromptViewer, stored: nibabel.Nifti1Image) -> np.ndarray:
    """Return what the viewer shows, (I, J, K) bool on the stored grid."""
    labels, affine_lps = viewer.labelmap()
    places = np.argwhere(labels) @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    to_voxel = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ stored.affine)
    voxels = np.rint(places @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
    mask = np.zeros(stored.shape, bool)
    mask[tuple(voxels.T)] = True
    return mask


def study_uid(server_url: str, image: str) -> str:
    query = {"PatientID": image}
    (study,) = requests.get(f"{server_url}/dicom-web/studies", query, timeout=30).json()
    return study["0020000D"]["Value"][0]


if __name__ == "__main__":
    arguments = sys.argv[1:] or ["http://127.0.0.1:8000"]
    main(arguments[0], *map(Path, arguments[1:2]))
