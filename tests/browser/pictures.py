"""Take the pictures of docs/ohif.md from a real run: start `make ohif`, then

    PYTHONPATH=sample-data:tools:tests .venv/bin/python tests/browser/pictures.py [URL]

It clicks on the liver of the sample torso, which it finds in the exact labels.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import requests
from ohif_page import FLAGS, Viewer, open_viewer
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from scipy.ndimage import distance_transform_edt

REPOSITORY = Path(__file__).resolve().parents[2]
LABELS = REPOSITORY / "sample-data" / "build" / "labels" / "ct_torso.nii.gz"
IMAGES = REPOSITORY / "docs" / "images"
LIVER, KIDNEY_RIGHT = 4, 6


def main(server_url: str) -> None:
    liver_lps, kidney_lps = deepest_lps(LIVER), deepest_lps(KIDNEY_RIGHT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        page = browser.new_page(viewport={"width": 1400, "height": 500})
        page.goto(f"{server_url}/ohif/")
        page.get_by_text("CT").first.wait_for()
        page.wait_for_timeout(2000)
        keep(page, "ohif-studies")
        with open_viewer(browser, server_url, study_uid(server_url)) as viewer:
            take(viewer, liver_lps, kidney_lps)
        browser.close()


def take(viewer: Viewer, liver_lps: list[float], kidney_lps: list[float]) -> None:
    viewer.page.set_viewport_size({"width": 1400, "height": 760})
    viewer.page.wait_for_timeout(4000)  # until the message "connected" is gone
    keep(viewer.page, "ohif-connected")
    viewer.choose("organ")
    viewer.press_run()
    viewer.wait_for_popup("there is no click")
    keep(viewer.page, "ohif-message")
    viewer.page.wait_for_timeout(15000)  # until the message is gone
    viewer.click("mpr-axial", liver_lps)
    viewer.press_run()
    viewer.wait_for_popup("The mask is there")
    keep(viewer.page, "ohif-click")

    viewer.choose("background")
    viewer.click("mpr-axial", kidney_lps)
    viewer.choose("organ")
    viewer.show(liver_lps)
    viewer.click("mpr-axial", [liver_lps[0] + 12, liver_lps[1] - 20, liver_lps[2]])
    viewer.press_run()
    keep(viewer.page, "ohif-refined")


def deepest_lps(label: int) -> list[float]:
    """Return the point of a structure that is farthest from its surface, in LPS mm."""
    image = nibabel.load(LABELS)
    depth_mm = distance_transform_edt(
        np.asarray(image.dataobj) == label, sampling=image.header.get_zooms()
    )
    voxel = np.unravel_index(np.argmax(depth_mm), depth_mm.shape)
    right, anterior, superior = (image.affine @ (*voxel, 1))[:3]
    return [-right, -anterior, superior]


def study_uid(server_url: str) -> str:
    (study,) = requests.get(f"{server_url}/proxy/dicom/qido/studies", timeout=30).json()
    return study["0020000D"]["Value"][0]


def keep(page: Page, name: str) -> None:
    """Save a picture of the page in 256 colours, which takes a third of the bytes."""
    page.wait_for_timeout(1000)  # popups move
    IMAGES.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256)
    picture.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["http://127.0.0.1:8000"]))
